"""What watches a run: TensorBoard's events, Weights & Biases or Trackio, and the line in a terminal."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import re
import struct
import sys
import termios
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import pytest
import tqdm
from conftest import read_events
from tensorboard.summary.writer.record_writer import RecordWriter
from test_pretrain import SMALL, call, corpus
from test_training import StopAfter, assert_same_run, train

import classifier
import pretrain
from config import InputError
from training.interrupt import Interrupted
from training.run import EVENTS
from training.tracking import Tracker
from training.update import Update

SHORT = dict(batch_size=2, epochs=2)
STEPS = 30  # of an epoch; the tenth and the twentieth are told of, and the last has the epoch's numbers
RATE = 3e-3


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def in_float32(step: int, numbers: dict) -> list[tuple[str, int, float]]:
    """As `read_events` has it."""
    return [(tag, step, float(np.float32(n))) for tag, n in numbers.items() if not tag.endswith("_seconds")]


def test_events_are_the_metrics_and_what_the_last_steps_came_to(data_dir, save_stock, tmp_path):
    losses, step = [], Update.__call__

    def note(*args, **kwargs):
        sums, norm = step(*args, **kwargs)
        losses.append(sums[0].item())
        return sums, norm

    with mock.patch.object(Update, "__call__", note):
        result = train(data_dir, save_stock(), tmp_path, **SHORT)
    assert len(losses) == 2 * STEPS
    expected = [event for line in lines(result.run) for event in in_float32(STEPS * line["epoch"], line)]
    for step in (10, 20, 40, 50):
        loss = sum(losses[step - 10 : step]) / 20  # of examples
        expected += in_float32(step, {"train/loss": loss, "train/learning_rate": RATE})
    found = read_events(result.run)
    assert [event[:2] for event in found] == [event[:2] for event in sorted(expected)]
    assert [event[2] for event in found] == pytest.approx([event[2] for event in sorted(expected)], rel=1e-6)


def test_events_of_pretraining_are_its_metrics(tmp_path):
    assert call(corpus(tmp_path / "corpus"), tmp_path / "run", "--tokens", 6000, "--eval_every_steps", 10) == 0
    found = read_events(tmp_path / "run")
    for line in lines(tmp_path / "run"):
        step = line.pop("step")
        assert {event for event in found if event[1] == step and "/" not in event[0]} == {*in_float32(step, line)}
        assert step % 10 or in_float32(step, {"train/loss": line["train_loss"]})[0] in found  # of ten steps
    steps = [step for tag, step, _ in found if tag == "train/loss"]
    assert steps == [*range(10, step + 1, 10)] != [10]
    rates = [rate for tag, _, rate in found if tag == "train/learning_rate"]
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < rates[0] < 0.01


class Died(Exception):
    """In the midst of a run, which saves nothing more."""


def dying(calls: int) -> mock.mock._patch:
    """Within it, a process dies once so many numbers are told."""
    left, log = iter(range(calls - 1)), Tracker.log

    def log_or_die(*args):
        log(*args)
        if next(left, None) is None:
            raise Died

    return mock.patch.object(Tracker, "log", log_or_die)


@pytest.mark.parametrize("every", [7, STEPS])
def test_nothing_appears_twice_after_a_death(data_dir, save_stock, tmp_path, every):
    """At any number told, of which those since the last save are told again."""
    model = save_stock()
    whole = train(data_dir, model, tmp_path / "whole", **SHORT)
    for calls in range(1, 7):
        output = tmp_path / str(calls)
        with dying(calls), pytest.raises(Died):
            train(data_dir, model, output, save_every_steps=every, **SHORT)
        parts = train(data_dir, model, output, save_every_steps=every, resume=True, **SHORT)
        assert_same_run(whole, parts)
        assert read_events(parts.run) == read_events(whole.run), calls


def test_nothing_appears_twice_after_an_interruption(data_dir, save_stock, tmp_path):
    model = save_stock()
    whole = train(data_dir, model, tmp_path / "whole", **SHORT)
    for stop in (11, 40, 0):  # within an epoch, between two numbers of training
        with pytest.raises(Interrupted):
            train(data_dir, model, tmp_path / "parts", resume=True, stop=StopAfter(stop), **SHORT)
    parts = train(data_dir, model, tmp_path / "parts", resume=True, **SHORT)
    assert read_events(parts.run) == read_events(whole.run)
    train(data_dir, model, tmp_path / "parts", resume=True, **SHORT)  # when there is nothing left to do
    assert read_events(parts.run) == read_events(whole.run)


def test_nothing_appears_twice_in_pretraining(tmp_path):
    folder = corpus(tmp_path / "corpus")
    flags = ("--tokens", 6000, "--eval_every_steps", 7, "--save_every_steps", 4)
    assert call(folder, tmp_path / "whole", *flags) == 0
    for calls in (2, 3, 5):
        with dying(calls), pytest.raises(Died):
            call(folder, tmp_path / str(calls), *flags)
        assert call(folder, tmp_path / str(calls), *flags, "--resume") == 0
        assert read_events(tmp_path / str(calls)) == read_events(tmp_path / "whole"), calls


def test_a_half_written_event_costs_that_one_alone(data_dir, save_stock, tmp_path):
    model = save_stock()
    whole = train(data_dir, model, tmp_path / "whole", **SHORT)
    with dying(5), pytest.raises(Died):
        train(data_dir, model, tmp_path / "parts", **SHORT)
    (file,) = (tmp_path / "parts" / "run").glob(f"{EVENTS}*")
    file.write_bytes(file.read_bytes()[:-3])
    assert len(read_events(file.parent)) == len([event for event in read_events(whole.run) if event[1] < 50])
    parts = train(data_dir, model, tmp_path / "parts", resume=True, **SHORT)
    assert read_events(parts.run) == read_events(whole.run)


def test_a_run_that_replaces_another_leaves_its_own_events(data_dir, save_stock, tmp_path):
    model = save_stock()
    train(data_dir, model, tmp_path, **SHORT)
    result = train(data_dir, model, tmp_path, **SHORT | {"epochs": 1})
    assert len([*result.run.glob(f"{EVENTS}*")]) == 1
    assert {step for _, step, _ in read_events(result.run)} == {10, 20, 30}


def arguments(data_dir: Path, model: Path, output: Path, *more: str) -> list[str]:
    """Of `classifier.py`, for a run as above."""
    flags = ["--data_dir", data_dir, "--model_path", model, "--output_dir", output, "--predictions_dir", output / "p"]
    how = f"--dataset sst --fine_tune_mode full-model --batch_size 2 --epochs 2 --lr {RATE} --device cpu"
    return [*map(str, flags), *how.split(), *more]


@pytest.mark.parametrize("failing", [1, 3, 8])
def test_events_that_cannot_be_written_end_the_run_in_one_line_and_it_goes_on(
    data_dir, save_stock, tmp_path, capfd, failing
):
    flags = arguments(data_dir, save_stock(), tmp_path / "run", "--save_every_steps", "7")
    write, left = RecordWriter.write, iter(range(failing - 1))

    def fail(writer, data):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(writer, data)

    with mock.patch.object(RecordWriter, "write", fail):
        assert classifier.main(flags) == 1
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert re.search(r"No space left on device: '.*/events\.out\.tfevents\.\d+'", said)
    assert classifier.main([*flags, "--resume"]) == 0
    (run,) = (path.parent for path in (tmp_path / "run").rglob("metrics.jsonl"))
    assert len(lines(run)) == 2
    found = read_events(run)
    assert len({event[:2] for event in found}) == len(found)
    assert {step for _, step, _ in found} == {10, 20, 30, 40, 50, 60}


class Library(ModuleType):
    """In the place of `wandb` and `trackio`: notes what it is told."""

    def __init__(self, name: str, failing: tuple[str, ...] = ()):
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # others look whether it is installed
        self.told: list[tuple[str, dict]] = []
        for what in ("init", "log", "finish"):
            setattr(self, what, self._noting(what, what in failing))

    def _noting(self, what: str, fails: bool) -> Callable:
        def note(numbers: dict | None = None, **rest) -> None:
            self.told.append((what, rest | ({"numbers": numbers} if numbers else {})))
            if fails:
                raise RuntimeError("no\nnetwork")

        return note

    def of(self, what: str) -> list[dict]:
        return [rest for name, rest in self.told if name == what]


@pytest.fixture
def installed(monkeypatch) -> Callable[..., Library]:
    def install(name: str, *failing: str) -> Library:
        library = Library(name, failing)
        monkeypatch.setitem(sys.modules, name, library)
        return library

    return install


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_library_is_told_the_same_numbers(data_dir, save_stock, tmp_path, installed, name):
    library, model = installed(name), save_stock()
    result = train(data_dir, model, tmp_path, track=name, **SHORT)
    logged = [event for told in library.of("log") for event in in_float32(told["step"], told["numbers"])]
    assert sorted(logged) == read_events(result.run)
    assert [what for what, _ in library.told] == ["init", *["log"] * 6, "finish"]
    (begun,) = library.of("init")
    assert begun["project"] == "gpt2-fine-tuning"
    assert begun["config"]["lr"] == RATE
    assert begun["name"].startswith("run")
    assert library.of("finish") == [{}]
    assert name == "trackio" or begun["dir"] == str(result.run)


@pytest.mark.parametrize(("name", "known_by"), [("wandb", "id"), ("trackio", "name")])
def test_a_library_goes_on_with_a_run_that_is_resumed_and_with_no_other(
    data_dir, save_stock, tmp_path, installed, name, known_by
):
    library, model = installed(name), save_stock()
    with pytest.raises(Interrupted):
        train(data_dir, model, tmp_path, track=name, stop=StopAfter(25), **SHORT)
    assert library.of("finish") == [{"exit_code": 1} if name == "wandb" else {}]
    train(data_dir, model, tmp_path, track=name, resume=True, **SHORT)
    train(data_dir, model, tmp_path, track=name, **SHORT)
    first, resumed, replaced = (begun[known_by] for begun in library.of("init"))
    assert first == resumed != replaced
    assert all(begun["resume"] == "allow" for begun in library.of("init"))
    steps = [told["step"] for told in library.of("log")]
    assert steps == [10, 20, 30, 40, 50, 60] * 2


def test_a_run_may_be_resumed_with_another_library_or_none(data_dir, save_stock, tmp_path, installed):
    model = save_stock()
    with pytest.raises(Interrupted):
        train(data_dir, model, tmp_path, stop=StopAfter(25), **SHORT)
    library = installed("wandb")
    train(data_dir, model, tmp_path, track="wandb", resume=True, **SHORT)
    assert [told["step"] for told in library.of("log")] == [20, 30, 40, 50, 60]


def test_a_library_that_is_not_there_is_named_before_anything_is_replaced(
    data_dir, save_stock, tmp_path, capfd, monkeypatch
):
    folder = ModuleType("wandb")  # Python takes any folder of that name for a package
    folder.__spec__ = ModuleSpec("wandb", None)
    flags = arguments(data_dir, save_stock(), tmp_path / "run")
    assert classifier.main(flags) == 0
    pretraining = ["--corpus", corpus(tmp_path / "corpus"), "--output_dir", tmp_path / "pre", *SMALL, "--tokens", 600]
    pretraining = [str(flag) for flag in pretraining]
    assert pretrain.main(pretraining) == 0
    there = {path: path.stat() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    capfd.readouterr()
    for there_is in (None, folder):
        monkeypatch.setitem(sys.modules, "wandb", there_is)
        for script, given in ((classifier, flags), (pretrain, pretraining)):
            assert script.main([*given, "--track", "wandb"]) == 2
            said = capfd.readouterr().err
            assert said.startswith(f"{script.__name__}.py: error: --track wandb: ")
            assert said.count("\n") == 1
            assert "pip install wandb" in said
    assert there == {path: path.stat() for path in there}


def test_a_library_that_refuses_ends_the_run_before_training(data_dir, save_stock, tmp_path, installed):
    installed("wandb", "init")
    with pytest.raises(InputError, match="--track wandb: no network"):
        train(data_dir, save_stock(), tmp_path, track="wandb", **SHORT)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("failing", ["log", "finish"])
def test_a_library_that_fails_later_is_spoken_of_once(data_dir, save_stock, tmp_path, installed, capfd, failing):
    library, model = installed("wandb", failing), save_stock()
    result = train(data_dir, model, tmp_path / "told", track="wandb", **SHORT)
    assert capfd.readouterr().err == "--track wandb: no network; going on without it\n"
    assert len(library.of(failing)) == 1
    assert_same_run(train(data_dir, model, tmp_path / "silent", **SHORT), result)


class Eager(tqdm.tqdm):
    """Draws its line at every step, however quick."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs | {"mininterval": 0})


