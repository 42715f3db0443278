"""How several processes train a model, on PyTorch's own engines: each holds it whole (DDP), or a part of it (FSDP)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from training import ranks
from training.batching import Batch
from training.objectives import Objective

Loss = Callable[[Batch], tuple[Tensor, Tensor]]


def shard(model: nn.Module) -> None:
    """Parts every parameter among the processes, and with it its gradient and the optimizer's state (Zhao et al. 2023,
    "PyTorch FSDP"). A block is put together while it computes, the rest while the network does."""
    mesh = init_device_mesh(model.transformer.ln_f.weight.device.type, (ranks.count(),))
    for block in model.transformer.h:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for name in ("features", "classify", "loss"):
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)


@contextmanager
def put_together(model: nn.Module) -> Iterator[None]:
    """Within it, the parameters of a model that is sharded are whole, to be saved."""
    for module in _sharded(model):
        module.unshard()
    try:
        yield
    finally:
        part_again(model)


def part_again(model: nn.Module) -> None:
    """Undoes what a forward pass leaves behind, which puts together what no block holds and waits for its backward
    pass: from here on, the parameters of a model that is sharded are the parts."""
    for module in _sharded(model):
        module.reshard()


def _sharded(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def data_parallel(model: nn.Module, objective: Objective) -> tuple[Loss, Callable[[], AbstractContextManager]]:
    """The objective's loss, after whose backward pass all processes have the mean of their gradients, and within what
    a gradient only adds to those here, to be shared with the next.

    A sharded model sees to it itself, at every backward pass: nobody has room for a whole gradient.
    """
    if ranks.count() == 1 or isinstance(model, FSDPModule):
        return objective.loss, nullcontext
    engine = DistributedDataParallel(_Loss(model, objective), gradient_as_bucket_view=True)
    return engine, engine.no_sync


class _Loss(nn.Module):
    """An objective as a module whose `forward` is its loss, which is what DDP wraps."""

    def __init__(self, model: nn.Module, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.objective.loss(batch)
