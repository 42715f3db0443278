"""What was trained, read again to predict with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from config import GPT2Config, InputError, read_json
from models.gpt2 import GPT2Model
from models.heads import GPT2ForSequenceClassification, GPT2LMHeadModel
from models.pretrained import load_tokenizer
from models.trained import TaskFile, locate_trained, read_task
from training.network import find_source


@dataclass
class Finished:
    """
    Attributes:
        directory: of the weights.
        model: in evaluation mode.
        task: what it was trained for, as far as its files say.
    """

    directory: Path
    model: GPT2ForSequenceClassification | GPT2LMHeadModel
    tokenizer: object
    task: TaskFile


def load_finished(name: str, device: torch.device) -> Finished:
    """Reads what `locate_trained` finds. An adapter is not folded into its base: the run that trained it predicted
    with both apart, and folded the last bits are others.

    Raises:
        InputError: out of reach, not a GPT-2, damaged, or an adapter that does not fit its base.
    """
    directory = locate_trained(name)
    found, task = find_source({"model_path": str(directory), "model_size": None}), read_task(directory)
    config = GPT2Config.from_file(found.source / "config.json")
    tokenizer = load_tokenizer(found.source, config)
    config = replace(config, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    if found.adapter:
        from models.lora import Adapters  # PEFT takes seconds to import

        adapters = Adapters(GPT2Model.from_pretrained(found.source, config))
        adapters.load("it", found.adapter)
        head = adapters.heads["it"]
        network = adapters.holder.transformer
        model = GPT2LMHeadModel(network) if head is None else _classifier(network, head, task, directory)
    elif _is_classifier(found.source / "config.json"):
        model = GPT2ForSequenceClassification.from_pretrained(found.source)
    else:
        model = GPT2LMHeadModel(GPT2Model.from_pretrained(found.source, config))
    return Finished(directory, model.to(device).eval(), tokenizer, task)


def _is_classifier(config: Path) -> bool:
    return read_json(config).get("architectures") == ["GPT2ForSequenceClassification"]


def _classifier(network: GPT2Model, head: Tensor, task: TaskFile, directory: Path) -> GPT2ForSequenceClassification:
    """With an adapter's head, whose classes no file of PEFT's names."""
    labels = task.labels or [f"LABEL_{i}" for i in range(len(head))]
    if len(labels) != len(head):
        raise InputError(f"{directory}: a head of {len(head)} classes, and {len(labels)} labels in task.json")
    model = GPT2ForSequenceClassification(network, labels)
    with torch.no_grad():
        model.score.weight.copy_(head)
    return model
