"""A CPU's backward pass, with weights' gradients and updates made beside it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch
from torch import Tensor, nn

from modules.linear import Linear, weights_aside
from optimizer import AdamW
from training.cores import pool


class Aside:
    """Differentiates a loss, and takes the optimizer's step for the weights of linear layers.

        half of the cores       dX 12      dX 11      dX 10    ...    dX 1      then they help
        the others              wait       dW 12, step    dW 11, step   ...     dW 2, step   dW 1, step

    The way back through the network needs gradients of what layers were given, X, and not those of weights. With two
    threads nobody waits at the end of each operation for the other, and AdamW, which waits for memory, runs beside
    products, which wait for arithmetic. A weight's gradient is used while it is in the cache, and is gone then. Whoever
    does a piece of work does it in the same way, so the bits are the same every time. Steps of the 124M model on two
    cores: 1.08 of the speed with 180 tokens in float32, 1.10 in bf16; 1.04 and 1.06 with 400.

    Args:
        model: holds the parameters; those that require gradients are trained.
        optimizer: of all of them.
    """

    def __init__(self, model: nn.Module, optimizer: AdamW):
        self.optimizer = optimizer
        layers = [module for module in model.modules() if isinstance(module, Linear)]
        self.weights = {layer.weight for layer in layers if layer.weight.requires_grad}
        self.jobs: deque[tuple[Tensor, Callable[[], Tensor]]] = deque()
        self.done: list[Future] = []
        self.pool: ThreadPoolExecutor | None = None
        self.scratch = threading.local()

    def __call__(self, loss: Tensor) -> None:
        """Afterwards the other parameters have their gradients; the optimizer's next step is theirs."""
        cores = torch.get_num_threads()
        if not self.weights or cores % 2:
            loss.backward()
            return
        self.pool = self.pool or pool(1, cores // 2)
        torch.set_num_threads(cores // 2)
        try:
            with weights_aside(self._take):
                loss.backward()
            while self.jobs:
                self._next()
        finally:
            self.jobs.clear()
            done, self.done = self.done, []
            wait(done)
            torch.set_num_threads(cores)
        for future in done:
            future.result()

    def _take(self, weight: Tensor, product: Callable[[], Tensor]) -> bool:
        if weight not in self.weights:
            return False
        self.jobs.append((weight, product))
        self.done.append(self.pool.submit(self._next))
        return True

    @torch.no_grad()
    def _next(self) -> None:
        try:
            weight, product = self.jobs.popleft()
        except IndexError:  # the other thread was quicker
            return
        gradient = product()
        weight.grad = gradient if gradient.dtype == weight.dtype else self._buffer(weight).copy_(gradient)
        self.optimizer.step_one(weight)

    def _buffer(self, weight: Tensor) -> Tensor:
        """This thread's room for a gradient: what a thread frees glibc gives back, and gets anew page by page."""
        if not hasattr(self.scratch, "buffer"):
            self.scratch.buffer = torch.empty(max(weight.numel() for weight in self.weights), dtype=weight.dtype)
        return self.scratch.buffer[: weight.numel()].view(weight.shape)
