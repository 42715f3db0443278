"""A linear layer that is quick for few rows too."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

FEW = 64  # rows, up to which W x^T is the quicker product
STEP = 16  # rows that the processor multiplies at once
ROWS = 32  # of which a batch in 16 bits has a multiple


class Linear(nn.Linear):
    """`nn.Linear`, computed by `linear`; in training under a CPU's autocast by `LinearInHalf`."""

    _frozen: tuple[tuple, Tensor] | None = None  # what the weight was, and that in 16 bits

    def forward(self, x: Tensor) -> Tensor:
        return self.with_bias(x, self.bias)

    def with_bias(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The layer with another bias in the place of its own."""
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled():
            return LinearInHalf.apply(x, self.weight, self._in_half(torch.get_autocast_dtype("cpu")), bias)
        return linear(x, self.weight, bias)

    def widened(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the layer multiplies: input, weight and bias; with an adapter, these are wider."""
        return x, self.weight, self.bias

    def _in_half(self, dtype: torch.dtype) -> Tensor:
        """The weight in 16 bits: while it is frozen, one copy for all steps."""
        weight = self.weight.detach()
        if self.weight.requires_grad:
            return weight.to(dtype)
        state = weight.data_ptr(), weight._version, dtype
        if self._frozen is None or self._frozen[0] != state:
            self._frozen = state, weight.to(dtype)
        return self._frozen[1]

    def _apply(self, fn, recurse: bool = True):
        self._frozen = None
        return super()._apply(fn, recurse)


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


class LinearInHalf(torch.autograd.Function):
    """x W^T + b as autocast computes it: products in 16 bits, gradients of W and b in their own precision.

    oneDNN, which multiplies in 16 bits on a CPU, compiles a kernel for every number of rows that it has not met, and
    each batch has another; so x is filled up with zeros to a multiple of `ROWS`.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, half: Tensor, bias: Tensor | None) -> Tensor:
        """(..., in), (out, in), the same in 16 bits, (out,) -> (..., out) in 16 bits"""
        ctx.shape = x.shape
        x = _filled(x.flatten(0, -2), half.dtype)
        ctx.save_for_backward(x, half)
        with torch.autocast("cpu", enabled=False):
            y = F.linear(x, half, None if bias is None else bias.to(half.dtype))
        return y[: ctx.shape[:-1].numel()].view(*ctx.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, half = ctx.saved_tensors
        needs_x, needs_weight, _, needs_bias = ctx.needs_input_grad
        dy = dy.flatten(0, -2)
        full = _filled(dy, half.dtype)
        return (
            (full @ half)[: len(dy)].view(ctx.shape) if needs_x else None,
            (full.t() @ x).float() if needs_weight else None,
            None,
            dy.float().sum(dim=0) if needs_bias else None,
        )


def _filled(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(n, width) -> (a multiple of `ROWS`, width) in another precision, with zeros at the end."""
    y = torch.empty(-(-len(x) // ROWS) * ROWS, x.size(1), dtype=dtype)
    y[: len(x)] = x
    y[len(x) :] = 0
    return y
