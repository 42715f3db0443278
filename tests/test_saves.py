"""What is saved: damaged, unfinished, without room, asked for by two."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from test_training import StopAfter, assert_same_run, train

import classifier
from config import InputError
from models.tensors import check_tensors, write_tensors
from optimizer import AdamW
from training import pretraining, trainer
from training.checkpoint import FORMAT, load_state, save_state
from training.interrupt import Interrupted
from training.run import EVENTS, TRACKED_AS, Run, locked

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)), min_size=1, max_size=4),
    st.dictionaries(st.text(max_size=5), st.text(max_size=8), max_size=3),
    st.integers(0, 2**32),
)
def test_any_flipped_bit_is_found(tmp_path_factory, shapes, metadata, at):
    path = tmp_path_factory.mktemp("tensors") / "some.safetensors"
    tensors = {f"t{i}": torch.randn(shape).mul(9).to(dtype) for i, (dtype, shape) in enumerate(shapes)}
    metadata.pop("sha256", None)
    write_tensors(path, tensors, metadata)
    whole = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        assert check_tensors(path, file, ours=True) == metadata
    loaded = load_file(path)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    write_tensors(path, tensors, dict(reversed(metadata.items())))
    assert path.read_bytes() == whole

    size = 8 + int.from_bytes(whole[:8], "little")
    if len(whole) > size:
        bit = at % (8 * (len(whole) - size))
        flipped = bytearray(whole)
        flipped[size + bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with safe_open(path, framework="pt") as file, pytest.raises(InputError, match="damaged"):
            check_tensors(path, file)


def cut(file: bytes) -> bytes:
    return file[:-100]


def flip(file: bytes) -> bytes:
    return file[:-1000] + bytes([file[-1000] ^ 16]) + file[-999:]


def from_tomorrow(file: bytes) -> bytes:
    return file.replace(b'"format":"3"', b'"format":"4"')


@pytest.mark.parametrize("damage", [cut, flip, from_tomorrow, lambda file: b"", lambda file: bytes(len(file))])
def test_the_save_before_takes_the_place_of_a_damaged_one(data_dir, save_stock, tmp_path, damage, capsys):
    model, run = save_stock(), tmp_path / "parts" / "run"
    whole = train(data_dir, model, tmp_path / "whole", save_every_steps=2)
    with pytest.raises(Interrupted):
        train(data_dir, model, tmp_path / "parts", save_every_steps=2, stop=StopAfter(11))
    states = sorted((run / "last").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert [state.name[:6] for state in states] == ["state-", "state-"]
    contents = [state.read_bytes() for state in states]
    for state, before in zip(states, contents, strict=True):
        state.write_bytes(damage(before))
    with pytest.raises(InputError) as error:
        train(data_dir, model, tmp_path / "parts", save_every_steps=2, resume=True)
    assert all(str(state) in str(error.value) for state in states)

    states[0].write_bytes(contents[0])
    capsys.readouterr()
    parts = train(data_dir, model, tmp_path / "parts", save_every_steps=2, resume=True)
    assert f"{states[1]}: " in (said := capsys.readouterr().out)
    assert f"going on from the save before, {states[0].name}" in said
    assert_same_run(whole, parts)


@pytest.mark.parametrize("changes", [{}, {"use_lora": True}])
def test_a_damaged_best_model_is_refused_by_name(data_dir, save_stock, tmp_path, changes):
    model = save_stock()
    result = train(data_dir, model, tmp_path, epochs=1, **changes)
    (weights,) = (result.run / "best").glob("*.safetensors")
    weights.write_bytes(flip(weights.read_bytes()))
    with pytest.raises(InputError, match=rf"{weights}: damaged"):
        train(data_dir, model, tmp_path, epochs=1, resume=True, **changes)


def test_a_finished_run_keeps_no_state(data_dir, save_stock, tmp_path):
    result = train(data_dir, save_stock(), tmp_path, save_every_steps=1)
    (state,) = (result.run / "last").iterdir()
    assert state.stat().st_size < 10_000


def test_no_room_is_known_at_the_start(data_dir, save_stock, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    earlier = train(data_dir, save_stock(), tmp_path / "earlier", fine_tune_mode="last-linear-layer", epochs=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(5 << 20))
    with pytest.raises(InputError, match=r"will write \d+ MiB, and 5 MiB are free"):
        train(data_dir, save_stock(), tmp_path)
    assert not any((tmp_path / "run").iterdir())
    with pytest.raises(InputError, match="are free"):  # what an earlier run left is still there
        train(data_dir, save_stock(n_layer=9), tmp_path / "earlier")
    assert (earlier.run / "best" / "model.safetensors").is_file()
    train(data_dir, save_stock(), tmp_path, fine_tune_mode="last-linear-layer", epochs=1)


@pytest.mark.parametrize(
    "name", ["best", "last", "merged", "metrics.jsonl", "scores.json", "bad_rows.jsonl", TRACKED_AS, EVENTS + "1"]
)
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, Path.touch, lambda path: path.symlink_to(path)])
def test_what_is_in_the_way_of_a_run_is_named(tmp_path, name, make):
    facts = {"data": 1, "model": 1, "precision": 1}
    Run(tmp_path, {}, facts)
    path = tmp_path / name
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    make(path)
    if make == (Path.touch if path.suffix else Path.mkdir):
        Run(tmp_path, {}, facts)
    else:
        for resume in (False, True):
            with pytest.raises(InputError, match=rf"{path}: is no|--output_dir"):
                Run(tmp_path, {}, facts, resume)


def test_room_for_all_runs_is_known_before_the_first(data_dir, save_stock, tmp_path, monkeypatch, capsys):
    usage = namedtuple("usage", "free")
    model = str(save_stock(vocab_size=9000))  # 2.6 MiB of weights, which stay of a run; it grows to 31
    flags = ["--model_path", model, "--data_dir", str(data_dir), "--fine_tune_mode", "full-model", "--epochs", "1"]
    flags += ["--output_dir", str(tmp_path / "runs"), "--predictions_dir", str(tmp_path / "predictions")]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(32 << 20))
    assert classifier.main([*flags, "--dataset", "both"]) == 2
    assert "MiB are free" in capsys.readouterr().err
    assert not (tmp_path / "predictions" / "full-model-sst-dev-out.csv").exists()
    assert classifier.main([*flags, "--dataset", "sst"]) == 0


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from((trainer.Progress, pretraining.Progress)), st.data())
def test_a_state_is_what_was_saved_or_is_refused(tmp_path_factory, kind, data):
    """One of the right checksum, that is, which somebody else wrote."""
    folder = tmp_path_factory.mktemp("last")
    names = st.sampled_from([field.name for field in fields(kind)]) | st.text(max_size=3)
    changes = data.draw(st.dictionaries(names, values, max_size=2))
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = AdamW([parameter])
    parameter.grad = torch.ones(2)
    optimizer.step()
    save_state(folder, {"p": parameter}, optimizer, json.loads(json.dumps(asdict(kind()))))
    state = folder / "state-0.safetensors"
    header = {"format": FORMAT, "progress": json.dumps(asdict(kind()) | changes)}
    write_tensors(state, load_file(state), header)
    with contextlib.suppress(InputError):
        loaded = load_state(folder, {"p": parameter}, AdamW([parameter]), kind)
        assert repr(asdict(loaded)) == repr(json.loads(header["progress"]))
        assert not any(isinstance(value, str) for value in asdict(loaded).values())


def test_moments_that_are_missing_are_no_new_beginning(tmp_path):
    parameters = {name: torch.nn.Parameter(torch.ones(2)) for name in ("p", "q")}
    optimizer = AdamW(parameters.values())
    for parameter in parameters.values():
        parameter.grad = torch.ones(2)
    optimizer.step()
    del optimizer.state[parameters["q"]]
    save_state(tmp_path, parameters, optimizer, asdict(trainer.Progress()))
    with pytest.raises(InputError, match="optimizer's state of some parameters"):
        load_state(tmp_path, parameters, AdamW(parameters.values()), trainer.Progress)


def test_a_folder_has_one_run_at_a_time_and_the_dead_let_go(tmp_path):
    program = "import sys\nfrom pathlib import Path\nfrom training.run import locked\n" + (
        "with locked(Path(sys.argv[1])):\n    print('in', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as first:
        assert first.stdout.readline() == b"in\n"
        with pytest.raises(InputError, match="another run is at work there"), locked(tmp_path / "run"):
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
    with locked(tmp_path / "run"), locked(tmp_path / "other"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to"), locked(Path(tmp_path / "file" / "run")):
        pass
