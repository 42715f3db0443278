"""What finished runs left behind, read from their files and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from statistics import mean

import numpy as np

from config import InputError, is_number, read_json, refuse_special
from reproduction.grid import PLACES, Experiment
from tasks.classification import Split
from tasks.paraphrase import Paraphrase
from tasks.sentiment import Sentiment
from tasks.sonnet_scores import Scores


@dataclass
class Outcome:
    """One run.

    Attributes:
        folder: what belongs to it; the script makes the run's own folder below.
        problem: why it has no result; empty if it has one.
    """

    experiment: Experiment
    seed: int
    folder: Path
    problem: str = ""

    @cached_property
    def run(self) -> Path:
        """Where its metrics are."""
        return next(self.folder.glob("*/metrics.jsonl")).parent

    def damage(self) -> str:
        """What is missing of its files; nothing, if all is there."""
        try:
            self._check()
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, StopIteration) as error:
            return " ".join(f"its files are incomplete ({type(error).__name__}: {error})".split())
        return ""

    def _check(self) -> None:
        """Raises whatever what a table or a figure needs leads to if it is not there, or no number."""
        config, sonnets = self.config, self.experiment.task == "sonnet"
        settings, hardware = config["settings"], config["hardware"]
        for name in ("max_train_samples", "max_eval_samples"):
            limit = settings[name]
            if limit is not None and not (isinstance(limit, int) and is_number(limit, least=1)):
                raise ValueError(f"{name} is {limit!r}")
        texts = [settings["model_size"], hardware["device"], config["precision"], config["versions"]["torch"]]
        for text in [*texts, settings["model_path"] or ""]:
            if not isinstance(text, str) or not text.isprintable():
                raise ValueError(f"{text!r} is no name of anything")
        columns = ["epoch", "train_loss", "train_seconds", "eval_seconds"]
        columns += ["val_loss"] if sonnets else ["train_acc", "dev_acc"]
        numbers = [line[column] for line in self.epochs for column in columns]
        numbers += [settings["epochs"], hardware["threads"]]
        if not is_number(config["parameters"]["trained"], above=0):
            raise ValueError(f"it trained {config['parameters']['trained']!r} parameters")
        if sonnets:
            numbers += [row[field.name] for row in self.sonnet_scores.values() for field in fields(Scores)]
        else:
            self.predictions  # noqa: B018
        for number in [self.score, self.best["epoch"], *numbers]:
            if not is_number(number, least=0):
                raise ValueError(f"{number!r} is not a measured number")

    @cached_property
    def config(self) -> dict:
        return read_json(self.run / "config.json")

    @cached_property
    def epochs(self) -> list[dict]:
        """The lines of its metrics, but for what was measured before training."""
        lines = map(json.loads, _text(self.run / "metrics.jsonl").splitlines())
        return [line for line in lines if line["epoch"]]

    @property
    def best(self) -> dict:
        """The epoch kept."""
        if self.experiment.task == "sonnet":
            return min(self.epochs, key=lambda line: line["val_loss"])
        return max(self.epochs, key=lambda line: line["dev_acc"])

    @cached_property
    def sonnet_scores(self) -> dict[str, dict]:
        """Of dev, by method: the baselines first, the run's own last."""
        return read_json(self.run / "scores.json")["dev"]

    @property
    def form(self) -> dict:
        """All scores of its own sonnets."""
        return list(self.sonnet_scores.values())[-1]

    @property
    def score(self) -> float:
        """Dev accuracy, or chrF."""
        return self.form["chrf"] if self.experiment.task == "sonnet" else self.best["dev_acc"]

    @property
    def seconds(self) -> float:
        """Of training, an epoch."""
        return mean(line["train_seconds"] for line in self.epochs)

    @property
    def minutes(self) -> float:
        """Of training, in all."""
        return sum(line["train_seconds"] for line in self.epochs) / 60

    @cached_property
    def predictions(self) -> list[tuple[str, int]]:
        """The id and the class of each dev row, in the file's order, from the prediction file."""
        (path,) = self.folder.glob("predictions/*-dev-out*.csv")
        parts = (line.rpartition(",") for line in _text(path).splitlines()[1:])
        return [(id_.strip(), int(label)) for id_, _, label in parts]


