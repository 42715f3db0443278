"""Running what has not been run: which runs these are, and each of them, whatever becomes of the others."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from config import InputError, read_json, refuse_special
from models.files import sha256, write_text
from reproduction.grid import Experiment
from reproduction.results import Outcome
from tasks.table import reading
from training import ranks
from training.interrupt import Interrupted, StopRequest
from training.network import find_source
from training.run import WHERE

SCRIPTS = {"sentiment": "classifier", "paraphrase": "paraphrase_detection", "sonnet": "sonnet_generation"}
FILES = {  # that a run's result follows from, besides its flags and weights
    **{name: [f"ids-{name}-{split}.csv" for split in ("train", "dev", "test-student")] for name in ("sst", "cfimdb")},
    "quora": [f"quora-{split}.csv" for split in ("train", "dev", "test-student")],
    "sonnets": ["sonnets.txt", "sonnets_held_out_dev.txt", "TRUE_sonnets_held_out_dev.txt", "sonnets_held_out.txt"],
}
BEGUN, DONE, FAILED = "begun.json", "done", "failed.txt"
POLL = 1.0  # seconds between two looks at how far the run under way is


class Study:
    """All runs of some experiments, each in a folder of its own.

    Args:
        runs: where these folders are made.
        experiments: what is run.
        seeds: a run each.
        data_dir: the course's files.
        train: whether runs that are missing will be made; if not, the weights need not be here.
    """

    def __init__(
        self, runs: Path, experiments: Sequence[Experiment], seeds: Sequence[int], data_dir: str, train: bool = True
    ):
        self.runs, self.experiments, self.seeds = runs, experiments, seeds
        self.data_dir, self.train = data_dir, train
        self._known_files: dict[Path, str] = {}
        self._known_weights: dict[tuple, dict[str, str]] = {}

    def outcomes(self) -> list[Outcome]:
        """Of every run, or why there is none.

        Raises:
            InputError: a data file is missing, or weights to train from are.
        """
        return [self._outcome(experiment, seed) for experiment in self.experiments for seed in self.seeds]

    def _outcome(self, experiment: Experiment, seed: int) -> Outcome:
        """Wherever below the folder of the runs it lies, such as in another machine's that was copied there."""
        folder = self.runs / f"{experiment.name}-seed{seed}"
        failed = folder / FAILED
        problem = "not run"
        if failed.is_file():
            problem = " ".join(failed.read_text(encoding="utf-8", errors="replace").split())
        for done in sorted(self.runs.rglob(f"{folder.name}/{DONE}")):
            outcome = Outcome(experiment, seed, done.parent)
            problem = self._difference(experiment, seed, done.parent) or outcome.damage()
            if not problem:
                return outcome
        return Outcome(experiment, seed, folder, problem)

    def _difference(self, experiment: Experiment, seed: int, folder: Path) -> str:
        """What a run was made with that is not what is asked for now; nothing, if all is the same."""
        saved = _begun(folder)
        for kind, wanted in self._identity(experiment, seed).items():
            before = saved.get(kind, {})
            for name in sorted(before.keys() | wanted.keys()):
                if before.get(name) != wanted.get(name):
                    return f"made with another {name}"
        return ""

    def _identity(self, experiment: Experiment, seed: int) -> dict[str, dict]:
        """What a run's result follows from: flags, data and, where they are needed or within reach, weights."""
        flags = script_of(experiment.task).parse_flags(self.arguments(experiment, seed, Path()))
        settings = {name: value for name, value in flags.items() if name not in WHERE}
        data = {name: self._hash(Path(self.data_dir) / name) for name in FILES[experiment.dataset]}
        weights = self._weights(flags)
        return {"settings": settings, "data": data} | ({"weights": weights} if weights else {})

    def _weights(self, flags: dict) -> dict[str, str]:
        """Hashes by file."""
        model = (flags["model_path"], flags["model_size"])
        if model not in self._known_weights:
            try:
                self._known_weights[model] = find_source(flags).hashes()
            except InputError:
                if self.train:
                    raise
                self._known_weights[model] = {}
        return self._known_weights[model]

    def _hash(self, path: Path) -> str:
        if path not in self._known_files:
            with reading(path):
                self._known_files[path] = sha256(path)
        return self._known_files[path]

    def arguments(self, experiment: Experiment, seed: int, folder: Path) -> list[str]:
        """The flags of a run into `folder`."""
        run = folder if experiment.task == "sentiment" else folder / "run"  # classifier.py names its run itself
        where = ["--output_dir", str(run), "--predictions_dir", str(folder / "predictions")]
        return [*experiment.flags, "--seed", str(seed), "--data_dir", self.data_dir, *where]

    def execute(self, pending: Sequence[Outcome], expected: dict[Experiment, float], stop: StopRequest) -> None:
        """Runs them one after another. One that fails is noted in its folder, and the next is run.

        Args:
            pending: the runs that have no result.
            expected: seconds that a run takes.

        Raises:
            Interrupted: the user asked to stop; called again, it goes on with the same run.
            InputError: a folder that is in the way of a run, and not one's.
        """
        for outcome in pending:
            if not _is_ours(outcome.folder):
                raise InputError(f"{outcome.folder}: is not a run's, or its {BEGUN} is damaged; move it out of the way")
        total = sum(expected[one.experiment] for one in pending)
        form = "{percentage:3.0f}% |{bar}| {elapsed} < {remaining}  {desc}"
        pending = sorted(pending, key=lambda one: _begun(one.folder)["attempts"])  # what ends the process comes last
        with tqdm(total=total, bar_format=form, disable=None, file=sys.stderr) as bar:
            before = 0.0
            for number, outcome in enumerate(pending, 1):
                stop.check()
                bar.set_description_str(f"run {number} of {len(pending)}: {outcome.folder.name}")
                seconds = expected[outcome.experiment]
                with _moving(bar, before, outcome.folder, seconds):
                    self._run(outcome)
                before += seconds
                bar.n = before
                bar.refresh()

    def _run(self, outcome: Outcome) -> None:
        folder, experiment = outcome.folder, outcome.experiment
        if self._difference(experiment, outcome.seed, folder) and folder.exists():
            shutil.rmtree(folder)
        for old in (DONE, FAILED):
            (folder / old).unlink(missing_ok=True)
        begun = self._identity(experiment, outcome.seed) | {"attempts": _begun(folder)["attempts"] + 1}
        write_text(folder / BEGUN, json.dumps(begun, indent=2) + "\n")
        arguments = self.arguments(experiment, outcome.seed, folder)
        code = call(experiment, [*arguments, "--resume"], folder)
        if code == 2:  # what is there may be damaged
            code = call(experiment, arguments, folder)
        if code:
            log = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip()
            write_text(folder / FAILED, f"failed: {log.splitlines()[-1] if log else f'exit code {code}'}\n")
        else:
            write_text(folder / DONE, "")


