"""The processes that train together, as `torchrun` starts them: `rank` 0 leads and writes, all compute.

Every process calls these functions at the same points of the program. Where there is one process, they do nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn  # its defaults hold the group there is when it is first imported: here, none
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from config import InputError

Value = TypeVar("Value")
# Of one process for another, which may be writing sonnets meanwhile. That one has died is known at once, by its
# connection and by torchrun.
PATIENCE = timedelta(hours=6)


class FailedElsewhere(Exception):
    """Another process failed, and says why; this one ends with it, by the same exit code."""

    def __init__(self, exit_code: int):
        super().__init__("another process failed")
        self.exit_code = exit_code


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def restarted() -> bool:
    """Whether torchrun has started the processes again, after one of them died (`--max_restarts`)."""
    return highest(_restarts()) > 0


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def joined() -> Iterator[None]:
    """Within it, the processes that torchrun started know one another. All but the first keep silent.

    Raises:
        InputError: they cannot be reached.
    """
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, number, processes = next(dist.rendezvous("env://", timeout=PATIENCE))
        if os.environ.get("LOCAL_WORLD_SIZE") == str(processes):
            # torchrun's store outlives a restart, and holds the addresses of processes that are gone
            # (github.com/pytorch/pytorch/issues/135712). Machines count their restarts apart; one knows all.
            store = dist.PrefixStore(f"start {_restarts()}", store)
        dist.init_process_group(backend, store=store, rank=number, world_size=processes, timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"cannot join the other processes, which torchrun starts: {error}") from error
    if rank() > 0:
        os.environ["TQDM_DISABLE"] = "1"
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  until the process ends
    yield
    # Not after a failure, when the others may not answer. A group that something held would keep its threads, which the
    # interpreter's end may not survive.
    _without_gpus.cache_clear()
    dist.destroy_process_group()


def is_lost_connection(error: Exception) -> bool:
    """Whether it says that another process can no longer be reached."""
    return count() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error))


def local_number() -> int:
    """Which of the processes on this machine this is, and so which of its GPUs is its own."""
    return int(os.environ.get("LOCAL_RANK", 0))


@contextmanager
def together() -> Iterator[None]:
    """Within it, each process works on its own; if one fails, all do. Of those, the first says why.

    Raises:
        FailedElsewhere: the work was done here, but not everywhere.
    """
    error = None
    try:
        yield
    except Exception as raised:  # to be raised again once the others know
        error = raised
    if count() == 1:
        if error is not None:
            raise error
        return
    codes = gather(0 if error is None else exit_code(error))
    if error is not None and not any(codes[: rank()]):
        raise error
    if any(codes):
        raise FailedElsewhere(max(codes))


def exit_code(error: Exception) -> int:
    """What a script ends with that raises it."""
    return getattr(error, "exit_code", 2 if isinstance(error, InputError) else 1)


def on_first(work: Callable[[], Value]) -> Value:
    """Does something on the first process only; all get what it returns, or fail if it raises."""
    value = None
    with together():
        if rank() == 0:
            value = work()
    return shared(value)


def meet() -> None:
    """Waits for all processes.

    Raises:
        RuntimeError: some do not come within minutes; they wait for one that has failed.
    """
    if count() > 1:
        dist.monitored_barrier(_without_gpus(), timeout=timedelta(minutes=5))


@cache
def _without_gpus() -> dist.ProcessGroup:
    """All processes, by the one backend that knows who does not come."""
    return dist.new_group(backend="gloo")


def shared(value: Value) -> Value:
    """The first process's value, on all."""
    if count() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def gather(value: Value) -> list[Value]:
    """Every process's value, by rank."""
    values = [value]
    if count() > 1:
        values *= count()
        dist.all_gather_object(values, value)
    return values


def highest(number: int) -> int:
    """The highest of the processes' numbers."""
    if count() == 1:
        return number
    number = torch.tensor(number)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return int(number)


def total(numbers: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if count() > 1:
        dist.all_reduce(numbers)
    return numbers


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, of which there may be a part in each process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(tensor: Tensor) -> Tensor:
    """What this process has of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as a parameter like it is: with a part in each process, or whole."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
