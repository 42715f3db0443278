"""What is no file, and what would run if it were read."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from outcomes import MADE, finished, fresh, load, outcome_of, read_dev, with_bytes, with_json

from config import GPT2Config
from optimizer import AdamW
from reproduction import search
from reproduction.grid import Experiment
from reproduction.results import Outcome
from reproduction.runner import _begun
from tasks.classification import read_split
from tasks.corpus import find_texts, read_documents
from tasks.sonnet_report import read_prompts
from tasks.sonnets import read_sonnets
from tasks.tokens import tokenized
from training.checkpoint import load_state
from training.trainer import Progress


@pytest.mark.parametrize("kind", MADE)
def test_what_is_no_file_is_refused_at_once(model, adapter, tmp_path, kind):
    """Also in the places of files that need not be there."""

    def replaced(folder: Path, name: str) -> Path:
        (folder / name).unlink(missing_ok=True)
        MADE[kind](folder / name)
        return folder

    (tmp_path / "x-test-student.csv").write_bytes(b"id\tsentence\na\tb\n")
    (tmp_path / "sonnets_held_out.txt").write_bytes(b"1\n\nline\n")
    for name in ("x-dev.csv", "x-test-labels.csv", "TRUE_sonnets_held_out.txt", "state-0.safetensors"):
        replaced(tmp_path, name)
    assert outcome_of(lambda: read_dev(tmp_path))
    assert outcome_of(lambda: read_split(tmp_path, "x", "test", ["sentence"], "label", 2, skip_bad_rows=True))
    assert outcome_of(lambda: read_prompts(tmp_path, "test", None))
    assert "state-0" in outcome_of(lambda: load_state(tmp_path, {}, AdamW([torch.zeros(1)]), Progress))
    assert outcome_of(lambda: read_documents(find_texts([str(tmp_path / "x-dev.csv")])))
    assert outcome_of(lambda: GPT2Config.from_file(tmp_path / "x-dev.csv"))
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert outcome_of(lambda name=name: load(replaced(fresh(model), name)))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert outcome_of(lambda name=name: load(replaced(fresh(adapter), name)))
    shards = fresh(model)
    (shards / "model.safetensors").unlink()
    (shards / "model.safetensors.index.json").write_text('{"weight_map": {"a": "f.safetensors"}}')
    assert outcome_of(lambda: load(replaced(shards, "f.safetensors")))
    outcome = Outcome(Experiment("sonnet", "sonnets", "gpt2", "full", "", ()), 1, tmp_path)
    (tmp_path / "run").mkdir()
    for name in ("config.json", "metrics.jsonl", "scores.json"):
        replaced(tmp_path / "run", name)
    assert outcome.damage()
    assert _begun(replaced(tmp_path, "begun.json")) == {"attempts": 0}


class Bomb:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture(params=["pickle", "torch"])
def bomb(request, tmp_path):
    """The bytes of a pickle that makes a file if it is read; at the end there is none."""
    mark = tmp_path / "exploded"
    buffer = io.BytesIO()
    if request.param == "pickle":
        pickle.dump(Bomb(mark), buffer)
    else:
        torch.save(Bomb(mark), buffer)
    yield buffer.getvalue()
    assert not mark.exists()


def test_the_bomb_is_one(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "exploded")))
    assert (tmp_path / "exploded").exists()


PICKLES = ("pytorch_model.bin", "model.pt", "training_args.bin", "optimizer.pt", "rng_state.pth", "adapter_model.bin")


def test_no_file_of_a_model_is_unpickled(bomb, model, adapter):
    beside = fresh(model)
    for name in PICKLES:
        (beside / name).write_bytes(bomb)
    assert load(beside)
    (beside / "model.safetensors").unlink()
    assert "pickled weights only" in outcome_of(lambda: load(beside))
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert outcome_of(lambda name=name: load(with_bytes(model, name, bomb)))
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", "vocab.pkl"):
        outcome_of(lambda name=name: load(with_bytes(model, name, bomb)))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert outcome_of(lambda name=name: load(with_bytes(adapter, name, bomb)))
    beside = fresh(adapter)
    for name in PICKLES:
        (beside / name).write_bytes(bomb)
    assert load(beside)
    (beside / "adapter_model.safetensors").unlink()
    assert "adapter_model.bin is a pickle" in outcome_of(lambda: load(beside))


def test_no_file_of_data_or_of_a_run_is_unpickled(bomb, model, tmp_path, monkeypatch):
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("x-dev.csv", "poems.txt", "state-0.safetensors", "begun.json", "search.db"):
        (folder / name).write_bytes(bomb)
    assert outcome_of(lambda: read_dev(folder))
    assert outcome_of(lambda: read_sonnets(folder / "poems.txt"))
    outcome_of(lambda: read_documents([folder / "poems.txt"]))
    parameters = {"a": torch.nn.Parameter(torch.zeros(2))}
    assert outcome_of(lambda: load_state(folder, parameters, AdamW(parameters.values()), Progress))
    assert _begun(folder) == {"attempts": 0}
    for task in ("sonnet", "sentiment"):
        names = ["run/config.json", "run/metrics.jsonl"]
        names.append("run/scores.json" if task == "sonnet" else "predictions/full-model-sst-dev-out.csv")
        for name in names:
            outcome = finished(tmp_path / task / name, task)
            (outcome.folder / name).write_bytes(bomb)
            assert outcome.damage()
    monkeypatch.setattr(search, "OPENINGS", 1)
    monkeypatch.setattr(search, "PAUSE", 0)
    assert outcome_of(lambda: search._open(f"sqlite:///{folder / 'search.db'}", "sonnets"))


def test_no_cache_of_tokens_is_unpickled(bomb, model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tokenizer = load(model).tokenizer
    call = ("x", ["text"], tokenizer, [1], lambda: [[1, 2], [3]])
    ids, lengths = tokenized(*call)
    (file,) = (tmp_path / "cache").rglob("*.safetensors")
    for spoil in (lambda: file.write_bytes(bomb), lambda: (file.unlink(), os.mkfifo(file))):
        spoil()
        again = tokenized(*call)
        assert again[0].tolist() == ids.tolist() == [1, 2, 3]
        assert again[1] == lengths == [2, 1]


def test_no_code_beside_a_model_is_run(model, adapter, tmp_path, monkeypatch):
    mark = tmp_path / "exploded"
    code = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass Evil: pass\n"
    folder = with_json(model, "config.json", auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"})
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"})
    )
    (folder / "evil.py").write_text(code)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    outcome_of(lambda: load(folder))
    (folder / "megatron.py").write_text(code)
    changes = {"auto_mapping": {"parent_library": "evil", "base_model_class": "Evil"}}
    changes |= {"megatron_config": {"a": 1}, "megatron_core": "megatron"}
    here = shutil.copytree(adapter, tmp_path / "adapter")
    values = json.loads((here / "adapter_config.json").read_text())
    for name in changes:
        (here / "adapter_config.json").write_text(json.dumps(copy.deepcopy(values) | changes | {name: None}))
        outcome_of(lambda: load(here))
    assert not mark.exists()
