"""Which device computes, in which precision, and how much memory that took."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from config import InputError
from modules.linear import Linear
from training import ranks

NEEDS_LESS = "--micro_batch_size 1, --checkpoint_activations and --use_lora need less"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """`auto` is a CUDA GPU, of several processes a GPU each, else Apple's, else the CPU.

    Raises:
        InputError: the device asked for is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, present in there.items() if present)
    if not there[name]:
        raise InputError(f"--device {name}: this machine has none that torch can use; leave the flag out for auto")
    if name != "cuda" or ranks.count() == 1:
        return torch.device(name)
    number = ranks.local_number()
    if number >= torch.cuda.device_count():
        raise InputError(f"--device cuda: this machine has {torch.cuda.device_count()} for more processes than that")
    torch.cuda.set_device(number)
    return torch.device(name, number)


class Precision:
    """Parameters stay in float32; matrix products run in `dtype` under autocast (Micikevicius et al. 2018).

    Args:
        name: `fp32`, `bf16`, `fp16`, or `auto`: bf16 where the hardware multiplies in it, fp16 with loss scaling on
            an older CUDA GPU such as a T4, else fp32.
        device: where the work runs.

    Raises:
        InputError: fp16 on a CPU, where it is slower than fp32 and loses small gradients.
    """

    def __init__(self, name: str, device: torch.device):
        if name == "auto":
            name = _best(device)
        if name == "fp16" and device.type == "cpu":
            raise InputError("--precision fp16 needs a GPU; on a CPU take fp32 or bf16")
        self.name, self.device = name, device
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, dtype=_DTYPES[self.name], enabled=self.name != "fp32")

    @property
    def skips_steps(self) -> bool:
        """Whether a gradient that is not finite is an everyday thing: the price of fp16's range."""
        return self.scaler.is_enabled()

    def step(self, optimizer: torch.optim.Optimizer, max_norm: float | None = None) -> Tensor:
        """Updates the parameters, by a gradient cut to a norm of `max_norm` if given, and clears the gradients.

        Returns:
            The gradient's norm. Where it is not finite, fp16 skips the step and scales the next losses down.
        """
        self.scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in parameters]
        if self.device.type == "cpu":  # which takes a matrix in one thread, and its rows in all of them
            gradients = [torch.linalg.vector_norm(g, dim=-1) if g.dim() > 1 else g for g in gradients]
        norm = get_total_norm(gradients)
        if max_norm is not None:
            clip_grads_with_norm_(parameters, max_norm, norm)
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad()
        return ranks.whole(norm)


def _best(device: torch.device) -> str:
    if device.type == "cuda":  # older GPUs emulate bf16, which is slower than either of the others
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "bf16"
    return "fp32"


def make_deterministic(seed: int, device: torch.device) -> None:
    """Seeds torch's generators and has it choose kernels that give the same bits each time.

    On a CUDA GPU an operation without such a kernel raises; elsewhere all that are used here have one.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cuda")
    torch.utils.deterministic.fill_uninitialized_memory = False  # a check of theirs that costs time


def is_out_of_memory(error: Exception) -> bool:
    """Whether it says that there is no memory left, on a GPU or, where torch has no name for it, on a CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def keep_freed_memory() -> None:
    """Has the C library keep what it once got from the kernel, for the next step to use again, and in large pages.

    By default glibc gives large blocks back at once and gets them anew, zeroed page by page, at every step. Does
    nothing where the C library is another. For the whole process, so scripts call it and the library does not.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(-4, 0)  # M_MMAP_MAX: no block in a mapping of its own
    libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink the heap
    libc.mallopt(-2, 1 << 28)  # M_TOP_PAD: grow it by 256 MiB
    address, size = ctypes.c_void_p, ctypes.c_size_t
    libc.sbrk.restype = libc.malloc.restype = address
    libc.sbrk.argtypes, libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_ssize_t], [size], [address]
    libc.madvise.argtypes = [address, size, ctypes.c_int]
    page = 2 << 20
    start = -(-libc.sbrk(0) // page) * page
    libc.free(libc.malloc(memory_of_machine() // 2))  # which takes addresses alone: no page is touched yet
    libc.madvise(start, max(0, libc.sbrk(0) - start), 14)  # MADV_HUGEPAGE: where the kernel leaves that to programs


def memory_of_machine() -> int:
    """Bytes; 0 where the system does not say."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return 0
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def describe(device: torch.device) -> dict[str, str | int]:
    """What a run's `config.json` says of the machine."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {"device": name, "threads": torch.get_num_threads(), "platform": platform.platform()}


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


class PeakMemory:
    """The most memory a training step needed, the same number every time it is measured.

    On a CUDA GPU it is the allocator's own peak. Elsewhere no allocator keeps a count, and the process's size differs
    from run to run, so there it is a sum: weights, what is kept of frozen ones for quicker products, gradients, the
    optimizer's state, and what the watched steps kept for their backward pass. Temporary results, the interpreter and
    the data are not in it; gradients that are used at once (`training.aside`) are.
    """

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, device: torch.device):
        self.model, self.optimizer, self.device = model, optimizer, device
        self.kept = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Around a forward pass; where it sums, it costs microseconds a tensor, so watch the largest batch only."""
        if self.device.type == "cuda":
            yield
            return
        weights = {ranks.part(p).untyped_storage().data_ptr() for p in self.model.parameters()}
        saved = {}

        def keep(tensor: Tensor) -> Tensor:
            if tensor.is_mkldnn:  # a frozen layer's, which counts it
                return tensor
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield
        copies = sum(layer.laid_out_bytes() for layer in self.model.modules() if isinstance(layer, Linear))
        self.kept = max(self.kept, copies + sum(saved.values()))

    def bytes(self) -> int:
        """The peak so far."""
        if self.device.type == "cuda":
            self.kept = max(self.kept, torch.cuda.max_memory_allocated(self.device))
            return self.kept
        parameters = list(self.model.parameters())
        state = [t for values in self.optimizer.state.values() for t in values.values()]
        gradients = [p for p in parameters if p.requires_grad]
        return self.kept + sum(ranks.part(t).nbytes for t in [*parameters, *gradients, *state])
