"""Causal multi-head self-attention over rows of different lengths."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from config import GPT2Config
from modules.cache import LayerCache, NextTokens
from modules.dropout import Dropout, dropout
from modules.dropout_attention import DropoutAttention
from modules.linear import Linear
from modules.ragged import Rows


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
        elif only_last:
            y = self._from_last(x, rows, p)
        elif p > 0 and x.device.type == "cpu":
            y = DropoutAttention.apply(self._qkv(x), rows, self.n_head, p)
        else:
            y = attend(self._qkv(x), rows, self.n_head, p)
        return self.resid_dropout(self.c_proj(y))

    def _from_last(self, x: Tensor, rows: Rows, p: float) -> Tensor:
        """(N, C) -> (B, C); an adapter's layer may not be one product, or not say so."""
        wide = self.c_attn.widened(x) if hasattr(self.c_attn, "widened") else None
        if wide is None:
            return attend_with_last(self.c_attn(x), rows, self.n_head, p)
        return attend_from_last(*wide, rows, self.n_head, p)

    def _qkv(self, x: Tensor) -> Tensor:
        """(N, C) -> (N, 3C). Softmax does not see the keys' bias, which adds the same q b_k for every token. So its
        gradient is 0, and not the rounding errors that Adam makes steps of, others with every way to cut a batch."""
        if not isinstance(self.c_attn, Linear) or not torch.is_grad_enabled():
            return self.c_attn(x)
        b_q, b_k, b_v = self.c_attn.bias.chunk(3)
        return self.c_attn.with_bias(x, torch.cat([b_q, b_k.detach(), b_v]))


def attend(qkv: Tensor, rows: Rows, n_head: int, p: float = 0.0) -> Tensor:
    """Attention through torch's own kernels.

    Args:
        qkv: (N, 3C) queries, keys and values of all tokens.
        p: dropout on the attention weights.

    Returns:
        (N, C)
    """
    size = qkv.size(1) // (3 * n_head)
    if qkv.is_cuda and size % 8 == 0 and size <= 256:  # which those kernels ask for
        return attend_flat(qkv, rows, n_head, p)
    outputs = []
    for run, part in zip(rows.rectangles, rows.split(qkv), strict=True):
        q, k, v = run.pad(part).unflatten(-1, (3, n_head, -1)).permute(2, 0, 3, 1, 4)  # (b, nh, T, hs) each
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        outputs.append(run.unpad(y.transpose(1, 2).flatten(2)))
    return rows.join(outputs, len(qkv))


def attend_flat(qkv: Tensor, rows: Rows, n_head: int, p: float = 0.0) -> Tensor:
    """`attend` on a CUDA GPU, by the kernels below `F.scaled_dot_product_attention`, which know rows end to end: Flash
    Attention (Dao 2023), or xFormers' where that is not, in float32 and before Ampere, on a T4 say."""
    q, k, v = qkv.view(len(qkv), 3, n_head, -1).unbind(1)  # (N, nh, hs) each
    starts, longest = rows.starts, rows.longest
    if qkv.dtype.itemsize == 2 and torch.cuda.get_device_capability(qkv.device) >= (8, 0):
        y = torch.ops.aten._flash_attention_forward(q, k, v, starts, starts, longest, longest, p, True, False)[0]
    else:
        q, k, v = q[None], k[None], v[None]
        arguments = starts, starts, longest, longest, p, 1, torch.is_grad_enabled()  # 1: causal
        y = torch.ops.aten._efficient_attention_forward(q, k, v, None, *arguments)[0][0]
    return y.flatten(1)


def attend_from_last(x: Tensor, weights: list[Tensor], bias: Tensor, rows: Rows, n_head: int, p: float = 0.0) -> Tensor:
    """Attention from the last token of each row, to which no token of its row is hidden.

    With one query a row it pays to move the products from the tokens to the query: q (W_k x) is (q W_k) x, and the
    values are projected after they are summed. Softmax does not see q b_k, which is the same for every token.

    Args:
        x: (N, D) what all tokens' queries, keys and values would be made of.
        weights: (3C, D) by which, in parts side by side, with the (3C,) bias.

    Returns:
        (B, C)
    """
    w_q, w_k, w_v = zip(*(weight.chunk(3) for weight in weights), strict=True)  # (C, D') each
    b_q, _, b_v = bias.chunk(3)
    widths = [weight.size(1) for weight in weights]
    parts = zip(x[rows.last].split(widths, dim=1), w_q, strict=True)
    q = sum((F.linear(part, w) for part, w in parts), b_q).unflatten(-1, (n_head, -1)).transpose(0, 1)  # (nh, B, hs)
    q = q / math.sqrt(q.size(-1))
    q = torch.cat([q @ w.unflatten(0, (n_head, -1)) for w in w_k], dim=-1)  # (nh, B, D)
    sums, totals = [], []
    rectangles = rows.rounded(q.dtype)
    counts = [run.rows for run in rectangles]
    for run, query, part in zip(rectangles, q.transpose(0, 1).split(counts), rows.split(x), strict=True):
        tokens = run.pad(part)  # (b, T, D)
        scores = query @ tokens.transpose(1, 2)  # (b, nh, T)
        if run.slots is not None:
            scores = scores.masked_fill(~run.is_real, -torch.inf)
        shares = dropout(scores.softmax(dim=-1), p)
        sums.append(shares @ tokens)  # (b, nh, D)
        totals.append(shares.sum(dim=-1, keepdim=True))  # 1, but for dropout
    parts = zip(torch.cat(sums).transpose(0, 1).split(widths, dim=-1), w_v, strict=True)
    y = sum(part @ w.unflatten(0, (n_head, -1)).mT for part, w in parts)  # (nh, B, hs)
    return y.transpose(0, 1).flatten(1) + (torch.cat(totals) * b_v.view(n_head, -1)).flatten(1)


def attend_with_last(qkv: Tensor, rows: Rows, n_head: int, p: float = 0.0) -> Tensor:
    """(N, 3C) queries, keys and values of all tokens -> (B, C), attention of the last token of each row."""
    queries = qkv[rows.last].chunk(3, dim=-1)[0].unflatten(-1, (n_head, 1, -1))  # (B, nh, 1, hs)
    outputs, counts = [], [run.rows for run in rows.rectangles]
    for run, q, part in zip(rows.rectangles, queries.split(counts), rows.split(qkv), strict=True):
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
