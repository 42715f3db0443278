"""A step of AdamW over GPT-2's 124M parameters: ours against torch's fused one, with gradients everywhere and with
few rows of the embedding in use, and against the formula spelt out."""

from __future__ import annotations

from timing import describe_machine, paired  # isort: skip

import argparse

from sides import optimizers

import optimizer
from config import GPT2Config
from models.gpt2 import GPT2Model


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()  # there are no flags
    describe_machine()
    adamw, fused = optimizers(GPT2Model(GPT2Config()))
    paired("AdamW against torch.optim.AdamW(fused=True)", adamw.step, fused.step)
    sparse, fused_sparse = optimizers(GPT2Model(GPT2Config()), embeddings=1000)
    paired("the same, 1,000 rows of the embedding with gradients", sparse.step, fused_sparse.step)

    def spelt_out() -> None:
        for parameter in fused.param_groups[0]["params"]:
            state = fused.state[parameter]
            arguments = (parameter.detach(), parameter.grad, state["exp_avg"], state["exp_avg_sq"], state["step"])
            optimizer.update(*arguments, adamw.param_groups[0])

    paired("AdamW against its formula spelt out", adamw.step, spelt_out)


if __name__ == "__main__":
    main()
