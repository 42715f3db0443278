"""A batch of texts without padding: the rows of tokens laid end to end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

# On a CPU, rows of unlike length share a rectangle while that pads no more cells (query times key) than this, so that
# short rows do not each cost a round of kernel calls. Steps on SST: 6 % slower with 400, 3 % with 1536, 1 % with 50000.
PADDED_CELLS_PER_CALL = 6000
# On a CPU a batch has a multiple of so many tokens, zeros at its end. oneDNN compiles a kernel for every number of them
# that it meets, and keeps it: with each batch another, the process had 3.8 GB after 150 steps on SST, instead of 2.3.
FILLED = 8
# On a CUDA GPU numbers of tokens, and a rectangle's width, are rounded up by steps: the least, and in parts of a power
# of two.
_TOKENS, _WIDTHS = (64, 8), (32, 2)


@dataclass(frozen=True)
class Rectangle:
    """A run of rows that attention treats as one padded rectangle.

    Attributes:
        rows: number of rows, b.
        width: tokens of the longest row, T.
        tokens: real tokens in the run, n.
        slots: (n,) each real token's place in the b * T cells; None if every cell is real.
        cells: (b * T,) of a batch with a filler, each cell's token: the last one, which is the filler's, in cells that
            are padding. The slots of the filler are padding in turn.
    """

    rows: int
    width: int
    tokens: int
    slots: Tensor | None
    cells: Tensor | None = None

    def pad(self, x: Tensor) -> Tensor:
        """(n, C) -> (b, T, C), padded on the right."""
        if self.cells is not None:
            x = Moved.apply(x, self.cells, self.slots)
        elif self.slots is not None:
            x = x.new_zeros(self.rows * self.width, x.size(-1)).index_copy(0, self.slots, x)
        return x.view(self.rows, self.width, x.size(-1))

    def unpad(self, x: Tensor) -> Tensor:
        """(b, T, C) -> (n, C)."""
        x = x.reshape(self.rows * self.width, x.size(-1))
        if self.cells is not None:
            return Moved.apply(x, self.slots, self.cells)
        return x if self.slots is None else x.index_select(0, self.slots)

    @property
    def is_real(self) -> Tensor | None:
        """(b, 1, T) which cells are real tokens; None if all are."""
        if self.slots is None:
            return None
        if self.cells is not None:
            return (self.cells < self.tokens - 1).view(self.rows, 1, self.width)
        cells = torch.zeros(self.rows * self.width, dtype=torch.bool, device=self.slots.device)
        return cells.index_fill_(0, self.slots, True).view(self.rows, 1, self.width)


class Moved(torch.autograd.Function):
    """x[there], where what has no gradient aside x[there][back] is x: the gradient is another move, not a sum."""

    @staticmethod
    def forward(ctx, x: Tensor, there: Tensor, back: Tensor) -> Tensor:
        """(n, C), (m,), (n,) -> (m, C)"""
        ctx.save_for_backward(there, back)
        return x.index_select(0, there)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, None, None]:
        there, back = ctx.saved_tensors
        return Moved.apply(dy, back, there), None, None


class RectangleByHead:
    """A rectangle as attention multiplies it: head by head, moved there and back in one pass.

    Args:
        run: b rows, T wide, with n tokens.
        start: how many of the batch's tokens stand before it.
        n_head: nh.
    """

    def __init__(self, run: Rectangle, start: int, n_head: int):
        self.rows, self.width, self.n_head = run.rows, run.width, n_head
        self.tokens = slice(start, start + run.tokens)
        slots = torch.arange(run.tokens) if run.slots is None else run.slots
        self.row, self.column = slots // run.width, slots % run.width
        self.token = torch.full((run.rows, run.width), start)
        self.token[self.row, self.column] = torch.arange(start, start + run.tokens)
        is_padding = torch.ones(run.rows, n_head, run.width, dtype=torch.bool)
        is_padding[self.row, :, self.column] = False
        self.padding = None if run.slots is None else is_padding.flatten().nonzero().flatten()
        self._moves: dict[int, tuple[Tensor, Tensor]] = {}
        self._futures: dict[tuple[int, torch.dtype], Tensor] = {}

    def split(self, x: Tensor, parts: int = 1, zeros: bool = False) -> Tensor:
        """(N, parts * nh * hs) of the whole batch -> (parts, b * nh, T, hs), with zeros at padding or with whatever."""
        there, _ = self._move(parts)
        y = x.view(-1, x.size(1) // (parts * self.n_head)).index_select(0, there)
        if zeros and self.padding is not None:
            y.index_fill_(0, self.padding, 0)
        return y.view(parts, self.rows * self.n_head, self.width, -1)

    def join(self, x: Tensor, out: Tensor) -> None:
        """([parts,] b * nh, T, hs) -> its tokens in `out`, which is (N, parts * nh * hs)."""
        size = x.size(-1)
        _, back = self._move(out.size(1) // (self.n_head * size))
        torch.index_select(x.view(-1, size), 0, back, out=out[self.tokens].view(-1, size))

    def future(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        """(end - start, end), what to add to the scores of the queries from `start` to `end`: -inf for later keys."""
        if (start, dtype) not in self._futures:
            self._futures[start, dtype] = torch.full((end - start, end), -torch.inf, dtype=dtype).triu_(start + 1)
        return self._futures[start, dtype]

    def _move(self, parts: int) -> tuple[Tensor, Tensor]:
        """For each cell of each head its place in the flat list, and for each token and head its cell."""
        if parts not in self._moves:
            part, head = torch.arange(parts), torch.arange(self.n_head)
            b, n_head, width = self.rows, self.n_head, self.width
            there = (self.token[:, None] * parts + part[:, None, None, None]) * n_head + head[:, None]
            back = ((part[:, None] * b + self.row[:, None, None]) * n_head + head) * width
            self._moves[parts] = there.flatten(), (back + self.column[:, None, None]).flatten()
        return self._moves[parts]


class Rows:
    """Where each row lies in the flat list of a batch's real tokens.

        texts       "A film to see twice"   "Dull"
        tokens      [A film to see twice Dull]          (N,), N = 6
        lengths     [5, 1]                              B = 2
        positions   [0 1 2 3 4 0]                       (N,)
        last        [4, 5]                              (B,)

    Everything that treats tokens one by one works on the flat list; only attention asks for `rectangles`.

    Args:
        lengths: tokens of each row.
        filler: further tokens behind them, of no text: nothing of a text depends on them, nor do they have a gradient.
            With one, all tensors' shapes follow from the number of rows, of tokens and the rectangle's `width`.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | str = "cpu", filler: int = 0):
        self.lengths, self.filler = list(lengths), filler
        self.device = torch.device(device)
        counts = torch.tensor(self.lengths)
        ends = counts.cumsum(0)
        starts = torch.repeat_interleave(ends - counts, counts)
        positions = torch.arange(len(starts)) - starts
        self.positions = sent(F.pad(positions, (0, filler)), self.device)
        self.last = sent(ends - 1, self.device)
        self._by_head: dict[tuple[int, torch.dtype], list[RectangleByHead]] = {}

    @classmethod
    def filled(cls, lengths: Sequence[int], device: torch.device) -> Rows:
        """On a CUDA GPU with a filler, to one of few numbers of tokens, so that many batches are of one shape."""
        count = sum(lengths)
        return cls(lengths, device, _beyond(count, *_TOKENS) - count if device.type == "cuda" else 0)

    def tensors(self) -> list[Tensor]:
        """With a filler, all that says where the rows lie."""
        (run,) = self.rectangles
        return [self.positions, self.last, self.starts, run.slots, run.cells]

    @cached_property
    def starts(self) -> Tensor:
        """Of int32, where each row starts and the last one ends: (B + 1,), or (B + 2,) with the filler as a row."""
        rows = [*self.lengths, self.filler] if self.filler else self.lengths
        return sent(torch.tensor([0, *accumulate(rows)], dtype=torch.int32), self.device)

    @property
    def longest(self) -> int:
        """What no row is longer than; with a filler, the most that it can be in a batch of these shapes."""
        if not self.filler:
            return max(self.lengths)
        (run,) = self.rectangles
        return max(run.width, _step(run.tokens, *_TOKENS))

    def fill(self, x: Tensor) -> Tensor:
        """(N, C) -> (N', C) on a CPU, with rows of zeros up to a multiple of `FILLED`. They are of no text."""
        missing = -len(x) % FILLED if self.device.type == "cpu" else 0
        return self.join([x], len(x) + missing)

    def split(self, x: Tensor) -> Sequence[Tensor]:
        """(N', C) -> (n, C) of each rectangle."""
        sizes = [run.tokens for run in self.rectangles]
        return x[: sum(sizes)].split(sizes)

    def join(self, parts: Sequence[Tensor], length: int) -> Tensor:
        """(n, C) of each rectangle -> (length, C), with zeros behind them."""
        missing = length - sum(map(len, parts))
        if len(parts) == 1 and not missing:
            return parts[0]
        return torch.cat([*parts, parts[0].new_zeros(missing, parts[0].size(-1))])

    @cached_property
    def rectangles(self) -> list[Rectangle]:
        """The batch cut into runs of rows, in order, for attention to pad.

        An accelerator takes the batch as one rectangle, for it waits on kernel launches; a CPU, which waits on
        arithmetic, takes long rows one by one and pads only short neighbours.
        """
        if self.filler:
            return [_filled_rectangle(self.lengths, self.filler, self.device)]
        return [_rectangle(run, self.device) for run in self._runs]

    def rounded(self, dtype: torch.dtype) -> list[Rectangle]:
        """The rectangles, for products in that type: in 16 bits on a CPU, where they are oneDNN's (see `FILLED`), as
        wide as a multiple of `FILLED`."""
        is_onednns = self.device.type == "cpu" and dtype.itemsize == 2
        return self._rounded if is_onednns and not self.filler else self.rectangles

    @cached_property
    def _rounded(self) -> list[Rectangle]:
        return [_rectangle(run, self.device, FILLED) for run in self._runs]

    @cached_property
    def _runs(self) -> list[list[int]]:
        """The rows' lengths, by rectangle."""
        if self.device.type != "cpu":
            return [self.lengths]
        runs, run, real = [], [], 0
        for length in self.lengths:
            widest = max([length, *run])
            cells, real = (len(run) + 1) * widest**2, real + length**2
            if run and cells - real > PADDED_CELLS_PER_CALL:
                runs.append(run)
                run, real = [], length**2
            run = [*run, length]
        return [*runs, run]

    def by_head(self, n_head: int, dtype: torch.dtype) -> list[RectangleByHead]:
        """The rectangles for products in that type, on a CPU, laid out by head."""
        if (n_head, dtype) not in self._by_head:
            runs = self.rounded(dtype)
            starts = accumulate((run.tokens for run in runs), initial=0)
            self._by_head[n_head, dtype] = [
                RectangleByHead(run, start, n_head) for run, start in zip(runs, starts, strict=False)
            ]
        return self._by_head[n_head, dtype]


