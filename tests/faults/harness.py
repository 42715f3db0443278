"""A place to train in, and children that do it while files fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from cases import Case  # noqa: E402
from conftest import scramble, stock_config, write_tokenizer  # noqa: E402


def build_shim(folder: Path) -> Path | None:
    """The compiled shim; None where there is no compiler, or no Linux."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler or sys.platform != "linux":
        return None
    shim = folder / "shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", shim, HERE / "shim.c", "-ldl"], check=True)
    return shim


@dataclass
class Change:
    """A change of a file, as the shim counts them."""

    number: int
    call: str
    path: Path

    @property
    def name(self) -> str:
        """Of the file that the user knows."""
        name = self.path.name
        return name[1:].rsplit(".", 2)[0] if name.startswith(".") and name.endswith(".tmp") else name


@dataclass
class Ended:
    """How a child ended; `steps` are the optimizer's, since the folder was made."""

    code: int
    output: str
    error: str
    seconds: float
    steps: int
    steps_when_signalled: int | None
    changes: list[Change]


class Place:
    """A folder with toy data, a checkpoint of random weights and a warm process; in it, a folder a run.

    Args:
        folder: an empty one.
        shim: the compiled one, if the children's files are to fail.
    """

    def __init__(self, folder: Path, shim: Path | None):
        self.folder, self.shim = folder.resolve(), shim
        self._copy_data()
        self._make_model()
        environment = os.environ | {
            "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1", "HF_HOME": str(self.folder / "hub"), "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        if shim:
            environment["LD_PRELOAD"] = str(shim)
        command = [sys.executable, str(HERE / "warm.py")]
        self.log = (self.folder / "warm.log").open("w")
        self.warm = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        if self.warm.stdout.readline() != "ready\n":
            raise RuntimeError((self.folder / "warm.log").read_text())

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_) -> None:
        self.warm.stdin.close()
        self.warm.stdout.close()
        self.warm.wait()
        self.log.close()

    def _copy_data(self) -> None:
        """With a row in every kind of file that cannot be used."""
        data = shutil.copytree(ROOT / "data" / "mini", self.folder / "data")
        for name, row in (
            ("ids-sst-train.csv", "0\tbad\tno such class\t9"),
            ("ids-cfimdb-train.csv", "0\tbad\tno such class\t2"),
            ("quora-train.csv", "0\tbad\tone question\t\t1.0"),
        ):
            with (data / name).open("a", encoding="utf-8") as file:
                file.write(f"{row}\n")

    def _make_model(self) -> None:
        torch.manual_seed(0)
        config = stock_config(n_embd=32, n_head=2, n_positions=256, embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1)
        scramble(transformers.GPT2LMHeadModel(config)).save_pretrained(self.folder / "model")
        write_tokenizer(self.folder / "model")

    def fresh(self, name: str, parent: Path | None = None) -> Path:
        """An empty folder for a run, which all of its files lie in."""
        folder = (parent or self.folder) / name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "tmp").mkdir(parents=True)
        (self.folder / f"{name}.steps").unlink(missing_ok=True)
        return folder

    def run(
        self,
        case: Case,
        folder: Path,
        resume: bool = False,
        fail_at: int = 0,
        errno: int = 0,
        fail_on: bool = False,
        signal_after: tuple[float, int] | None = None,
        stop_at_step: Sequence[int] = (),
        most_bytes: int = 0,
        fill_after: float = 0,
    ) -> Ended:
        """Calls a script.

        Args:
            folder: as `fresh` gave it.
            fail_at: which change of a file fails, with `errno`, or kills if that is 0; none, if 0.
            fail_on: the changes after it fail too.
            signal_after: seconds, and the signal sent then.
            stop_at_step: the number of a step, a signal, and how often the process then sends it to itself.
            most_bytes: of a file; it cannot grow beyond.
            fill_after: seconds, after which the disk that the folder is on is full; never, if 0.
        """
        beside = {name: self.folder / f"{folder.name}.{name}" for name in ("output", "error", "steps", "changes")}
        beside["changes"].unlink(missing_ok=True)
        environment = {"FAULTS_UNDER": str(folder), "FAULTS_LOG": str(beside["changes"])} if self.shim else {}
        if fail_at:
            environment |= {"FAULTS_AT": str(fail_at), "FAULTS_ERRNO": str(errno)}
            environment |= {"FAULTS_ON": "1"} if fail_on else {}
        flags = ["--model_path", str(self.folder / "model"), "--data_dir", str(self.folder / "data")]
        request = {
            "script": case.script,
            "arguments": [*case.flags, *flags, *case.folders, *(["--resume"] if resume else [])],
            "folder": str(folder),
            "environment": environment | {"XDG_CACHE_HOME": str(folder / "cache"), "TMPDIR": str(folder / "tmp")},
            "signal_after": signal_after,
            "stop_at_step": list(stop_at_step),
            "most_bytes": most_bytes,
            "fill_after": fill_after,
        } | {name: str(beside[name]) for name in ("output", "error", "steps")}
        self.warm.stdin.write(json.dumps(request) + "\n")
        self.warm.stdin.flush()
        answer = json.loads(self.warm.stdout.readline())
        return Ended(
            output=beside["output"].read_text(),
            error=beside["error"].read_text(),
            steps=beside["steps"].stat().st_size if beside["steps"].exists() else 0,
            changes=_changes(beside["changes"]),
            **answer,
        )


def _changes(log: Path) -> list[Change]:
    lines = log.read_text().splitlines() if log.exists() else []
    parts = [line.split(" ", 2) for line in lines]
    return [Change(int(number), call, Path(path)) for number, call, path in parts]
