"""One step of training: the gradient of a batch's mean loss, however the batch is cut, and what is made of it."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from optimizer import AdamW
from training import ranks
from training.aside import Aside
from training.batching import Batch
from training.halves import Halves
from training.hardware import NEEDS_LESS, PeakMemory, Precision
from training.objectives import Examples, Objective, TrainingFailed
from training.parallel import data_parallel
from training.recording import Recorder


class Update:
    """Deals a batch out to the processes, and cuts each one's part into pieces that fit into memory.

        batch of 7, 2 processes, micro_batch_size 2        rank 0: [a c] [e g]        rank 1: [b d] [f]

    The result is that of the whole batch at once, but for rounding and for which numbers dropout draws. A process that
    is alone and has a whole batch in memory works on both halves of a large one at once on a CPU (`training.halves`),
    and takes weights' steps beside the backward pass of a small one (`training.aside`); on a CUDA GPU it launches steps
    that it has recorded (`training.recording`).

    Args:
        model: holds the parameters that `optimizer` trains.
        objective: what is lowered.
        precision: what to compute in, and where.
        micro_batch_size: texts that a process has in memory at once; None for all of its part.
        max_grad_norm: what a gradient is cut to; None for no limit.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        micro_batch_size: int | None,
        max_grad_norm: float | None,
    ):
        self.objective, self.optimizer, self.precision = objective, optimizer, precision
        self.micro_batch_size, self.max_grad_norm = micro_batch_size, max_grad_norm
        self.loss, self.alone = data_parallel(model, objective)
        self.memory = PeakMemory(model, optimizer, precision.device)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        alone = ranks.count() == 1 and not model.transformer.checkpoint_activations  # which looks at random states
        self.recorder = Recorder(parameters) if alone and precision.device.type == "cuda" else None
        learns = any(parameter.requires_grad for parameter in model.transformer.parameters())
        on_cpu = alone and learns and precision.device.type == "cpu"
        self.halves = Halves(model) if on_cpu else None
        at_once = on_cpu and max_grad_norm is None and type(optimizer) is AdamW  # no step waits for all gradients
        self.aside = Aside(model, optimizer) if at_once else None

    def __call__(self, train: Examples, indices: list[int], watched: bool = False) -> tuple[Tensor, Tensor]:
        """Updates the parameters by the examples at `indices`.

        Args:
            watched: see what memory it takes.

        Returns:
            (2,) what the objective adds up, and the gradient's norm, without weights whose steps were made aside: where
            one of those had no finite gradient, its layer's bias or those of layers before it have none.

        Raises:
            TrainingFailed: one example alone fills the memory.
        """
        on_gpu = self.precision.device.type == "cuda"
        random = torch.get_rng_state(), torch.cuda.get_rng_state() if on_gpu else None
        while True:
            try:
                sums = self._accumulate(train, indices, watched)
            except torch.OutOfMemoryError:
                if ranks.count() > 1:  # the others wait for this one's gradients
                    raise
                if self.recorder and self.recorder.recordings:
                    self.recorder.forget()
                else:
                    self._halve(len(indices))
                self.optimizer.zero_grad()
                torch.set_rng_state(random[0])
                if on_gpu:
                    torch.cuda.set_rng_state(random[1])
                    torch.cuda.empty_cache()
            else:
                return sums, self.precision.step(self.optimizer, self.max_grad_norm)

    def _accumulate(self, train: Examples, indices: list[int], watched: bool) -> Tensor:
        size = self.objective.size([train.lengths[i] for i in indices]) / ranks.count()  # gradients are averaged
        size = torch.full((), size, device=self.precision.device)  # a number for a recorded step to read
        pieces = self._pieces(train, indices)
        total = 0
        if self.halves and len(pieces) == 1 and not watched:  # what is kept for backward is seen in one thread
            sums = self.halves(self._loss, train, pieces[0][0], size)
            if sums is not None:
                return sums
        for number, (piece, counts) in enumerate(pieces, start=1):
            batch = train.batch(piece, self.precision.device)
            sums = self.recorder(self._loss, batch, size) if self.recorder and len(pieces) == 1 else None
            if sums is None:
                with self.alone() if number < len(pieces) else nullcontext():
                    with self.memory.watch() if watched else nullcontext():
                        loss, sums = self._loss(batch, size)
                    if not counts:
                        loss, sums = 0 * loss, 0 * sums
                    differentiate = self.aside if self.aside and len(pieces) == 1 else Tensor.backward
                    differentiate(loss)
            total = total + sums
        return ranks.total(total)

    def _loss(self, batch: Batch, size: Tensor) -> tuple[Tensor, Tensor]:
        """A batch's part of the mean loss, as it is differentiated, and what the objective adds up."""
        with self.precision.autocast():
            loss, sums = self.loss(batch)
        return self.precision.scaler.scale(loss / size), sums

    def _pieces(self, train: Examples, indices: list[int]) -> list[tuple[list[int], bool]]:
        """This process's part of a batch, texts of like length together, and whether each piece counts: processes work
        in step, so one with less to do than the others is given something to do for nothing."""
        indices = sorted(indices, key=train.lengths.__getitem__)
        part = indices[ranks.rank() :: ranks.count()]
        most = math.ceil(len(indices) / ranks.count())  # texts of a part
        size = min(self.micro_batch_size or most, most)
        pieces = [(part[start : start + size], True) for start in range(0, len(part), size)]
        return pieces + [(indices[:1], False)] * (math.ceil(most / size) - len(pieces))

    def widest(self, train: Examples, indices: list[int]) -> int:
        """Tokens in memory at once, at most."""
        return max(sum(train.lengths[i] for i in piece) for piece, _ in self._pieces(train, indices))

    def _halve(self, examples: int) -> None:
        size = min(self.micro_batch_size or examples, examples)
        if size == 1:
            raise TrainingFailed(f"out of memory with one text at once; {NEEDS_LESS}")
        self.micro_batch_size = half = (size + 1) // 2
        print(f"out of memory with {size} texts at once; going on with --micro_batch_size {half}", flush=True)
