"""Files that are there whole or not at all, and the hashes they are known by."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a name beside `path` to write to; on leaving, flushes the file to disk and renames it to `path`.

    Whoever reads `path` meanwhile, or after a crash, finds the old file or the new one, never a part. If the block
    raises, the old file stays and what was written is deleted. An OSError that names no file names `path` then.
    """
    try:
        yield from _replacing(path)
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise


def remove_leftovers(folder: Path) -> None:
    """Deletes what processes that were killed left half written: `replacing`'s files, and those of safetensors."""
    for leftover in (*folder.glob(".*.tmp"), *folder.glob(".tmp??????")):
        leftover.unlink()


def _replacing(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(
        f".{path.name}.{uuid.uuid4().hex}.tmp"
    )  # machines that share a folder share process numbers
    try:
        yield beside
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.chmod(0o666 & ~_umask())  # some libraries create files for their owner alone
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file, whole or not at all."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def sha256(path: Path) -> str:
    """The hash the Hub names large files by, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_blob_hash(path: Path) -> str:
    """The hash git, and the Hub for small files, names a file by: what `git hash-object` prints."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
