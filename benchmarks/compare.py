"""Ours against stock `transformers` and `peft`: training, evaluation, writing, the optimizer, memory and start-up.

./setup.sh python benchmarks/compare.py --model_path DIR --data_dir DATA [--cases full-sst-8-fp32 ...] [--json FILE]
./setup.sh python benchmarks/compare.py --shapes gpt2 gpt2-medium --tokenizer DIR --data_dir DATA --precision bf16

On a CUDA GPU where there is one. Same checkpoint, same rows in the same batches, dropout on, in turn; a ratio is
stock's time over ours, the median over pairs with the lowest and the highest. In training each side has a process of
its own, for ours sets up the C library's memory as the scripts do, which a user of stock does not. The share of the
ceiling counts the arithmetic of real tokens. On Quora the time of an epoch of the report's 141,506 pairs is scaled
from the steps that were timed.
"""

from __future__ import annotations

from timing import describe_machine, finish, in_turn, peak_of_process  # isort: skip

import argparse
import json
import multiprocessing
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
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory

import torch
import transformers
from generation import writers
from random_checkpoint import save_random
from seeds import print_header, print_row
from sides import METHODS, Ours, Stock, optimizers

import classifier
from config import GPT2Config
from models.files import write_text
from models.generation import Sampling
from models.gpt2 import GPT2Model
from modules.linear import linear
from reproduction.results import task_of
from tasks.report import read_splits
from tasks.table import sample
from training.batching import by_length, shuffled
from training.finetune import fine_tune
from training.hardware import Precision, describe, keep_freed_memory, pick_device
from training.interrupt import StopRequest

DATASETS, BATCHES = ("sst", "cfimdb", "quora"), (8, 64)
CHUNK, CHUNK_ON_GPU = 24, 240  # texts between two looks at the clock, and at least as many steps as
STEPS, STEPS_ON_GPU = 1, 10
STEPS_BEFORE = 200  # on a GPU ours first meets the shapes of its batches, and records them
SHAPES = {"gpt2": (12, 768, 12), "gpt2-medium": (24, 1024, 16)}  # layers, width, heads
SIDES = {"examples": "ours", "examples_stock": "stock"}
QUORA_PAIRS = 141506
PAPER_HOURS = {("full", 12): 1.6, ("lora", 12): 0.9, ("full", 24): 5.0, ("lora", 24): 3.0}  # an epoch, report's table 1


class Training:
    """Steps of training of one side, in a process of its own.

    Args:
        case: method, data set, rows of a batch, precision.
    """

    def __init__(self, flags: argparse.Namespace, side: str, *case):
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_train, args=(other, flags, side, *case), daemon=True)
        self.process.start()
        other.close()
        self.losses: list[float] = []
        self.work: list[float] = []

    def wait(self) -> None:
        """Until it is set up."""
        self.layers = self.connection.recv()

    def __call__(self, number: int) -> None:
        """One chunk of steps."""
        self.connection.send(number)
        losses, work = self.connection.recv()
        self.losses += losses
        self.work += work if number else []  # the first chunk is not timed

    def close(self) -> None:
        self.process.kill()
        self.process.join()


def _train(
    connection: Connection, flags: argparse.Namespace, side: str, method: str, dataset: str, rows: int, precision: str
) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if side == "ours":
        keep_freed_memory()
    ours = Ours(
        task_of(dataset, flags.data_dir), method, Precision(precision, flags.device), model_path=flags.model_path
    )
    network, texts = ours.model.transformer, ours.texts
    one = ours if side == "ours" else Stock(ours, method)
    if side == "stock":
        del ours
    order, steps = shuffled(len(texts), rows, 0, 0), _steps(rows, flags.device)
    connection.send(network.config.n_layer)
    if side == "ours" and flags.device.type == "cuda":
        for batch in (order * STEPS_BEFORE)[-STEPS_BEFORE:]:
            one.step(batch)
    while True:
        number = connection.recv()
        batches = [order[(number * steps + i) % len(order)] for i in range(steps)]
        losses = [one.step(batch) for batch in batches]
        finish()
        connection.send((losses, [_operations(network.config, [texts.lengths[i] for i in batch]) for batch in batches]))


