"""Saves a GPT-2 of random weights as stock `transformers` makes it: the checkpoint of the README's results.

./setup.sh python benchmarks/random_checkpoint.py DIR --tokenizer TOKENIZER_DIR
"""

from __future__ import annotations

from timing import run  # isort: skip

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from config import InputError
from models.tokenizer_files import tokenizing
from training.flags import whole_number


def save_random(directory: str | Path, tokenizer: str, layers: int, width: int, heads: int, seed: int = 0) -> None:
    """A directory that any GPT-2 loads from.

    Raises:
        InputError: a tokenizer that cannot be read, a width that is no multiple of the heads, or no directory.
    """
    if width % heads:
        raise InputError(f"--width {width}: not a multiple of --heads {heads}")
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{directory}: cannot be made: {error.strerror}") from error
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
    parser.add_argument("--layers", type=whole_number(1), default=4)
    parser.add_argument("--width", type=whole_number(1), default=256)
    parser.add_argument("--heads", type=whole_number(1), default=8)
    parser.add_argument("--seed", type=int, default=0)
    save_random(**vars(parser.parse_args()))


if __name__ == "__main__":
    run(main)
