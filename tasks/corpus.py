"""Plain text to pretrain on: documents parted by blank lines, or by GPT-2's end-of-text token."""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from config import InputError, refuse_special
from models.tokenizer import END_OF_TEXT

MOST_UNPACKED = 100  # times a compressed file's size; text gives three to five times, what was made to fill memory 1000
ALWAYS_UNPACKED = 1 << 20  # bytes, however small the file
SHARED_WORDS = 8
SHORTEST = 5  # words of a passage that is looked for as a whole; shorter ones are anyone's


def find_texts(paths: list[str]) -> list[Path]:
    """Files as they are named; of a folder, its `.txt` and `.txt.gz` files by name.

    Raises:
        InputError: a path that is not there, or is neither, or a folder without such files.
    """
    found = []
    for path in paths:
        folder = Path(path)
        files = [folder]
        try:
            if not path:
                raise FileNotFoundError
            if folder.is_dir():
                files = sorted([*folder.glob("*.txt"), *folder.glob("*.txt.gz")])
            for file in files:
                refuse_special(file)
        except FileNotFoundError as error:
            raise InputError(f"{path or 'an empty name'}: no such file") from error
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from error
        if not files:
            raise InputError(f"{path}: no .txt or .txt.gz file in it")
        found += files
    return found


def read_documents(paths: list[Path]) -> list[str]:
    """The documents of all files, in order.

    Raises:
        InputError: a file that is not UTF-8, not whole, or no document at all.
    """
    documents = []
    for path in paths:
        parts = re.split(rf"\n(?:[ \t]*\n)+|{re.escape(END_OF_TEXT)}", _read(path))
        documents += [document.strip("\n") for document in parts if document.strip()]
    if not documents:
        raise InputError(f"{', '.join(map(str, paths))}: no text in there")
    return documents


def _read(path: Path) -> str:
    try:
        if path.suffix == ".gz":
            most = max(ALWAYS_UNPACKED, MOST_UNPACKED * path.stat().st_size)
            with gzip.open(path) as file:
                data = file.read(most + 1)
            if len(data) > most:
                raise InputError(
                    f"{path}: unpacks to more than {MOST_UNPACKED} times its size; gunzip it if it is text"
                )
        else:
            data = path.read_bytes()
        text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    if "\0" in text:
        raise InputError(f"{path}: holds a NUL character: no text, damaged, or UTF-16; save it as UTF-8 text")
    return text


def leave_out(documents: list[str], paths: list[Path]) -> list[str]:
    """The documents that share no SHARED_WORDS words in a row, whatever their case and punctuation, with these files,
    and hold no passage of them of SHORTEST words and more.

    So that a model is not scored on what it has read (Radford et al. 2019, section 4, count overlap in 8-grams).
    A file is any text; an end of a line or a tab ends a passage.

    Raises:
        InputError: a file that cannot be read, or nothing remains.
    """
    forbidden: dict[int, set[tuple[str, ...]]] = {count: set() for count in range(SHORTEST, SHARED_WORDS + 1)}
    for path in paths:
        for passage in re.split(r"[\t\n]", _read(path)):
            words = _words(passage)
            if len(words) >= SHORTEST:
                length = min(len(words), SHARED_WORDS)
                forbidden[length].update(_runs(words, length))
    allowed = []
    for document in documents:
        words = _words(document)
        if all(known.isdisjoint(_runs(words, length)) for length, known in forbidden.items()):
            allowed.append(document)
    if not allowed:
        raise InputError("--leave_out: no document of the corpus remains")
    return allowed


def _words(text: str) -> list[str]:
    """In lower case; the Penn Treebank's spelling (`is n't`, `-LRB-`) gives what the usual one does."""
    text = re.sub(r"-[lr]rb-", " ", text.lower())
    text = re.sub(r" (?=n't|'[a-z])", "", text)
    return re.findall(r"[^\W_]+", re.sub("['\u2019]", "", text))


def _runs(words: list[str], length: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(length)), strict=False)


def hold_out(documents: list[str], share: float) -> tuple[list[str], list[str]]:
    """Splits into training and held-out documents, by a hash of the text.

    A document stays on its side whatever else the corpus holds, and copies of it stay together.
    """
    training, held_out = [], []
    for document in documents:
        draw = int.from_bytes(hashlib.sha256(document.encode()).digest()[:8]) / 2**64
        (held_out if draw < share else training).append(document)
    if not training or (share > 0 and not held_out):
        raise InputError(
            f"{len(documents)} documents, which blank lines part, are too few to hold out {share:g} of them; "
            "raise --held_out"
        )
    return training, held_out
