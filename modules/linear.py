"""A linear layer that is quick for few rows too."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.cpu.get_cpu_capability()


class Linear(nn.Linear):
    """`nn.Linear`, computed by `linear`; in training under a CPU's autocast, in 16 bits."""

    lays_out = False  # while the weight is frozen, whether copies of it are kept as oneDNN lays them out (`lay_out`)
    _frozen: tuple[tuple, tuple[Tensor, Tensor]] | None = None  # what the weight was, and what was made of it

    def forward(self, x: Tensor) -> Tensor:
        return self.with_bias(x, self.bias)

    def with_bias(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The layer with another bias in the place of its own."""
        if x.device.type == "cpu" and torch.is_grad_enabled():
            return LinearOnCPU.apply(x, self.weight, *self.weight_in_use(), bias)
        return linear(x, self.weight, bias)

    def widened(self, x: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """What the layer multiplies: input, weight in parts side by side, and bias; an adapter adds parts."""
        return x, [self.weight], self.bias

    def weight_in_use(self) -> tuple[Tensor, Tensor]:
        """The weight to multiply by, and turned: as it is, or under a CPU's autocast in 16 bits. While it is frozen,
        what had to be made of it is kept for all steps."""
        weight, dtype = self.weight.detach(), self.weight.dtype
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
        if self.weight.requires_grad or (dtype == weight.dtype and not self.lays_out):
            weight = weight.to(dtype)
            return weight, weight.t()
        state = weight.data_ptr(), weight._version, dtype, self.lays_out
        if self._frozen is None or self._frozen[0] != state:
            with torch.inference_mode(False):  # a pass to come may be one of training
                weight = weight.to(dtype)
                self._frozen = state, _laid_out(weight) if self.lays_out else (weight, weight.t())
        return self._frozen[1]

    def laid_out_bytes(self) -> int:
        """The memory of the copies that are kept as oneDNN lays them out."""
        copies = self._frozen[1] if self._frozen else ()
        return sum(torch.ops.mkldnn._nbytes(copy) for copy in copies if copy.is_mkldnn)

    def _apply(self, fn, recurse: bool = True):
        self._frozen = None
        return super()._apply(fn, recurse)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, on a CPU by whichever of its libraries is quicker.

    Args:
        x: (..., in)
        weight: (out, in)
        bias: (out,)

    Returns:
        (..., out)
    """
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return LinearOnCPU.apply(x, weight, weight.detach(), weight.detach().t(), bias)
    return product(x, weight, bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` on a CPU, without a gradient.

    torch multiplies in float32 with MKL, which is slow for few rows, and on an AMD processor knows no AVX-512. oneDNN,
    torch's other library, takes 0.85 of its time for 180 tokens by GPT-2's weights there, and 0.6 for twelve.
    """
    if _has_onednn(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def add_product(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """(n, out) y + x W^T on a CPU, without a gradient; y may be overwritten."""
    if _has_onednn(x, weight) and y.dtype == x.dtype:
        return torch.ops.mkldnn._linear_pointwise.binary(x, y, weight, None, "add")
    return y.addmm_(x, weight.t())


def lay_out(network: nn.Module, most_bytes: int) -> None:
    """Has a network's frozen layers keep copies of their weights as oneDNN lays them out for its products, which take
    0.90 to 0.95 of their time then: in bfloat16 for the way forth and the way back, in float32 for the way forth alone,
    for twice the memory would give another hundredth. Unless all these copies take more than `most_bytes`."""
    layers = [module for module in network.modules() if isinstance(module, Linear) and not module.weight.requires_grad]
    fits = 4 * sum(layer.weight.numel() for layer in layers) <= most_bytes
    for layer in layers:
        layer.lays_out = fits


def _laid_out(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight and the same turned, laid out where that pays."""
    reorder = torch.ops.mkldnn._reorder_linear_weight
    if _ONEDNN == "AVX512" and weight.dtype == torch.float32:
        return reorder(weight), weight.t()
    if _ONEDNN == "AVX512" and weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return reorder(weight), reorder(weight.t())
    return weight, weight.t()


def _has_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's product is there, and is the quicker one."""
    if weight.is_mkldnn:  # laid out for it
        return True
    capabilities = ("AVX2", "AVX512") if weight.is_contiguous() else ("AVX512",)  # others are slow to turn a weight
    return _ONEDNN in capabilities and x.dtype == weight.dtype == torch.float32


class _Aside(threading.local):
    """Who takes gradients of weights in this thread's backward passes."""

    take: Callable[[Tensor, Callable[[], Tensor]], bool] | None = None


_ASIDE = _Aside()


@contextmanager
def weights_aside(take: Callable[[Tensor, Callable[[], Tensor]], bool]) -> Iterator[None]:
    """Within it, backward passes of this thread on a CPU give weights no gradient that `take` takes.

    Args:
        take: is given a weight and what multiplies its gradient, in the product's precision, at any time; says whether
            it takes it. From then on the pass no longer looks at the weight.
    """
    _ASIDE.take = take
    try:
        yield
    finally:
        _ASIDE.take = None


class LinearOnCPU(torch.autograd.Function):
    """x W^T + b, and as autocast computes it: products in 16 bits, gradients of W and b in their own precision."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, used: Tensor, turned: Tensor, bias: Tensor | None) -> Tensor:
        """(..., in), (out, in), the same in the precision to multiply in, and turned, (out,) -> (..., out) in that
        precision"""
        ctx.shape, ctx.weight = x.shape, weight
        x = x.flatten(0, -2).to(used.dtype)
        ctx.save_for_backward(x if weight.requires_grad else None, turned)
        y = product(x, used, None if bias is None else bias.to(used.dtype))
        return y.view(*ctx.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, turned = ctx.saved_tensors
        needs_x, needs_weight, _, _, needs_bias = ctx.needs_input_grad
        dy, weight, dw = dy.flatten(0, -2), ctx.weight, None
        dx = product(dy, turned).view(ctx.shape) if needs_x else None
        if needs_weight:
            dw = partial(product, dy.t(), x.t())
            dw = None if _ASIDE.take and _ASIDE.take(weight, dw) else dw().to(weight.dtype)
        return dx, dw, None, None, dy.to(weight.dtype).sum(dim=0) if needs_bias else None
