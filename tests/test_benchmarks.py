"""The comparison with stock runs, on whatever model it is given."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

BENCHMARKS, MINI = ROOT / "benchmarks", ROOT / "models" / "mini"
sys.path.append(str(BENCHMARKS))


@pytest.mark.parametrize("against", ["stock", "trainer", "trainer-unfused", "naive"])
def test_comparison_writes_its_table_and_figures(save_stock, tmp_path, against):
    cases = ["full-sst-8-fp32", "memory-lora-cfimdb-8-fp32"]
    command = [sys.executable, str(BENCHMARKS / "compare.py"), "--model_path", str(save_stock())]
    command += ["--data_dir", str(ROOT / "data" / "mini"), "--precision", "fp32", "--device", "cpu", "--pairs", "1"]
    command += ["--against", against, "--cases", *cases, "--json", str(tmp_path / "found.json")]
    ended = subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    rows = [line.split(" | ")[0] for line in ended.stdout.splitlines() if line.startswith("| ")]
    assert rows[-2:] == [f"| {case}" for case in cases]
    (figures,) = json.loads((tmp_path / "found.json").read_text())["models"].values()
    assert sorted(figures) == cases
    step, memory = (figures[case] for case in cases)
    assert step["examples"] > 0
    assert step["timing"]["low"] == step["timing"]["high"] > 0
    assert 0 < step["share"] < 1
    assert abs(step["loss"] - step["loss_stock"]) < 0.5
    assert min(memory.values()) > 100


def test_what_the_trainer_raises_reaches_the_comparison(save_stock):
    from sides import Ours
    from trained import Trained

    from reproduction.results import task_of

    ours = Ours(task_of("sst", ROOT / "data" / "mini"), "full", model_path=str(save_stock()))
    trained = Trained(ours, "full", "adamw_torch")
    assert trained.step([0, 1]).isfinite()
    with pytest.raises(IndexError):
        trained.step([len(ours.texts)])


@pytest.mark.parametrize("name", ["compare", "lora"])
def test_a_model_that_is_not_there_is_one_line(tmp_path, name):
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--model_path", str(tmp_path / "none")]
    command += ["--data_dir", str(ROOT / "data" / "mini"), "--precision", "fp32"]
    ended = subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == f"{name}.py: error: {tmp_path / 'none'}: no such directory\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cases", "adamw", "full-sst"], "--cases full-sst: no case has such a name; there are full-sst-8-fp32, "),
        (["--against", "naive", "--cases", "adamw"], "--cases adamw: no case has such a name; there are full-sst-8-"),
        (["--json", "none/found.json"], "--json none/found.json: No such file or directory"),
    ],
)
def test_a_comparison_is_refused_before_it_takes_its_time(save_stock, flags, message):
    command = [sys.executable, str(BENCHMARKS / "compare.py"), "--model_path", str(save_stock()), *flags]
    ended = subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert ended.returncode == 2
    assert not ended.stdout
    assert ended.stderr.startswith(f"compare.py: error: {message}")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("flag", ["--pairs", "--texts"])
def test_a_number_of_nothing_is_refused(flag):
    command = [sys.executable, str(BENCHMARKS / "compare.py"), "--model_path", "DIR", flag, "0"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.endswith(f"error: argument {flag}: 0 is not at least 1\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["new", "--width", "10", "--heads", "3"], "--width 10: not a multiple of --heads 3"),
        ([__file__], f"{__file__}: cannot be made: File exists"),
    ],
)
def test_a_checkpoint_that_cannot_be_is_one_line(tmp_path, flags, message):
    command = [sys.executable, str(BENCHMARKS / "random_checkpoint.py"), *flags, "--tokenizer", str(MINI)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == f"random_checkpoint.py: error: {message}\n"


def test_help_is_there_before_torch_is():
    command = [sys.executable, "-X", "importtime", str(BENCHMARKS / "compare.py"), "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("usage:")
    assert "argparse" in ended.stderr
    assert "torch" not in ended.stderr


def needs_too_much(side, when, how):
    """Work that has no memory for its second call, or is not even set up."""

    def work(number):
        if side == "stock" and number >= when:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise MemoryError

    if when < 0:
        work(0)
    return work


@pytest.mark.parametrize("how", ["killed", "told"])
@pytest.mark.parametrize("when", [-1, 1])
def test_a_case_that_a_side_has_no_memory_for_is_a_row_of_its_own(monkeypatch, tmp_path, capsys, when, how):
    import compare
    import comparisons
    from apart import both

    work = {"too-large": lambda: both(needs_too_much, when, how, pairs=2), "start-up": lambda: {"seconds": 1.0}}
    monkeypatch.setattr(comparisons, "cases", lambda flags: work.items())
    monkeypatch.setattr(comparisons, "ceilings", lambda *given: {"fp32": 1e12})
    flags = {"device": "cpu", "precision": ["fp32"], "cases": ["*"], "shapes": None, "model_path": "DIR"}
    compare.compare(argparse.Namespace(**flags, against="naive", json=tmp_path / "found.json"))
    rows = capsys.readouterr().out.splitlines()[-2:]
    assert rows[0].startswith("| too-large | out of memory: naive | ")
    assert rows[1].startswith("| start-up |  | 1.00 s |")
    (found,) = json.loads((tmp_path / "found.json").read_text())["models"].values()
    assert found == {"too-large": {"out_of_memory": "naive"}, "start-up": {"seconds": 1.0}}
