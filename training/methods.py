"""What is trained of a model: everything, the head alone, or a low-rank adapter and the head if it has one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from config import InputError
from models.gpt2 import GPT2Model, without_values
from models.heads import GPT2ForSequenceClassification, GPT2LMHeadModel
from models.pretrained import load_weights, save_pretrained
from modules.embedding import RowsInUse, whole_vocabulary
from modules.linear import lay_out
from training.batching import FeatureExamples
from training.hardware import memory_of_machine
from training.network import Loaded
from training.objectives import Examples

Forward = Callable[..., Tensor]
Model = GPT2ForSequenceClassification | GPT2LMHeadModel


class FullModel:
    """All parameters; of a classifier's token embedding, without weight decay, the rows that the texts use.

    Args:
        model: to be trained in place.
        settings: the script's flags.
    """

    def __init__(self, model: Model, settings: dict):
        self.model = model
        classifies = isinstance(model, GPT2ForSequenceClassification)
        self.leave_rows_out = settings["weight_decay"] == 0 and classifies and not settings["shard"]

    def start(
        self, examples: dict[str, Examples], read: Callable[[Forward, Examples, str], Tensor]
    ) -> tuple[Forward, dict[str, Examples]]:
        """Makes the model ready once it is on its device.

        Args:
            examples: by split.
            read: runs something over the examples, in evaluation mode, under a name for the progress bar.

        Returns:
            What gives logits for a batch, and the examples it takes.
        """
        network = self.model.transformer
        self.device = network.ln_f.weight.device
        if self.leave_rows_out:
            used = torch.cat([texts.ids for texts in examples.values()]).unique().long()
            network.wte = RowsInUse(network.wte, used.to(network.wte.weight.device))
        return self.model, examples

    def save(self, directory: Path) -> None:
        """Writes the model as it stands."""
        with whole_vocabulary(self.model.transformer):
            save_pretrained(self.model, self.model.config, directory)

    def load(self, directory: Path) -> tuple[Model, Forward]:
        """What `save` wrote there, to predict with: a model, and what in it gives logits. Training is over then, and
        the model that was trained makes room."""
        self.model.to("meta")
        model = self._on(without_values(GPT2Model, self.model.config))
        load_weights(model, directory)
        model = model.to(self.device).eval()
        return model, model

    def _on(self, network: GPT2Model) -> Model:
        """The model that is trained, as it is built, on another network."""
        if isinstance(self.model, GPT2LMHeadModel):
            return GPT2LMHeadModel(network)
        return GPT2ForSequenceClassification(network, list(self.model.config.id2label.values()))


class LastLinearLayer(FullModel):
    """The head. The frozen network runs once over each text; the epochs train on what it said.

    Args:
        store_features: run the network anew every epoch instead, if False.
    """

    def __init__(self, model: GPT2ForSequenceClassification, settings: dict, store_features: bool = True):
        super().__init__(model, settings)
        self.leave_rows_out, self.store_features = False, store_features
        model.freeze_transformer()

    def start(self, examples, read):
        super().start(examples, read)
        if not self.store_features:
            return self.model, examples
        features = {
            split: FeatureExamples(read(self.model.features, texts, f"reading {split}"), texts)
            for split, texts in examples.items()
        }
        return self.model.classify, features

    def load(self, directory):
        model, forward = super().load(directory)
        return model, model.classify if self.store_features else forward


class LowRank(FullModel):
    """An adapter and the head, if there is one (paper, section 4.3); `best/` holds them alone.

    Args:
        loaded: where the network below came from.

    Raises:
        InputError: the rank does not fit the network, or that is an adapter's already.
    """

    def __init__(self, model: Model, settings: dict, loaded: Loaded):
        from models.lora import Lora  # PEFT takes seconds to import

        if loaded.adapter:
            raise InputError(f"--use_lora: {loaded.adapter} is an adapter already; take what --save_merged writes")
        super().__init__(model, settings)
        self.leave_rows_out, self.lays_out, self.source = False, not settings["shard"], loaded.source
        names = ("rank", "alpha", "dropout", "target", "variant")
        self.lora = Lora(model, loaded.name, **{name: settings[f"lora_{name}"] for name in names})

    def start(self, examples, read):
        if self.lays_out:  # a sharded network is one that there is no room for
            lay_out(self.model, memory_of_machine() // 8)
        return super().start(examples, read)

    def save(self, directory):
        self.lora.save(directory)

    def load(self, directory):
        self.model.to("meta")
        adapters = self._adapters(directory)
        model = self._with_head(adapters.holder.transformer, adapters)
        return model, model

    def save_merged(self, adapter: Path, directory: Path) -> None:
        """Writes a model with the adapter folded into its weights."""
        adapters = self._adapters(adapter)
        model = self._with_head(adapters.merge(), adapters)
        save_pretrained(model, model.config, directory)

    def _adapters(self, directory: Path):
        from models.lora import Adapters

        adapters = Adapters(GPT2Model.from_pretrained(self.source, self.model.transformer.config).to(self.device))
        adapters.load("best", directory)
        return adapters

    def _with_head(self, network: GPT2Model, adapters) -> Model:
        model = self._on(network)
        if isinstance(model, GPT2ForSequenceClassification):
            with torch.no_grad():
                model.score.weight.copy_(adapters.heads["best"])
        return model.to(self.device).eval()


def choose(settings: dict, loaded: Loaded, store_features: bool = True) -> Callable[..., FullModel]:
    """The method that the flags ask for, of a model and the settings."""
    if settings.get("fine_tune_mode") == "last-linear-layer":
        return partial(LastLinearLayer, store_features=store_features)
    if settings["use_lora"]:
        return partial(LowRank, loaded=loaded)
    return FullModel
