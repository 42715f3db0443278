"""A linear layer that is quick for few rows too."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW = 64  # rows, up to which W x^T is the quicker product
STEP = 16  # rows that the processor multiplies at once


class Linear(nn.Linear):
    """`nn.Linear`, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def widened(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the layer multiplies: input, weight and bias; with an adapter, these are wider."""
        return x, self.weight, self.bias


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`. A text being written has a row for each of a few texts, and on a CPU the product then waits for the
    weights: as W x^T, with x filled up to a multiple of 16 rows, it takes half the time (124M model, 12 rows).

    Args:
        x: (..., in)
        weight: (out, in)
        bias: (out,)

    Returns:
        (..., out)
    """
    few = x.dim() == 2 and 1 < len(x) <= FEW and x.device.type == "cpu"
    if not few or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    count = len(x)
    if count % STEP:
        x = F.pad(x, (0, 0, 0, -count % STEP))
    y = (weight @ x.t())[:, :count].t()  # (n, out)
    return (y if bias is None else y + bias).contiguous()
