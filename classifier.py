"""Fine-tunes GPT-2 on sentiment: the Stanford Sentiment Treebank and CFIMDB (paper, section 5)."""

from __future__ import annotations

import sys
from pathlib import Path

from training.flags import DEMO, Parser, add_common_flags

DEMO_IS_OVER = """\
These are toy data: they show that everything works, not how well. The real thing:
  ./setup.sh python data/download.py
  ./setup.sh python classifier.py --fine-tune-mode full-model --model_size mini
or, with the published weights from the Hub, --model_size gpt2."""


def parse_flags(arguments: list[str] | None = None) -> dict:
    parser = Parser(DEMO | {"fine_tune_mode": "full-model"}, prog="classifier.py", description=__doc__)
    task = parser.add_argument_group("task")
    task.add_argument("--dataset", choices=("both", "sst", "cfimdb"), default="both", help="one run each")
    task.add_argument(
        "--fine_tune_mode", choices=("last-linear-layer", "full-model"), default="last-linear-layer",
        help="train the head on a frozen network, or everything",
    )  # fmt: skip
    add_common_flags(parser, epochs=10, batch_size=8, lr=1e-3)
    return vars(parser.parse_args(arguments))


def main(arguments: list[str] | None = None) -> int:
    settings = parse_flags(arguments)

    from training.script import run_script

    return run_script("classifier.py", lambda stop: fine_tune_all(settings, stop))


def fine_tune_all(settings: dict, stop) -> None:
    """Reads every file before it trains on any: a bad one ends it before hours pass."""
    make_folders(settings)
    datasets = ("sst", "cfimdb") if settings["dataset"] == "both" else (settings["dataset"],)
    tasks = {dataset: read(dataset, settings) for dataset in datasets}
    for dataset, (task, splits) in tasks.items():
        train_and_report(task, splits, settings | {"dataset": dataset}, stop)
    if settings["demo"]:
        print(DEMO_IS_OVER)


def make_folders(settings: dict) -> None:
    """Finds out now, not after training, that there is nowhere to write."""
    from config import InputError

    for flag in ("output_dir", "predictions_dir"):
        try:
            Path(settings[flag]).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--{flag} {settings[flag]}: {error.strerror}") from error


def read(dataset: str, settings: dict):
    """The task, and its files cut to what the flags ask for."""
    from tasks.sentiment import Sentiment

    task = Sentiment(dataset, settings["data_dir"], settings["skip_bad_rows"])
    splits = {name: task.read(name) for name in ("train", "dev", "test")}
    limits = {"train": settings["max_train_samples"]}
    return task, {n: split.first(limits.get(n, settings["max_eval_samples"])) for n, split in splits.items()}


def train_and_report(task, splits: dict, settings: dict, stop) -> None:
    """One data set: trains, writes predictions, prints the table."""
    from tasks.baselines import fit_baselines
    from tasks.table import write_predictions
    from training.finetune import fine_tune

    train, mode = splits["train"], settings["fine_tune_mode"]
    model = model_name(settings)
    sizes = ", ".join(f"{len(split.ids)} {name}" for name, split in splits.items())
    print(f"{task.name}: {sizes} rows, {model}, {mode}", flush=True)

    result = fine_tune(f"{task.name}-{model}-{mode}", task.labels, splits, task.score, settings, stop)
    for name, predictions in result.predictions.items():
        path = Path(settings["predictions_dir"]) / f"{mode}-{task.name}-{name}-out.csv"
        write_predictions(path, task.prediction_column, splits[name].ids, predictions)

    methods = {
        name: {split: baseline.predict(splits[split].texts) for split in result.predictions}
        for name, baseline in fit_baselines(train.texts, train.labels).items()
    }
    methods[f"{model}, {mode}, epoch {result.epoch} of {result.epochs}"] = result.predictions
    print_table(task, {name: splits[name].labels for name in ("dev", "test")}, methods)
    print(f"{result.seconds:.0f} s of training and evaluation; the model is {result.run / 'best'}\n", flush=True)


def model_name(settings: dict) -> str:
    """What a run's folder and the tables call the model; the model of a run, `RUN/best`, goes by the run's name."""
    if not settings["model_path"]:
        return settings["model_size"]
    path = Path(settings["model_path"]).resolve()
    return path.parent.name if path.name == "best" else path.name


def print_table(task, labels: dict[str, list], methods: dict) -> None:
    """Accuracy and macro-F1 of each method on dev, and on test where its rows have labels."""
    labelled = {split: [i for i, label in enumerate(known) if label is not None] for split, known in labels.items()}
    scored = [split for split, rows in labelled.items() if rows]
    width = max(map(len, methods))
    print(f"{task.name:{width}}" + "".join(f"  {split + ' acc':>8}  {split + ' F1':>8}" for split in scored))
    for method, predictions in methods.items():
        line = f"{method:{width}}"
        for split in scored:
            rows = labelled[split]
            scores = task.accuracy_and_f1([labels[split][i] for i in rows], predictions[split][rows])
            line += "".join(f"  {score:8.3f}" for score in scores.values())
        print(line)


if __name__ == "__main__":
    sys.exit(main())
