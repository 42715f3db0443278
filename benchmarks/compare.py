"""Ours against stock `transformers` and `peft`: training, evaluation, writing, the optimizer, memory and start-up.

./setup.sh python benchmarks/compare.py --model_path DIR --data_dir DATA [--cases full-sst-8-fp32 ...] [--json FILE]

Same checkpoint, same rows in the same batches, dropout on, in turn in one process; a ratio is stock's time over ours,
the median over pairs with the lowest and the highest. The share of the ceiling counts the arithmetic of real tokens.
"""

from __future__ import annotations

from timing import describe_machine, in_turn, peak_of_process  # isort: skip

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from fnmatch import fnmatch
from functools import partial
from io import StringIO
from itertools import product
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory

import torch
import transformers
from generation import writers
from seeds import print_header, print_row
from sides import METHODS, Ours, Stock, optimizers

import classifier
from models.files import write_text
from models.generation import Sampling
from models.gpt2 import GPT2Model
from reproduction.results import task_of
from tasks.report import read_splits
from tasks.table import sample
from training.batching import by_length, shuffled
from training.finetune import fine_tune
from training.hardware import Precision, describe, keep_freed_memory
from training.interrupt import StopRequest

DATASETS, BATCHES = ("sst", "cfimdb", "quora"), (8, 64)
CHUNK = 24  # texts between two looks at the clock, at least


