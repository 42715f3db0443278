"""What attention has seen of texts that are being written."""

from __future__ import annotations

import torch
from torch import Tensor

from config import GPT2Config
from modules.ragged import Rows


class Cache:
    """Keys and values of the tokens read so far, and how many of them each row has.

    A network fills an empty one with whole rows, and then reads one token more of each, with `grow()` as its rows. Rows
    start at the left, whatever their length; a row's next token goes to the cell after its last.

        lengths    [5, 1]                           (B,)
        keys       [[k k k k k . .]                 (B, nh, T, hs) in every layer; so are the values
                    [k . . . . . .]]

    Args:
        config: shape of the network.
        lengths: tokens of each row that will be read at first.
        capacity: tokens a row may grow to, T.
    """

    def __init__(self, config: GPT2Config, lengths: list[int], capacity: int, device: torch.device, dtype: torch.dtype):
        self.lengths = torch.tensor(lengths, device=device)
        self.width = max(lengths)
        shape = (len(lengths), config.n_head, capacity, config.n_embd // config.n_head)
        self.layers = [LayerCache(*torch.zeros(2, *shape, device=device, dtype=dtype)) for _ in range(config.n_layer)]

    def grow(self) -> NextTokens:
        """Makes room for one more token a row, and says where they go."""
        rows = NextTokens(self.lengths, self.width)
        self.lengths = self.lengths + 1
        self.width += 1
        return rows

    def select(self, rows: Tensor) -> None:
        """Goes on with some rows only, or with several copies of some.

        Args:
            rows: (B',) numbers of the rows, in their new order.
        """
        self.lengths = self.lengths[rows]
        self.width = int(self.lengths.max())
        for layer in self.layers:  # one after another, so that no more than one is there twice
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]


class NextTokens(Rows):
    """One token of each row, the next.

    Args:
        positions: (B,) where in its row each stands.
        width: the highest of them.
    """

    def __init__(self, positions: Tensor, width: int):
        self.lengths, self.device = [1] * len(positions), positions.device
        self.positions, self.last = positions, torch.arange(len(positions), device=positions.device)
        self.visible = torch.arange(width + 1, device=self.device) <= positions[:, None, None, None]  # (B, 1, 1, T)


class LayerCache:
    """The part of a `Cache` that belongs to one layer.

    Args:
        keys, values: (B, nh, T, hs) each, to be filled.
    """

    def __init__(self, keys: Tensor, values: Tensor):
        self.keys, self.values = keys, values

    def add(self, qkv: Tensor, rows: Rows) -> None:
        """Keeps the keys and values of new tokens.

        Args:
            qkv: (N, 3C) queries, keys and values of whole rows, to begin with, and then of their `NextTokens`.
        """
        n_head = self.keys.size(1)
        if isinstance(rows, NextTokens):
            _, k, v = qkv.unflatten(-1, (3, n_head, -1)).unbind(1)  # (B, nh, hs) each
            self.keys[rows.last, :, rows.positions] = k
            self.values[rows.last, :, rows.positions] = v
            return
        start = 0
        for run, part in zip(rows.rectangles, rows.split(qkv), strict=True):
            _, k, v = run.pad(part).unflatten(-1, (3, n_head, -1)).permute(2, 0, 3, 1, 4)  # (b, nh, T, hs) each
            here = slice(start, start + run.rows)
            self.keys[here, :, : run.width], self.values[here, :, : run.width] = k, v
            start += run.rows
