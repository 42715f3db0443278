"""A CPU's work on a batch: each half of the texts in a thread of its own, with half of the cores."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import torch
from torch import Tensor, nn

from modules.dropout import drawing_from
from training.batching import Batch
from training.cores import pool
from training.objectives import Examples

Loss = Callable[[Batch, Tensor], tuple[Tensor, Tensor]]
CPU = torch.device("cpu")
# A second gradient of each weight is worth its time from so many tokens on, if all are trained. Full steps of the 124M
# model in bf16 on two cores: 0.86 of the speed with 180 tokens, 0.97 with 400, 1.04 with 750, 1.10 with 1,500.
WORTH_A_GRADIENT = 600
FEWEST = 300  # tokens, for two threads to read all weights (LoRA in float32: 0.97 of the speed with 180)
# Of a tensor. Larger ones glibc maps anew for a thread at every step, and the kernel zeroes page by page: too slow
# for activations, of which there are many, and for a gradient of twice that size.
MOST_BYTES = 1 << 26
LEAST_IN_ONE_HALF = 0.45  # of the tokens; whoever has fewer waits for the other


class Halves:
    """Gradients of a batch's loss, made by two threads.

    torch spreads one operation after the other over all cores. In between, while one of two cores runs Python, draws
    dropout's numbers or does what is too small to be spread, the other waits: a quarter of its time. Here it has work
    of its own, and both wait once a step. Each weight has two gradients then, whose sum is the same whichever comes
    first. What dropout draws does not depend on the number of cores: one, or an odd number, takes the halves in turn.

    Args:
        model: holds the parameters; those that require gradients are trained.
    """

    def __init__(self, model: nn.Module):
        parameters = list(model.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        share = sum(parameter.numel() for parameter in trained) / sum(parameter.numel() for parameter in parameters)
        self.fewest = max(FEWEST, WORTH_A_GRADIENT * share)  # tokens
        self.most = 2 * MOST_BYTES // (4 * model.config.mlp_width)
        if max(parameter.nbytes for parameter in trained) > 2 * MOST_BYTES:
            self.most = 0
        self.pool: ThreadPoolExecutor | None = None

    def __call__(self, loss: Loss, train: Examples, indices: list[int], size: Tensor) -> Tensor | None:
        """Adds to every parameter's gradient.

        Args:
            loss: of a batch and a size, the loss to differentiate and (2,) what to add up.

        Returns:
            (2,) what the loss adds up; None if nothing was done, for it would take longer.
        """
        halves = self._halves(train, indices)
        if halves is None:
            return None
        if not self.pool:
            cores = torch.get_num_threads()
            threads = 2 if cores % 2 == 0 else 1
            self.pool = pool(threads, cores // threads)
        seeds = torch.randint(2**62, (2,)).tolist()
        jobs = [
            self.pool.submit(_differentiate, loss, train, half, size, seed)
            for half, seed in zip(halves, seeds, strict=True)
        ]
        wait(jobs)  # both, so that neither is at work when the other's error is raised
        return jobs[0].result() + jobs[1].result()

    def _halves(self, train: Examples, indices: list[int]) -> tuple[list[int], list[int]] | None:
        """The texts in two lists of about as many tokens, if that can be, and is worth it."""
        sizes = [train.lengths[i] for i in indices]
        if not self.fewest <= sum(sizes) <= self.most:
            return None
        first = _half(sizes)
        if sum(sizes[at] for at in first) < LEAST_IN_ONE_HALF * sum(sizes):
            return None
        return [indices[at] for at in first], [index for at, index in enumerate(indices) if at not in first]


def _half(sizes: list[int]) -> set[int]:
    """Which of some sizes come nearest to half of their sum, from below."""
    reached = [1]  # bit s of the n-th: whether some of the first n sizes have the sum s
    for size in sizes:
        reached.append(reached[-1] | reached[-1] << size)
    rest = (reached[-1] & (1 << sum(sizes) // 2 + 1) - 1).bit_length() - 1
    chosen = set()
    for at in reversed(range(len(sizes))):
        if not reached[at] >> rest & 1:
            chosen.add(at)
            rest -= sizes[at]
    return chosen


def _differentiate(loss: Loss, train: Examples, indices: list[int], size: Tensor, seed: int) -> Tensor:
    with drawing_from(torch.Generator().manual_seed(seed)):
        total, sums = loss(train.batch(indices, CPU), size)
        total.backward()
    return sums
