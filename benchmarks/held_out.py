"""Held-out loss of a language model in nats a byte, beside a 5-gram model and a compressor on the same text.

With `--draws N` also what such 5-grams say of N other draws of as many documents: how hard the held-out ones are.
"""

from __future__ import annotations

import argparse
import lzma
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks are scripts of the project's root

import numpy as np

ORDER = 5


def ngram_nats(train: list[list[int]], held_out: list[list[int]], end_of_text: int, vocab_size: int) -> float:
    """Total cross-entropy, in nats, of documents under an interpolated Kneser-Ney model (Chen & Goodman 1999).

    Every n-gram has a number: that of its first n-1 tokens times the size of the vocabulary, plus its last token,
    looked up in the sorted list of those that training saw. The discount of an order is n1 / (n1 + 2 n2), or a half
    if n1 is 0.
    """
    seen, asked = (_stream(documents, end_of_text) for documents in (train, held_out))
    counted = _is_asked(train)  # what stands before a document is a context, but was never predicted
    numbers, asked_numbers = [seen], [asked]  # of the k-gram that ends at each place; -1 if training never saw it
    keys, first = [np.arange(vocab_size)], [None]
    for _ in range(1, ORDER):
        key = np.roll(numbers[-1], 1) * vocab_size + seen
        unique, at, inverse = np.unique(key, return_index=True, return_inverse=True)
        before = np.roll(asked_numbers[-1], 1)
        found = np.searchsorted(unique, before * vocab_size + asked).clip(max=len(unique) - 1)
        known = (before >= 0) & (unique[found] == before * vocab_size + asked)
        keys.append(unique)
        first.append(at)
        numbers.append(inverse)
        asked_numbers.append(np.where(known, found, -1))

    probability = np.full(len(asked), 1 / vocab_size)
    for k in range(ORDER):
        if k == ORDER - 1:
            counts = np.bincount(numbers[k][counted], minlength=len(keys[k]))
        else:  # how many different tokens training saw before it
            places = first[k + 1][counted[first[k + 1]]]
            counts = np.bincount(numbers[k][places], minlength=len(keys[k]))
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        discount = once / (once + 2 * twice) if once else 0.5
        contexts = keys[k] // vocab_size if k else np.zeros(vocab_size, dtype=np.int64)
        size = contexts.max() + 1
        total = np.bincount(contexts, weights=counts, minlength=size)
        distinct = np.bincount(contexts, weights=counts > 0, minlength=size)
        context = np.roll(asked_numbers[k - 1], 1) if k else np.zeros(len(asked), dtype=np.int64)
        usable = (context >= 0) & (context < size)
        usable[usable] &= total[context[usable]] > 0
        c = context[usable]
        number = asked_numbers[k][usable]
        count = np.where(number >= 0, counts[number], 0)
        own = np.maximum(count - discount, 0) / total[c]
        probability[usable] = own + discount * distinct[c] / total[c] * probability[usable]
    real = _is_asked(held_out)
    return float(-np.log(probability[real]).sum())


def _stream(documents: list[list[int]], end_of_text: int) -> np.ndarray:
    """All documents end to end, each after ORDER - 1 end-of-text tokens and before one."""
    start = [end_of_text] * (ORDER - 1)
    return np.concatenate([np.array([*start, *document, end_of_text]) for document in documents])


def _is_asked(documents: list[list[int]]) -> np.ndarray:
    return np.concatenate([np.arange(len(document) + ORDER) >= ORDER - 1 for document in documents])


def compressor_nats(train: list[str], held_out: list[str]) -> float:
    """What `xz -9e` needs for the held-out documents more than for the training documents alone."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]  # a window of 64 MiB
    sizes = [
        len(lzma.compress("\n\n".join(documents).encode(), lzma.FORMAT_RAW, filters=filters))
        for documents in (train, train + held_out)
    ]
    return 8 * math.log(2) * (sizes[1] - sizes[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a directory that pretrain.py made")
    parser.add_argument("--corpus", nargs="+", required=True, help="what it was pretrained on")
    parser.add_argument("--leave_out", nargs="+", default=[], help="as in pretraining")
    parser.add_argument("--held_out", type=float, default=0.01, help="as in pretraining")
    parser.add_argument("--draws", type=int, default=0, metavar="N", help="score 5-grams on other documents too")
    arguments = parser.parse_args()

    import torch

    from config import GPT2Config
    from models.gpt2 import GPT2Model
    from models.heads import GPT2LMHeadModel
    from models.pretrained import load_tokenizer
    from tasks.corpus import find_texts, hold_out, leave_out, read_documents
    from training.batching import Pieces
    from training.hardware import Precision
    from training.objectives import total_loss

    documents = leave_out(read_documents(find_texts(arguments.corpus)), find_texts(arguments.leave_out))
    train, held_out = hold_out(documents, arguments.held_out)
    config = GPT2Config.from_file(arguments.model / "config.json")
    tokenizer = load_tokenizer(arguments.model, config)
    train_ids, ids = (tokenizer(documents, verbose=False)["input_ids"] for documents in (train, held_out))
    size, tokens = sum(len(document.encode()) for document in held_out), sum(len(document) + 1 for document in ids)
    print(f"{len(held_out)} held-out documents, {size:,} bytes, {tokens:,} tokens", flush=True)

    pieces = Pieces(ids, tokenizer.eos_token_id, config.n_positions, size)
    model = GPT2LMHeadModel(GPT2Model.from_pretrained(arguments.model))
    results = {
        "model": lambda: total_loss(model, pieces, Precision("fp32", torch.device("cpu"))),
        "5-grams, Kneser-Ney": lambda: ngram_nats(train_ids, ids, tokenizer.eos_token_id, len(tokenizer)),
        "xz -9e after the training text": lambda: compressor_nats(train, held_out),
    }
    for name, nats in results.items():
        value = nats()
        print(f"{name}: {value / size:.4f} nats a byte, {value / tokens:.3f} a token", flush=True)

    order, count = np.random.default_rng(0).permutation(len(train)), len(held_out)
    rest = [train_ids[i] for i in order[arguments.draws * count :]]
    for draw in range(arguments.draws):
        some = order[draw * count : (draw + 1) * count]
        size = sum(len(train[i].encode()) for i in some)
        some_ids = [train_ids[i] for i in some]
        tokens = sum(len(document) + 1 for document in some_ids)
        value = ngram_nats(rest, some_ids, tokenizer.eos_token_id, len(tokenizer))
        print(f"5-grams, draw {draw + 1}: {value / size:.4f} nats a byte, {value / tokens:.3f} a token", flush=True)


if __name__ == "__main__":
    main()
