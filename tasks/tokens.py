"""Texts as token ids: what a network reads of them, and those of a data file made once."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from config import InputError, refuse_special
from models.tensors import check_tensors, write_tensors
from models.tokenizer_files import token_ends, token_ids

FORMAT = 3
AT_ONCE = 4096


def tokenized(
    name: str, texts: Sequence, tokenizer, recipe: list, make: Callable[[], Iterable[list[int]]]
) -> tuple[Tensor, list[int]]:
    """What `make` gives, from a cache if these texts were tokenized before.

    The cache is a file of safetensors in `~/.cache/gpt2-fine-tuning` (or in `$XDG_CACHE_HOME`), named by a hash of
    everything that the ids follow from. It appears under its name once it is whole, so two runs may make it at once;
    a file that does not hold what its own checksum says is made anew. Where it cannot be written, there is none.

    Args:
        name: what a message calls the texts.
        texts: what is tokenized.
        tokenizer: a stock fast tokenizer.
        recipe: what else the ids follow from.
        make: tokenizes; a list of ids a row.

    Returns:
        (n,) int32 ids of all rows, end to end, mapped from the file; and how many of them each row has.
    """
    vocabulary = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    contents = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    key = json.dumps([FORMAT, contents, vocabulary, *recipe])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt2-fine-tuning"
    file = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    try:
        return _load(file, key)
    except (OSError, SafetensorError, RuntimeError, ValueError, TypeError):
        pass  # there is none, or none to be trusted
    flat, lengths = array("i"), []
    for row in make():
        flat.extend(row)
        lengths.append(len(row))
    tensors = {"ids": torch.frombuffer(flat, dtype=torch.int32), "lengths": torch.tensor(lengths)}
    try:
        write_tensors(file, tensors, {"key": key})
    except OSError as error:
        print(f"{cache}: {error.strerror or error}; the tokens of {name} are not kept for the next run", flush=True)
    return tensors["ids"], lengths


def rows_of_ids(tokenizer, texts: Sequence[str]) -> Iterator[list[int]]:
    """The token ids of each text, some thousand texts at a time."""
    for start in range(0, len(texts), AT_ONCE):
        yield from token_ids(tokenizer, texts[start : start + AT_ONCE])


def read_ids(
    tokenizer, texts: Sequence, prompt: str | None, too_long: Callable[[int], object] = bool
) -> Iterator[list[int]]:
    """The token ids that a network reads of each text; an empty one becomes the padding token.

    Args:
        texts: a tuple of them where the prompt has several places.
        prompt: what they are put into, a `{}` for each, and shortened where the whole would not fit the context; None
            if they are read as they are, however long.
        too_long: told the number of each text that does not fit the context.

    Raises:
        InputError: the context is too short for the prompt alone.
    """
    examples = [text if isinstance(text, tuple) else (text,) for text in texts]
    whole = texts if prompt is None else [prompt.format(*example) for example in examples]
    limit = tokenizer.model_max_length
    for i, ids in enumerate(rows_of_ids(tokenizer, whole)):
        if len(ids) > limit:
            too_long(i)
            ids = ids if prompt is None else shortened(tokenizer, prompt, examples[i], limit)
        yield ids or [tokenizer.pad_token_id]


def shortened(tokenizer, prompt: str, texts: tuple[str, ...], limit: int) -> list[int]:
    """Token ids of a prompt whose texts lose their ends, the longest one first, until it fits.

    Raises:
        InputError: it does not fit without any text.
    """
    ends = [token_ends(tokenizer, text) for text in texts]
    while True:
        cut = [text[: max(end, default=0)] for text, end in zip(texts, ends, strict=True)]
        (ids,) = token_ids(tokenizer, [prompt.format(*cut)])
        excess = len(ids) - limit
        if excess <= 0:
            return ids
        if not any(ends):
            raise InputError(f"a context of {limit} tokens is too short for the prompt, which takes {len(ids)}")
        for _ in range(excess):
            del max(ends, key=len)[-1:]


def _load(file: Path, key: str) -> tuple[Tensor, list[int]]:
    """Raises ValueError if the file holds anything but what was once written to it under this key."""
    refuse_special(file)
    with safe_open(file, framework="pt") as opened:
        if check_tensors(file, opened, ours=True).get("key") != key:
            raise ValueError(f"{file}: not what it was written as")
        return opened.get_tensor("ids"), opened.get_tensor("lengths").tolist()
