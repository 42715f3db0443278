"""What stands on top of GPT-2 for a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from config import GPT2Config
from models.gpt2 import GPT2Model, without_values
from models.pretrained import load_weights, locate
from modules.cross_entropy import LinearCrossEntropy
from modules.dropout import Dropout
from modules.ragged import Rows


class GPT2ForSequenceClassification(nn.Module):
    """The last real token's hidden state -> dropout -> a linear layer without bias (paper, section 5.1).

    Saved, it is what stock `transformers` calls by the same name.

    Args:
        transformer: the network below.
        labels: names of the classes, in order.
        dropout: probability of dropout before the linear layer (paper, section 5.3: 0.3).
    """

    def __init__(self, transformer: GPT2Model, labels: Sequence[str], dropout: float = 0.0):
        super().__init__()
        self.transformer = transformer
        self.dropout = Dropout(dropout)
        self.score = nn.Linear(transformer.config.n_embd, len(labels), bias=False)
        nn.init.normal_(self.score.weight, std=transformer.config.initializer_range)
        self.config = replace(transformer.config, id2label=dict(enumerate(labels)))

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> GPT2ForSequenceClassification:
        """Loads a classifier, ours or one that stock `transformers` saved, in evaluation mode.

        Raises:
            InputError: as `GPT2Model.from_pretrained`; also where the file has no `score.weight`.
        """
        directory = locate(directory)
        config = GPT2Config.from_file(directory / "config.json")
        labels = [config.id2label[index] for index in sorted(config.id2label)] or ["LABEL_0", "LABEL_1"]
        model = cls(without_values(GPT2Model, config), labels)
        load_weights(model, directory)
        return model.eval()

    @torch.no_grad()
    def start_head_from(self, tokens: list[int]) -> None:
        """Gives each class the embedding of a token: its logit is then what a language model gives that token."""
        self.score.weight.copy_(self.transformer.wte.weight[tokens])

    def freeze_transformer(self) -> None:
        """Leaves only the head to train. The network then computes as in evaluation, without dropout, always: what
        it says of a text is the same every epoch, and can be stored."""
        self.transformer.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> GPT2ForSequenceClassification:
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.transformer.parameters()):
            self.transformer.eval()
        return self

    def features(self, tokens: Tensor, rows: Rows) -> Tensor:
        """(N,) tokens -> (B, C), all that the head sees of a text."""
        return self.transformer.encode(tokens, rows, only_last=True)

    def classify(self, features: Tensor) -> Tensor:
        """(B, C) -> (B, classes) logits."""
        return self.score(self.dropout(features))

    def forward(self, tokens: Tensor, rows: Rows) -> Tensor:
        """(N,) tokens of B rows end to end -> (B, classes) logits."""
        return self.classify(self.features(tokens, rows))


class GPT2LMHeadModel(nn.Module):
    """Predicts each next token, through the transpose of the token embedding.

    Saved, it is what stock `transformers` calls by the same name.
    """

    def __init__(self, transformer: GPT2Model):
        super().__init__()
        self.transformer = transformer
        self.config = transformer.config

    def forward(self, tokens: Tensor, rows: Rows) -> Tensor:
        """(N,) tokens of B rows end to end -> (N, V) logits."""
        return self.transformer.hidden_state_to_token(self.transformer.encode(tokens, rows))

    def loss(self, tokens: Tensor, rows: Rows, targets: Tensor) -> Tensor:
        """Sum of the cross-entropies, in nats, of (N,) targets, the token that follows each."""
        return LinearCrossEntropy.apply(self.transformer.encode(tokens, rows), self.transformer.wte.weight, targets)
