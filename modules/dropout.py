"""Dropout that does not keep a CPU waiting for random numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 1 << 16  # of a 16-bit draw


def dropout(x: Tensor, p: float) -> Tensor:
    """`F.dropout` in training mode: each element is 0 with probability p, else scaled by 1 / (1 - p).

    On a CPU, `F.dropout` spends most of its time in a Bernoulli draw from one thread. There, 16-bit draws, four of
    them from each 64-bit number of torch's generator, are compared with a threshold instead. The probability is the
    nearest multiple of 2^-16 below 1, and the scale is that multiple's, so the mean stays what it was.
    """
    if p == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    dropped = min(round(p * LEVELS), LEVELS - 1)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    keep = (draws[: x.numel()] >= dropped - LEVELS // 2).view(x.shape)
    return x * keep.to(x.dtype).mul_(LEVELS / (LEVELS - dropped))


class Dropout(nn.Module):
    """`nn.Dropout`, through the function above."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x

    def extra_repr(self) -> str:
        return f"p={self.p}"
