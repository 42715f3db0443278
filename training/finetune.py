"""From a task and a checkpoint to a trained run with its predictions: what every classification script does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from config import GPT2Config
from models.files import sha256
from models.gpt2 import GPT2Model
from models.heads import GPT2ForSequenceClassification
from models.pretrained import load_tokenizer, load_weights, locate, save_pretrained, save_tokenizer
from modules.embedding import RowsInUse, whole_vocabulary
from training.batching import FeatureExamples, TokenExamples
from training.hardware import Precision, describe, make_deterministic, pick_device
from training.interrupt import StopRequest
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
    source = locate(Path(settings["model_path"]) if settings["model_path"] else settings["model_size"])
    config = GPT2Config.from_file(source / "config.json")
    if settings["dropout"] is not None:
        p = settings["dropout"]
        config = replace(config, embd_pdrop=p, attn_pdrop=p, resid_pdrop=p)
    tokenizer = load_tokenizer(source, config)
    config = replace(config, pad_token_id=tokenizer.pad_token_id)
    transformer = GPT2Model.from_pretrained(source, config)

    make_deterministic(settings["seed"], precision.device)
    model = GPT2ForSequenceClassification(transformer, task.labels, settings["hidden_dropout_prob"])
    if settings.get("head_init") == "cloze":
        first = [tokenizer(word)["input_ids"][0] for word in task.answers]
        model.start_head_from(first)
    frozen = settings.get("fine_tune_mode") == "last-linear-layer"
    if frozen:
        model.freeze_transformer()
    model.to(precision.device)
    facts = {
        "data": {split.path.name: sha256(split.path) for split in splits.values()},
        "model": {path.name: sha256(path) for path in sorted(source.iterdir()) if _decides_the_model(path)},
        "hardware": describe(precision.device),
        "precision": precision.name,
        "parameters": {
            "total": sum(p.numel() for p in model.parameters()),
            "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        },
    }
    run = Run(folder, settings, facts, settings["resume"])
    run.list_bad_rows([row for split in splits.values() for row in split.bad])

    examples = {key: task.encode(tokenizer, split) for key, split in splits.items()}
    forward = model
    if frozen and store_features:
        for key, texts in examples.items():
            features = predict(model, model.features, texts, precision, stop, f"reading {key}")
            examples[key] = FeatureExamples(torch.from_numpy(features), texts)
        forward = model.classify

    if not frozen and settings["weight_decay"] == 0:
        used = torch.cat([texts.ids for texts in examples.values()]).unique().long()
        transformer.wte = RowsInUse(transformer.wte, used.to(precision.device))

    def save_best() -> None:
        if not (run.best / "tokenizer.json").is_file():
            save_tokenizer(tokenizer, run.best)
        with whole_vocabulary(transformer):
            save_pretrained(model, model.config, run.best)

    trainer = Trainer(model, forward, settings, run, save_best, precision, stop)
    trainer.fit(examples["train"], examples["dev"], task.score, score_first=task.answers is not None)

    with whole_vocabulary(transformer):
        load_weights(model, run.best)
        predictions = {
            key: predict(model, forward, examples[key], precision, stop, key).argmax(axis=1) for key in ("dev", "test")
        }
    metrics = run.metrics()
    return Result(
        run=run.path,
        epoch=max((line for line in metrics if line["epoch"]), key=lambda line: line["dev_acc"])["epoch"],
        epochs=metrics[-1]["epoch"],
        predictions=predictions,
        seconds=sum(line.get("train_seconds", 0) + line["eval_seconds"] for line in metrics),
    )


def _decides_the_model(path: Path) -> bool:
    return path.suffix == ".safetensors" or path.name in ("config.json", "tokenizer.json", "vocab.json", "merges.txt")
