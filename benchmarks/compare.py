"""Ours against stock `transformers` and `peft`: training, evaluation, writing, the optimizer, memory and start-up.

./setup.sh python benchmarks/compare.py --model_path DIR --data_dir DATA [--cases full-sst-8-fp32 ...] [--json FILE]
./setup.sh python benchmarks/compare.py --model_path DIR --data_dir DATA --against naive --cases 'full-*' 'lora-*'
./setup.sh python benchmarks/compare.py --shapes gpt2 gpt2-medium --tokenizer DIR --data_dir DATA --precision bf16

On a CUDA GPU where there is one. Same checkpoint, training on the same rows in the same batches, dropout on, in turn; a
ratio is stock's time over ours, the median over pairs with the lowest and the highest. The share of the ceiling counts
the arithmetic of real tokens in all blocks. On Quora the time of an epoch of the report's 141,506 pairs is scaled from
the steps that were timed.
"""

from __future__ import annotations

from timing import describe_machine, run  # isort: skip

import argparse
import fnmatch
import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from seeds import print_header, print_row

from config import InputError
from training.flags import whole_number

OTHERS = ("stock", "trainer", "trainer-unfused", "naive")
SHAPES = {"gpt2": (12, 768, 12), "gpt2-medium": (24, 1024, 16)}  # layers, width, heads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model_path", help="any Hugging Face GPT-2 directory with a tokenizer")
    model.add_argument("--shapes", nargs="+", choices=SHAPES, help="random weights in these shapes, one after another")
    parser.add_argument("--tokenizer", default="gpt2", help="GPT-2's, for --shapes: a directory, or a name on the Hub")
    parser.add_argument("--data_dir", default="data", help="the course's files")
    parser.add_argument("--cases", nargs="+", metavar="PATTERN", default=["*"], help="`full-*-8-fp32`, `memory-*`")
    parser.add_argument(
        "--against", choices=OTHERS, default="stock",
        help="a loop around stock; transformers.Trainer with fused AdamW, its default; that with optim='adamw_torch', "
        "a dozen passes over memory on a CPU; or the loop without padding, and no more",
    )  # fmt: skip
    parser.add_argument("--pairs", type=whole_number(1), default=9)
    parser.add_argument("--texts", type=whole_number(1), default=1000, help="of the last linear layer and evaluation")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), help="all that the device multiplies in")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    compare(parser.parse_args())


def compare(flags: argparse.Namespace) -> None:
    """Prints the table, and writes the file anew after each case, also after one that a side has no memory for."""
    import torch
    from apart import OutOfMemory
    from comparisons import cases, ceilings
    from random_checkpoint import save_random

    from models.files import write_text
    from training.hardware import Precision, describe, pick_device

    flags.device = pick_device(flags.device)
    if not flags.precision:
        best = Precision("auto", flags.device).name
        flags.precision = ["fp32", "bf16"] if best == "bf16" else ["fp32"]
    measures = dict(cases(flags))
    for pattern in flags.cases:
        if not fnmatch.filter(measures, pattern):
            raise InputError(f"--cases {pattern}: no case has such a name; there are {', '.join(measures)}")
    _check_writable(flags.json)
    chosen = [name for name in measures if any(fnmatch.fnmatch(name, pattern) for pattern in flags.cases)]
    describe_machine(flags.device.type)
    flags.ceiling = ceilings(flags.precision, flags.device)
    print(", ".join(f"{name} {value / 1e9:.0f} G/s" for name, value in flags.ceiling.items()), flush=True)
    figures = {"machine": describe(flags.device), "torch": torch.__version__, "ceiling": flags.ceiling}
    figures |= {"against": flags.against, "models": {}}
    with TemporaryDirectory() as folder:
        for shape in flags.shapes or [None]:
            if shape:
                flags.model_path = str(Path(folder) / shape)
                save_random(flags.model_path, flags.tokenizer, *SHAPES[shape])
            found = figures["models"][shape or flags.model_path] = {}
            sides = f"{flags.against}'s time over ours", "ours", flags.against
            losses = f"loss: ours, {flags.against}"
            print_header(shape or "", *sides, "share of the ceiling", losses, "hours an epoch")
            for name in chosen:
                try:
                    measured = measures[name]()
                except OutOfMemory as error:
                    measured = {"out_of_memory": "ours" if str(error) == "ours" else flags.against}
                print_row(name, *_cells(measured))
                found[name] = {k: asdict(value) if k == "timing" else value for k, value in measured.items()}
                if flags.json:
                    write_text(flags.json, json.dumps(figures, indent=1) + "\n")


def _check_writable(path: Path | None) -> None:
    if path:
        try:
            path.open("ab").close()
        except OSError as error:
            raise InputError(f"--json {path}: {error.strerror}") from error


def _cells(figures: dict) -> list[str]:
    if "out_of_memory" in figures:
        return [f"out of memory: {figures['out_of_memory']}", "", "", "", "", ""]
    if "seconds" in figures:
        return ["", f"{figures['seconds']:.2f} s", "", "", "", ""]
    if "memory" in figures:
        ours, stock = figures["memory"], figures["memory_stock"]
        return [f"{stock / ours:.2f} (memory)", f"{ours:.0f} MiB", f"{stock:.0f} MiB", "", "", ""]
    timing = figures["timing"]
    if "examples" not in figures:
        return [str(timing), f"{timing.ours:.2f} s", f"{timing.stock:.2f} s", "", "", ""]
    sides = [f"{figures[k]:.1f} examples/s" for k in ("examples", "examples_stock")]
    losses = f"{figures['loss']:.3f}, {figures['loss_stock']:.3f}"
    hours = f"{figures['hours']:.2g}" if "hours" in figures else ""
    if figures.get("hours_paper"):
        hours += f" (the report: {figures['hours_paper']})"
    return [str(timing), *sides, f"{figures['share']:.0%}", losses, hours]


if __name__ == "__main__":
    run(main)
