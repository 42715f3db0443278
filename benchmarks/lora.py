"""LoRA against full fine-tuning: time of a step and peak memory on SST; and the merged model against its base.

./setup.sh python benchmarks/lora.py --model_path DIR --data_dir DATA [--lora_rank 16 --batch_size 8 --precision bf16]
"""

from __future__ import annotations

from timing import describe_machine, paired, run  # isort: skip

import argparse
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from sides import CPU, Ours

from models.gpt2 import GPT2Model
from models.lora import Adapters
from reproduction.results import task_of
from training.batching import shuffled
from training.flags import whole_number
from training.hardware import Precision, keep_freed_memory

STEPS = 4  # timed at once


def training(side: Ours, batch_size: int) -> Callable[[], None]:
    """A few steps, on the next batches at each call."""
    batches = cycle(shuffled(len(side.texts), batch_size, 0, 0))

    def steps() -> None:
        for _ in range(STEPS):
            side.step(next(batches))

    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_path", required=True, help="any Hugging Face GPT-2 directory with a tokenizer")
    parser.add_argument("--data_dir", default="data", help="the course's files")
    parser.add_argument("--lora_rank", type=whole_number(1), default=16)
    parser.add_argument("--batch_size", type=whole_number(1), default=8)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    flags = parser.parse_args()
    keep_freed_memory()
    describe_machine()
    task, more = task_of("sst", flags.data_dir), dict(model_path=flags.model_path, lora_rank=flags.lora_rank)
    lora, full = (Ours(task, method, Precision(flags.precision, CPU), **more) for method in ("lora", "full"))
    name = f"{STEPS} steps of batch {flags.batch_size}, LoRA against everything"
    paired(name, training(lora, flags.batch_size), training(full, flags.batch_size), repeats=25)
    sizes = [side.peak(flags.batch_size) for side in (lora, full)]
    print(
        f"peak memory: {sizes[0] / 2**20:,.0f} MiB against {sizes[1] / 2**20:,.0f} MiB, {sizes[0] / sizes[1]:.2f} of it"
    )

    with TemporaryDirectory() as folder:
        lora.method.save(Path(folder))
        adapters = Adapters(GPT2Model.from_pretrained(lora.loaded.source))
        adapters.load("it", Path(folder))
    merged, base = adapters.merge().eval(), GPT2Model.from_pretrained(lora.loaded.source)
    inputs = lora.texts.batch(list(range(flags.batch_size)), CPU).inputs

    def read(network: GPT2Model) -> None:
        with torch.inference_mode():
            for _ in range(STEPS):
                network.encode(*inputs, only_last=True)

    paired("reading a batch, merged against its base", lambda: read(merged), lambda: read(base))


if __name__ == "__main__":
    run(main)
