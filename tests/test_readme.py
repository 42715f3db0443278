"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import predict
import tasks
from tasks.classification import ClassificationTask

SECTION = re.search(r"^## A task of your own\n(.*?)^## ", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)[1]
ON_CPU = ["--device", "cpu", "--precision", "fp32"]


def test_a_task_of_ones_own_is_a_folder_of_data_and_one_file(tmp_path, monkeypatch, capsys):
    data, code = re.findall(r"```(?:python)?\n(.*?)```", SECTION, re.DOTALL)
    header, *rows = data.splitlines(keepends=True)
    training, using = re.findall(r"^    \./setup\.sh python (.*)$", SECTION, re.MULTILINE)
    assert training.startswith("-m tasks.mail ")
    monkeypatch.chdir(tmp_path)
    Path("tasks").mkdir()
    Path("tasks/mail.py").write_text(code)
    folder = Path(re.search(r"--data_dir (\S+)", training)[1])
    folder.mkdir(parents=True)
    for split in ("train", "dev", "test-student"):
        (folder / f"mail-{split}.csv").write_text(header + "".join(rows * 6))

    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, "tasks"])
    monkeypatch.setattr(sys, "argv", [*shlex.split(training)[1:], "--epochs", "2", *ON_CPU])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("tasks.mail", run_name="__main__")
    assert ended.value.code == 0
    assert "TF-IDF" in capsys.readouterr().out
    assert len(Path("predictions/mail-test-output.csv").read_text().splitlines()) == 1 + 6 * len(rows)
    assert predict.main([*shlex.split(using)[1:], *ON_CPU]) == 0
    assert re.fullmatch(r"(un)?wanted\t[01]\.\d{3}\n", capsys.readouterr().out)


def test_a_task_with_two_texts_reads_them_through_its_prompt(tmp_path):
    class Answer(ClassificationTask):
        name, labels, columns, prompt = "answers", ("no", "yes"), ("question", "answer"), "{} {}"

    (tmp_path / "answers-dev.csv").write_text("id\tquestion\tanswer\tlabel\na\tWhy?\tSo.\t1\n")
    task = Answer(tmp_path)
    assert task.read("dev").texts == [("Why?", "So.")]
    assert task.describe() == {"name": "answers", "labels": ["no", "yes"], "prompt": "{} {}"}
    Answer.prompt = None
    with pytest.raises(TypeError, match="for each of its columns"):
        Answer(tmp_path)


def test_files_that_others_look_for_are_there():
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert "cff-version: 1.2.0" in (ROOT / "CITATION.cff").read_text()
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) < 40
    assert (ROOT / "CHANGELOG.md").is_file()
