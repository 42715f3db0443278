"""From a classification task to its run, its prediction files and its table: what the scripts share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from config import InputError
from tasks.classification import Split, accuracy_and_f1
from tasks.table import write_predictions
from training.finetune import fine_tune
from training.interrupt import StopRequest
from training.run import locked


def make_folder(settings: dict, flag: str) -> None:
    """Finds out now, not after training, that there is nowhere to write."""
    if settings[flag] == "":
        raise InputError(f"--{flag} is empty; name a folder, or leave it out")
    try:
        str(settings[flag]).encode()  # safetensors takes no other names
        Path(settings[flag]).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"--{flag} {settings[flag]}: {getattr(error, 'strerror', error)}") from error


def read_splits(task, settings: dict) -> dict[str, Split]:
    """All three files of a task, cut to what the flags ask for."""
    limit = settings["max_eval_samples"]
    train = task.read("train").sample(settings["max_train_samples"])
    return {"train": train, "dev": task.read("dev").first(limit), "test": task.read("test").first(limit)}


def train_and_report(
    task,
    splits: dict[str, Split],
    folder: Path,
    method: str,
    prediction_file: Callable[[str], str],
    settings: dict,
    stop: StopRequest,
) -> None:
    """Trains, writes predictions, prints the table.

    Args:
        task: a `training.finetune.Task` that also has a `name`, a `prediction_column`, `fit_baselines` and
            `written(predictions)`, what the prediction file says for each.
        folder: the run's.
        method: what the table calls the way it was trained.
        prediction_file: the name of the file for `dev` or `test`.
    """
    train, model = splits["train"], model_name(settings)
    sizes = ", ".join(f"{len(split.ids)} {name}" for name, split in splits.items())
    print(f"{task.name}: {sizes} rows, {model}, {method}", flush=True)

    with locked(folder):
        result = fine_tune(folder, task, splits, settings, stop)
        predicted = {name: result.predict(name).argmax(axis=1) for name in ("dev", "test")}
        for name, predictions in predicted.items():
            path = Path(settings["predictions_dir"]) / prediction_file(name)
            write_predictions(path, task.prediction_column, splits[name].ids, task.written(predictions))

    methods = {
        name: {split: baseline.predict(splits[split].texts) for split in predicted}
        for name, baseline in task.fit_baselines(train.texts, train.labels).items()
    }
    methods[f"{model}, {method}, epoch {result.epoch} of {result.epochs}"] = predicted
    print_table(task.name, {name: splits[name].labels for name in ("dev", "test")}, methods)
    print(f"{result.seconds:.0f} s of training and evaluation; the model is {result.run / 'best'}\n", flush=True)


def model_name(settings: dict) -> str:
    """What a run's folder and the tables call the model; the model of a run, `RUN/best`, goes by the run's name."""
    if not settings["model_path"]:
        return settings["model_size"]
    path = Path(os.path.realpath(settings["model_path"]))
    return path.parent.name if path.name == "best" else path.name


def print_table(title: str, labels: dict[str, list], methods: dict) -> None:
    """Accuracy and macro-F1 of each method on dev, and on test where its rows have labels."""
    labelled = {split: [i for i, label in enumerate(known) if label is not None] for split, known in labels.items()}
    scored = [split for split, rows in labelled.items() if rows]
    width = max(map(len, methods))
    print(f"{title:{width}}" + "".join(f"  {split + ' acc':>8}  {split + ' F1':>8}" for split in scored))
    for method, predictions in methods.items():
        line = f"{method:{width}}"
        for split in scored:
            rows = labelled[split]
            scores = accuracy_and_f1([labels[split][i] for i in rows], predictions[split][rows])
            line += "".join(f"  {score:8.3f}" for score in scores.values())
        print(line)
