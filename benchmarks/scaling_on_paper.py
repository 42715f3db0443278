"""Where more GPUs stop paying, reckoned from published speeds: benchmarks/scaling.md says how far to trust it.

./setup.sh python benchmarks/scaling_on_paper.py
"""

from __future__ import annotations

from dataclasses import dataclass

SHARE = 0.4  # of its peak that a GPU reaches in matrix products of this size
TOKENS = 50  # of a question pair in its prompt, the mean of the course's dev file
LAUNCH = 5e-6  # seconds that the host takes to start a kernel
KERNELS = 20  # of a block's forward pass; the backward pass has twice as many
WORTH = 0.5  # a GPU that does less than half of what one alone does stops paying


@dataclass(frozen=True)
class Machine:
    """Published figures of a GPU and of what joins it to others.

    Attributes:
        flops: a second, in the precision it trains in.
        memory: bytes a second.
        links: bytes a second that a GPU can send, among 8 in one machine and among 64 in eight.
    """

    name: str
    flops: float
    memory: float
    links: dict[int, float]


MACHINES = (
    Machine("T4 (fp16, PCIe 3.0; 100 Gbit/s a machine)", 65e12, 320e9, {8: 16e9, 64: 100e9 / 8 / 8}),
    Machine("A100 (bf16, NVLink; 200 Gbit/s a GPU)", 312e12, 2039e9, {8: 300e9, 64: 200e9 / 8}),
    Machine("H100 (bf16, NVLink; 400 Gbit/s a GPU)", 989e12, 3350e9, {8: 450e9, 64: 400e9 / 8}),
)


@dataclass(frozen=True)
class Model:
    name: str
    layers: int
    width: int

    @property
    def blocks(self) -> int:
        """Parameters that take part in matrix products."""
        return 12 * self.layers * self.width**2

    @property
    def parameters(self) -> int:
        return self.blocks + (50257 + 1024) * self.width

    def adapter(self, rank: int = 16) -> int:
        """Parameters of LoRA on attention, c_attn (C, 3C) and c_proj (C, C), and a head of two classes."""
        return self.layers * rank * (4 * self.width + 2 * self.width) + 2 * self.width


MODELS = (Model("gpt2", 12, 768), Model("gpt2-medium", 24, 1024), Model("gpt2-xl", 48, 1600))


def seconds(model: Model, lora: bool, machine: Machine, rows: int, gpus: int) -> float:
    """A step of `rows` question pairs. Gradients travel in float32, in a ring, while the backward pass computes."""
    trained = model.adapter() if lora else model.parameters
    arithmetic = 2 * model.blocks * TOKENS * rows / gpus / (SHARE * machine.flops)
    starting = model.layers * KERNELS * LAUNCH
    forward = max(arithmetic, starting)
    backward = max(arithmetic if lora else 2 * arithmetic, 2 * starting)  # frozen weights have no gradient to compute
    update = 28 * trained / machine.memory  # reads weight, gradient and two moments, writes three of them
    travel = 0.0 if gpus == 1 else 2 * (gpus - 1) / gpus * 4 * trained / machine.links[gpus]
    return forward + max(backward, travel) + update


def least_rows(model: Model, lora: bool, machine: Machine, gpus: int) -> int:
    """The smallest batch at which each of so many GPUs does `WORTH` of the work of one alone."""
    rows = gpus
    while seconds(model, lora, machine, rows, 1) < WORTH * gpus * seconds(model, lora, machine, rows, gpus):
        rows += gpus
    return rows


def main() -> None:
    print("| | | 8 GPUs | 64 GPUs | one step of 64 pairs on one GPU, ms | bytes sent a step, of 8 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for machine in MACHINES:
        for model in MODELS:
            for lora in (False, True):
                least = [f"{least_rows(model, lora, machine, gpus):,}" for gpus in (8, 64)]
                step = f"{1e3 * seconds(model, lora, machine, 64, 1):.1f}"
                sent = f"{2 * 7 / 8 * 4 * (model.adapter() if lora else model.parameters) / 1e6:,.1f} MB"
                method = f"{model.name}, {'LoRA 16' if lora else 'full'}"
                print(f"| {machine.name} | {method} | {' | '.join(least)} | {step} | {sent} |")


if __name__ == "__main__":
    main()
