"""Checkpoints that stock `transformers` saves, a tokenizer trained on the spot, data files in the course's format."""

from __future__ import annotations

import csv
import logging
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)  # pytest runs two processes
os.environ["OMP_NUM_THREADS"] = "1"  # and so for what they start

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"

needs_shared_data = pytest.mark.skipif(
    not (SHARED / "data").is_dir(), reason="the course's data files do not lie beside the project"
)

GOOD = "warm funny moving clever bright tender".split()
BAD = "dull flat tired clumsy stale hollow".split()
FILLER = "the film a story with its cast and one scene after another in town at night".split()


def write_tokenizer(folder: Path, vocab_size: int = 400) -> None:
    """A byte-level BPE tokenizer with an end-of-text token, as GPT-2's is made."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(GOOD + BAD + FILLER)] * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


def stock_config(**settings) -> transformers.GPT2Config:
    """A small GPT-2 without dropout, unless told otherwise."""
    small = dict(n_layer=2, n_embd=64, n_head=4, vocab_size=400, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2Config(**small | dict(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0) | settings)


def scramble(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random values for every parameter, so that biases and norms take part too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache of tokens"))


@pytest.fixture
def quick_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sonnets: intervals and baselines from few draws, for tests that look at something else."""
    monkeypatch.setattr("tasks.sonnet_scores.RESAMPLINGS", 20)
    monkeypatch.setattr("tasks.sonnet_scores.DRAWS", 2)


@pytest.fixture
def save_stock(tmp_path: Path) -> Callable[..., Path]:
    """Saves a stock model of random weights, and a tokenizer, to a directory of its own."""
    count = 0

    def save(architecture: str = "GPT2LMHeadModel", seed: int = 0, **settings) -> Path:
        nonlocal count
        count += 1
        folder = tmp_path / f"model{count}"
        torch.manual_seed(seed)
        scramble(getattr(transformers, architecture)(stock_config(**settings)), seed).save_pretrained(folder)
        write_tokenizer(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A directory to copy and break."""
    folder = tmp_path_factory.mktemp("models") / "base"
    scramble(transformers.GPT2LMHeadModel(stock_config(n_positions=64))).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def adapter(model, tmp_path_factory) -> Path:
    """One of that model, with the head of a classifier."""
    from models.gpt2 import GPT2Model
    from models.heads import GPT2ForSequenceClassification
    from models.lora import Lora

    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    Lora(GPT2ForSequenceClassification(GPT2Model.from_pretrained(model), ["a", "b"]), str(model), rank=4).save(folder)
    return folder


def read_events(run: Path) -> list[tuple[str, int, float]]:
    """What TensorBoard shows of a run, but for seconds: tag, step and value, sorted."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of what it purges
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.endswith("_seconds")]
    return sorted((tag, event.step, event.value) for tag in tags for event in events.Scalars(tag))


def write_rows(path: Path, header: list[str], rows: list[list]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([header, *rows])
    return path


def review(label: int, classes: int, seed: int) -> str:
    """A sentence whose words tell its class more often than not."""
    generator = random.Random(seed)
    share = label / (classes - 1)
    words = [generator.choice(FILLER) for _ in range(generator.randint(1, 12))]
    words += [generator.choice(GOOD if generator.random() < share else BAD) for _ in range(4)]
    generator.shuffle(words)
    return " ".join(words)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Both data sets, small, in the course's format: 60 rows to train on, 20 of dev, 15 of test."""
    folder = tmp_path / "data"
    for name, classes in (("sst", 5), ("cfimdb", 2)):
        for split, count, first in (("train", 60, 0), ("dev", 20, 100), ("test-student", 15, 200)):
            seeds = range(first, first + count)
            rows = [[i, f"{name}{s}", " " + review(s % classes, classes, s), s % classes] for i, s in enumerate(seeds)]
            header = ["", "id", "sentence", "sentiment"]
            if split == "test-student":
                header, rows = (
                    ["0", "", "id", "sentence"],
                    [[i, float(i), row[1], row[2]] for i, row in enumerate(rows)],
                )
            write_rows(folder / f"ids-{name}-{split}.csv", header, rows)
    return folder
