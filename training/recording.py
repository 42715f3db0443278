"""A GPU's work on a batch, recorded once for each shape of batch and then replayed: CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from training.batching import Batch

Loss = Callable[[Batch, Tensor], tuple[Tensor, Tensor]]
MOST_RECORDINGS = 64  # each holds a thousand launches, some MB


@dataclass
class Recording:
    """
    Attributes:
        batch, size: what the graph reads, wherever it is replayed.
        sums: what it leaves behind, besides gradients.
    """

    graph: torch.cuda.CUDAGraph
    batch: Batch
    size: Tensor
    sums: Tensor


class Recorder:
    """Gradients of a batch's loss, from a recorded graph once the batch's shape is known.

    A step of GPT-2 on a few hundred tokens is a thousand kernels that each run for microseconds, and to launch them one
    by one from Python takes several times as long as they run. A graph launches them all at once. It repeats the
    same kernels on the same addresses, so batches are copied to where it reads, and all graphs, of which one runs at a
    time, share their memory and leave the gradients in one place. Dropout draws what it would have drawn.

    Args:
        parameters: that are trained.
    """

    def __init__(self, parameters: list[Tensor]):
        self.parameters = parameters
        self.met: set[tuple] = set()
        self.recordings: dict[tuple, Recording] = {}
        self.gradients: list[Tensor] = []
        self.full = False

    def __call__(self, loss: Loss, batch: Batch, size: Tensor) -> Tensor | None:
        """Gives every parameter its gradient, if the batch's shape was met before.

        Args:
            loss: of a batch and a size, the loss to differentiate and (2,) what to add up.

        Returns:
            (2,) what the loss adds up; None if nothing was done.
        """
        shape = batch.shape()
        if shape is None:
            return None
        if shape not in self.recordings:
            if shape not in self.met or len(self.recordings) == MOST_RECORDINGS or self.full:
                self.met.add(shape)
                return None
            try:
                self.recordings[shape] = self._record(loss, batch, size)
            except torch.OutOfMemoryError:
                self.forget()
                return None
        recording = self.recordings[shape]
        for there, here in zip(recording.batch.tensors(), batch.tensors(), strict=True):
            there.copy_(here)
        recording.size.copy_(size)
        recording.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return recording.sums.clone()

    def forget(self) -> None:
        """Gives the memory back, and records no more."""
        self.recordings.clear()
        self.gradients = []
        self.full = True
        torch.cuda.empty_cache()

    def _record(self, loss: Loss, batch: Batch, size: Tensor) -> Recording:
        pool = next((recording.graph.pool() for recording in self.recordings.values()), None)
        graph, size = torch.cuda.CUDAGraph(), size.clone()
        if not self.gradients:
            self.gradients = [torch.empty_like(parameter) for parameter in self.parameters]
        with torch.cuda.graph(graph, pool=pool):
            total, sums = loss(batch, size)
            gradients = torch.autograd.grad(total, self.parameters)
            torch._foreach_copy_(self.gradients, gradients)
        return Recording(graph, batch, size, sums)
