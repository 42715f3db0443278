"""Causal attention with dropout on its weights, for a CPU: what torch's fused kernel there does not know."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from modules.dropout import keep_mask
from modules.ragged import Rows

QUERIES = 128  # in a block; keys to the right of a block are never looked at


class DropoutAttention(torch.autograd.Function):
    """Rows go one by one or in small rectangles, and their queries in blocks, which multiply with the keys up to the
    block's own only. Forward, with weights P and what dropout leaves of them D (scaled at the end, by c):

        P = softmax(Q K^T / sqrt(hs))        D = P * keep        Y = c D V

    Backward (Dao et al. 2022, appendix B.2, takes the softmax's row sums from Y and dY in the same way):

        dV = c D^T dY        dS = D * (c dY V^T) - P * rowsum(Y * dY)
        dQ = dS K / sqrt(hs)        dK = dS^T Q / sqrt(hs)
    """

    @staticmethod
    def forward(ctx, qkv: Tensor, rows: Rows, n_head: int, p: float) -> Tensor:
        """(N', 3C) -> (N', C)"""
        y = qkv.new_empty(qkv.size(0), qkv.size(1) // 3)
        kept = []
        for run in rows.by_head(n_head, qkv.dtype):
            q, k, v = run.split(qkv, 3)  # (b * nh, T, hs) each
            outputs = []
            for start, end in _blocks(run.width):
                future = run.future(start, end, q.dtype)
                weights = torch.baddbmm(future, q[:, start:end], k[:, :end].mT, alpha=q.size(-1) ** -0.5)
                weights = weights.softmax(dim=-1)  # (b * nh, end - start, end)
                dropped, scale = keep_mask(weights.shape, p, weights.dtype)
                dropped *= weights
                outputs.append(dropped @ v[:, :end])
                kept += [weights, dropped]
            run.join(torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0], y)
        y[sum(rows.lengths) :] = 0
        ctx.rows, ctx.n_head, ctx.scale = rows, n_head, scale
        y *= scale
        ctx.save_for_backward(qkv, y, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor, None, None, None]:
        qkv, y, *kept = ctx.saved_tensors
        kept = iter(kept)
        dqkv = torch.empty_like(qkv)
        sums = (y * dy).unflatten(-1, (ctx.n_head, -1)).sum(dim=-1)  # (N, nh)
        for run in ctx.rows.by_head(ctx.n_head, qkv.dtype):
            q, k, v = run.split(qkv, 3)
            g, row_sums = run.split(dy, zeros=True)[0], run.split(sums, zeros=True)[0]
            blocks, shrink = _blocks(run.width), q.size(-1) ** -0.5
            dq, dk, dv = grads = qkv.new_empty(3, *q.shape)
            if len(blocks) > 1:
                grads.zero_()
            for start, end in blocks:
                weights, dropped = next(kept), next(kept)
                block = g[:, start:end]
                ds = _product(block, v[:, :end].mT, ctx.scale).mul_(dropped)
                ds.addcmul_(weights, row_sums[:, start:end], value=-1)
                if len(blocks) == 1:
                    _product(ds, k, shrink, out=dq)
                    _product(ds.mT, q, shrink, out=dk)
                    _product(dropped.mT, g, ctx.scale, out=dv)
                else:
                    dq[:, start:end].add_(ds @ k[:, :end], alpha=shrink)
                    dk[:, :end].add_(ds.mT @ q[:, start:end], alpha=shrink)
                    dv[:, :end].add_(dropped.mT @ block, alpha=ctx.scale)
            run.join(grads, dqkv)
        dqkv[sum(ctx.rows.lengths) :] = 0
        return dqkv, None, None, None


def _blocks(width: int) -> list[tuple[int, int]]:
    """Cuts a row into blocks of like size, of at most QUERIES queries."""
    step = math.ceil(width / math.ceil(width / QUERIES))
    return [(start, min(start + step, width)) for start in range(0, width, step)]


def _product(a: Tensor, b: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """scale * a @ b, batch by batch, in one pass."""
    out = a.new_empty(a.size(0), a.size(1), b.size(2)) if out is None else out
    return torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)
