"""Examples, the order they are seen in, and batches of them without padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from modules.ragged import Rows, sent

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

    def tensors(self) -> list[Tensor]:
        """All that differs between two batches of one shape."""
        found = [] if self.labels is None else [self.labels]
        for value in self.inputs:
            found += value.tensors() if isinstance(value, Rows) else [value]
        return found

    def shape(self) -> tuple | None:
        """What decides which kernels work on it; None where hardly two batches agree in that."""
        if not all(value.filler for value in self.inputs if isinstance(value, Rows)):
            return None
        return tuple(tensor.shape for tensor in self.tensors())


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
        rows = Rows.filled([self.lengths[i] for i in indices], device)
        tokens = torch.cat([self.ids[self.starts[i] : self.starts[i] + self.lengths[i]] for i in indices]).long()
        labels = None if self.labels is None else sent(self.labels[indices], device)
        filled = _fill(tokens, rows, int(tokens[0]))  # with a token that is in use
        return Batch((sent(filled, device), rows), labels, len(indices), len(tokens))


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
        labels = None if self.labels is None else sent(self.labels[indices], device)
        tokens = sum(self.lengths[i] for i in indices)
        return Batch((sent(self.features[indices], device),), labels, len(indices), tokens)


class Pieces:
    """Documents as pieces of at most a context's length, each read with an end-of-text token before and after it.

    Nothing is packed or padded: a batch is a flat list of pieces (see `modules.ragged`), so neither attention nor loss
    crosses from one document into another. A piece that goes on where another ended begins with the token that
    the other was last asked for, so every token is predicted once.

    Args:
        documents: the token ids of each.
        end_of_text: that token's id.
        context: tokens of a piece, at most.
        bytes: what the documents took as UTF-8, where that is asked for.
    """

    def __init__(self, documents: Sequence[Sequence[int]], end_of_text: int, context: int, bytes: int = 0):
        self.bytes = bytes
        ids, self.starts, self.lengths = [], [], []
        offset = 0
        for document in documents:
            ids.append(np.array([end_of_text, *document, end_of_text], dtype=np.int32))
            targets = len(document) + 1
            for start in range(0, targets, context):
                self.starts.append(offset + start)
                self.lengths.append(min(context, targets - start))
            offset += targets + 1
        self.ids = torch.from_numpy(np.concatenate(ids))

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, indices: Sequence[int], device: torch.device) -> Batch:
        """Some pieces, short ones first: (N,) tokens, where each piece lies, and (N,) the token that follows each."""
        indices = sorted(indices, key=self.lengths.__getitem__)
        spans = [(self.starts[i], self.lengths[i]) for i in indices]
        rows = Rows.filled([length for _, length in spans], device)
        tokens = torch.cat([self.ids[start : start + length] for start, length in spans]).long()
        targets = torch.cat([self.ids[start + 1 : start + length + 1] for start, length in spans]).long()
        count = len(tokens)
        tokens, targets = _fill(tokens, rows, int(tokens[0])), _fill(targets, rows, -1)
        return Batch((sent(tokens, device), rows, sent(targets, device)), None, len(indices), count)

    def batches(self, order: Sequence[int], most_tokens: int) -> list[list[int]]:
        """Cuts an order of pieces into batches of at most `most_tokens` tokens."""
        batches, tokens = [[]], 0
        for index in order:
            if batches[-1] and tokens + self.lengths[index] > most_tokens:
                batches.append([])
                tokens = 0
            batches[-1].append(index)
            tokens += self.lengths[index]
        return batches


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


def _fill(values: Tensor, rows: Rows, value: int) -> Tensor:
    return F.pad(values, (0, rows.filler), value=value)
