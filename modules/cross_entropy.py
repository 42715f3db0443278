"""The next-token loss without the logits of a whole batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGITS = 1 << 22  # at a time: 16 MiB in float32
ROWS = 1 << 10  # of the gradient in 16 bits, at a time


class LinearCrossEntropy(torch.autograd.Function):
    """Sum over tokens of -log softmax(x W^T)[target], in float32 at least.

    The logits of a batch are its largest tensor by far: 4,000 tokens of GPT-2's vocabulary take 800 MB, and as much
    again for their gradient. Here they exist for a few tokens at a time, and the gradients, which need nothing but
    the softmax, are taken on the same visit. The idea is that of Hsu et al. 2024, "Liger Kernel", section 3.2.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """
        Args:
            x: (N, C) hidden states.
            weight: (V, C) the projection to logits.
            targets: (N,) token ids; below 0 where there is none, and the loss 0.

        Returns:
            The sum, a number.
        """
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        w = weight.to(dtype)
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        dw = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        more = torch.empty_like(w) if dw is not None and dtype != dw.dtype else None
        exact = torch.promote_types(dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=x.device)
        step = max(1, LOGITS // len(weight))
        with torch.autocast(device, enabled=False):
            for start in range(0, len(x), step):
                here = slice(start, start + step)
                part, target = x[here].to(dtype), targets[here].unsqueeze(1)
                is_asked, target = target >= 0, target.clamp(min=0)
                logits = (part @ w.t()).to(exact)  # (n, V)
                normalizer = logits.logsumexp(dim=1, keepdim=True)
                total += ((normalizer - logits.gather(1, target)) * is_asked).sum()
                if dx is None and dw is None:
                    continue
                normalizer = normalizer.masked_fill(~is_asked, torch.inf)  # whose softmax is 0
                slope = logits.sub_(normalizer).exp_()  # softmax, then less 1 at the target
                slope.scatter_add_(1, target, -is_asked.to(exact))
                slope = slope.to(dtype)
                if dx is not None:
                    dx[here] = slope @ w
                if dw is not None and dtype == dw.dtype:
                    dw.addmm_(slope.t(), part)  # without a product as large as the embedding beside it
                elif dw is not None:
                    torch.mm(slope.t(), part, out=more)
                    for into, rows in zip(dw.split(ROWS), more.split(ROWS), strict=True):
                        into += rows  # turned into float32 beside it
        ctx.save_for_backward(dx, dw)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        # In place, for the weight's is as large as the embedding; a second backward pass is refused by autograd itself.
        return (*(None if saved is None else saved.mul_(gradient) for saved in ctx.saved_tensors), None)
