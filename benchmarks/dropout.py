"""Dropout with its backward pass on a CPU, ours against torch's: the MLP's activations of a CFIMDB batch."""

from __future__ import annotations

from timing import describe_machine, paired  # isort: skip

import argparse

import torch
from torch.nn import functional as F

from modules.dropout import dropout
from training.hardware import keep_freed_memory


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()  # there are no flags
    describe_machine()
    keep_freed_memory()
    x = torch.randn(3400, 1024, requires_grad=True)
    gradient = torch.randn_like(x)
    paired(
        "dropout against F.dropout",
        lambda: dropout(x, 0.1).backward(gradient),
        lambda: F.dropout(x, 0.1).backward(gradient),
    )


if __name__ == "__main__":
    main()