def _rectangle(lengths: list[int], device: torch.device, step: int = 1) -> Rectangle:
    width = math.ceil(max(lengths) / step) * step
    slots = None
    if min(lengths) < width:
        slots = torch.cat([torch.arange(length) + row * width for row, length in enumerate(lengths)])
        slots = sent(slots, device)
    return Rectangle(len(lengths), width, sum(lengths), slots)


def _filled_rectangle(lengths: list[int], filler: int, device: torch.device) -> Rectangle:
    count, width = sum(lengths), _beyond(max(lengths), *_WIDTHS)  # so that each row ends with padding
    slots = torch.cat([torch.arange(length) + row * width for row, length in enumerate(lengths)])
    cells = torch.full((len(lengths) * width,), count + filler - 1)
    cells[slots] = torch.arange(count)
    slots = F.pad(slots, (0, filler), value=width - 1)
    return Rectangle(len(lengths), width, count + filler, sent(slots, device), sent(cells, device))


def _beyond(number: int, least: int, parts: int) -> int:
    """The next multiple of a step: few for all numbers."""
    step = _step(number, least, parts)
    return (number // step + 1) * step


def _step(number: int, least: int, parts: int) -> int:
    """That part of the power of two below the number, and at least so much."""
    return max(least, (1 << number.bit_length() - 1) // parts)


def sent(values: Tensor, device: torch.device) -> Tensor:
    """The same values on that device. A plain copy to a CUDA GPU waits until all that it was told to do is done; one
    from pinned memory takes its turn, and Python goes on to the next step meanwhile."""
    if values.device.type == "cpu" and device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def pack(input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Rows]:
    """Drops the padding of a rectangle of tokens, wherever in the row it stands.

    Args:
        input_ids: (B, T) token ids; what stands where the mask is 0 is never looked at.
        attention_mask: (B, T) 1 at real tokens; None if all are real.

    Returns:
        (N,) the real tokens, and where their rows lie.

    Raises:
        ValueError: shapes that differ, or no row at all.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    if input_ids.dim() != 2 or attention_mask.shape != input_ids.shape:
        raise ValueError(
            "input_ids and attention_mask must both be (batch, length), "
            f"not {tuple(input_ids.shape)} and {tuple(attention_mask.shape)}"
        )
    if len(input_ids) == 0:
        raise ValueError("a batch needs at least 1 row")
    mask = attention_mask.bool()
    return input_ids[mask], Rows(mask.sum(dim=1).tolist(), input_ids.device)
