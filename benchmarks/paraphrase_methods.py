"""Full fine-tuning and LoRA on Quora's pairs, with several seeds.

./setup.sh python benchmarks/paraphrase_methods.py --data_dir DATA --lora_lr 1e-3 -- --model_size mini --lr 1e-4

Prints the table of the README. Called again it goes on where it was stopped.
"""

from __future__ import annotations

from seeds import SEEDS, epochs, print_header, print_row, run  # isort: skip

import argparse
import json
from pathlib import Path
from statistics import mean

import paraphrase_detection
from reproduction.uncertainty import spread
from tasks.classification import accuracy_and_f1
from tasks.paraphrase import Paraphrase

METHODS = {
    "full model": [],
    "LoRA 16, attention": ["--use_lora", "--lora_rank", 16],
    "LoRA 32, attention": ["--use_lora", "--lora_rank", 32],
    "LoRA 16, all linear layers": ["--use_lora", "--lora_rank", 16, "--lora_target", "all-linear"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", default="data", help="the course's files")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/paraphrase_methods"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--lora_lr", nargs="+", default=["1e-5"], help="learning rates of LoRA, a line each")
    parser.add_argument("rest", nargs="*", help="flags for paraphrase_detection.py, after --")
    flags = parser.parse_args()

    rows = {}
    for method in flags.methods:
        lora = METHODS[method]
        for rate in flags.lora_lr if lora else [None]:
            runs = []
            for seed in flags.seeds:
                here = flags.output_dir / "-".join(
                    [method.replace(",", "").replace(" ", "-"), *([rate] if rate else []), str(seed)]
                )
                more = [*flags.rest, *lora, *(["--lr", rate] if rate else [])]
                run(paraphrase_detection.main, here, ["--data_dir", flags.data_dir, "--seed", seed, *more])
                runs.append(here)
            rows[method + (f", lr {rate}" if rate else "")] = runs

    task = Paraphrase(flags.data_dir)
    train, dev = task.read("train"), task.read("dev")
    columns = ("dev accuracy", "dev macro-F1", "trained parameters", "seconds an epoch", "peak memory, MiB")
    print_header("", *columns)
    for name, baseline in task.fit_baselines(train.texts, train.labels).items():
        scores = accuracy_and_f1(dev.labels, baseline.predict(dev.texts)).values()
        print_row(name, *(spread([score]) for score in scores), "", "", "")
    for name, runs in rows.items():
        trained = [[line for line in epochs(one) if line["epoch"]] for one in runs]
        best = [max(lines, key=lambda line: line["dev_acc"]) for lines in trained]
        config = json.loads((runs[0] / "config.json").read_text(encoding="utf-8"))
        print_row(
            name,
            spread([line["dev_acc"] for line in best]),
            spread([line["dev_f1"] for line in best]),
            f"{config['parameters']['trained']:,}",
            spread([mean(line["train_seconds"] for line in lines) for lines in trained], ".0f"),
            spread([max(line["peak_memory_bytes"] for line in lines) / 2**20 for lines in trained], ".0f"),
        )


if __name__ == "__main__":
    main()
