"""Two processes with a core each against one: time of a step, bytes sent, and what share of the time that takes.

./setup.sh python benchmarks/scaling.py --model_path DIR --data_dir ../shared/data
"""

from __future__ import annotations

from timing import describe_machine, run  # isort: skip

import argparse
import json
import os
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path
from statistics import median

import torch
from sides import Ours

from models.pretrained import locate
from reproduction.results import task_of
from training import ranks
from training.batching import shuffled
from training.flags import whole_number
from training.hardware import keep_freed_memory

STEPS = 8  # timed, after two that are not


def measure(side: Ours, batch_size: int) -> dict[str, float]:
    """In this process, as one of several.

    Returns:
        `step` and `silent`: seconds of a step, with gradients shared and without; `bytes`: that a process sends in one.
    """
    batches = cycle(shuffled(len(side.texts), batch_size, 0, 0))
    seconds = {"step": [], "silent": []}
    sent = 0
    for number in range(STEPS + 2):
        indices = next(batches)
        for kind in seconds:
            before, started = _sent(), time.perf_counter()
            if kind == "step":
                side.step(indices)
                sent += _sent() - before if number > 1 else 0
            else:
                with side.update.alone():
                    side.step(indices)
            seconds[kind] += [time.perf_counter() - started] if number > 1 else []
    return {kind: median(some) for kind, some in seconds.items()} | {"bytes": sent / STEPS / ranks.count()}


def _sent() -> int:
    """Bytes that went over the loopback device so far."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def work(flags: argparse.Namespace) -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    with ranks.joined():
        side = Ours(task_of("sst", flags.data_dir), flags.method, model_path=flags.model_path)
        result = measure(side, flags.batch_size)
        if ranks.rank() == 0:
            print(json.dumps(result))


def launch(processes: int, method: str, batch_size: int, flags: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += [__file__, "--model_path", flags.model_path, "--data_dir", flags.data_dir]
    command += ["--method", method, "--batch_size", str(batch_size)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_path", required=True, help="any Hugging Face GPT-2 directory with a tokenizer")
    parser.add_argument("--data_dir", default="data", help="the course's files")
    parser.add_argument("--batch_size", type=whole_number(1), default=8, help="of all processes together")
    parser.add_argument("--rounds", type=whole_number(1), default=3, help="one process and two in turn, so many times")
    parser.add_argument("--method", choices=("full", "lora"), help=argparse.SUPPRESS)  # in a worker
    flags = parser.parse_args()
    if flags.method:
        work(flags)
        return
    locate(flags.model_path)  # what is not there had better be missed here than in each process
    task_of("sst", flags.data_dir).read("train")
    describe_machine()
    for method in ("full", "lora"):
        for name, share in (("the same batch", 1), ("a batch twice as large", 2)):
            rounds = [
                [launch(n, method, flags.batch_size * (share if n == 2 else 1), flags) for n in (1, 2)]
                for _ in range(flags.rounds)
            ]
            gains = [share * one["step"] / two["step"] for one, two in rounds]
            talking = [1 - two["silent"] / two["step"] for _, two in rounds]
            print(
                f"{method}, {name}: two processes do {median(gains):.2f} ({min(gains):.2f} to {max(gains):.2f}) times "
                f"the work of one; {median(two['step'] for _, two in rounds):.2f} s a step, "
                f"{median(two['bytes'] for _, two in rounds) / 1e6:.1f} MB sent by each, communication "
                f"{median(talking):.0%} ({min(talking):.0%} to {max(talking):.0%}) of the time",
                flush=True,
            )


if __name__ == "__main__":
    run(main)
