"""What `compare.py` compares: each case's work of either side, and what is told of it."""

from __future__ import annotations

from timing import finish, peak_of_process  # isort: skip

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from itertools import chain, product
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory

import torch
from apart import Work, both, one_by_one
from generation import writers
from sides import METHODS, Naive, Ours, Stock, optimizers
from trained import Trained

import classifier
from config import GPT2Config
from models.generation import Sampling
from models.gpt2 import GPT2Model
from modules.linear import linear
from reproduction.results import task_of
from tasks.report import read_splits
from tasks.table import sample
from training.batching import by_length, shuffled
from training.finetune import fine_tune
from training.hardware import Precision
from training.interrupt import StopRequest

OTHERS = {
    "stock": Stock,
    "trainer": partial(Trained, optim="adamw_torch_fused"),
    "trainer-unfused": partial(Trained, optim="adamw_torch"),
    "naive": Naive,
}
DATASETS, BATCHES = ("sst", "cfimdb", "quora"), (8, 64)
CHUNK, CHUNK_ON_GPU = 24, 240  # texts between two looks at the clock, and at least as many steps as
STEPS, STEPS_ON_GPU = 1, 10
STEPS_BEFORE = 120  # on a GPU, where ours records shapes of batches that it meets, and stock's memory finds its sizes
QUORA_PAIRS = 141506
PAPER_HOURS = {("full", 12): 1.6, ("lora", 12): 0.9, ("full", 24): 5.0, ("lora", 24): 3.0}  # an epoch, report's table 1


def training(side: str, flags: argparse.Namespace, method: str, dataset: str, rows: int, precision: str) -> Work:
    """Chunks of steps: their losses, and the operations of a forward pass of each."""
    one = _one(side, flags, method, dataset, precision)
    config, lengths = GPT2Config.from_file(Path(flags.model_path) / "config.json"), one.texts.lengths
    order, steps = shuffled(len(lengths), rows, 0, 0), _steps(rows, flags.device)
    if flags.device.type == "cuda":
        for batch in (order * STEPS_BEFORE)[-STEPS_BEFORE:]:
            one.step(batch)

    def chunk(number: int) -> list[tuple[float, float]]:
        batches = [order[(number * steps + i) % len(order)] for i in range(steps)]
        losses = torch.stack([one.step(batch) for batch in batches]).tolist()
        return list(zip(losses, [_operations(config, [lengths[i] for i in batch]) for batch in batches], strict=True))

    return chunk


def _one(side: str, flags: argparse.Namespace, method: str, dataset: str, precision: str, **more) -> Ours | Stock:
    there = Precision(precision, flags.device)
    ours = Ours(task_of(dataset, flags.data_dir), method, there, model_path=flags.model_path, **more)
    if side == "ours":
        return ours
    return OTHERS[flags.against](ours, method)  # ours is garbage then, but for the head it was given


