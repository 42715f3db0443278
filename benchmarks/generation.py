"""Writing twelve texts of 128 tokens: ours, stock `generate`, and one text at a time without a cache.

./setup.sh python benchmarks/generation.py --model_path DIR
"""

from __future__ import annotations

from timing import describe_machine, paired, run  # isort: skip

import argparse
from collections.abc import Callable
from functools import partial

import torch
import transformers

from models.generation import Sampling, generate
from models.gpt2 import GPT2Model
from models.heads import GPT2LMHeadModel
from training.hardware import keep_freed_memory

PROMPTS, TOKENS = 12, 128
Writer = Callable[[Sampling], None]
WAYS = {"the likeliest token": Sampling(temperature=0), "drawn (1.2, top-p 0.9)": Sampling(1.2, top_p=0.9)}


def writers(path: str, tokens: int, device: torch.device | str = "cpu") -> tuple[Writer, Writer, Writer]:
    """Ours, stock's, and stock's of the first text alone without a cache; each draws as it is told."""
    ours = GPT2LMHeadModel(GPT2Model.from_pretrained(path)).to(device)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(path, dtype=torch.float32).to(device).eval()
    theirs.generation_config.eos_token_id = ours.config.eos_token_id = None  # all texts have all their tokens
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(25, 45, (PROMPTS,), generator=generator).tolist()  # as three lines of a sonnet
    prompts = [torch.randint(1, ours.config.vocab_size, (length,), generator=generator).tolist() for length in lengths]
    ids = torch.tensor([[0] * (max(lengths) - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (max(lengths) - length) + [1] * length for length in lengths], device=device)
    alone = (torch.tensor(prompts[:1], device=device), torch.ones(1, lengths[0], dtype=torch.long, device=device))

    def write(sampling: Sampling) -> None:
        generate(ours, prompts, tokens, sampling, range(PROMPTS))

    def stock(sampling: Sampling, ids: torch.Tensor = ids, mask: torch.Tensor = mask, **kwargs) -> None:
        how = {"do_sample": False}
        if sampling.temperature:
            how = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        theirs.generate(ids, attention_mask=mask, max_new_tokens=tokens, pad_token_id=0, **how, **kwargs)

    return write, stock, lambda sampling: stock(sampling, *alone, use_cache=False)


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_path", required=True, help="any Hugging Face GPT-2 directory")
    path = parser.parse_args().model_path
    describe_machine()
    ours, stock, alone = writers(path, TOKENS)
    for name, sampling in WAYS.items():
        write = partial(ours, sampling)
        paired(f"{name}, against stock generate", write, partial(stock, sampling), repeats=5)
        ratio = paired(
            f"{name}, against one text of the twelve without a cache", write, partial(alone, sampling), repeats=3
        )
        print(f"  all twelve one by one take {PROMPTS / ratio:.1f} times our time")


if __name__ == "__main__":
    run(main)
