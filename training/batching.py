"""Examples, the order they are seen in, and batches of them without padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modules.ragged import Rows

EVALUATION_TOKENS = 4096  # a batch without gradients; larger ones gain nothing on a CPU and little on a GPU


@dataclass
class Batch:
    """What one step works on.

    Attributes:
        inputs: arguments of the model.
        labels: (B,) class numbers; None where there are none.
        examples: number of texts, B.
        tokens: number of real tokens in them.
    """

    inputs: tuple
    labels: Tensor | None
    examples: int
    tokens: int


class TokenExamples:
    """Texts as token ids, for a network to read.

    Args:
        tokens: the token ids of each text; none may be empty.
        labels: the class of each text, if known.
    """

    def __init__(self, tokens: Sequence[Sequence[int]], labels: Sequence[int] | None = None):
        self.tokens = [torch.tensor(ids, dtype=torch.long) for ids in tokens]
        self.lengths = [len(ids) for ids in tokens]
        self.labels = None if labels is None else torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: Sequence[int], device: torch.device) -> Batch:
        """The texts at `indices`, the short ones first so that neighbours are alike in length."""
        indices = sorted(indices, key=self.lengths.__getitem__)
        rows = Rows([self.lengths[i] for i in indices], device)
        tokens = torch.cat([self.tokens[i] for i in indices])
        labels = None if self.labels is None else self.labels[indices].to(device)
        return Batch((tokens.to(device), rows), labels, len(indices), len(tokens))


class FeatureExamples:
    """Texts as what a frozen network made of them, for a head to read.

    Args:
        features: (n, C) one row a text.
        texts: the texts they were made from.
    """

    def __init__(self, features: Tensor, texts: TokenExamples):
        self.features, self.lengths, self.labels = features, texts.lengths, texts.labels

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, indices: Sequence[int], device: torch.device) -> Batch:
        """The texts at `indices`, in the order in which `TokenExamples` gives them."""
        indices = sorted(indices, key=self.lengths.__getitem__)
        labels = None if self.labels is None else self.labels[indices].to(device)
        tokens = sum(self.lengths[i] for i in indices)
        return Batch((self.features[indices].to(device),), labels, len(indices), tokens)


def shuffled(count: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """An epoch's batches of indices: a permutation that depends on nothing but the seed and the epoch's number."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    order = torch.randperm(count, generator=generator).tolist()
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]


def by_length(lengths: Sequence[int], most_tokens: int = EVALUATION_TOKENS) -> Iterator[list[int]]:
    """Batches of indices for evaluation, longest first, each at most `most_tokens` long unless a single text is more.

    Longest first, so that what does not fit in memory fails at once.
    """
    batch, tokens = [], 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and tokens + lengths[index] > most_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += lengths[index]
    if batch:
        yield batch