def _steps(rows: int, device: torch.device) -> int:
    chunk, steps = (CHUNK_ON_GPU, STEPS_ON_GPU) if device.type == "cuda" else (CHUNK, STEPS)
    return max(steps, chunk // rows)


def _operations(config: GPT2Config, lengths: list[int]) -> float:
    """Of a forward pass, counting multiplications and additions, as the whole network does them for every token."""
    width = config.n_embd
    matrices = 2 * (4 * width + 2 * config.mlp_width) * width * sum(lengths)
    attention = 4 * width * sum(length * (length + 1) / 2 for length in lengths)
    return config.n_layer * (matrices + attention)


def train(flags: argparse.Namespace, method: str, dataset: str, rows: int, precision: str) -> dict:
    """Steps of training on batches of so many rows."""
    timing, *results = both(training, flags, method, dataset, rows, precision, pairs=flags.pairs)
    (losses, work), (losses_stock, _) = (zip(*chain(*chunks[1:]), strict=True) for chunks in results)
    steps, passes = _steps(rows, flags.device), {"full": 3, "lora": 2}[method]
    found = {
        "timing": timing,
        "examples": rows * steps / timing.ours,
        "examples_stock": rows * steps / timing.stock,
        "share": passes * mean(work) * steps / timing.ours / flags.ceiling[precision],
        "loss": mean(losses),
        "loss_stock": mean(losses_stock),
    }
    if dataset == "quora":
        layers = GPT2Config.from_file(Path(flags.model_path) / "config.json").n_layer
        found |= {
            "hours": QUORA_PAIRS / found["examples"] / 3600,
            "hours_paper": PAPER_HOURS.get((method, layers)),
        }
    return found


def last_linear_layer(side: str, flags: argparse.Namespace, precision: str) -> Work:
    """On some of SST: ten epochs of ours, which reads each text once, with what it evaluates and saves; one epoch of
    training of stock, which reads them every time."""
    task = task_of("sst", flags.data_dir)
    if side == "ours":
        more = {"model_path": flags.model_path, "max_train_samples": flags.texts, "max_eval_samples": 100}
        more |= {"precision": precision, "device": flags.device.type}
        settings = classifier.parse_flags([]) | METHODS["last-linear-layer"] | more
        splits = read_splits(task, settings)

        def run(_: int) -> None:
            with TemporaryDirectory() as folder, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                fine_tune(Path(folder), task, splits, settings, StopRequest())

        return run
    stock = _one(side, flags, "last-linear-layer", "sst", precision)
    order = sample(len(stock.texts), flags.texts)

    def one_epoch(_: int) -> None:
        for batch in shuffled(len(order), BATCHES[0], 0, 0):
            stock.step([order[i] for i in batch])

    return one_epoch


def evaluation(side: str, flags: argparse.Namespace, dataset: str, precision: str) -> Work:
    """Logits of dev: ours in batches of so many tokens, longest first, as in training; stock 64 rows at a time, as
    they stand in the file."""
    one = _one(side, flags, "full", dataset, precision, split="dev")
    count = min(len(one.texts), flags.texts)
    batches = [list(range(start, min(start + 64, count))) for start in range(0, count, 64)]
    if side == "ours":
        batches = list(by_length(one.texts.lengths[:count]))

    def read(_: int) -> None:
        for batch in batches:
            one.read(batch)

    return read


def optimizer_step(side: str, flags: argparse.Namespace, embeddings: int | None = None) -> Work:
    """AdamW over all parameters, against `torch.optim.AdamW(fused=True)`; gradients of some embeddings, or of all."""
    adamw, fused = optimizers(GPT2Model.from_pretrained(flags.model_path).to(flags.device), embeddings)
    step = adamw.step if side == "ours" else fused.step
    return lambda _: step()


def generation(side: str, flags: argparse.Namespace) -> Work:
    """Twelve texts of 32 tokens, the likeliest each time."""
    ours, stock, _ = writers(flags.model_path, 32, flags.device)
    write = ours if side == "ours" else stock
    return lambda _: write(Sampling(temperature=0))


def peak(side: str, flags: argparse.Namespace, method: str, dataset: str, rows: int, precision: str) -> Work:
    """Bytes at the peak of steps on the longest rows: of the whole process, or of a GPU's allocator."""
    one = _one(side, flags, method, dataset, precision)
    lengths = one.texts.lengths
    longest = sorted(range(len(lengths)), key=lengths.__getitem__)[-rows:]

    def steps(_: int) -> int:
        if flags.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()  # while stock was built, ours was there too
        for _ in range(2):  # the second finds the optimizer's state in its place
            one.step(longest)
        return torch.cuda.max_memory_allocated() if flags.device.type == "cuda" else peak_of_process()

    return steps


def memory(flags: argparse.Namespace, *case) -> dict:
    """The peak of both sides, in MiB."""
    ours, stock = one_by_one(peak, flags, *case)
    return {"memory": ours / 2**20, "memory_stock": stock / 2**20}


def timed(setup: Callable[..., Work], flags: argparse.Namespace, *case, pairs: int, times: float = 1) -> dict:
    """The time of both sides, stock's so many times."""
    timing, *_ = both(setup, flags, *case, pairs=pairs)
    return {"timing": timing.times(times)}


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


def cases(flags: argparse.Namespace) -> Iterator[tuple[str, Callable[[], dict]]]:
    """Every comparison by its name; `flags` are those of `compare.py`, with the machine's `ceiling`."""
    for precision in flags.precision:
        for method, dataset, rows in product(("full", "lora"), DATASETS, BATCHES):
            name = f"{method}-{dataset}-{rows}-{precision}"
            yield name, partial(train, flags, method, dataset, rows, precision)
        for method in ("full", "lora"):
            yield f"memory-{method}-cfimdb-8-{precision}", partial(memory, flags, method, "cfimdb", 8, precision)
        few = max(1, flags.pairs // 3)
        ten_epochs = partial(timed, last_linear_layer, flags, precision, pairs=few, times=10)
        yield f"last-linear-layer-sst-{precision}", ten_epochs
        for dataset in DATASETS if flags.against == "stock" else ():
            yield f"evaluation-{dataset}-{precision}", partial(timed, evaluation, flags, dataset, precision, pairs=few)
    if flags.against != "stock":  # which is what the others have here too
        return
    yield "generation-fp32", partial(timed, generation, flags, pairs=flags.pairs)
    yield "adamw", partial(timed, optimizer_step, flags, pairs=2 * flags.pairs)
    yield "adamw-1000-embeddings", partial(timed, optimizer_step, flags, 1000, pairs=2 * flags.pairs)
    yield "start-up", start_up
