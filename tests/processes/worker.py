"""What torchrun starts in the tests: calls scripts one after another, all in the same processes, which take seconds to
start. Each job is a script and its flags; a signal may be sent to one of the processes after so many steps."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

import torch
import transformers
from torch.optim.optimizer import register_optimizer_step_post_hook

sys.path.insert(0, str(Path(__file__).parents[2]))

from training import ranks


def work(jobs: list[dict], file: Path) -> None:
    """Adds the exit code of each to a file. What torchrun starts again goes on with the job that was broken off."""
    steps, restarted = 0, ranks.restarted()
    job = {}

    def note(*_) -> None:
        nonlocal steps
        steps += 1
        if job.get("signal") and (steps, ranks.rank()) == (job["after"], job["rank"]) and not restarted:
            os.kill(os.getpid(), job["signal"])

    register_optimizer_step_post_hook(note)
    codes = json.loads(file.read_text()) if file.is_file() else []
    for job in jobs[len(codes) :]:
        steps = 0
        code = importlib.import_module(job["script"]).main(job["flags"])
        if code == 1:
            sys.exit(1)
        codes.append(code)
        file.write_text(json.dumps(codes))


def _threads() -> list[str]:
    """What the kernel calls the threads of this process, where it says so."""
    return [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    file = Path(sys.argv[1])
    with ranks.joined():
        rank = ranks.rank()
        work(json.loads(file.read_text()), file.with_suffix(f".codes-{rank}"))
    file.with_suffix(f".threads-{rank}").write_text(" ".join(_threads()))
