"""The notebook runs from top to bottom, in a checkout and from a clone, and is stored as it should be."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import classifier

NOTEBOOK = Path("notebooks/colab.ipynb")
RUN = Path("runs/notebook/sst-mini-lora-16")
NOT_COPIED = (".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "runs", "predictions")


def git(folder: Path, *command: str) -> str:
    who = ("-c", "user.name=tests", "-c", "user.email=tests@localhost")
    return subprocess.run(["git", *who, *command], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A copy of the working tree, committed, and a kernel of this interpreter that sees no GPU and no network."""
    for name in [name for name in os.environ if name.startswith(("GIT_", "JUPYTER", "IPYTHON"))]:
        monkeypatch.delenv(name)
    (tmp_path / "HOME").mkdir()
    for name in ("HOME", "XDG_CACHE_HOME", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name, value in (("HF_HUB_OFFLINE", "1"), ("PIP_NO_INDEX", "1"), ("CUDA_VISIBLE_DEVICES", "")):
        monkeypatch.setenv(name, value)
    write_kernel_spec(tmp_path / "JUPYTER_DATA_DIR" / "kernels" / "python3")
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
    git(copy, "init", "--quiet")
    git(copy, "add", "--all")
    git(copy, "commit", "--quiet", "--message", "all")
    return copy


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(ROOT / NOTEBOOK, as_version=4)


def choose(notebook: nbformat.NotebookNode, repository: str) -> None:
    """Fills in the form, as one does in Colab."""
    (cell,) = [cell for cell in notebook.cells if cell.id == "choose"]
    assert cell.source.count('REPOSITORY = ""') == 1
    cell.source = cell.source.replace('REPOSITORY = ""', f"REPOSITORY = {json.dumps(repository)}")


def execute(notebook: nbformat.NotebookNode, folder: Path, last: str | None = None) -> None:
    """Runs the cells, up to the one with the id `last`, in a folder."""
    if last is not None:
        del notebook.cells[[cell.id for cell in notebook.cells].index(last) + 1 :]
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()


def printed(notebook: nbformat.NotebookNode, name: str) -> str:
    (cell,) = [cell for cell in notebook.cells if cell.id == name]
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")


def shown(notebook: nbformat.NotebookNode, name: str, kind: str) -> list[str]:
    (cell,) = [cell for cell in notebook.cells if cell.id == name]
    return [output.data[kind] for output in cell.outputs if kind in output.get("data", {})]


def test_everything_works_in_a_checkout_and_leaves_it_clean(notebook, checkout):
    execute(notebook, checkout / NOTEBOOK.parent)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert printed(notebook, "clone") == f"in {checkout}\n"
    assert printed(notebook, "setup") == ""
    assert printed(notebook, "data").startswith("no GPU that torch can use: mini,")
    assert "majority class" in printed(notebook, "fine-tune")
    assert {"adapter_model.safetensors", "README.md"} <= {path.name for path in (checkout / RUN / "best").iterdir()}
    assert len((checkout / RUN / "metrics.jsonl").read_text().splitlines()) == 6
    assert len(list((checkout / "predictions/notebook").iterdir())) == 2
    assert len(shown(notebook, "figures", "image/png")) == 1
    (card,) = shown(notebook, "card", "text/markdown")
    assert card.strip().startswith("# sst-mini-lora-16")

    names = json.loads((checkout / RUN / "best/task.json").read_text())["labels"]
    label, probability = re.fullmatch(r"(.+)\t([01]\.\d{3})\n", printed(notebook, "try")).groups()
    stock = [float(value) for value in printed(notebook, "stock").split(", ")]
    assert stock[names.index(label)] == max(stock) == pytest.approx(float(probability), abs=0.02)  # bf16 there or not
    assert git(checkout, "status", "--porcelain") == ""


def test_it_clones_what_it_is_told_to_and_the_next_time_uses_that(notebook, checkout, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    choose(notebook, str(checkout))
    execute(notebook, empty, last="clone")
    clone = empty / "gpt2-fine-tuning"
    assert git(clone, "rev-parse", "HEAD") == git(checkout, "rev-parse", "HEAD")
    execute(notebook, empty, last="clone")  # as after a restart
    assert printed(notebook, "clone") == f"in {clone}\n"


@pytest.mark.parametrize(("repository", "why"), [("", "REPOSITORY is empty"), ("nowhere", "ended with exit code 128")])
def test_without_a_repository_it_stops_with_a_line_that_says_why(notebook, checkout, tmp_path, repository, why):
    empty = tmp_path / "empty"
    empty.mkdir()
    choose(notebook, repository)
    with pytest.raises(CellExecutionError) as stopped:
        execute(notebook, empty, last="setup")
    assert (stopped.value.ename, why in stopped.value.evalue) == ("SystemExit", True)
    assert stopped.value.evalue.count("\n") == 0


def test_what_it_chooses_for_gpt2_the_script_understands(notebook):
    sources = {cell.id: cell.source for cell in notebook.cells}
    commands = []
    known = {"MODEL": "gpt2", "run": lambda *command: commands.append(command[1:]), "sys": sys}
    exec(sources["data"] + "\n" + sources["fine-tune"], known)
    download, (script, *flags) = commands
    assert download == ("data/download.py",)
    assert script == "classifier.py"
    settings = classifier.parse_flags(flags)
    assert (settings["model_size"], settings["data_dir"], settings["use_lora"]) == ("gpt2", "data", True)
    assert Path(known["best"]) == Path(settings["output_dir"], "sst-gpt2-lora-16", "best")


def test_what_is_only_there_to_test_is_not_installed(notebook, tmp_path, monkeypatch):
    (tmp_path / "requirements.txt").write_text("# needed\nnone-such==1\nnumpy>=2\n\n# to test\nipykernel>=6\n")
    monkeypatch.chdir(tmp_path)
    (source,) = [cell.source for cell in notebook.cells if cell.id == "setup"]
    commands = []
    exec(source, {"run": lambda *command: commands.append(command[1:]), "sys": sys, "Path": Path})
    assert commands == [("-m", "pip", "install", "-q", "none-such==1", "numpy>=2", "-c", "constraints.txt")]
    assert "# to test\n" in (ROOT / "requirements.txt").read_text()


def test_a_package_that_was_in_use_in_another_version_asks_for_a_restart(notebook, tmp_path, monkeypatch):
    (tmp_path / "requirements.txt").write_text("numpy>=2\n")
    monkeypatch.chdir(tmp_path)
    (source,) = [cell.source for cell in notebook.cells if cell.id == "setup"]
    monkeypatch.setattr("torch.__version__", f"{version('torch').split('+')[0]}+cu130")  # which PyPI leaves out
    exec(source, {"run": None, "sys": sys, "Path": Path})
    monkeypatch.setattr("numpy.__version__", "1.0")
    with pytest.raises(SystemExit, match=r"^numpy: another version .* Restart session"):
        exec(source, {"run": None, "sys": sys, "Path": Path})


def test_it_is_stored_without_outputs_and_for_a_gpu_in_colab(notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
    assert notebook.metadata.kernelspec.name == "python3"
    assert (notebook.metadata.accelerator, notebook.metadata.colab.gpuType) == ("GPU", "T4")


@pytest.mark.parametrize("command", ["check", "format --check"])
def test_lint_passes_on_it(command):
    lint = [sys.executable, "-m", "ruff", *command.split(), "--no-cache", ROOT / NOTEBOOK]
    ended = subprocess.run(lint, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
