"""Peak memory of a training step on eight sonnets: ours against stock `GPT2LMHeadModel(labels=...)`, a process each.

./setup.sh python benchmarks/sonnet_memory.py --model_path DIR
"""

from __future__ import annotations

from timing import describe_machine, peak_of_process, run  # isort: skip

import argparse
import subprocess
import sys

LENGTHS = (185, 172, 166, 162, 158, 155, 150, 144)  # tokens, as sonnets of 600 characters have them


def train_ours(path: str, texts: list) -> None:
    import torch

    from models.gpt2 import GPT2Model
    from models.heads import GPT2LMHeadModel
    from training.batching import Pieces

    model = GPT2LMHeadModel(GPT2Model.from_pretrained(path)).train()
    model.transformer.requires_grad_()
    batch = Pieces(texts, model.config.eos_token_id, model.config.n_positions).batch(range(8), torch.device("cpu"))
    (model.loss(*batch.inputs) / batch.tokens).backward()


def train_stock(path: str, texts: list) -> None:
    import torch
    import transformers

    model = transformers.GPT2LMHeadModel.from_pretrained(path, dtype=torch.float32).train()
    end, width = model.config.eos_token_id, max(LENGTHS) + 2
    rows = [[end, *text, end] for text in texts]
    ids = torch.tensor([row + [end] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss.backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_path", required=True, help="any Hugging Face GPT-2 directory")
    parser.add_argument("--child", choices=("ours", "stock"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        import torch

        texts = [torch.randint(1000, (length,)).tolist() for length in LENGTHS]
        {"ours": train_ours, "stock": train_stock}[flags.child](flags.model_path, texts)
        print(peak_of_process() // 1024)
        return
    from models.pretrained import locate

    locate(flags.model_path)  # what is not there had better be missed here than in each process
    describe_machine()
    peaks = {}
    for which in ("ours", "stock"):
        command = [sys.executable, __file__, "--model_path", flags.model_path, "--child", which]
        ended = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[which] = int(ended.stdout.split()[-1]) / 1024
    ratio = peaks["ours"] / peaks["stock"]
    print(f"peak of the process: {peaks['ours']:,.0f} MiB against {peaks['stock']:,.0f} MiB, {ratio:.2f} of it")


if __name__ == "__main__":
    run(main)
