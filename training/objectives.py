"""What a batch costs, and what an epoch is judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from models.heads import GPT2LMHeadModel
from training import ranks
from training.batching import Batch, FeatureExamples, Pieces, TokenExamples, by_length
from training.hardware import Precision
from training.interrupt import StopRequest

Examples = TokenExamples | FeatureExamples | Pieces


class TrainingFailed(Exception):
    """Training cannot go on for a reason that is not the user's input."""


class Objective(Protocol):
    """What the trainer asks of a task."""

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed over the batch, the number to lower; and (2,) what to add up over an epoch, the same number first."""

    def size(self, lengths: list[int]) -> int:
        """Of texts of so many tokens, how many numbers their `loss` adds up."""

    def training_scores(self, sums: list[float], examples: int, tokens: int) -> dict[str, float]:
        """What an epoch's sums come to; `train_loss` is among it."""

    def evaluate(self, examples: Examples, precision: Precision, stop: StopRequest) -> dict[str, float]:
        """Scores in evaluation mode."""

    def merit(self, scores: dict[str, float]) -> float:
        """What the best epoch has most of."""


class Classification:
    """The cross-entropy of each text's class; the best epoch is the one with the highest dev accuracy.

    Args:
        model: what `forward` is part of.
        forward: arguments of a batch -> (B, classes) logits.
        score: logits and labels -> `loss`, `acc` and `f1`.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[..., Tensor],
        score: Callable[[np.ndarray, list[int]], dict[str, float]],
    ):
        self.model, self.forward, self.score = model, forward, score

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self.forward(*batch.inputs).float()
        loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        right = (logits.argmax(dim=1) == batch.labels).sum()
        return loss, torch.stack([loss.detach(), right])

    def size(self, lengths: list[int]) -> int:
        return len(lengths)

    def training_scores(self, sums: list[float], examples: int, tokens: int) -> dict[str, float]:
        return {"train_loss": sums[0] / examples, "train_acc": sums[1] / examples}

    def evaluate(self, examples: Examples, precision: Precision, stop: StopRequest) -> dict[str, float]:
        logits = predict(self.model, self.forward, examples, precision, stop, "dev")
        if not np.isfinite(logits).all():
            raise TrainingFailed("the model no longer gives finite numbers; try a lower --lr")
        return {f"dev_{name}": value for name, value in self.score(logits, examples.labels.tolist()).items()}

    def merit(self, scores: dict[str, float]) -> float:
        return scores["dev_acc"]


class NextToken:
    """The cross-entropy of each next token; the best epoch is the one with the lowest validation loss."""

    def __init__(self, model: GPT2LMHeadModel):
        self.model = model

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        loss = self.model.loss(*batch.inputs)
        return loss, torch.stack([loss.detach(), torch.zeros_like(loss)])

    def size(self, lengths: list[int]) -> int:
        return sum(lengths)

    def training_scores(self, sums: list[float], examples: int, tokens: int) -> dict[str, float]:
        return {"train_loss": sums[0] / tokens}

    def evaluate(self, examples: Pieces, precision: Precision, stop: StopRequest) -> dict[str, float]:
        loss = total_loss(self.model, examples, precision) / sum(examples.lengths)
        if not np.isfinite(loss):
            raise TrainingFailed("the validation loss is no longer a finite number; try a lower --lr")
        stop.check_together()
        return {"val_loss": loss}

    def merit(self, scores: dict[str, float]) -> float:
        return -scores["val_loss"]


@torch.no_grad()
def predict(
    model: nn.Module,
    forward: Callable[..., Tensor],
    examples: Examples,
    precision: Precision,
    stop: StopRequest,
    name: str,
) -> np.ndarray:
    """Runs a model in evaluation mode over examples in batches of like length.

    Returns:
        (n, width) what `forward` gives for each example, in float32, in the order of the examples.

    Raises:
        Interrupted: the user asked to stop.
    """
    model.eval()
    result = None
    with tqdm(total=len(examples), desc=name, unit=" examples", disable=None, leave=False) as bar:
        for indices, counts in _dealt(examples.lengths):
            indices = sorted(indices, key=examples.lengths.__getitem__)  # the order a batch puts them in
            with precision.autocast():
                outputs = forward(*examples.batch(indices, precision.device).inputs).float().cpu()
            if result is None:
                result = outputs.new_zeros(len(examples), *outputs.shape[1:])
            if counts:
                result[indices] = outputs
            bar.update(len(indices) * ranks.count())
            stop.check_together()
    return ranks.total(result).numpy()


@torch.no_grad()
def total_loss(model: GPT2LMHeadModel, pieces: Pieces, precision: Precision) -> float:
    """Sum over all tokens of their cross-entropy, in nats, with the model in evaluation mode."""
    model.eval()
    total = 0.0
    for indices, counts in _dealt(pieces.lengths):
        with precision.autocast():
            loss = model.loss(*pieces.batch(indices, precision.device).inputs).item()
        total += loss if counts else 0.0
    return ranks.total(torch.tensor(total, dtype=torch.float64)).item()


def _dealt(lengths: list[int]) -> Iterator[tuple[list[int], bool]]:
    """This process's part of the batches to evaluate, and whether they count: each process gets as many as the others,
    if need be one that is another's."""
    batches = list(by_length(lengths))
    for start in range(0, len(batches), ranks.count()):
        own = start + ranks.rank()
        yield (batches[own], True) if own < len(batches) else (batches[start], False)
