"""From a task and a checkpoint to a trained run with its predictions: what every classification script does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from models.files import sha256
from models.heads import GPT2ForSequenceClassification
from models.pretrained import save_tokenizer
from training.batching import TokenExamples
from training.hardware import Precision, describe, make_deterministic, pick_device
from training.interrupt import StopRequest
from training.methods import choose
from training.network import load_network
from training.run import Run
from training.trainer import Trainer, predict


class Split(Protocol):
    """The rows of the file at `path` that are used, with their `labels` (None where unknown), and those left out."""

    path: Path
    labels: list[int | None]
    bad: list


class Task(Protocol):
    """What is learned.

    Attributes:
        labels: names of the classes.
        answers: words a language model could name the classes by; None if it is not asked to.
    """

    labels: Sequence[str]
    answers: Sequence[str] | None

    def encode(self, tokenizer, split: Split) -> TokenExamples:
        """Its rows as token ids, none longer than the tokenizer's `model_max_length`."""

    def score(self, logits: np.ndarray, labels: list[int]) -> dict[str, float]:
        """`loss`, `acc` and `f1`."""


@dataclass
class Result:
    """What a run ends with.

    Attributes:
        run: its folder.
        epoch: the epoch kept, counted from 1.
        epochs: how many there were.
        predictions: (n,) a class for each row of `dev` and of `test`.
        seconds: spent training and evaluating.
    """

    run: Path
    epoch: int
    epochs: int
    predictions: dict[str, np.ndarray]
    seconds: float


def fine_tune(
    folder: Path,
    task: Task,
    splits: dict[str, Split],
    settings: dict,
    stop: StopRequest,
    store_features: bool = True,
) -> Result:
    """Fine-tunes a checkpoint on `train`, keeps the best epoch by `dev`, and predicts `dev` and `test` with it.

    In `last-linear-layer` mode the frozen network runs once over each text and the epochs train on what it said;
    `store_features=False` runs it anew every epoch instead, to compare with.

    Args:
        folder: the run's.
        splits: `train`, `dev` and `test`.
        settings: the script's flags.

    Raises:
        InputError: the checkpoint, the device or a flag is at fault.
        Interrupted: the user asked to stop.
    """
    precision = Precision(settings["precision"], pick_device(settings["device"]))
    loaded = load_network(settings)
    make_deterministic(settings["seed"], precision.device)
    model = GPT2ForSequenceClassification(loaded.network, task.labels, settings["hidden_dropout_prob"])
    if settings.get("head_init") == "cloze":
        model.start_head_from([loaded.tokenizer(word)["input_ids"][0] for word in task.answers])
    method = choose(settings, loaded, store_features)(model, settings)
    model.to(precision.device)
    facts = {
        "data": {split.path.name: sha256(split.path) for split in splits.values()},
        "model": loaded.hashes(),
        "hardware": describe(precision.device),
        "precision": precision.name,
        "parameters": count_parameters(model),
        "memory_bytes": fixed_memory(model),
    }
    run = Run(folder, settings, facts, settings["resume"])
    run.list_bad_rows([row for split in splits.values() for row in split.bad])
    print_costs(facts)

    def run_over(forward, examples, name: str) -> Tensor:
        return torch.from_numpy(predict(model, forward, examples, precision, stop, name))

    def save_best() -> None:
        if not (run.best / "tokenizer.json").is_file():
            save_tokenizer(loaded.tokenizer, run.best)
        method.save(run.best)

    examples = {key: task.encode(loaded.tokenizer, split) for key, split in splits.items()}
    forward, examples = method.start(examples, run_over)
    trainer = Trainer(model, forward, settings, run, save_best, precision, stop)
    trainer.fit(examples["train"], examples["dev"], task.score, score_first=task.answers is not None)

    best, forward = method.load(run.best)
    predictions = {
        key: predict(best, forward, examples[key], precision, stop, key).argmax(axis=1) for key in ("dev", "test")
    }
    if settings["save_merged"]:
        method.save_merged(run.best, run.path / "merged")
        save_tokenizer(loaded.tokenizer, run.path / "merged")
    metrics = run.metrics()
    return Result(
        run=run.path,
        epoch=max((line for line in metrics if line["epoch"]), key=lambda line: line["dev_acc"])["epoch"],
        epochs=metrics[-1]["epoch"],
        predictions=predictions,
        seconds=sum(line.get("train_seconds", 0) + line["eval_seconds"] for line in metrics),
    )


def count_parameters(model: GPT2ForSequenceClassification) -> dict[str, int]:
    """How many there are, and how many are trained."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {"total": sum(n for n, _ in counts), "trained": sum(n for n, trained in counts if trained)}


def fixed_memory(model: GPT2ForSequenceClassification) -> dict[str, int]:
    """Bytes that training holds whatever the batch, if all of a trained embedding is in use."""
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    weights = sum(p.nbytes for p in model.parameters())
    return {"weights": weights, "gradients": trained, "optimizer_state": 2 * trained}  # AdamW's two moments


def print_costs(facts: dict) -> None:
    counts, memory = facts["parameters"], facts["memory_bytes"]
    shares = ", ".join(f"{name.replace('_', ' ')} {n / sum(memory.values()):.1%}" for name, n in memory.items())
    share = f"{counts['trained']:,} of {counts['total']:,} parameters ({counts['trained'] / counts['total']:.2%})"
    print(f"trains {share}; of {sum(memory.values()) / 2**20:,.0f} MiB before activations: {shares}", flush=True)
