"""The course's data files: tab-separated values with CSV's quotes, a header, one example a row."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from config import InputError, refuse_special
from models.files import write_text

MOST_BAD_ROWS = 0.01  # as a share of a file's rows
MOST_COLUMNS = 1000


@dataclass
class Row:
    """One record: the number of the line it starts on, its fields by column, and what is wrong with its shape."""

    line: int
    fields: dict[str, str]
    problem: str | None = None


@dataclass
class BadRow:
    """A row left out, as listed in the run's folder."""

    file: str
    line: int
    id: str
    reason: str


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within it, what goes wrong with one of the course's files is an InputError that says what to do."""
    try:
        refuse_special(path)
        yield
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: no such file; python data/download.py brings the course's files, --data_dir names another folder"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8: {error}; save it as UTF-8 text") from error


def without_nul(path: Path, lines: Iterable[str]) -> Iterator[str]:
    """The lines of a file; raises InputError at one with a NUL character, which no text has."""
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise InputError(
                f"{path}: line {number} holds a NUL character: no text, damaged, or UTF-16; save it as UTF-8 text"
            )
        yield line


def read_table(path: Path, columns: Sequence[str]) -> list[Row]:
    """Reads a file.

    Args:
        path: a UTF-8 file, with or without a byte-order mark, with any line ends.
        columns: names that its header must hold.

    Raises:
        InputError: no such file, not UTF-8 text, quotes that do not close, no rows, or a column missing or there twice.
    """
    rows = []
    with reading(path), open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(without_nul(path, file), delimiter="\t", strict=True)
        try:
            header = next(reader, None)
            if header is None:
                raise InputError(f"{path}: the file is empty")
            missing = [name for name in columns if name not in header]
            if missing:
                raise InputError(
                    f"{path}: no column {', '.join(missing)} in its header, only {', '.join(filter(None, header))}"
                )
            if len(header) > MOST_COLUMNS:
                raise InputError(f"{path}: {len(header)} columns in its header, more than {MOST_COLUMNS}")
            for name in columns:
                if header.count(name) > 1:
                    raise InputError(f"{path}: column {name} is twice in its header")
            line = reader.line_num + 1
            for fields in reader:
                if fields:  # a blank line is no row
                    problem = None
                    if len(fields) != len(header):
                        problem = f"{len(fields)} fields instead of {len(header)}"
                    rows.append(Row(line, dict.fromkeys(header, "") | dict(zip(header, fields, strict=False)), problem))
                line = reader.line_num + 1
        except csv.Error as error:
            raise InputError(
                f"{path}: line {reader.line_num}: {error}; most likely a quotation mark is not closed, or not doubled, "
                "there or above"
            ) from error
    if not rows:
        raise InputError(f"{path}: a header and no rows")
    return rows


def sample(rows: int, count: int | None) -> list[int]:
    """Numbers of `count` of a file's rows, in order; all, if None. They are drawn, for a file may be sorted (SST's
    training file begins with the good reviews), but always the same ones."""
    drawn = torch.randperm(rows, generator=torch.Generator().manual_seed(0))[
        : rows if count is None else min(count, rows)
    ]
    return drawn.sort().values.tolist()


def parse_label(text: str, classes: int) -> int:
    """`3`, or `3.0` as pandas writes it, to a class number.

    Raises:
        ValueError: why it is none.
    """
    text = text.strip()
    if not text:
        raise ValueError("no label")
    if not re.fullmatch(r"[+-]?\d{1,9}(\.0*)?", text, re.ASCII):
        raise ValueError(f"label {text!r} is not a whole number")
    label = int(text.partition(".")[0])
    if not 0 <= label < classes:
        raise ValueError(f"label {label} is outside the classes 0 to {classes - 1}")
    return label


def refuse_if_too_many(bad: Sequence[BadRow], rows: int, skip_bad_rows: bool) -> None:
    """Raises InputError if more than 1 % of a file's rows cannot be used and the user has not agreed to that."""
    if bad and len(bad) > MOST_BAD_ROWS * rows and not skip_bad_rows:
        first = bad[0]
        raise InputError(
            f"{first.file}: {len(bad)} of {rows} rows cannot be used, the first on line {first.line} ({first.reason}); "
            "mend the file, or go on without them with --skip_bad_rows"
        )


def write_predictions(path: Path, column: str, ids: Sequence[str], labels: Sequence[int]) -> None:
    """Writes predictions as the course's grader reads them: a header, then `ID, LABEL ` a line."""
    lines = [f"id \t {column} \n", *(f"{id_}, {label} \n" for id_, label in zip(ids, labels, strict=True))]
    write_text(path, "".join(lines))
