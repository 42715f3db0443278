"""The scripts, from their flags to their exit code: a broken file of each kind, and a wrong flag in a shell."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT
from outcomes import MADE

import classifier
import paraphrase_detection
import predict
import pretrain
import reproduce
import sonnet_generation
from training.flags import TOY_DATA

FILES = {  # one that each reads
    classifier: "ids-sst-dev.csv",
    paraphrase_detection: "quora-train.csv",
    sonnet_generation: "sonnets_held_out.txt",
    pretrain: "sonnets.txt",
    predict: "sonnets_held_out_dev.txt",
    reproduce: "ids-sst-train.csv",
}
BROKEN = {
    "empty": lambda path: path.write_bytes(b""),
    "utf-16": lambda path: path.write_bytes(path.read_text(encoding="utf-8").encode("utf-16")),
    "latin-1": lambda path: path.write_bytes(path.read_bytes() + b"a\tcaf\xe9 and more\n"),
    "with NUL": lambda path: path.write_bytes(path.read_bytes() + b"a\tb\0c\n"),
    "missing": lambda path: None,
    **MADE,
}


def flags_for(script: ModuleType, data: Path, model: Path, out: Path) -> list[str]:
    """Of a run that would train, if all were well."""
    if script is pretrain:
        return ["--corpus", str(data / FILES[pretrain]), "--tokens", "9", "--output_dir", str(out / "run")]
    if script is predict:
        return [str(model), "--input", str(data / FILES[predict]), "--device", "cpu"]
    flags = ["--data_dir", str(data), "--model_path", str(model)]
    if script is reproduce:
        where = ["--runs_dir", str(out / "runs"), "--report_dir", str(out / "report")]
        return [*flags, *where, "--preset", "demo", "--tasks", "sentiment"]
    return [*flags, "--output_dir", str(out / "run"), "--predictions_dir", str(out / "predictions"), "--epochs", "1"]


def refused(script: ModuleType, flags: list[str], capfd) -> str:
    """The one line that the script ends with 2 and."""
    assert script.main(flags) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert said[:-1].isprintable()
    return said


def copied(folder: Path, to: Path, name: str, change: Callable[[Path], object]) -> Path:
    shutil.copytree(folder, to)
    if change in MADE.values() or change is BROKEN["missing"]:
        (to / name).unlink()
    change(to / name)
    return to


NO_FAULT = {
    reproduce: {*BROKEN} - {*MADE, "missing"},  # what a file holds is read by its runs; each says so in its folder
    predict: {"empty", "a pipe"},  # nothing is asked; what the other end will write is awaited
}
CASES = [(script, kind) for script in FILES for kind in BROKEN if kind not in NO_FAULT.get(script, ())]


@pytest.mark.parametrize(("script", "kind"), CASES)
def test_a_broken_file_of_data_ends_every_script_alike(script, kind, model, tmp_path, capfd):
    data = copied(TOY_DATA, tmp_path / "data", FILES[script], BROKEN[kind])
    said = refused(script, flags_for(script, data, model, tmp_path), capfd)
    assert said.startswith(f"{Path(script.__file__).name}: error: {data / FILES[script]}: ")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("script", [classifier, paraphrase_detection, sonnet_generation, predict])
def test_a_broken_file_of_a_model_ends_every_script_alike(script, name, model, tmp_path, capfd):
    broken = copied(model, tmp_path / "model", "config.json", lambda path: None)
    (broken / name).write_bytes(b'{"n_embd": "\\ud800"')
    said = refused(script, flags_for(script, TOY_DATA, broken, tmp_path), capfd)
    assert str(broken) in said


def test_what_a_damaged_state_is_resumed_from_is_one_line(model, tmp_path, capfd):
    run = tmp_path / "run"
    (run / "last").mkdir(parents=True)
    (run / "last" / "state-0.safetensors").write_bytes(b"x")
    (run / "config.json").write_text(json.dumps({"settings": []}))
    said = refused(sonnet_generation, [*flags_for(sonnet_generation, TOY_DATA, model, tmp_path), "--resume"], capfd)
    assert "leave out --resume" in said


COMMANDS = [
    "classifier.py",
    "paraphrase_detection.py",
    "sonnet_generation.py",
    "pretrain.py",
    "predict.py",
    "reproduce.py",
]


@pytest.mark.parametrize("command", [*COMMANDS, "data/download.py"])
def test_a_shell_sees_one_line_and_a_two(command):
    ran = subprocess.run([sys.executable, command, "--no\x1bpe", b"\xff"], cwd=ROOT, capture_output=True, check=False)
    assert ran.returncode == 2
    assert ran.stdout == b""
    assert ran.stderr.count(b"\n") == 1
    assert ran.stderr.startswith(command.encode() + b": error: ")
    assert ran.stderr[:-1].decode().isprintable()


@pytest.fixture
def download() -> ModuleType:
    spec = importlib.util.spec_from_file_location("download", ROOT / "data" / "download.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NOWHERE = "http://127.0.0.1:9"
FIRST = "TRUE_sonnets_held_out_dev.txt"


@pytest.mark.parametrize("source", ["", "x", "http://", "http://[", "http://a:b", "data:,x", "http://\u00fc..x/"])
def test_a_source_that_is_no_address_is_refused(download, source, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        download.main(["--data_dir", str(tmp_path), "--source", source])
    said = capsys.readouterr().err
    assert "--source" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("folder", ["/dev/null", "/dev/null/x", "x" * 5000])
def test_a_folder_that_cannot_be_is_refused(download, folder, capfd):
    assert "--data_dir" in refused(download, ["--data_dir", folder, "--source", NOWHERE], capfd)


@pytest.mark.parametrize("name", [FIRST, f"{FIRST}.part"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path)])
def test_what_is_in_the_place_of_a_file_is_named(download, make, name, tmp_path, capfd):
    make(tmp_path / name)
    assert name in refused(download, ["--data_dir", str(tmp_path), "--source", NOWHERE], capfd)
