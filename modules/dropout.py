"""Dropout that does not keep a CPU waiting for random numbers."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 1 << 16  # of a 16-bit draw


class _Draws(threading.local):
    """What this thread draws with: a generator, torch's own if None, and what makes many numbers of few."""

    def __init__(self):
        self.generator: torch.Generator | None = None
        self.sfc64 = np.random.SFC64()
        self.state = self.sfc64.state
        words = self.state["state"]["state"] = np.ones(4, np.uint64)  # three words, and a counter
        self.words = torch.from_numpy(words[:3].view(np.int64))


_DRAWS = _Draws()


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Within it, this thread's dropout on a CPU draws from that generator, not from torch's, which all share."""
    _DRAWS.generator = generator
    try:
        yield
    finally:
        _DRAWS.generator = None


def dropout(x: Tensor, p: float) -> Tensor:
    """`F.dropout` in training mode: each element is 0 with probability p, else scaled by 1 / (1 - p).

    On a CPU, `F.dropout` spends most of its time in a Bernoulli draw from one thread; `keep_mask` draws there.
    """
    if p == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    keep, scale = keep_mask(x.shape, p, x.dtype)
    return x * keep.mul_(scale)


def keep_mask(shape: Sequence[int], p: float, dtype: torch.dtype) -> tuple[Tensor, float]:
    """Draws what dropout keeps, on a CPU: 16-bit numbers, four from each 64-bit one, are compared with a threshold.

    The probability is the nearest multiple of 2^-16 below 1, and the scale is that multiple's, so the mean stays what
    it was.

    Returns:
        A new tensor of 0 where dropped, 1 where kept; and the scale for what is kept, 1 / (1 - p).
    """
    dropped = min(round(p * LEVELS), LEVELS - 1)
    count = math.prod(shape)
    draws = torch.from_numpy(_random_words((count + 3) // 4).view(np.int16)[:count]).view(shape)
    keep = torch.ge(draws, dropped - LEVELS // 2, out=torch.empty(shape, dtype=dtype))
    return keep, LEVELS / (LEVELS - dropped)


def _random_words(count: int) -> np.ndarray:
    """64-bit numbers from numpy's SFC64, at more than twice the speed of torch's generator, which gives the state that
    it starts from and so decides every draw. Setting the state takes a fifth of the time of a new SFC64."""
    _DRAWS.words.random_(-(2**63), None, generator=_DRAWS.generator)
    _DRAWS.sfc64.state = _DRAWS.state
    return _DRAWS.sfc64.random_raw(count)


class Dropout(nn.Module):
    """`nn.Dropout`, through the function above."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x

    def extra_repr(self) -> str:
        return f"p={self.p}"
