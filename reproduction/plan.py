"""How long runs will take, from a few steps of each kind."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from reproduction.grid import Experiment
from reproduction.results import Outcome, task_of
from reproduction.runner import Study, call, script_of
from tasks.sonnets import read_sonnets
from training.interrupt import StopRequest

ROWS = 32  # that a kind of run is tried on


@dataclass
class Costs:
    """Seconds.

    Attributes:
        once: for what a run does once, such as loading the model and writing sonnets.
        train: an example trained on.
        evaluate: an example evaluated.
    """

    once: float
    train: float
    evaluate: float


def expected_seconds(study: Study, pending: Sequence[Outcome], stop: StopRequest) -> dict[Experiment, float]:
    """What a run of each experiment takes if no early stopping ends it.

    Raises:
        Interrupted: the user asked to stop.
    """
    costs: dict[tuple, Costs] = {}
    rows: dict[str, tuple[int, int, int]] = {}
    seconds = {}
    for experiment in dict.fromkeys(outcome.experiment for outcome in pending):
        method = "full" if experiment.method == "last-linear-layer" else experiment.method
        kind = (experiment.dataset, experiment.place, method)
        stop.check()
        if kind not in costs:
            costs[kind] = _try(study, experiment)
        if experiment.dataset not in rows:
            rows[experiment.dataset] = _count(experiment.dataset, study.data_dir)
        cost = costs[kind]
        settings = script_of(experiment.task).parse_flags(study.arguments(experiment, 0, Path()))
        limits = settings["max_train_samples"], settings["max_eval_samples"], settings["max_eval_samples"]
        train, dev, test = (min(n, limit or n) for n, limit in zip(rows[experiment.dataset], limits, strict=True))
        if experiment.task == "sonnet":
            train, dev = round(settings["train_size"] * train), round((1 - settings["train_size"]) * train)
        once = cost.once + cost.evaluate * (dev + test)
        if experiment.method == "last-linear-layer":  # the network reads each text once; epochs of the head cost little
            seconds[experiment] = once + cost.evaluate * train
        else:
            seconds[experiment] = once + settings["epochs"] * (cost.train * train + cost.evaluate * dev)
    return seconds


def _try(study: Study, experiment: Experiment) -> Costs:
    """Trains everything that it trains, on a few rows."""
    with TemporaryDirectory() as folder:
        arguments = study.arguments(experiment, 0, Path(folder))
        arguments += ["--max_train_samples", str(ROWS), "--epochs", "1"]
        if experiment.task == "sentiment":
            arguments += ["--fine_tune_mode", "full-model"]
        if experiment.task != "sonnet":
            arguments += ["--max_eval_samples", str(ROWS)]
        started = time.perf_counter()
        if call(experiment, arguments, Path(folder)):
            return Costs(0.0, 0.0, 0.0)  # the run itself will say why
        wall = time.perf_counter() - started
        (line,) = Outcome(experiment, 0, Path(folder)).epochs
    trained, evaluated, _ = (min(n, ROWS) for n in _count(experiment.dataset, study.data_dir))
    if experiment.task == "sonnet":
        share = script_of(experiment.task).parse_flags(arguments)["train_size"]
        trained, evaluated = max(1, round(share * trained)), max(1, round((1 - share) * trained))
    once = wall - line["train_seconds"] - line["eval_seconds"]
    return Costs(once, line["train_seconds"] / trained, line["eval_seconds"] / evaluated)


def _count(dataset: str, data_dir: str) -> tuple[int, int, int]:
    """Rows of train, dev and test; of sonnets, those to learn from and validate on come first, together."""
    if dataset == "sonnets":
        return len(read_sonnets(Path(data_dir) / "sonnets.txt").poems), 0, 0
    task = task_of(dataset, data_dir)
    return tuple(len(task.read(split).ids) for split in ("train", "dev", "test"))
