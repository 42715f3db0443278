"""Reading and tokenizing a file of question pairs as long as the course's full one, made of a shorter one's rows.

./setup.sh python benchmarks/reading.py --model_path DIR --data_dir DATA

DIR needs nothing but a tokenizer and a `config.json`.
"""

from __future__ import annotations

from timing import describe_machine, run  # isort: skip

import argparse
import csv
import os
import time
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

from config import GPT2Config
from models.pretrained import load_tokenizer
from tasks.paraphrase import Paraphrase
from training.flags import whole_number


def write_rows(source: Path, target: Path, count: int) -> None:
    """Every question ends with a number of its own, so that no two rows are the same; a comma, a quote and a line break
    have to be quoted."""
    rows = Paraphrase(source).read("train")
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["", "id", "sentence1", "sentence2", "is_duplicate"])
        for i, ((first, second), label) in enumerate(islice(cycle(zip(rows.texts, rows.labels, strict=True)), count)):
            writer.writerow([i, f"id{i}", f'{first} "{i}"\n', f"{second}, {i}", float(label)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_path", type=Path, required=True, help="for its tokenizer")
    parser.add_argument("--data_dir", type=Path, default="data", help="the course's files")
    parser.add_argument("--rows", type=whole_number(1), default=400_000)
    flags = parser.parse_args()
    describe_machine()
    tokenizer = load_tokenizer(flags.model_path, GPT2Config.from_file(flags.model_path / "config.json"))
    with TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        file = Path(folder) / "quora-train.csv"
        write_rows(flags.data_dir, file, flags.rows)
        print(f"{flags.rows:,} rows, {file.stat().st_size / 1e6:.0f} MB")
        task = Paraphrase(folder)
        for name in ("the first time", "again, from the cache"):
            started = time.perf_counter()
            split = task.read("train")
            read = time.perf_counter()
            examples = task.encode(tokenizer, split)
            print(
                f"{name}: read in {read - started:.1f} s, {len(examples.ids):,} tokens in "
                f"{time.perf_counter() - read:.1f} s"
            )


if __name__ == "__main__":
    run(main)
