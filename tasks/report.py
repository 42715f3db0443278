"""From a classification task to its run, its prediction files, its table and its card: what the scripts share."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from config import InputError
from models.hub import refuse_bad_name, upload
from tasks.card import Metric, Scores, print_summary, write_card
from tasks.classification import Split, accuracy_and_f1
from tasks.table import write_predictions
from training.finetune import Trained, fine_tune
from training.flags import method_name
from training.interrupt import StopRequest
from training.ranks import on_first, together
from training.run import locked


def make_folder(settings: dict, flag: str) -> None:
    """Finds out now, not after training, that there is nowhere to write."""
    if settings[flag] == "":
        raise InputError(f"--{flag} is empty; name a folder, or leave it out")
    try:
        str(settings[flag]).encode()  # safetensors takes no other names
        Path(settings[flag]).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"--{flag} {settings[flag]}: {getattr(error, 'strerror', error)}") from error


def make_folders(settings: dict) -> None:
    """Finds out now that there is nowhere to write, or to upload to."""
    make_folder(settings, "output_dir")
    make_folder(settings, "predictions_dir")
    if settings["push_to_hub"] is not None:
        refuse_bad_name(settings["push_to_hub"])


def refuse_folder(path: Path) -> None:
    """Raises InputError if a folder is in the place of a file that is going to be written."""
    if path.is_dir():
        raise InputError(f"{path}: is a directory, where predictions would be written; move it, or name another folder")


def read_splits(task, settings: dict) -> dict[str, Split]:
    """All three files of a task, cut to what the flags ask for."""
    limit = settings["max_eval_samples"]
    train = task.read("train").sample(settings["max_train_samples"])
    return {"train": train, "dev": task.read("dev").first(limit), "test": task.read("test").first(limit)}


def run_task(task, settings: dict, prediction_file: str, stop: StopRequest, parent: str = "runs") -> None:
    """Reads a task's files, trains and reports.

    Args:
        task: as `train_and_report` takes it.
        settings: the script's flags.
        prediction_file: the name of one, with `{}` for `dev` or `test`.
        parent: of the run's folder, where `--output_dir` names none.
    """
    method = method_name(settings)
    settings["output_dir"] = settings["output_dir"] or f"{parent}/{task.name}-{model_name(settings)}-{method}"
    with together():
        make_folders(settings)
        splits = read_splits(task, settings)
    folder = Path(settings["output_dir"])
    train_and_report(task, splits, folder, method, prediction_file.format, settings, stop)


def train_and_report(
    task,
    splits: dict[str, Split],
    folder: Path,
    method: str,
    prediction_file: Callable[[str], str],
    settings: dict,
    stop: StopRequest,
    more_to_come: int = 0,
) -> None:
    """Trains, writes predictions, prints the table.

    Args:
        task: a `training.finetune.Task` that also has a `name`, a `prediction_column`, `fit_baselines` and
            `written(predictions)`, what the prediction file says for each.
        folder: the run's.
        method: what the table calls the way it was trained.
        prediction_file: the name of the file for `dev` or `test`.
        more_to_come: runs like it that follow.
    """
    train, model = splits["train"], model_name(settings)
    sizes = ", ".join(f"{len(split.ids)} {name}" for name, split in splits.items())
    print(f"{task.name}: {sizes} rows, {model}, {method}", flush=True)

    for name in ("dev", "test"):
        refuse_folder(Path(settings["predictions_dir"]) / prediction_file(name))
    with locked(folder):
        result = fine_tune(folder, task, splits, settings, stop, more_to_come=more_to_come)
        predicted = {name: result.predict(name).argmax(axis=1) for name in ("dev", "test")}

        def write_and_compare() -> None:
            for name, predictions in predicted.items():
                path = Path(settings["predictions_dir"]) / prediction_file(name)
                write_predictions(path, task.prediction_column, splits[name].ids, task.written(predictions))
            methods = {
                name: {split: baseline.predict(splits[split].texts) for split in predicted}
                for name, baseline in task.fit_baselines(train.texts, train.labels).items()
            }
            own = f"{model}, {method}, epoch {result.epoch} of {result.epochs}"
            scores = score_all({name: splits[name].labels for name in predicted}, methods | {own: predicted})
            print_table(task.name, scores)
            sizes = {name: len(split.ids) for name, split in splits.items()}
            tables = [_card_table(split, rows) for split, rows in scores.items()]
            metrics = [m for split, rows in scores.items() for m in _card_metrics(split, rows[own])]
            write_card(result, f"{task.name}-{model}-{method}", model, sizes, tables, metrics, settings)
            dev = scores["dev"]
            others = "; ".join(f"{name} {rates.acc:.3f}" for name, rates in dev.items() if name != own)
            print_summary(result, f"dev accuracy {dev[own].in_words()}; {others}")
            push(result, settings)

        on_first(write_and_compare)


def push(trained: Trained, settings: dict) -> None:
    """Puts the model on the Hub, where the user wants that."""
    if settings["push_to_hub"] is not None:
        print(f"the model is {upload(trained.run / 'best', settings['push_to_hub'])}", flush=True)


def model_name(settings: dict) -> str:
    """What a run's folder and the tables call the model; the model of a run, `RUN/best`, goes by the run's name."""
    if not settings["model_path"]:
        return settings["model_size"]
    path = Path(os.path.realpath(settings["model_path"]))
    return path.parent.name if path.name == "best" else path.name


@dataclass
class Rates:
    """Of n rows: the share that was right, its 95 % interval (Wilson 1927), and the mean of the classes' F1."""

    acc: float
    f1: float
    low: float
    high: float

    def in_words(self) -> str:
        return f"{self.acc:.3f} (95 % interval {self.low:.3f} to {self.high:.3f})"


def score_all(labels: dict[str, list], methods: dict) -> dict[str, dict[str, Rates]]:
    """Each method on each split whose rows have labels."""
    scores = {}
    for split, known in labels.items():
        rows = [i for i, label in enumerate(known) if label is not None]
        if rows:
            truth = np.array([known[i] for i in rows])
            scores[split] = {method: _rates(truth, predicted[split][rows]) for method, predicted in methods.items()}
    return scores


def _rates(truth: np.ndarray, predictions: np.ndarray) -> Rates:
    right = int((truth == predictions).sum())
    low, high = binomtest(right, len(truth)).proportion_ci(method="wilson")
    return Rates(**accuracy_and_f1(truth, predictions), low=float(low), high=float(high))


def _card_table(split: str, rows: dict[str, Rates]) -> Scores:
    cells = {
        name: [f"{rates.acc:.3f}", f"{rates.low:.3f} to {rates.high:.3f}", f"{rates.f1:.3f}"]
        for name, rates in rows.items()
    }
    return Scores(split, ["accuracy", "95 % interval", "macro-F1"], cells)


def _card_metrics(split: str, rates: Rates) -> list[Metric]:
    return [Metric("accuracy", "accuracy", rates.acc, split), Metric("f1", "macro-F1", rates.f1, split)]


def print_table(title: str, scores: dict[str, dict[str, Rates]]) -> None:
    """Accuracy and macro-F1 of each method on dev, and on test where its rows have labels."""
    methods = list(scores["dev"])
    width = max(map(len, methods))
    print(f"{title:{width}}" + "".join(f"  {split + ' acc':>8}  {split + ' F1':>8}" for split in scores))
    for method in methods:
        rates = (scores[split][method] for split in scores)
        print(f"{method:{width}}" + "".join(f"  {one.acc:8.3f}  {one.f1:8.3f}" for one in rates))
