"""Causal multi-head self-attention over rows of different lengths."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from config import GPT2Config
from modules.cache import LayerCache, NextTokens
from modules.dropout import Dropout, dropout, keep_mask
from modules.linear import Linear
from modules.ragged import Rectangle, Rows

QUERIES = 128  # in a block of `DropoutAttention`; keys to the right of a block are never looked at


class CausalSelfAttention(nn.Module):
    """Softmax(Q K^T / sqrt(d_k)) V in each head, every token looking at itself and to its left (paper, section 4.2).

    The padding mask that the paper adds is not needed: padding exists only inside a rectangle of rows and
    only on the right, where the causal mask hides it already.
    """

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.n_head = config.n_head
        self.attn_pdrop = config.attn_pdrop
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)  # query, key and value in one product
        self.c_proj = Linear(config.n_embd, config.n_embd)
        self.resid_dropout = Dropout(config.resid_pdrop)

    def forward(self, x: Tensor, rows: Rows, only_last: bool = False, past: LayerCache | None = None) -> Tensor:
        """
        Args:
            x: (N, C) all tokens of the batch.
            rows: which of them belong together.
            only_last: compute the result for the last token of each row only.
            past: of a text that is being written, what came before them: nothing, with whole rows, or all, with
                `NextTokens`. They are added to it.

        Returns:
            (N, C), or (B, C) if `only_last`.
        """
        p = self.attn_pdrop if self.training else 0.0
        if past:
            y = attend_to_past(self.c_attn(x), rows, past, only_last)
        elif only_last and type(self.c_attn) is Linear:
            y = attend_from_last(x, rows, self.c_attn, self.n_head, p)
        elif only_last:  # wrapped by an adapter, whose weights are no matrix of their own
            y = attend_with_last(self.c_attn(x), rows, self.n_head, p)
        elif p > 0 and x.device.type == "cpu":
            y = DropoutAttention.apply(self.c_attn(x), rows, self.n_head, p)
        else:
            y = attend(self.c_attn(x), rows, self.n_head, p)
        return self.resid_dropout(self.c_proj(y))


def attend(qkv: Tensor, rows: Rows, n_head: int, p: float = 0.0) -> Tensor:
    """Attention through torch's own kernels.

    Args:
        qkv: (N, 3C) queries, keys and values of all tokens.
        p: dropout on the attention weights.

    Returns:
        (N, C)
    """
    outputs = []
    for run, part in zip(rows.rectangles, qkv.split([run.tokens for run in rows.rectangles]), strict=True):
        q, k, v = run.pad(part).unflatten(-1, (3, n_head, -1)).permute(2, 0, 3, 1, 4)  # (b, nh, T, hs) each
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        outputs.append(run.unpad(y.transpose(1, 2).flatten(2)))
    return torch.cat(outputs)


def attend_from_last(x: Tensor, rows: Rows, c_attn: nn.Linear, n_head: int, p: float = 0.0) -> Tensor:
    """Attention from the last token of each row, to which no token of its row is hidden.

    With one query a row it pays to move the products from the tokens to the query: q (W_k x) is (q W_k) x, and the
    values are projected after they are summed. Softmax does not see q b_k, which is the same for every token.

    Args:
        x: (N, C) what `c_attn` would make queries, keys and values of.

    Returns:
        (B, C)
    """
    size = x.size(-1)
    w_q, w_k, w_v = c_attn.weight.chunk(3)  # (C, C) each
    b_q, _, b_v = c_attn.bias.chunk(3)
    q = F.linear(x[rows.last], w_q, b_q).unflatten(-1, (n_head, -1)).transpose(0, 1)  # (nh, B, hs)
    q = q / math.sqrt(size // n_head) @ w_k.view(n_head, -1, size)  # (nh, B, C)
    sums, weights = [], []
    counts, sizes = zip(*((run.rows, run.tokens) for run in rows.rectangles), strict=True)
    for run, query, part in zip(rows.rectangles, q.transpose(0, 1).split(counts), x.split(sizes), strict=True):
        tokens = run.pad(part)  # (b, T, C)
        scores = query @ tokens.transpose(1, 2)  # (b, nh, T)
        if run.slots is not None:
            scores = scores.masked_fill(~run.is_real, -torch.inf)
        weight = dropout(scores.softmax(dim=-1), p)
        sums.append(weight @ tokens)  # (b, nh, C)
        weights.append(weight.sum(dim=-1, keepdim=True))  # 1, but for dropout
    y = torch.cat(sums).transpose(0, 1) @ w_v.view(n_head, -1, size).transpose(1, 2)  # (nh, B, hs)
    return y.transpose(0, 1).flatten(1) + (torch.cat(weights) * b_v.view(n_head, -1)).flatten(1)


def attend_with_last(qkv: Tensor, rows: Rows, n_head: int, p: float = 0.0) -> Tensor:
    """(N, 3C) queries, keys and values of all tokens -> (B, C), attention of the last token of each row."""
    queries = qkv[rows.last].chunk(3, dim=-1)[0].unflatten(-1, (n_head, 1, -1))  # (B, nh, 1, hs)
    counts, sizes = zip(*((run.rows, run.tokens) for run in rows.rectangles), strict=True)
    outputs = []
    for run, q, part in zip(rows.rectangles, queries.split(counts), qkv.split(sizes), strict=True):
        _, k, v = run.pad(part).unflatten(-1, (3, n_head, -1)).permute(2, 0, 3, 1, 4)  # (b, nh, T, hs) each
        scores = q @ k.transpose(2, 3) / math.sqrt(q.size(-1))  # (b, nh, 1, T)
        if run.slots is not None:
            scores = scores.masked_fill(~run.is_real.unsqueeze(1), -torch.inf)
        outputs.append((dropout(scores.softmax(dim=-1), p) @ v).flatten(1))
    return torch.cat(outputs)


def attend_to_past(qkv: Tensor, rows: Rows, past: LayerCache, only_last: bool) -> Tensor:
    """Attention from new tokens to themselves and to all before them; `past` keeps them for the tokens to come.

    Args:
        qkv: (N, 3C) queries, keys and values of whole rows, to begin with, and then of their `NextTokens`.

    Returns:
        (N, C), or (B, C) if `only_last`.
    """
    past.add(qkv, rows)
    n_head = past.keys.size(1)
    if not isinstance(rows, NextTokens):
        return attend_with_last(qkv, rows, n_head) if only_last else attend(qkv, rows, n_head)
    q = qkv.chunk(3, dim=-1)[0].unflatten(-1, (n_head, 1, -1))  # (B, nh, 1, hs)
    width = rows.visible.size(-1)
    keys, values = past.keys[:, :, :width], past.values[:, :, :width]
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=rows.visible).flatten(1)


class DropoutAttention(torch.autograd.Function):
    """Causal attention with dropout on its weights, for a CPU: what torch's fused kernel there does not know.

    Rows go one by one or in small rectangles, and their queries in blocks, which multiply with the keys up to the
    block's own only. Forward, with weights P and what dropout leaves of them D (scaled at the end, by c):

        P = softmax(Q K^T / sqrt(hs))        D = P * keep        Y = c D V

    Backward (Dao et al. 2022, appendix B.2, takes the softmax's row sums from Y and dY in the same way):

        dV = c D^T dY        dS = D * (c dY V^T) - P * rowsum(Y * dY)
        dQ = dS K / sqrt(hs)        dK = dS^T Q / sqrt(hs)
    """

    @staticmethod
    def forward(ctx, qkv: Tensor, rows: Rows, n_head: int, p: float) -> Tensor:
        """(N, 3C) -> (N, C)"""
        y = qkv.new_empty(qkv.size(0), qkv.size(1) // 3)
        kept = []
        for run, here in _parts(rows):
            q, k, v = _heads(run.pad(qkv[here]), n_head)  # (b * nh, T, hs) each
            out = y.new_empty(run.rows, n_head, run.width, q.size(-1))
            for start, end in _blocks(run.width):
                scores = _product(q[:, start:end], k[:, :end].transpose(1, 2), 1 / math.sqrt(q.size(-1)))
                scores[:, :, start:] += torch.full((end - start, end - start), -torch.inf, dtype=q.dtype).triu_(1)
                weights = scores.softmax(dim=-1)  # (b * nh, end - start, end)
                dropped, scale = keep_mask(weights.shape, p, weights.dtype)
                dropped *= weights
                out[:, :, start:end] = (dropped @ v[:, :end]).view(run.rows, n_head, end - start, -1)
                kept += [weights, dropped]
            y[here] = run.unpad(out.transpose(1, 2).flatten(2))
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
        for run, here in _parts(ctx.rows):
            q, k, v = _heads(run.pad(qkv[here]), ctx.n_head)
            (g,) = _heads(run.pad(dy[here]), ctx.n_head, 1)
            (row_sums,) = _heads(run.pad(sums[here]), ctx.n_head, 1)  # (b * nh, T, 1)
            dq, dk, dv = grads = qkv.new_zeros(3, *q.shape)
            shrink = 1 / math.sqrt(q.size(-1))
            for start, end in _blocks(run.width):
                weights, dropped = next(kept), next(kept)
                block = g[:, start:end]
                dv[:, :end].add_(dropped.transpose(1, 2) @ block, alpha=ctx.scale)
                ds = _product(block, v[:, :end].transpose(1, 2), ctx.scale).mul_(dropped)
                ds.addcmul_(weights, row_sums[:, start:end], value=-1)
                dq[:, start:end].add_(ds @ k[:, :end], alpha=shrink)
                dk[:, :end].add_(ds.transpose(1, 2) @ q[:, start:end], alpha=shrink)
            grads = grads.view(3, run.rows, ctx.n_head, run.width, -1).permute(1, 3, 0, 2, 4)  # (b, T, 3, nh, hs)
            dqkv[here] = run.unpad(grads.flatten(2))
        return dqkv, None, None, None


def _heads(x: Tensor, n_head: int, parts: int = 3) -> Tensor:
    """(b, T, parts * C) -> (parts, b * nh, T, hs)"""
    return x.unflatten(-1, (parts, n_head, -1)).permute(2, 0, 3, 1, 4).flatten(1, 2)


def _parts(rows: Rows) -> Iterator[tuple[Rectangle, slice]]:
    """The rectangles of a batch, and where their tokens lie in it."""
    start = 0
    for run in rows.rectangles:
        yield run, slice(start, start + run.tokens)
        start += run.tokens


def _blocks(width: int) -> Iterator[tuple[int, int]]:
    """Cuts a row into blocks of like size, of at most QUERIES queries."""
    step = math.ceil(width / math.ceil(width / QUERIES))
    return ((start, min(start + step, width)) for start in range(0, width, step))


def _product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale * a @ b, batch by batch, in one pass."""
    out = a.new_empty(a.size(0), a.size(1), b.size(2))
    return torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)