def _begun(folder: Path) -> dict:
    """What the run in a folder was begun with, and how often."""
    try:
        begun = {"attempts": 0} | read_json(folder / BEGUN)
    except (InputError, TypeError):
        return {"attempts": 0}
    attempts = begun.pop("attempts")
    whole = isinstance(attempts, int) and all(isinstance(kind, dict) for kind in begun.values())
    return begun | {"attempts": attempts} if whole else {"attempts": 0}


def _is_ours(folder: Path) -> bool:
    """Whether a run may have made it: it is one's, or there is nothing in it but the beginning of a file."""
    if not os.path.lexists(folder) or len(_begun(folder)) > 1:
        return True
    return folder.is_dir() and not any(not path.name.startswith(f".{BEGUN}.") for path in folder.iterdir())


def script_of(task: str):
    """The module of a task's script."""
    return importlib.import_module(SCRIPTS[task])


def call(experiment: Experiment, arguments: list[str], folder: Path) -> int:
    """Runs an experiment's script in this process, with what it prints added to `log.txt` in the folder.

    Where torchrun started several processes, the others follow.

    Returns:
        Its exit code; 1 too if it ends in a traceback, which is in the log.

    Raises:
        Interrupted: the user asked it to stop.
    """
    ranks.shared((experiment.task, arguments))
    with output_to(folder):
        try:
            code = script_of(experiment.task).main(arguments)
        except Exception:  # a fault of one run must not cost the others
            traceback.print_exc()
            code = 1
    ranks.meet()
    if code > 128:
        raise Interrupted(code - 128)
    return code


def follow() -> None:
    """What the other processes do while the first decides: take part in every run that it calls."""
    while (cue := ranks.shared(None)) is not None:
        task, arguments = cue
        script_of(task).main(arguments)
        ranks.meet()


@contextlib.contextmanager
def lead() -> Iterator[None]:
    """Within it, the first process may call runs, which the others follow; after it, they are let go."""
    try:
        yield
    except RuntimeError:  # they are lost
        raise
    except Exception:
        ranks.shared(None)
        raise
    ranks.shared(None)


@contextlib.contextmanager
def output_to(folder: Path) -> Iterator[None]:
    """Within it, what is printed is added to `log.txt` in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "log.txt"
    if os.path.lexists(path):
        refuse_special(path)
    log = path.open("a", encoding="utf-8")
    with log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield


@contextlib.contextmanager
def _moving(bar: tqdm, before: float, folder: Path, seconds: float) -> Iterator[None]:
    """Within it, the bar moves with the epochs that the run in `folder` has logged."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # it may be starting afresh
                for metrics in folder.glob("*/metrics.jsonl"):
                    settings = json.loads((metrics.parent / "config.json").read_text(encoding="utf-8"))["settings"]
                    lines = metrics.read_text(encoding="utf-8").splitlines()
                    epochs = sum(not line.startswith('{"epoch": 0,') for line in lines)
                    bar.n = before + seconds * epochs / settings["epochs"]
                bar.refresh()

    thread = threading.Thread(target=watch, daemon=True)
    if not bar.disable:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if thread.is_alive():
            thread.join()
