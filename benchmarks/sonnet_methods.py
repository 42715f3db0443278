"""Sonnets continued after full fine-tuning and LoRA, with several seeds.

./setup.sh python benchmarks/sonnet_methods.py --data_dir DATA --lora_lr 3e-3 -- --model_size mini --lr 1e-3

Prints the table of the README. Called again, with the same flags, it goes on where it was stopped.
"""

from __future__ import annotations

from seeds import SEEDS, epochs, print_header, print_row, run  # isort: skip

import argparse
import json
import shutil
from itertools import product
from pathlib import Path

import sonnet_generation
from reproduction.uncertainty import spread
from tasks.sonnets import read_sonnets, write_sonnets

METHODS = {"full model": [], **{f"LoRA {r}": ["--use_lora", "--lora_rank", r] for r in (16, 32, 64, 128)}}
SCORES = {"chrf": ".1f", "new_chrf": ".1f", "lines": ".1f", "syllables": ".1f", "rhymes": ".1f", "copied": ".1%"}
COLUMNS = ("dev chrF", "of new lines", "lines", "syllables a line", "rhymes of 7", "copied 4-grams")


def copy_data(source: Path, folder: Path) -> None:
    """The course's files, but for the test prompts, which no score needs and of which the first is enough."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("sonnets.txt", "sonnets_held_out_dev.txt", "TRUE_sonnets_held_out_dev.txt"):
        shutil.copy(source / name, folder / name)
    write_sonnets(folder / "sonnets_held_out.txt", read_sonnets(source / "sonnets_held_out.txt").first(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, default="data", help="the course's files")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/sonnet_methods"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--train_size", nargs="+", default=["0.9", "0.8"])
    parser.add_argument("--num_candidates", nargs="+", default=["1", "32"])
    parser.add_argument("--lora_lr", default="1e-5", help="learning rate of LoRA")
    parser.add_argument("rest", nargs="*", help="flags for sonnet_generation.py, after --")
    flags = parser.parse_args()

    data = flags.output_dir / "data"
    copy_data(flags.data_dir, data)
    rows, baselines = {}, {}
    for method, size, count in product(flags.methods, flags.train_size, flags.num_candidates):
        lora, results = METHODS[method], []
        for seed in flags.seeds:
            here = flags.output_dir / f"{method.replace(' ', '-')}-{size}-{seed}"  # the candidates need no new training
            kept = here / f"scores-{count}.json"
            if not kept.is_file():
                what = ["--data_dir", data, "--seed", seed, "--train_size", size, "--num_candidates", count]
                rate = ["--lr", flags.lora_lr] if lora else []
                run(sonnet_generation.main, here, [*flags.rest, *what, *lora, *rate])
                (here / "predictions").rename(here / f"predictions-{count}")
                (here / "scores.json").rename(kept)
            dev = json.loads(kept.read_text(encoding="utf-8"))["dev"]
            *names, ours = dev
            baselines = {name: dev[name] for name in names}
            stopped = [line["epoch"] for line in epochs(here)][-1]
            results.append(dev[ours] | {"stopped": stopped})
        plural = "" if count == "1" else "s"
        rows[f"{method}, train_size {size}, {count} candidate{plural}"] = results

    print_header("", *COLUMNS, "epochs")
    for name, scores in baselines.items():
        print_row(name, *(format(scores[score], form) for score, form in SCORES.items()), "")
    for name, results in rows.items():
        cells = [spread([result[score] for result in results], form) for score, form in SCORES.items()]
        print_row(name, *cells, "/".join(str(result["stopped"]) for result in results))


if __name__ == "__main__":
    main()
