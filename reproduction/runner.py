"""Running what has not been run: which runs these are, and each of them, whatever becomes of the others."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from config import InputError
from models.files import sha256, write_text
from models.pretrained import locate
from reproduction.grid import Experiment
from reproduction.results import Outcome
from training.interrupt import Interrupted, StopRequest
from training.run import WHERE

SCRIPTS = {"sentiment": "classifier", "paraphrase": "paraphrase_detection", "sonnet": "sonnet_generation"}
FILES = {  # that a run's result follows from, besides its flags and weights
    **{name: [f"ids-{name}-{split}.csv" for split in ("train", "dev", "test-student")] for name in ("sst", "cfimdb")},
    "quora": [f"quora-{split}.csv" for split in ("train", "dev", "test-student")],
    "sonnets": ["sonnets.txt", "sonnets_held_out_dev.txt", "TRUE_sonnets_held_out_dev.txt", "sonnets_held_out.txt"],
}
DONE, FAILED = "done.json", "failed.txt"
POLL = 1.0  # seconds between two looks at how far the run under way is


class Study:
    """All runs of some experiments, each in a folder of its own.

    Args:
        runs: where these folders are made.
        experiments: what is run.
        seeds: a run each.
        data_dir: the course's files.
        train: whether runs that are missing will be made; if not, neither need the weights be here.
    """

    def __init__(
        self, runs: Path, experiments: Sequence[Experiment], seeds: Sequence[int], data_dir: str, train: bool = True
    ):
        self.runs, self.experiments, self.seeds = runs, experiments, seeds
        self.data_dir, self.train = data_dir, train
        self._known_files: dict[Path, str] = {}
        self._known_weights: dict[str, dict[str, str]] = {}

    def outcomes(self) -> list[Outcome]:
        """Of every run, or why there is none."""
        return [self._outcome(experiment, seed) for experiment in self.experiments for seed in self.seeds]

    def _outcome(self, experiment: Experiment, seed: int) -> Outcome:
        """Wherever below the folder of the runs it lies, such as in another machine's that was copied there."""
        folder = self.runs / f"{experiment.name}-seed{seed}"
        failed = folder / FAILED
        problem = failed.read_text(encoding="utf-8").strip() if failed.is_file() else "not run"
        for done in sorted(self.runs.rglob(f"{folder.name}/{DONE}")):
            problem = self._difference(experiment, seed, json.loads(done.read_text(encoding="utf-8")))
            if not problem:
                return Outcome(experiment, seed, done.parent)
        return Outcome(experiment, seed, folder, problem)

    def _difference(self, experiment: Experiment, seed: int, saved: dict) -> str:
        """What a run was made with that is not what is asked for now; nothing, if all is the same."""
        for kind, wanted in self._identity(experiment, seed).items():
            before = saved.get(kind, {})
            for name in sorted(before.keys() | wanted.keys()) if wanted else ():
                if before.get(name) != wanted.get(name):
                    return f"made with another {name}"
        return ""

    def _identity(self, experiment: Experiment, seed: int) -> dict[str, dict]:
        """What a run's result follows from: flags, data and weights."""
        flags = script_of(experiment.task).parse_flags(self.arguments(experiment, seed, Path()))
        settings = {name: value for name, value in flags.items() if name not in WHERE}
        data = {name: self._hash(Path(self.data_dir) / name) for name in FILES[experiment.dataset]}
        identity = {"settings": settings, "data": data}
        return identity | ({"weights": self._weights(flags)} if self.train else {})

    def _weights(self, flags: dict) -> dict[str, str]:
        """Hashes by file; none where they are out of reach, and what was trained from them stands."""
        model = flags["model_path"] or flags["model_size"]
        if model not in self._known_weights:
            try:
                files = sorted(locate(model).glob("*.safetensors"))
            except InputError:
                files = []
            self._known_weights[model] = {path.name: sha256(path) for path in files}
        return self._known_weights[model]

    def _hash(self, path: Path) -> str:
        if path not in self._known_files:
            self._known_files[path] = sha256(path) if path.is_file() else ""
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
        """
        total = sum(expected[one.experiment] for one in pending)
        form = "{percentage:3.0f}% |{bar}| {elapsed} < {remaining}  {desc}"
        with tqdm(total=total, bar_format=form, disable=None, file=sys.stderr) as bar:
            before = 0.0
            for number, outcome in enumerate(pending, 1):
                bar.set_description_str(f"run {number} of {len(pending)}: {outcome.folder.name}")
                seconds = expected[outcome.experiment]
                with _moving(bar, before, outcome.folder, seconds):
                    self._run(outcome)
                stop.check()
                before += seconds
                bar.n = before
                bar.refresh()

    def _run(self, outcome: Outcome) -> None:
        folder = outcome.folder
        for old in (DONE, FAILED):
            (folder / old).unlink(missing_ok=True)
        code = call(outcome.experiment, [*self.arguments(outcome.experiment, outcome.seed, folder), "--resume"], folder)
        if code == 2:  # what is there may have been made with other settings
            code = call(outcome.experiment, self.arguments(outcome.experiment, outcome.seed, folder), folder)
        if code:
            last = (folder / "log.txt").read_text(encoding="utf-8").strip().splitlines()[-1]
            write_text(folder / FAILED, f"failed: {last}\n")
        else:
            write_text(folder / DONE, json.dumps(self._identity(outcome.experiment, outcome.seed), indent=2) + "\n")


def script_of(task: str):
    """The module of a task's script."""
    return importlib.import_module(SCRIPTS[task])


def call(experiment: Experiment, arguments: list[str], folder: Path) -> int:
    """Runs an experiment's script in this process, with what it prints added to `log.txt` in the folder.

    Returns:
        Its exit code; 1 too if it ends in a traceback, which is in the log.

    Raises:
        Interrupted: the user asked it to stop.
    """
    with output_to(folder):
        try:
            code = script_of(experiment.task).main(arguments)
        except Exception:  # a fault of one run must not cost the others
            traceback.print_exc()
            code = 1
    if code > 128:
        raise Interrupted(code - 128)
    return code


@contextlib.contextmanager
def output_to(folder: Path) -> Iterator[None]:
    """Within it, what is printed is added to `log.txt` in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    log = (folder / "log.txt").open("a", encoding="utf-8")
    with log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield


@contextlib.contextmanager
def _moving(bar: tqdm, before: float, folder: Path, seconds: float) -> Iterator[None]:
    """Within it, the bar moves with the epochs that the run in `folder` has logged."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL):
            for metrics in folder.glob("*/metrics.jsonl"):
                settings = json.loads((metrics.parent / "config.json").read_text(encoding="utf-8"))["settings"]
                epochs = sum(not line.startswith('{"epoch": 0,') for line in metrics.open(encoding="utf-8"))
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
