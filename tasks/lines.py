"""Lines of text as they come, from a file or a pipe."""

from __future__ import annotations

import select
from collections.abc import Iterator
from io import RawIOBase

from config import InputError
from training.interrupt import StopRequest

LINES_AT_ONCE = 4096
BYTES_AT_ONCE = 1 << 22
LONGEST = 1 << 20  # bytes of a line
BLOCK = 1 << 16
POLL = 0.2  # seconds between two looks at whether the user has had enough of waiting

Numbered = list[tuple[int, str]]  # lines by their numbers, from 1


def in_chunks(file: RawIOBase, name: str, stop: StopRequest) -> Iterator[Numbered]:
    """Lines without their ends, some thousand at a time, or as many as have come where one would have to wait.

    Args:
        file: without a buffer. It is read once and may never end.
        name: what a message calls it.

    Raises:
        InputError: a line that is no text: see `decoded`. Those before it are given out first.
        Interrupted: the user asked to stop.
    """
    chunk, size, number = [], 0, 0
    for line in _lines(file, stop):
        if line is not None:
            number += 1
            try:
                chunk.append((number, decoded(line, name, number)))
            except InputError:
                yield chunk
                raise
            size += len(line)
        if chunk and (line is None or len(chunk) == LINES_AT_ONCE or size >= BYTES_AT_ONCE):
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def decoded(line: bytes, name: str, number: int) -> str:
    """A line as text, without white space at its end.

    Raises:
        InputError: it is not UTF-8, holds a NUL character, or is longer than any text.
    """
    where = f"{name}: line {number}"
    if len(line) > LONGEST:
        raise InputError(f"{where} is longer than {LONGEST} bytes; a line holds one text")
    if b"\0" in line:
        raise InputError(f"{where} holds a NUL character: no text, damaged, or UTF-16; save it as UTF-8 text")
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip()
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8: {error}; save it as UTF-8 text") from error


def _lines(file: RawIOBase, stop: StopRequest) -> Iterator[bytes | None]:
    """The lines; None where the next is yet to come. Of one that is too long, its beginning ends it all."""
    rest = b""
    while len(rest) <= LONGEST:
        if not _ready(file, 0):
            yield None
            while not _ready(file, POLL):
                stop.check()
        block = file.read(BLOCK)
        if not block:
            break
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _ready(file: RawIOBase, seconds: float) -> bool:
    return bool(select.select([file], [], [], seconds)[0])