def train(flags: argparse.Namespace, method: str, dataset: str, rows: int, precision: str, ceiling: float) -> dict:
    """Steps of training on batches of so many rows."""
    task = task_of(dataset, flags.data_dir)
    ours = Ours(task, method, precision, model_path=flags.model_path)
    stock = Stock(ours, method, precision)
    order = shuffled(len(ours.texts), rows, 0, 0)
    steps = max(1, CHUNK // rows)
    losses: dict[object, list[float]] = {ours: [], stock: []}

    def chunk(side: Ours | Stock, number: int) -> None:
        losses[side] += [side.step(order[(number * steps + i) % len(order)]) for i in range(steps)]

    timing = in_turn(partial(chunk, ours), partial(chunk, stock), flags.pairs)
    seen = [order[i % len(order)] for i in range(steps, steps * (flags.pairs + 1))]
    work = mean(_operations(ours.model.transformer, [ours.texts.lengths[i] for i in batch]) for batch in seen)
    passes = {"full": 3, "lora": 2, "last-linear-layer": 1}[method]
    return {
        "timing": timing,
        "examples": rows * steps / timing.ours,
        "examples_stock": rows * steps / timing.stock,
        "share": passes * work * steps / timing.ours / ceiling,
        "loss": mean(losses[ours]),
        "loss_stock": mean(losses[stock]),
    }


def _operations(network: GPT2Model, lengths: list[int]) -> float:
    """Of a forward pass, counting multiplications and additions, as the whole network does them for every token."""
    config = network.config
    width = config.n_embd
    matrices = 2 * (4 * width + 2 * config.mlp_width) * width * sum(lengths)
    attention = 4 * width * sum(length * (length + 1) / 2 for length in lengths)
    return config.n_layer * (matrices + attention)


def last_linear_layer(flags: argparse.Namespace, precision: str) -> dict:
    """Ten epochs on some of SST: a run of ours, which reads each text once, with what it evaluates and saves; of stock,
    which reads them every time, one epoch of training is timed and counted ten times."""
    more = {"model_path": flags.model_path, "max_train_samples": flags.texts, "max_eval_samples": 100}
    settings = classifier.parse_flags([]) | METHODS["last-linear-layer"] | more | {"precision": precision}
    task = task_of("sst", flags.data_dir)
    splits = read_splits(task, settings)
    stock = Stock(
        Ours(task, "last-linear-layer", precision, model_path=flags.model_path), "last-linear-layer", precision
    )
    order = sample(len(stock.texts), flags.texts)

    def run(_: int) -> None:
        with TemporaryDirectory() as folder, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            fine_tune(Path(folder), task, splits, settings, StopRequest())

    def one_epoch(_: int) -> None:
        for batch in shuffled(len(order), settings["batch_size"], 0, 0):
            stock.step([order[i] for i in batch])

    return {"timing": in_turn(run, one_epoch, max(1, flags.pairs // 3)).times(settings["epochs"])}


def evaluate(flags: argparse.Namespace, dataset: str, precision: str) -> dict:
    """Logits of dev: ours in batches of so many tokens, longest first, as in training; stock 64 rows at a time, as
    they stand in the file."""
    ours = Ours(task_of(dataset, flags.data_dir), "full", precision, split="dev", model_path=flags.model_path)
    stock = Stock(ours, "full", precision)
    count = min(len(ours.texts), flags.texts)
    lengths = ours.texts.lengths[:count]

    def read_ours(_: int) -> None:
        for batch in by_length(lengths):
            ours.read(batch)

    def read_stock(_: int) -> None:
        for start in range(0, count, 64):
            stock.read(list(range(start, min(start + 64, count))))

    return {"timing": in_turn(read_ours, read_stock, max(1, flags.pairs // 3))}


def optimizer_step(flags: argparse.Namespace, embeddings: int | None = None) -> dict:
    """AdamW over all parameters, against `torch.optim.AdamW(fused=True)`; gradients of some embeddings, or of all."""
    adamw, fused = optimizers(GPT2Model.from_pretrained(flags.model_path), embeddings)
    return {"timing": in_turn(lambda _: adamw.step(), lambda _: fused.step(), 2 * flags.pairs)}


def generation(flags: argparse.Namespace) -> dict:
    """Twelve texts of 32 tokens, the likeliest each time."""
    ours, stock, _ = writers(flags.model_path, 32)
    greedy = Sampling(temperature=0)
    return {"timing": in_turn(lambda _: ours(greedy), lambda _: stock(greedy), flags.pairs)}


def memory(flags: argparse.Namespace, method: str, dataset: str, rows: int, precision: str) -> dict:
    """Peak of the whole process in steps on the longest rows, a process each, in MiB."""
    peaks = {}
    for side in ("ours", "stock"):
        case = [side, method, dataset, str(rows), precision]
        where = ["--model_path", flags.model_path, "--data_dir", flags.data_dir]
        ended = subprocess.run(
            [sys.executable, __file__, *where, "--child", *case], check=True, capture_output=True, text=True
        )
        peaks[side] = int(ended.stdout.split()[-1]) / 2**20
    return {"memory": peaks["ours"], "memory_stock": peaks["stock"]}


def _child(flags: argparse.Namespace) -> None:
    side, method, dataset, rows, precision = flags.child
    one = Ours(task_of(dataset, flags.data_dir), method, precision, model_path=flags.model_path)
    if side == "stock":
        one = Stock(one, method, precision)  # ours is garbage from here on, but for the head it was given
    lengths = one.texts.lengths
    longest = sorted(range(len(lengths)), key=lengths.__getitem__)[-int(rows) :]
    for _ in range(2):  # the second finds the optimizer's state in its place
        one.step(longest)
    print(peak_of_process())


def start_up() -> dict:
    """Seconds of `classifier.py --help`, the median of five."""
    command = [sys.executable, str(Path(classifier.__file__)), "--help"]
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
    return {"seconds": median(seconds)}


def ceilings(precisions: list[str]) -> dict[str, float]:
    """The most that the machine does: operations a second of a large matrix product by precision, bytes a second of a
    copy, counting what is read and what is written."""
    best = {}
    for name in precisions:
        a, b = torch.randn(2, 2048, 2048, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[name])
        best[name] = 2 * 2048**3 / min(_seconds(lambda a=a, b=b: a @ b) for _ in range(20))
    source = torch.randn(1 << 26)
    target = torch.empty_like(source)
    best["copy"] = 2 * source.nbytes / min(_seconds(lambda: target.copy_(source)) for _ in range(10))
    return best


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def cases(flags: argparse.Namespace, ceiling: dict[str, float]) -> Iterator[tuple[str, Callable[[], dict]]]:
    """Every comparison by its name."""
    for precision in flags.precision:
        for method, dataset, rows in product(("full", "lora"), DATASETS, BATCHES):
            name = f"{method}-{dataset}-{rows}-{precision}"
            yield name, partial(train, flags, method, dataset, rows, precision, ceiling[precision])
        for method in ("full", "lora"):
            yield f"memory-{method}-cfimdb-8-{precision}", partial(memory, flags, method, "cfimdb", 8, precision)
        yield f"last-linear-layer-sst-{precision}", partial(last_linear_layer, flags, precision)
        for dataset in DATASETS:
            yield f"evaluation-{dataset}-{precision}", partial(evaluate, flags, dataset, precision)
    yield "generation-fp32", partial(generation, flags)
    yield "adamw", partial(optimizer_step, flags)
    yield "adamw-1000-embeddings", partial(optimizer_step, flags, 1000)
    yield "start-up", start_up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_path", required=True, help="any Hugging Face GPT-2 directory with a tokenizer")
    parser.add_argument("--data_dir", default="data", help="the course's files")
    parser.add_argument("--cases", nargs="+", metavar="PATTERN", default=["*"], help="`full-*-8-fp32`, `memory-*`")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--texts", type=int, default=1000, help="of the last linear layer and evaluation")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), help="all that the processor multiplies in")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    keep_freed_memory()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if flags.child:
        _child(flags)
        return
    flags.precision = flags.precision or sorted({"fp32", Precision("auto", torch.device("cpu")).name}, reverse=True)
    describe_machine()
    ceiling = ceilings(flags.precision)
    print(", ".join(f"{name} {value / 1e9:.0f} G/s" for name, value in ceiling.items()), flush=True)
    found = {}
    print_header("", "stock's time over ours", "ours", "stock", "share of the ceiling", "loss: ours, stock")
    for name, measure in cases(flags, ceiling):
        if any(fnmatch(name, pattern) for pattern in flags.cases):
            found[name] = measure()
            print_row(name, *_cells(found[name]))
    if flags.json:
        figures = {"machine": describe(torch.device("cpu")), "torch": torch.__version__, "ceiling": ceiling}
        plain = {name: {k: asdict(v) if k == "timing" else v for k, v in one.items()} for name, one in found.items()}
        write_text(flags.json, json.dumps(figures | {"cases": plain}, indent=1) + "\n")


def _cells(figures: dict) -> list[str]:
    if "seconds" in figures:
        return ["", f"{figures['seconds']:.2f} s", "", "", ""]
    if "memory" in figures:
        ours, stock = figures["memory"], figures["memory_stock"]
        return [f"{stock / ours:.2f} (memory)", f"{ours:.0f} MiB", f"{stock:.0f} MiB", "", ""]
    timing = figures["timing"]
    if "examples" not in figures:
        return [str(timing), f"{timing.ours:.2f} s", f"{timing.stock:.2f} s", "", ""]
    sides = [f"{figures[k]:.1f} examples/s" for k in ("examples", "examples_stock")]
    return [str(timing), *sides, f"{figures['share']:.0%}", f"{figures['loss']:.3f}, {figures['loss_stock']:.3f}"]


if __name__ == "__main__":
    main()
