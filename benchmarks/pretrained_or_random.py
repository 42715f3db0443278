"""What pretraining is worth: the embedded model and random weights of its shape, fine-tuned with several seeds.

./setup.sh python benchmarks/pretrained_or_random.py --data_dir DATA

Prints the table of the README. Called again it goes on where it was stopped.
"""

from __future__ import annotations

from seeds import SEEDS, epochs, print_header, print_row, run  # isort: skip

import argparse
from pathlib import Path

import torch

import classifier
from config import GPT2Config
from models.gpt2 import GPT2Model
from models.heads import GPT2LMHeadModel
from models.pretrained import EMBEDDED, load_tokenizer, save_pretrained, save_tokenizer
from reproduction.uncertainty import spread
from tasks.classification import accuracy_and_f1
from tasks.sentiment import LABELS, Sentiment

MODES = ("last-linear-layer", "full-model")


def save_random_weights(directory: Path, seed: int) -> None:
    """The embedded model as it was before it was trained, with its tokenizer."""
    config = GPT2Config.from_file(EMBEDDED / "config.json")
    torch.manual_seed(seed)
    model = GPT2Model(config)
    model.init_weights()
    save_pretrained(GPT2LMHeadModel(model), config, directory)
    save_tokenizer(load_tokenizer(EMBEDDED, config), directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", default="data", help="the course's files")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/pretrained_or_random"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("rest", nargs="*", help="flags for classifier.py, after --")
    flags = parser.parse_args()

    scores: dict[tuple[str, str], list[list[float]]] = {}
    for seed in flags.seeds:
        random = flags.output_dir / f"weights-{seed}"
        save_random_weights(random, seed)
        for weights, source in (("random", random), ("pretrained", EMBEDDED)):
            for mode in MODES:
                here = flags.output_dir / f"{weights}-{mode}-{seed}"
                what = ["--model_path", source, "--data_dir", flags.data_dir, "--fine_tune_mode", mode, "--seed", seed]
                run(classifier.main, here, [*what, *flags.rest])
                runs = [here / f"{dataset}-{source.name}-{mode}" for dataset in LABELS]
                best = [max(epochs(one), key=lambda line: line["dev_acc"]) for one in runs]
                values = [line[name] for line in best for name in ("dev_acc", "dev_f1")]
                scores.setdefault((weights, mode), []).append(values)

    baselines: dict[str, list[float]] = {}
    for dataset in LABELS:
        task = Sentiment(dataset, flags.data_dir)
        train, dev = task.read("train"), task.read("dev")
        for name, baseline in task.fit_baselines(train.texts, train.labels).items():
            values = accuracy_and_f1(dev.labels, baseline.predict(dev.texts)).values()
            baselines.setdefault(name, []).extend(values)
    print_header("", "SST accuracy", "SST macro-F1", "CFIMDB accuracy", "CFIMDB macro-F1")
    for name, values in baselines.items():
        print_row(name, *(spread([value]) for value in values))
    for (weights, mode), values in scores.items():
        print_row(f"{weights} weights, {mode}", *map(spread, zip(*values, strict=True)))


if __name__ == "__main__":
    main()
