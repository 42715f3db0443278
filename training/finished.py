"""What was trained, read again to predict with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from config import GPT2Config, InputError, read_json
from models.gpt2 import GPT2Model
from models.heads import GPT2ForSequenceClassification, GPT2LMHeadModel
from models.pretrained import load_tokenizer
from models.trained import TaskFile, locate_trained, read_task
from training.network import find_source

if TYPE_CHECKING:
    from models.lora import Adapters


@dataclass
class Finished:
    """
    Attributes:
        directory: of the weights.
        model: in evaluation mode.
        task: what it was trained for, as far as its files say.
        use: to be called before the model, where others share its network.
    """

    directory: Path
    model: GPT2ForSequenceClassification | GPT2LMHeadModel
    tokenizer: object
    task: TaskFile
    use: Callable[[], None]


class Shelf:
    """Models in memory; adapters over one base, and the base itself, share its network."""

    def __init__(self, device: torch.device):
        self.device = device
        self.bases: dict[Path, tuple[Adapters, object]] = {}  # and their tokenizers

    def load(self, name: str) -> Finished:
        """Reads what `locate_trained` finds. An adapter is not folded into its base: the run that trained it predicted
        with both apart, and folded the last bits are others.

        Raises:
            InputError: out of reach, not a GPT-2, damaged, or an adapter that does not fit its base.
        """
        directory = locate_trained(name)
        found, task = find_source({"model_path": str(directory), "model_size": None}), read_task(directory)
        if found.adapter:
            adapters, tokenizer = self._base(found.source)
            adapters.load(name, found.adapter)
            head, network = adapters.heads[name], adapters.holder.transformer
            model = GPT2LMHeadModel(network) if head is None else _classifier(network, head, task, directory)
            return Finished(directory, model.to(self.device).eval(), tokenizer, task, partial(adapters.use, name))
        if _is_classifier(found.source / "config.json"):
            model = GPT2ForSequenceClassification.from_pretrained(found.source)
            tokenizer = load_tokenizer(found.source, model.config)
        else:
            config, tokenizer = _config_and_tokenizer(found.source)
            model = GPT2LMHeadModel(GPT2Model.from_pretrained(found.source, config))
        return Finished(directory, model.to(self.device).eval(), tokenizer, task, lambda: None)

    def base(self, source: Path) -> Finished:
        """The network in a directory, as it is without adapters, for what it says as a language model.

        Raises:
            InputError: not a GPT-2, or damaged.
        """
        adapters, tokenizer = self._base(source)
        model = GPT2LMHeadModel(adapters.holder.transformer).to(self.device).eval()
        return Finished(source, model, tokenizer, TaskFile(), partial(adapters.use, None))

    def _base(self, source: Path) -> tuple[Adapters, object]:
        from models.lora import Adapters  # PEFT takes seconds to import

        source = source.resolve()
        if source not in self.bases:
            config, tokenizer = _config_and_tokenizer(source)
            self.bases[source] = Adapters(GPT2Model.from_pretrained(source, config)), tokenizer
        return self.bases[source]


def load_finished(name: str, device: torch.device) -> Finished:
    """As `Shelf.load`, of a single model."""
    return Shelf(device).load(name)


def _config_and_tokenizer(source: Path) -> tuple[GPT2Config, object]:
    config = GPT2Config.from_file(source / "config.json")
    tokenizer = load_tokenizer(source, config)
    return replace(config, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id), tokenizer


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
