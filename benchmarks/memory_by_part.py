"""What a step on the longest question pairs keeps in memory: gpt2-medium whole and gpt2-xl with LoRA, for a T4.

./setup.sh python benchmarks/memory_by_part.py --tokenizer DIR --data_dir DATA

Random weights in their shapes; weights and moments in 32 bits, products in 16. Not counted are CUDA's context and what
lives for a moment only, a layer's weights in 16 bits say.
"""

from __future__ import annotations

from timing import describe_machine, run  # isort: skip

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from random_checkpoint import save_random
from seeds import print_header, print_row
from sides import CPU, Ours

from reproduction.results import task_of
from training.flags import whole_number
from training.hardware import Precision

CASES = {"gpt2-medium": ("full", 24, 1024, 16), "gpt2-xl": ("lora", 48, 1600, 25)}  # method, layers, width, heads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", default="gpt2", help="GPT-2's: a directory, or a name on the Hub")
    parser.add_argument("--data_dir", default="data", help="the course's files")
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--batch_size", type=whole_number(1), default=8)
    flags = parser.parse_args()
    describe_machine()
    print_header("GB", "weights", "gradients", "moments", "activations", "sum")
    task, bf16 = task_of("quora", flags.data_dir), Precision("bf16", CPU)
    for name in flags.models:
        method, *shape = CASES[name]
        with TemporaryDirectory() as folder:
            save_random(Path(folder), flags.tokenizer, *shape)
            for less in ({}, {"micro_batch_size": 1}, {"checkpoint_activations": True}):
                side = Ours(task, method, bf16, model_path=folder, batch_size=flags.batch_size, **less)
                side.peak(flags.batch_size)
                parameters = list(side.model.parameters())
                weights = sum(p.nbytes for p in parameters)
                trained = sum(p.nbytes for p in parameters if p.requires_grad)
                parts = [weights, trained, 2 * trained, side.update.memory.kept]
                title = " ".join(
                    [name, method, *(f"--{key} {value}".removesuffix(" True") for key, value in less.items())]
                )
                print_row(title, *(f"{part / 1e9:.2f}" for part in (*parts, sum(parts))))
                del side


if __name__ == "__main__":
    run(main)