@pytest.fixture
def terminal(monkeypatch) -> Callable[[Callable[[], object]], str]:
    """What is written to standard error in a terminal of a hundred columns while something is done."""
    for module in ("trainer", "pretraining", "objectives"):
        monkeypatch.setattr(f"training.{module}.tqdm", Eager)

    def show(work: Callable[[], object]) -> str:
        shown, (ours, theirs) = [], pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))

        def read() -> None:
            while not (shown and shown[-1].endswith(b"\0")):
                shown.append(os.read(ours, 4096))

        reader = threading.Thread(target=read)
        reader.start()
        with open(theirs, "w", encoding="utf-8") as error, mock.patch.object(sys, "stderr", error):
            try:
                work()
            finally:
                error.write("\0")
                error.flush()
                reader.join()
        os.close(ours)
        return b"".join(shown).decode()

    return show


LINE = r"epoch 1/2: +\d+%\|[^|]*\| +{}/60 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+ examples/s, loss=\d\.\d+, lr=0\.003\]"


def test_a_terminal_shows_loss_rate_and_time_left(data_dir, save_stock, tmp_path, terminal):
    model = save_stock()
    shown = terminal(lambda: train(data_dir, model, tmp_path, **SHORT))
    assert re.search(LINE.format(40), shown)
    assert re.search(r"dev: +100%\|[^|]*\| 20/20 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+ examples/s\]", shown)

    def stopped() -> None:
        with pytest.raises(Interrupted):
            train(data_dir, model, tmp_path, stop=StopAfter(25), **SHORT)

    shown = terminal(stopped)
    assert shown.endswith("\r\0")  # and takes its line away, for what is said then
    shown = terminal(lambda: train(data_dir, model, tmp_path, resume=True, **SHORT))
    assert re.search(r"26/60 \[00:00<\?, \? examples/s\]", shown)  # what was done before says nothing of the speed
    assert not re.search(LINE.format(24), shown)


def test_a_terminal_shows_loss_rate_and_time_left_of_pretraining(tmp_path, terminal):
    flags = ("--tokens", 3000, "--eval_every_steps", 7)
    shown = terminal(lambda: call(corpus(tmp_path / "corpus"), tmp_path / "run", *flags))
    assert re.search(r"loss \d\.\d+, lr 0\.0\d+, \d+ tokens/s \d+\.\d% \|[^|]*\| \d\d:\d\d<\d\d:\d\d", shown)


def test_a_pipe_stays_empty(data_dir, save_stock, tmp_path, capfd):
    train(data_dir, save_stock(), tmp_path / "run", **SHORT)
    assert call(corpus(tmp_path / "corpus"), tmp_path / "pre", "--tokens", 600) == 0
    assert capfd.readouterr().err == ""
