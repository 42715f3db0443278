"""Runs of a script with several seeds, and their scores as a line of a table."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks are scripts of the project's root

SEEDS = (11711, 1, 2)


def run(script: Callable[[list[str]], int], folder: Path, flags: Sequence[object]) -> None:
    """Calls a script's `main`, going on where an earlier call was stopped; what is trained is not trained again.

    Raises:
        SystemExit: it failed.
    """
    where = ["--output_dir", folder, "--predictions_dir", folder / "predictions", "--resume"]
    code = script([str(flag) for flag in (*flags, *where)])
    if code:
        sys.exit(code)


def epochs(run: Path) -> Iterator[dict]:
    """The lines of its metrics."""
    return map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())


def print_row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def print_header(*cells: str) -> None:
    print_row(*cells)
    print_row(*("---" for _ in cells))
