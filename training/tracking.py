"""What watches a run while it trains: TensorBoard's event files in its folder and, where the user wants it, Weights &
Biases or Trackio. All get the same numbers, by optimizer steps since the start of training."""

from __future__ import annotations

import importlib
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from config import InputError
from models.files import write_text
from training import ranks
from training.run import EVENTS, TRACKED_AS, Run

PROJECT = "gpt2-fine-tuning"
EVERY = 10  # steps between two numbers of training


def refuse_missing(name: str | None) -> None:
    """Raises InputError if the library that `--track` names is not there."""
    if name:
        ranks.on_first(lambda: bool(_library(name)))


def _library(name: str) -> ModuleType:
    try:
        library = importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"--track {name}: {error}; pip install {name}, or leave it out") from error
    if not hasattr(library, "init"):  # a folder of that name, such as the one it makes where it runs
        raise InputError(f"--track {name}: not installed; pip install {name}, or leave it out")
    return library


class Tracker:
    """Takes numbers while it is entered; of several processes, the first writes them.

    Args:
        run: an event file is made in its folder, with the first numbers.
        settings: the script's flags, `track` among them.
        first: the first step whose numbers are still to come. What an earlier process wrote from there on is void.
    """

    def __init__(self, run: Run, settings: dict, first: int):
        self.run, self.settings, self.name = run, settings, settings["track"]
        self.events = EventFile(run.path / f"{EVENTS}{time.time_ns()}", first)
        self.library: ModuleType | None = None  # once it knows of the run

    def __enter__(self) -> Tracker:
        """Raises InputError if the library refuses, as without a login."""
        if self.name:
            ranks.on_first(self._connect)
        return self

    def __exit__(self, error: type | None, *_) -> None:
        failed = {"exit_code": 1} if error and self.name == "wandb" else {}
        self._tell(lambda library: library.finish(**failed))

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Passes on the numbers of a step.

        Raises:
            OSError: the event file cannot be written; it names the file.
        """

        def write() -> None:
            self.events.write(step, numbers)
            self._tell(lambda library: library.log(numbers, step=step))

        ranks.on_first(write)

    def _connect(self) -> None:
        file, name = self.run.path / TRACKED_AS, self.run.path.resolve().name
        if not file.is_file():
            write_text(file, uuid.uuid4().hex[:8] + "\n")
        number = file.read_text(encoding="utf-8", errors="replace").strip()
        own = {"name": f"{name}-{number}"}  # by which Trackio knows it again
        if self.name == "wandb":
            own = {"id": number, "name": name, "dir": str(self.run.path), "allow_val_change": True}
        library = _library(self.name)
        try:
            library.init(project=PROJECT, config=self.settings, resume="allow", **own)
        except Exception as error:  # the library is the user's choice, and may raise anything
            raise InputError(f"--track {self.name}: {str(error) or type(error).__name__}") from error
        self.library = library

    def _tell(self, what: Callable[[ModuleType], object]) -> None:
        """Training is worth more than who watches it: what fails is said, and then the library is left alone."""
        if self.library:
            try:
                what(self.library)
            except Exception as error:  # as above
                self.library = None
                reason = " ".join(str(error).split()) or type(error).__name__
                print(f"--track {self.name}: {reason}; going on without it", file=sys.stderr, flush=True)


class EventFile:
    """Numbers for TensorBoard. A process that goes on with a run makes a file of its own, and TensorBoard reads them in
    the order of their names: what was half written when the last process died does not spoil what comes after.

    `torch.utils.tensorboard` would write from a thread, whose traceback nobody catches when the disk is full, and
    import TensorFlow where it is installed.

    Args:
        path: a new file, made with the first numbers.
        first: what older files hold of this step and later ones is void.
    """

    def __init__(self, path: Path, first: int):
        self.path, self.first = path, first

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Adds numbers, and leaves them where other processes see them.

        Raises:
            OSError: they cannot be written; it names the file.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        now = time.time()
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        events = [Event(wall_time=now, step=step, summary=Summary(value=values))]
        if not self.path.exists():
            start = SessionLog(status=SessionLog.START)
            events.insert(0, Event(wall_time=now, file_version="brain.Event:2"))
            events.insert(1, Event(wall_time=now, step=self.first, session_log=start))
        try:
            with self.path.open("ab") as file:
                for event in events:
                    RecordWriter(file).write(event.SerializeToString())
        except OSError as error:
            error.filename = error.filename or str(self.path)
            raise
