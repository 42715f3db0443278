"""Causal multi-head self-attention over rows of different lengths."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from config import GPT2Config
from modules.dropout import Dropout, dropout
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
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # query, key and value in one product
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.resid_dropout = Dropout(config.resid_pdrop)

    def forward(self, x: Tensor, rows: Rows, only_last: bool = False) -> Tensor:
        """
        Args:
            x: (N, C) all tokens of the batch.
            rows: which of them belong together.
            only_last: compute the result for the last token of each row only.

        Returns:
            (N, C), or (B, C) if `only_last`.
        """
        p = self.attn_pdrop if self.training else 0.0
        runs = rows.rectangles
        q, kv = self.c_attn(x).split([x.size(-1), 2 * x.size(-1)], dim=-1)  # (N, C), (N, 2C)
        if only_last:
            queries = q[rows.last].split([run.rows for run in runs])
        else:
            queries = q.split([run.tokens for run in runs])
        keys_values = kv.split([run.tokens for run in runs])
        outputs = []
        for run, query, key_value in zip(runs, queries, keys_values, strict=True):
            k, v = (self._heads(t) for t in run.pad(key_value).chunk(2, dim=-1))  # (b, nh, T, hs)
            if only_last:
                y = attend(self._heads(query.unsqueeze(1)), k, v, p, mask=run.is_real)  # (b, nh, 1, hs)
                outputs.append(self._merge(y).squeeze(1))
            else:
                y = attend(self._heads(run.pad(query)), k, v, p, is_causal=True)  # (b, nh, T, hs)
                outputs.append(run.unpad(self._merge(y)))
        return self.resid_dropout(self.c_proj(torch.cat(outputs)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_head, -1)).transpose(1, 2)  # (b, T, C) -> (b, nh, T, hs)

    def _merge(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(-2)  # (b, nh, T, hs) -> (b, T, C)


def attend(q: Tensor, k: Tensor, v: Tensor, p: float, is_causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention with dropout p on the weights.

    Torch's fused CPU kernel knows no dropout and falls back to one whose random numbers cost more than the rest
    of the layer; there the formula is spelt out with our own.

    Args:
        q: (b, nh, Tq, hs). k, v: (b, nh, T, hs).
        mask: broadcastable to (b, nh, Tq, T), True where the query may look.

    Returns:
        (b, nh, Tq, hs)
    """
    if p == 0 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p, is_causal=is_causal)
    scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)  # (b, nh, Tq, T)
    if is_causal:
        scores += torch.full(scores.shape[-2:], -torch.inf).triu(1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return dropout(scores.softmax(dim=-1), p) @ v
