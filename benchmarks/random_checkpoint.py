"""Saves a GPT-2 of random weights as stock `transformers` makes it: the checkpoint of the README's results.

./setup.sh python benchmarks/random_checkpoint.py DIR --tokenizer TOKENIZER_DIR
"""

from __future__ import annotations

from timing import run  # isort: skip

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from models.tokenizer_files import tokenizing


def save_random(directory: str | Path, tokenizer: str, layers: int, width: int, heads: int, seed: int = 0) -> None:
    """A directory that any GPT-2 loads from. Raises InputError for a tokenizer that cannot be read."""
    with tokenizing(f"--tokenizer {tokenizer}: cannot be read"):
        words = AutoTokenizer.from_pretrained(tokenizer)
    torch.manual_seed(seed)
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=heads)
    GPT2LMHeadModel(config).save_pretrained(directory)
    words.save_pretrained(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", help="where to save it")
    parser.add_argument("--tokenizer", required=True, help="a directory with GPT-2's tokenizer")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    save_random(**vars(parser.parse_args()))


if __name__ == "__main__":
    run(main)
