"""From a task and a checkpoint to the best epoch's model: what every fine-tuning script does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from config import InputError
from models.files import sha256, write_text
from models.pretrained import save_tokenizer
from models.trained import TASK
from training import ranks
from training.hardware import Precision, describe, make_deterministic, pick_device
from training.interrupt import StopRequest
from training.methods import Forward, Model, choose
from training.network import Loaded, load_network
from training.objectives import Examples, Objective, predict
from training.parallel import part_again, put_together, shard
from training.run import Run, refuse_full_disk
from training.tracking import refuse_missing
from training.trainer import Trainer

REPLACED = ("best", "last", "merged")  # of an earlier run in the same folder


class Split(Protocol):
    """What is used of the file at `path`, the rows by the names they have there, and the `bad` ones left out."""

    path: Path
    ids: list[str]
    bad: list


class Task(Protocol):
    """What is learned.

    Attributes:
        score_first: whether the model can do something before it is trained, which is then epoch 0.
    """

    score_first: bool

    def describe(self) -> dict:
        """What `predict.py` must know of it, as `models.trained.read_task` has it."""

    def build(self, loaded: Loaded, settings: dict) -> Model:
        """The network with the head that the task needs."""

    def encode(self, tokenizer, split: Split) -> Examples:
        """Its rows as token ids, none longer than the tokenizer's `model_max_length`."""

    def objective(self, model: Model, forward: Forward) -> Objective:
        """What is lowered, and what epochs are judged by."""


@dataclass
class Trained:
    """What a run ends with.

    Attributes:
        run: its folder.
        model: that of the best epoch, in evaluation mode.
        tokenizer: the model's.
        epoch: the epoch kept, counted from 1.
        epochs: how many there were.
        seconds: spent training and evaluating.
        precision: what to compute in, and where.
        predict: (n, classes) logits of a classifier for each row of a split, by its name.
    """

    run: Path
    model: Model
    tokenizer: object
    epoch: int
    epochs: int
    seconds: float
    precision: Precision
    predict: Callable[[str], np.ndarray]


def fine_tune(
    folder: Path,
    task: Task,
    splits: dict[str, Split],
    settings: dict,
    stop: StopRequest,
    store_features: bool = True,
    watch: Callable[[dict], None] | None = None,
    more_to_come: int = 0,
) -> Trained:
    """Fine-tunes a checkpoint on `train` and keeps the best epoch by `dev`.

    In `last-linear-layer` mode the frozen network runs once over each text and the epochs train on what it said;
    `store_features=False` runs it anew every epoch instead, to compare with.

    Args:
        folder: the run's.
        splits: `train`, `dev`, and others to predict for.
        settings: the script's flags.
        watch: called with each epoch's metrics, once all is saved; what it raises ends training.
        more_to_come: runs like it that the disk must have room for after it.

    Raises:
        InputError: the checkpoint, the device or a flag is at fault.
        Interrupted: the user asked to stop.
    """
    refuse_missing(settings["track"])
    with ranks.together():
        precision = Precision(settings["precision"], pick_device(settings["device"]))
        loaded = load_network(settings)
        for start in filter(None, (loaded.source, loaded.adapter)):
            if {folder.resolve() / part for part in REPLACED} & {start.resolve(), *start.resolve().parents}:
                raise InputError(
                    f"--output_dir {folder}: {start}, which it starts from, would be replaced; name another"
                )
        make_deterministic(settings["seed"], precision.device)
        model = task.build(loaded, settings)
        method = choose(settings, loaded, store_features)(model, settings)
        examples = {key: task.encode(loaded.tokenizer, split) for key, split in splits.items()}
        model.to(precision.device)
    facts = {
        "data": {split.path.name: sha256(split.path) for split in splits.values()},
        "model": loaded.hashes(),
        "hardware": describe(precision.device) | {"processes": ranks.count()},
        "precision": precision.name,
        "parameters": count_parameters(model),
        "memory_bytes": fixed_memory(model),
    }
    needed = disk_space(settings, facts["memory_bytes"], more_to_come)
    ranks.on_first(lambda: refuse_full_disk(folder, needed))
    run = Run(folder, settings, facts, settings["resume"])
    run.list_bad_rows([row for split in splits.values() for row in split.bad])
    print_costs(facts)

    def run_over(forward: Forward, examples: Examples, name: str) -> Tensor:
        return torch.from_numpy(predict(model, forward, examples, precision, stop, name))

    def save_beside_weights(directory: Path) -> None:
        write_text(directory / TASK, json.dumps(task.describe(), indent=2) + "\n")
        save_tokenizer(loaded.tokenizer, directory)

    def write_best() -> dict[str, str]:
        save_beside_weights(run.best)
        method.save(run.best)
        return run.hashes_of_best()

    def save_best() -> dict[str, str]:
        with put_together(model):
            return ranks.on_first(write_best)

    if settings["shard"] and ranks.count() > 1:
        shard(model)
    forward, examples = method.start(examples, run_over)
    part_again(model)
    ids = splits["train"].ids
    name_row = ids.__getitem__ if len(ids) == len(examples["train"]) else str
    if ranks.rank():  # until here all drew the same numbers, for what is new in the network
        torch.manual_seed(settings["seed"] + ranks.rank())
    trainer = Trainer(model, task.objective(model, forward), settings, run, save_best, precision, stop, watch, name_row)
    trainer.fit(examples["train"], examples["dev"], task.score_first)
    best_epoch = trainer.best_epoch
    del trainer  # and with it the optimizer's state, before the best epoch's model is read

    best, forward = method.load(run.best)
    if settings["save_merged"]:

        def merge() -> None:
            method.save_merged(run.best, run.path / "merged")
            save_beside_weights(run.path / "merged")

        ranks.on_first(merge)
    metrics = run.metrics()
    return Trained(
        run=run.path,
        model=best,
        tokenizer=loaded.tokenizer,
        epoch=best_epoch,
        epochs=metrics[-1]["epoch"],
        seconds=sum(line.get("train_seconds", 0) + line["eval_seconds"] for line in metrics),
        precision=precision,
        predict=lambda split: predict(best, forward, examples[split], precision, stop, split),
    )


def count_parameters(model: nn.Module) -> dict[str, int]:
    """How many there are, and how many are trained."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {"total": sum(n for n, _ in counts), "trained": sum(n for n, trained in counts if trained)}


def fixed_memory(model: nn.Module) -> dict[str, int]:
    """Bytes that training holds whatever the batch, if all of a trained embedding is in use."""
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    weights = sum(p.nbytes for p in model.parameters())
    return {"weights": weights, "gradients": trained, "optimizer_state": 2 * trained}  # AdamW's two moments


def disk_space(settings: dict, memory: dict[str, int], more_to_come: int = 0) -> int:
    """Bytes that a run's folder grows to, with what is written before what it replaces is deleted, and that stay of it
    while others like it are made."""
    learned = memory["gradients"]
    model = learned if settings["use_lora"] else memory["weights"]
    state = learned + memory["optimizer_state"]
    stays = model + (memory["weights"] if settings["save_merged"] else 0)
    return stays + model + 3 * state + more_to_come * stays


def print_costs(facts: dict) -> None:
    counts, memory = facts["parameters"], facts["memory_bytes"]
    shares = ", ".join(f"{name.replace('_', ' ')} {n / sum(memory.values()):.1%}" for name, n in memory.items())
    share = f"{counts['trained']:,} of {counts['total']:,} parameters ({counts['trained'] / counts['total']:.2%})"
    print(f"trains {share}; of {sum(memory.values()) / 2**20:,.0f} MiB before activations: {shares}", flush=True)
