"""A linear layer with an adapter: PEFT's, with its forward and backward pass in one function."""

from __future__ import annotations

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor
from torch.autograd.function import once_differentiable

from modules.dropout import dropout, keep_mask
from modules.linear import add_product, product


class LoraLinear(PeftLinear):
    """x W^T + b + alpha / r * dropout(x) A^T B^T, with W and b frozen.

    On a CPU the network waits for memory between its products, and PEFT's sum of two layers scales, adds and under
    autocast converts in passes of their own; `LowRankSum` has the products do it. Elsewhere PEFT's own runs, as it does
    for adapters that compute more, such as DoRA.
    """

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        """(N, in) -> (N, out)"""
        adapters = self._in_use()
        if len(adapters) != 1 or x.device.type != "cpu" or not self._are_plain(adapters):
            return super().forward(x, *args, **kwargs)
        (name,) = adapters
        base, a, b = self.get_base_layer(), self.lora_A[name].weight, self.lora_B[name].weight
        return LowRankSum.apply(x, *base.weight_in_use(), base.bias, a, b, self.scaling[name], self._dropout(name))

    def widened(self, x: Tensor) -> tuple[Tensor, list[Tensor], Tensor] | None:
        """The layer as one without an adapter: a low-rank sum is a product with r more columns.

            x W^T + s drop(x) A^T B^T  =  [x, drop(x) A^T] [W, s B]^T

        Returns:
            (N, in + r) input; (out, in) and (out, r), the parts of its weight; (out,) bias. None for an adapter that
            computes more.
        """
        base, adapters = self.get_base_layer(), self._in_use()
        if not self._are_plain(adapters):
            return None
        dropped = [dropout(x, self._dropout(name)) for name in adapters]
        xs = [self.lora_A[name](part) for name, part in zip(adapters, dropped, strict=True)]
        weights = [self.scaling[name] * self.lora_B[name].weight for name in adapters]
        return torch.cat([x, *xs], dim=1), [base.weight, *weights], base.bias

    def merge(self, *args, **kwargs) -> None:
        super().merge(*args, **kwargs)
        self._changed()

    def unmerge(self) -> None:
        super().unmerge()
        self._changed()

    def _changed(self) -> None:
        """PEFT changes the weight behind autograd's back; whoever keeps a copy of it looks at its version."""
        torch.autograd.graph.increment_version(self.get_base_layer().weight)

    def _in_use(self) -> list[str]:
        if self.disable_adapters and self.merged:
            self.unmerge()
        idle = self.disable_adapters or self.merged
        return [] if idle else [name for name in self.active_adapters if name in self.lora_A]

    def _are_plain(self, names: list[str]) -> bool:
        return not any(name in self.lora_variant or self.lora_bias[name] for name in names)

    def _dropout(self, name: str) -> float:
        return getattr(self.lora_dropout[name], "p", 0.0) if self.training else 0.0


class LowRankSum(torch.autograd.Function):
    """Y = X W^T + b + c (X * keep) A^T B^T, with W and b frozen, c the adapter's scaling times dropout's. Backward:

    dH = c dY B        dA = dH^T (X * keep)        dB = c dY^T H        dX = dY W + (dH A) * keep

    W decides the precision of the products, as autocast does; the gradients of A and B are in their own.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, turned: Tensor, bias: Tensor, a: Tensor, b: Tensor, scaling: float, p: float
    ) -> Tensor:
        """(N, in), (out, in), the same turned, (out,), (r, in), (out, r) -> (N, out)"""
        dtype, ctx.dtypes = weight.dtype, (x.dtype, a.dtype)
        with torch.autocast("cpu", enabled=False):
            x, a, b, bias = (tensor.to(dtype) for tensor in (x, a, b, bias))
            keep, dropped = None, x
            if p > 0:
                keep, scale = keep_mask(x.shape, p, dtype)
                dropped, scaling = x * keep, scaling * scale
            h = product(dropped, a)  # (N, r)
            ctx.scaling = scaling
            ctx.save_for_backward(turned, a, b, keep, dropped, h)
            return product(x, weight, bias).addmm_(h, b.t(), alpha=scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        turned, a, b, keep, dropped, h = ctx.saved_tensors
        of_x, of_adapter = ctx.dtypes
        dh = product(dy, b.t()).mul_(ctx.scaling)
        da = product(dh.t(), dropped.t()).to(of_adapter)
        db = (dy.t() @ h).mul_(ctx.scaling).to(of_adapter)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, da, db, None, None
        dx = product(dh, a.t())
        if keep is not None:
            dx *= keep
        return add_product(dx, dy, turned).to(of_x), None, None, None, da, db, None, None
