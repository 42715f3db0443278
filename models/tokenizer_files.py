"""A tokenizer's files, looked through before the library reads them, and what it does with a text, kept to one line.

The library does what the files say: it matches any regular expression, lets a text grow at every step, and where its
Rust code panics, a trace goes to standard error and a `PanicException`, which is no `Exception`, to the caller. Others
of its settings end the process. So what is known to be harmless is copied to a folder of its own, and read there.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from config import InputError, read_json, refuse_special

TABLES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "special_tokens_map.json", "added_tokens.json")
MERGES = "merges.txt"
NEEDED = ("tokenizer.json", "vocab.json")  # one of them

_PLACES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_SWITCHES = (
    "add_bos_token", "add_eos_token", "add_prefix_space", "clean_up_tokenization_spaces", "do_lower_case",
    "split_special_tokens", "strip_accents", "tokenize_chinese_chars", "trim_offsets",
)  # fmt: skip
# The settings that are read, with their types; the library takes many more, and some of any type.
SETTINGS = (
    dict.fromkeys(_PLACES, str | dict)
    | dict.fromkeys(_SWITCHES, bool)
    | {"tokenizer_class": str, "added_tokens_decoder": dict}
    | {"additional_special_tokens": list, "extra_special_tokens": list | dict}
)

# Of regular expressions those that published tokenizers hold, none of which takes long on any text.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LINES_AND_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2's
    *(  # GPT-4's as Llama 3 and Qwen 2 have it
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_LINES_AND_SPACES}"
        for digits in (r"\p{N}{1,3}", r"\p{N}{1,2}", r"\p{N}")
    ),
    *(" {2,}", r"\s+", r"\d", r"\p{N}", r"\p{N}{1,3}"),
}
MOST_SETTINGS = 20_000  # characters of tokenizer.json beside the vocabulary, which bounds how much they add to a text
MOST_IN_A_WORD = 1000  # characters of a word that WordPiece looks up piece by piece, and of a piece of Unigram's


def copy_harmless(directory: Path, folder: Path) -> None:
    """Copies a model's tokenizer files, each as it was understood; of `config.json`, where the library would look for
    more, what names the tokenizer's class.

    Raises:
        InputError: there are none, they cannot be read, or they hold what is not supported.
    """
    if not any((directory / name).is_file() for name in NEEDED):
        raise InputError(f"{directory}: has no tokenizer; put tokenizer.json, or vocab.json and merges.txt, into it")
    for name in (*TABLES, "config.json"):
        if os.path.lexists(directory / name):
            (folder / name).write_bytes(_as_json(directory / name, _checked(directory / name)))
    if os.path.lexists(directory / MERGES):
        (folder / MERGES).write_bytes(_text(directory / MERGES).encode())


def _checked(file: Path) -> dict:
    try:
        values = read_json(file)
    except InputError as error:
        raise InputError(f"{file}: its tokenizer cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{file}: its tokenizer cannot be read: not a table")
    if file.name == "tokenizer.json":
        _refuse_harmful(file, values)
    if file.name == "config.json":
        named = values.get("tokenizer_class")
        return {"model_type": "gpt2"} | ({"tokenizer_class": named} if isinstance(named, str) else {})
    if file.name in ("tokenizer_config.json", "special_tokens_map.json"):
        values = {name: value for name, value in values.items() if name in SETTINGS and value is not None}
        for name, value in values.items():
            if not isinstance(value, SETTINGS[name]):
                raise InputError(f"{file}: its tokenizer cannot be read: {name} is {value!r}")
    return values


def _as_json(file: Path, values: dict) -> bytes:
    try:
        return json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # half of a pair of \ud83d and the like
        raise InputError(f"{file}: its tokenizer cannot be read: {error}") from error


def _text(file: Path) -> str:
    try:
        refuse_special(file)
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: its tokenizer cannot be read: {error}") from error


def _refuse_harmful(file: Path, values: dict) -> None:
    steps = {name: value for name, value in values.items() if name not in ("model", "added_tokens")}
    if len(json.dumps(steps)) > MOST_SETTINGS:
        raise InputError(f"{file}: more than {MOST_SETTINGS:,} characters of settings beside the vocabulary")
    for step in _tables(steps):
        _refuse_step(file, step)
    model = values.get("model")
    if not isinstance(model, dict):
        raise InputError(f"{file}: its tokenizer cannot be read: it has no model")
    if model.get("dropout"):
        raise InputError(f"{file}: the merges that dropout leaves out differ each time; set dropout of the model to 0")
    longest = model.get("max_input_chars_per_word")
    if isinstance(longest, int) and longest > MOST_IN_A_WORD:
        raise InputError(f"{file}: max_input_chars_per_word is {longest}; at most {MOST_IN_A_WORD} are supported")
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list) and any(len(str(piece)) > MOST_IN_A_WORD for piece in vocabulary):
        raise InputError(f"{file}: an entry of its vocabulary is longer than {MOST_IN_A_WORD} characters")


def _tables(value: object) -> Iterator[dict]:
    """All that there are in it, at any depth."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _tables(part)


def _refuse_step(file: Path, step: dict) -> None:
    """By the names of its fields, for a step's type may be left out."""
    if "precompiled_charsmap" in step or step.get("type") == "Precompiled":
        raise InputError(f"{file}: a normalizer of the type Precompiled is not supported")
    pattern = step.get("pattern")
    if isinstance(pattern, dict) and "Regex" in pattern and pattern["Regex"] not in PATTERNS:
        raise InputError(
            f"{file}: the regular expression {pattern['Regex']!r} is not supported, as it may take forever on some "
            "text; those of GPT-2, Llama 3 and Qwen 2 are"
        )
    if "content" in step and isinstance(pattern, dict):  # replaces
        replaced, content = pattern.get("String", " "), step["content"]
        if not replaced or not isinstance(content, str) or len(content) > len(str(replaced)):
            raise InputError(f"{file}: replacing {replaced!r} by something longer is not supported")


@contextlib.contextmanager
def tokenizing(where: str) -> Iterator[None]:
    """Within it, whatever the library raises is an InputError that begins with `where`, and standard error, where its
    Rust code writes traces past Python, leads nowhere."""
    with _no_standard_error():
        try:
            yield
        except (InputError, MemoryError):
            raise
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise InputError(f"{where}: {error}") from error


@contextlib.contextmanager
def _no_standard_error() -> Iterator[None]:
    try:
        kept = os.dup(2)
    except OSError:  # it is closed already
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def token_ids(tokenizer, texts: list[str]) -> list[list[int]]:
    """Of each text.

    Raises:
        InputError: the tokenizer cannot take one of them.
    """
    with tokenizing(f"{tokenizer.name_or_path}: its tokenizer cannot read a text"):
        return tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]


def token_ends(tokenizer, text: str) -> list[int]:
    """Where in the text each token ends; raises as `token_ids`."""
    with tokenizing(f"{tokenizer.name_or_path}: its tokenizer cannot read a text"):
        return [end for _, end in tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]]


def text_of(tokenizer, ids: list[int], skip_special_tokens: bool = False) -> str:
    """What the ids spell; raises as `token_ids`."""
    with tokenizing(f"{tokenizer.name_or_path}: its tokenizer cannot write a text"):
        return tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
