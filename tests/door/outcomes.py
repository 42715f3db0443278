"""What the tests of this folder share: files to break, and the one line that must come of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from config import GPT2Config, InputError
from reproduction.grid import Experiment
from reproduction.results import Outcome
from tasks.classification import read_split
from tasks.sonnet_scores import Scores
from training.network import load_network

TINY = GPT2Config(vocab_size=3, n_positions=2, n_embd=2, n_layer=1, n_head=1)
GOOD = b"id\tsentence\tlabel\na\tb\t1\n"
anywhere = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def outcome_of(read: Callable[[], object]) -> str:
    """What the one line says; nothing, if all was well. Any other exception is a failure."""
    said = ""
    try:
        read()
    except InputError as error:
        said = str(error) or "nothing"
    assert said.isprintable() or not said
    assert len(said) < 1300
    return said


def read_dev(folder: Path):
    return read_split(folder, "x", "dev", ["sentence"], "label", 2, skip_bad_rows=True)


MADE = {
    "a directory": Path.mkdir,
    "a pipe": os.mkfifo,
    "a loop of links": lambda path: path.symlink_to(path),
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
}


def fresh(folder: Path) -> Path:
    """A copy, in the place of the last one."""
    shutil.rmtree(folder.parent / "copy", ignore_errors=True)
    return shutil.copytree(folder, folder.parent / "copy")


def load(folder: object):
    with mock.patch.dict(os.environ, HF_HUB_OFFLINE="1"), mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True):
        settings = {"model_size": "mini", "model_path": str(folder), "dropout": None, "checkpoint_activations": False}
        return load_network(settings)


def with_json(folder: Path, name: str, **values: object) -> Path:
    folder = fresh(folder)
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))
    return folder


def with_tensors(folder: Path, name: str, change: Callable[[dict], object]) -> Path:
    folder = fresh(folder)
    tensors = load_file(folder / name)
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, folder / name, metadata={"format": "pt"})
    return folder


def with_bytes(folder: Path, name: str, data: bytes) -> Path:
    folder = fresh(folder)
    (folder / name).write_bytes(data)
    return folder


HUGE = b'{"n_layer": ' + b"9" * 5000 + b"}"  # more digits than Python reads


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([10**30, 1e400, -0.0, "\0", "\ud800"]),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=3), some, max_size=3),
    max_leaves=5,
)


def finished(folder: Path, task: str) -> Outcome:
    """A run's files, as small as they can be."""
    run = folder / "run"
    run.mkdir(parents=True)
    settings = {"epochs": 1, "model_path": None, "model_size": "mini"}
    settings |= {"max_train_samples": None, "max_eval_samples": 5}
    facts = {"settings": settings, "parameters": {"trained": 1}}
    facts |= {"hardware": {"device": "x", "threads": 1}, "precision": "fp32", "versions": {"torch": "2"}}
    (run / "config.json").write_text(json.dumps(facts))
    line = dict(epoch=1, train_loss=1.0, train_acc=0.5, dev_acc=0.5, val_loss=1.0, train_seconds=1.0, eval_seconds=1.0)
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    row = dict.fromkeys((field.name for field in fields(Scores)), 1.0)
    (run / "scores.json").write_text(json.dumps({"dev": {"it": row}}))
    (folder / "predictions").mkdir()
    (folder / "predictions" / "full-model-sst-dev-out.csv").write_text("id \t Predicted_Sentiment \na,b, 3 \nc, 0 \n")
    dataset = {"sonnet": "sonnets", "sentiment": "sst"}[task]
    return Outcome(Experiment(task, dataset, "gpt2", "full", "", ()), 1, folder)
