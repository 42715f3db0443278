"""Plain text to pretrain on: documents parted by blank lines."""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from config import InputError

SHARED_WORDS = 8


def find_texts(paths: list[str]) -> list[Path]:
    """Files as they are named; of a folder, its `.txt` and `.txt.gz` files by name.

    Raises:
        InputError: a path that is not there, or a folder without such files.
    """
    found = []
    for path in map(Path, paths):
        files = sorted([*path.glob("*.txt"), *path.glob("*.txt.gz")]) if path.is_dir() else [path]
        if not files or not all(file.is_file() for file in files):
            raise InputError(f"{path}: {'no .txt or .txt.gz file in it' if path.is_dir() else 'no such file'}")
        found += files
    return found


def read_documents(paths: list[Path]) -> list[str]:
    """The documents of all files, in order.

    Raises:
        InputError: a file that is not UTF-8, not whole, or no document at all.
    """
    documents = []
    for path in paths:
        parts = re.split(r"\n[ \t]*(?:\r?\n)+", _read(path))
        documents += [document.strip("\n") for document in parts if document.strip()]
    if not documents:
        raise InputError(f"{', '.join(map(str, paths))}: no text in there")
    return documents


def _read(path: Path) -> str:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read().decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def leave_out(documents: list[str], paths: list[Path]) -> list[str]:
    """The documents that share no SHARED_WORDS words in a row, whatever their case and punctuation, with these files.

    So that a model is not scored on what it has read (Radford et al. 2019, section 4, count overlap in 8-grams).
    A file is any text; an end of a line or a tab ends a passage.

    Raises:
        InputError: a file that cannot be read.
    """
    passages = (passage for path in paths for passage in re.split(r"[\t\r\n]", _read(path)))
    forbidden = {words for passage in passages for words in _runs_of_words(passage)}
    return [document for document in documents if forbidden.isdisjoint(_runs_of_words(document))]


def _runs_of_words(text: str) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"[^\W_]+", text.lower())
    return zip(*(words[i:] for i in range(SHARED_WORDS)), strict=False)


def hold_out(documents: list[str], share: float) -> tuple[list[str], list[str]]:
    """Splits into training and held-out documents, by a hash of the text.

    A document stays on its side whatever else the corpus holds, and copies of it stay together.
    """
    training, held_out = [], []
    for document in documents:
        draw = int.from_bytes(hashlib.sha256(document.encode()).digest()[:8]) / 2**64
        (held_out if draw < share else training).append(document)
    if not training or (share > 0 and not held_out):
        raise InputError(f"{len(documents)} documents are too few to hold out {share:g} of them")
    return training, held_out