def _steps(rows: int, device: torch.device) -> int:
    chunk, steps = (CHUNK_ON_GPU, STEPS_ON_GPU) if device.type == "cuda" else (CHUNK, STEPS)
    return max(steps, chunk // rows)


def train(flags: argparse.Namespace, method: str, dataset: str, rows: int, precision: str, ceiling: float) -> dict:
    """Steps of training on batches of so many rows."""
    ours, stock = (Training(flags, side, method, dataset, rows, precision) for side in ("ours", "stock"))
    try:
        ours.wait()
        stock.wait()
        timing = in_turn(ours, stock, flags.pairs)
    finally:
        ours.close()
        stock.close()
    passes = {"full": 3, "lora": 2, "last-linear-layer": 1}[method]
    steps = _steps(rows, flags.device)
    examples = {name: rows * steps / getattr(timing, side) for name, side in SIDES.items()}
    epoch = {"hours": QUORA_PAIRS / examples["examples"] / 3600} if dataset == "quora" else {}
    if epoch:
        epoch["hours_paper"] = PAPER_HOURS.get((method, ours.layers))
    return {
        "timing": timing,
        **examples,
        **epoch,
        "share": passes * mean(ours.work) * steps / timing.ours / ceiling,
        "loss": mean(ours.losses),
        "loss_stock": mean(stock.losses),
    }


def _operations(config: GPT2Config, lengths: list[int]) -> float:
    """Of a forward pass, counting multiplications and additions, as the whole network does them for every token."""
    width = config.n_embd
    matrices = 2 * (4 * width + 2 * config.mlp_width) * width * sum(lengths)
    attention = 4 * width * sum(length * (length + 1) / 2 for length in lengths)
    return config.n_layer * (matrices + attention)


def last_linear_layer(flags: argparse.Namespace, precision: str) -> dict:
    """Ten epochs on some of SST: a run of ours, which reads each text once, with what it evaluates and saves; of stock,
    which reads them every time, one epoch of training is timed and counted ten times."""
    more = {"model_path": flags.model_path, "max_train_samples": flags.texts, "max_eval_samples": 100}
    more |= {"precision": precision, "device": flags.device.type}
    settings = classifier.parse_flags([]) | METHODS["last-linear-layer"] | more
    task = task_of("sst", flags.data_dir)
    splits = read_splits(task, settings)
    side = Ours(task, "last-linear-layer", Precision(precision, flags.device), model_path=flags.model_path)
    stock = Stock(side, "last-linear-layer")
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
    task, there = task_of(dataset, flags.data_dir), Precision(precision, flags.device)
    ours = Ours(task, "full", there, split="dev", model_path=flags.model_path)
    stock = Stock(ours, "full")
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
    adamw, fused = optimizers(GPT2Model.from_pretrained(flags.model_path).to(flags.device), embeddings)
    return {"timing": in_turn(lambda _: adamw.step(), lambda _: fused.step(), 2 * flags.pairs)}


def generation(flags: argparse.Namespace) -> dict:
    """Twelve texts of 32 tokens, the likeliest each time."""
    ours, stock, _ = writers(flags.model_path, 32, flags.device)
    greedy = Sampling(temperature=0)
    return {"timing": in_turn(lambda _: ours(greedy), lambda _: stock(greedy), flags.pairs)}


def memory(flags: argparse.Namespace, method: str, dataset: str, rows: int, precision: str) -> dict:
    """Peak in steps on the longest rows, a process each, in MiB: of the whole process, or of a GPU's allocator."""
    peaks = {}
    for side in ("ours", "stock"):
        case = [side, method, dataset, str(rows), precision]
        where = ["--model_path", flags.model_path, "--data_dir", flags.data_dir, "--device", flags.device.type]
        ended = subprocess.run(
            [sys.executable, __file__, *where, "--child", *case], check=True, capture_output=True, text=True
        )
        peaks[side] = int(ended.stdout.split()[-1]) / 2**20
    return {"memory": peaks["ours"], "memory_stock": peaks["stock"]}


def _child(flags: argparse.Namespace) -> None:
    side, method, dataset, rows, precision = flags.child
    there = Precision(precision, flags.device)
    one = Ours(task_of(dataset, flags.data_dir), method, there, model_path=flags.model_path)
    if side == "stock":
        one = Stock(one, method)  # ours is garbage from here on, but for the head it was given
    lengths = one.texts.lengths
    longest = sorted(range(len(lengths)), key=lengths.__getitem__)[-int(rows) :]
    for _ in range(2):  # the second finds the optimizer's state in its place
        one.step(longest)
    print(torch.cuda.max_memory_allocated() if flags.device.type == "cuda" else peak_of_process())


def start_up() -> dict:
    """Seconds of `classifier.py --help`, the median of five."""
    command = [sys.executable, str(Path(classifier.__file__)), "--help"]
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
    return {"seconds": median(seconds)}


def ceilings(precisions: list[str], device: torch.device) -> dict[str, float]:
    """The most that the machine does: operations a second of a large matrix product by precision, the quicker of
    torch's and ours; bytes a second of a copy, counting what is read and what is written."""
    best, size = {}, 8192 if device.type == "cuda" else 2048
    for name in precisions:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
        a, b = torch.randn(2, size, size, dtype=dtype, device=device)
        with torch.no_grad():
            both = [lambda a=a, b=b: a @ b, lambda a=a, b=b: linear(a, b)]
            best[name] = 2 * size**3 / min(_seconds(work) for work in both * 20)
    source = torch.randn(1 << 26, device=device)
    target = torch.empty_like(source)
    best["copy"] = 2 * source.nbytes / min(_seconds(lambda: target.copy_(source)) for _ in range(10))
    return best


def _seconds(work: Callable[[], object]) -> float:
    finish()
    started = time.perf_counter()
    work()
    finish()
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
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model_path", help="any Hugging Face GPT-2 directory with a tokenizer")
    model.add_argument("--shapes", nargs="+", choices=SHAPES, help="random weights in these shapes, one after another")
    parser.add_argument("--tokenizer", default="gpt2", help="GPT-2's, for --shapes: a directory, or a name on the Hub")
    parser.add_argument("--data_dir", default="data", help="the course's files")
    parser.add_argument("--cases", nargs="+", metavar="PATTERN", default=["*"], help="`full-*-8-fp32`, `memory-*`")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--texts", type=int, default=1000, help="of the last linear layer and evaluation")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), help="all that the device multiplies in")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    flags.device = pick_device(flags.device)
    keep_freed_memory()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if flags.child:
        _child(flags)
        return
    if not flags.precision:
        best = Precision("auto", flags.device).name
        flags.precision = ["fp32", "bf16"] if best == "bf16" else ["fp32"]
    describe_machine(flags.device.type)
    ceiling = ceilings(flags.precision, flags.device)
    print(", ".join(f"{name} {value / 1e9:.0f} G/s" for name, value in ceiling.items()), flush=True)
    found = {}
    with TemporaryDirectory() as folder:
        for shape in flags.shapes or [None]:
            if shape:
                flags.model_path = str(Path(folder) / shape)
                save_random(flags.model_path, flags.tokenizer, *SHAPES[shape])
            found[shape or flags.model_path] = _compare(shape or "", flags, ceiling)
    if flags.json:
        figures = {"machine": describe(flags.device), "torch": torch.__version__, "ceiling": ceiling}
        write_text(flags.json, json.dumps(figures | {"models": found}, indent=1) + "\n")


def _compare(title: str, flags: argparse.Namespace, ceiling: dict[str, float]) -> dict[str, dict]:
    """All figures of one checkpoint by case, printed as they come."""
    found = {}
    print_header(
        title, "stock's time over ours", "ours", "stock", "share of the ceiling", "loss: ours, stock", "hours an epoch"
    )
    for name, measure in cases(flags, ceiling):
        if any(fnmatch(name, pattern) for pattern in flags.cases):
            figures = measure()
            print_row(name, *_cells(figures))
            found[name] = {key: asdict(value) if key == "timing" else value for key, value in figures.items()}
    return found


def _cells(figures: dict) -> list[str]:
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
    hours = f"{figures['hours']:.2f}" if "hours" in figures else ""
    if figures.get("hours_paper"):
        hours += f" (the report: {figures['hours_paper']})"
    return [str(timing), *sides, f"{figures['share']:.0%}", losses, hours]


if __name__ == "__main__":
    main()
