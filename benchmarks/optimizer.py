"""A step of AdamW over GPT-2's 124M parameters: ours against torch's fused one, and against the formula spelt out."""

from __future__ import annotations

from timing import describe_machine, paired  # isort: skip

import torch

import optimizer
from config import GPT2Config
from models.gpt2 import GPT2Model


def main() -> None:
    describe_machine()
    model = GPT2Model(GPT2Config())
    ours = list(model.parameters())
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    for mine, other in zip(ours, theirs, strict=True):
        mine.grad = other.grad = torch.randn_like(mine) * 1e-3
    adamw = optimizer.AdamW(ours, lr=1e-5)
    fused = torch.optim.AdamW(theirs, lr=1e-5, eps=1e-6, weight_decay=0.0, fused=True)
    paired("AdamW against torch.optim.AdamW(fused=True)", adamw.step, fused.step)

    def spelt_out() -> None:
        for parameter in theirs:
            state = fused.state[parameter]
            arguments = (parameter.detach(), parameter.grad, state["exp_avg"], state["exp_avg_sq"], state["step"])
            optimizer.update(*arguments, adamw.param_groups[0])

    paired("AdamW against its formula spelt out", adamw.step, spelt_out)


if __name__ == "__main__":
    main()
