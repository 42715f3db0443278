"""A step of next-token training: ours, with Muon, against stock `transformers` with AdamW, on rows of one length."""

from __future__ import annotations

from timing import describe_machine, paired  # isort: skip

import argparse

import torch
import transformers

from config import GPT2Config
from models.gpt2 import GPT2Model
from models.heads import GPT2LMHeadModel
from modules.ragged import Rows
from training.hardware import keep_freed_memory
from training.pretraining import make_optimizer

SHAPES = ((3, 224, 7), (6, 256, 8))  # layers, width, heads: the embedded model's, and one near 8M parameters
VOCABULARY, ROWS, LENGTH = 8192, 16, 256


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()  # there are no flags
    keep_freed_memory()
    describe_machine()
    for n_layer, n_embd, n_head in SHAPES:
        shape = dict(n_layer=n_layer, n_embd=n_embd, n_head=n_head, vocab_size=VOCABULARY, n_positions=LENGTH + 1)
        dropout = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, **dropout))
        network = GPT2Model(GPT2Config(**shape, **dropout))
        network.init_weights()
        ours = GPT2LMHeadModel(network)
        muon = make_optimizer(ours, weight_decay=0.1)
        fused = torch.optim.AdamW(theirs.parameters(), lr=1e-3, fused=True)
        text = torch.randint(VOCABULARY, (ROWS, LENGTH + 1))

        def stock(theirs=theirs, fused=fused, text=text) -> None:
            theirs(text, labels=text).loss.backward()
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
            fused.step()
            fused.zero_grad()

        def step(ours=ours, muon=muon, text=text) -> None:
            rows = Rows([LENGTH] * ROWS)
            loss = ours.loss(text[:, :-1].flatten(), rows, text[:, 1:].flatten()) / (ROWS * LENGTH)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(ours.parameters(), 1.0)
            muon.step()
            muon.zero_grad()

        ratio = paired(f"{n_layer} layers x {n_embd}, {ROWS} x {LENGTH} tokens", step, stock, repeats=9)
        print(f"  {1 / ratio:.2f} times as many tokens a second")


if __name__ == "__main__":
    main()