class Results:
    """All runs, by what a table asks for.

    Args:
        outcomes: with or without a result.
        data_dir: where labels, and texts for the baselines, are.
    """

    def __init__(self, outcomes: Sequence[Outcome], data_dir: str):
        self.outcomes, self.data_dir = outcomes, data_dir
        self._baselines: dict[str, dict[str, np.ndarray]] = {}
        self._splits: dict[str, dict[str, Split]] = {}

    @cached_property
    def experiments(self) -> list[Experiment]:
        return list(dict.fromkeys(outcome.experiment for outcome in self.outcomes))

    @property
    def places(self) -> list[str]:
        """The paper's models in whose places there are runs."""
        return [place for place in PLACES if self.find(place=place)]

    def find(self, **wanted: str) -> list[Experiment]:
        """Experiments with these attributes."""
        return [one for one in self.experiments if all(getattr(one, name) == value for name, value in wanted.items())]

    def done(self, **wanted: str) -> list[Outcome]:
        """Runs with a result, a seed each, of the experiments with these attributes."""
        experiments = self.find(**wanted)
        return [one for one in self.outcomes if one.experiment in experiments and not one.problem]

    def of(self, experiment: Experiment) -> list[Outcome]:
        """Its runs with a result."""
        return [one for one in self.outcomes if one.experiment == experiment and not one.problem]

    def problem(self, **wanted: str) -> str:
        """Why there are none."""
        experiments = self.find(**wanted)
        problems = {one.problem for one in self.outcomes if one.experiment in experiments and one.problem}
        return "; ".join(sorted(problems)) or "not in this grid"

    def _rows(self, dataset: str) -> dict[str, Split]:
        """The rows that the runs were trained and evaluated on."""
        if dataset not in self._splits:
            task = task_of(dataset, self.data_dir)
            runs = self.done(dataset=dataset)
            settings = runs[0].config["settings"] if runs else {}
            train = task.read("train").sample(settings.get("max_train_samples"))
            self._splits[dataset] = {"train": train, "dev": task.read("dev").first(settings.get("max_eval_samples"))}
        return self._splits[dataset]

    def right(self, outcome: Outcome) -> np.ndarray:
        """(n,) whether each dev row was classified rightly.

        Raises:
            InputError: its prediction file is one of other rows.
        """
        dev = self._rows(outcome.experiment.dataset)["dev"]
        if [id_ for id_, _ in outcome.predictions] != dev.ids:
            raise InputError(f"{outcome.folder}: its predictions are not of the rows of dev; delete it to run it again")
        return np.array([said == label for (_, said), label in zip(outcome.predictions, dev.labels, strict=True)])

    def baselines(self, dataset: str) -> dict[str, np.ndarray]:
        """(n,) whether each dev row was classified rightly by what needs no GPT-2, fitted on the rows that the runs
        were trained on."""
        if dataset not in self._baselines:
            train, dev = (self._rows(dataset)[split] for split in ("train", "dev"))
            fitted = task_of(dataset, self.data_dir).fit_baselines(train.texts, train.labels)
            self._baselines[dataset] = {
                name: np.asarray(one.predict(dev.texts)) == np.asarray(dev.labels) for name, one in fitted.items()
            }
        return self._baselines[dataset]


def _text(path: Path) -> str:
    refuse_special(path)
    return path.read_text(encoding="utf-8")


def task_of(dataset: str, data_dir: str) -> Sentiment | Paraphrase:
    """What reads a data set of classes."""
    return Paraphrase(data_dir) if dataset == "quora" else Sentiment(dataset, data_dir)
