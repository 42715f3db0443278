"""Examples, the order they are seen in, and batches of them without padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

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
        ids: (n,) the token ids of all texts, end to end, of any integer type.
        lengths: how many of them each text has; at least 1.
        labels: the class of each text; None, or None among them, where it is not known.
        limit: tokens of a text that are read; what follows is left out.
    """

    def __init__(
        self, ids: Tensor, lengths: Sequence[int], labels: Sequence[int | None] | None = None, limit: int | None = None
    ):
        self.ids = ids
        self.starts = [0, *accumulate(lengths)][:-1]
        self.lengths = [min(length, limit or length) for length in lengths]
        self.labels = None if labels is None or None in labels else torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, indices: Sequence[int], device: torch.device) -> Batch:
        """The texts at `indices`, the short ones first so that neighbours are alike in length."""
        indices = sorted(indices, key=self.lengths.__getitem__)
        rows = Rows([self.lengths[i] for i in indices], device)
        tokens = torch.cat([self.ids[self.starts[i] : self.starts[i] + self.lengths[i]] for i in indices])
        labels = None if self.labels is None else self.labels[indices].to(device)
        return Batch((tokens.long().to(device), rows), labels, len(indices), len(tokens))


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
