"""The paper's figures, and one that it lacks, from what the runs logged; to be told apart in print without colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from reproduction.grid import PLACES
from reproduction.results import Outcome

Runs = dict[str, Sequence[Outcome]]  # by what the legend calls them, a seed each

STYLES = (  # of the methods: line, mark, grey; the second model's marks are hollow and its lines thin
    ("-", "o", "#000000"),
    ("--", "s", "#666666"),
    (":", "^", "#000000"),
    ("-.", "D", "#666666"),
    ("-", "v", "#999999"),
)
Style = dict[str, object]
LOOK = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "the same bytes every time",
}


def sentiment(folder: Path, name: str, runs: Runs) -> None:
    """Figures 2 and 3: train loss, and train and dev accuracy, of data sets against epochs."""
    with plt.rc_context(LOOK):
        figure, (losses, accuracies) = plt.subplots(1, 2, figsize=(7.6, 2.9))
        styles = map(_style, range(len(STYLES)))
        for dataset, some in runs.items():
            first = next(styles)
            _curve(losses, some, "train_loss", f"{dataset} train", first)
            _curve(accuracies, some, "train_acc", f"{dataset} train", first)
            _curve(accuracies, some, "dev_acc", f"{dataset} dev", next(styles))
        losses.set_title("train", fontsize=9)
        _finish(losses, "cross-entropy, nats")
        _finish(accuracies, "accuracy")
        accuracies.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        _save(figure, folder, name)


def curves(folder: Path, name: str, runs: Runs, columns: dict[str, str], unit: str) -> None:
    """Figures 4 and 5: a panel for each column of the metrics, a line a method.

    Args:
        columns: their titles.
        unit: of all.
    """
    with plt.rc_context(LOOK):
        figure, panels = plt.subplots(1, len(columns), figsize=(1.6 + 2.8 * len(columns), 2.9), squeeze=False)
        for panel, (column, title) in zip(panels[0], columns.items(), strict=True):
            for (method, some), style in zip(runs.items(), _styles(runs), strict=True):
                _curve(panel, some, column, method, style)
            panel.set_title(title, fontsize=9)
            _finish(panel, unit)
        panels[0][-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
        _save(figure, folder, name)


def costs(folder: Path, name: str, runs: Runs, unit: str) -> None:
    """The figure that the paper lacks: score against the time of training and against the trained parameters, each
    method a mark, its seeds' range a bar."""
    with plt.rc_context(LOOK):
        figure, (times, parameters) = plt.subplots(1, 2, figsize=(7.6, 2.9), sharey=True)
        for (method, some), style in zip(runs.items(), _styles(runs), strict=True):
            scores = [run.score for run in some]
            mean = sum(scores) / len(scores)
            bar = [[max(0.0, mean - min(scores))], [max(0.0, max(scores) - mean)]]
            marks = style | {"linestyle": "", "markersize": 6, "capsize": 3, "label": method}
            times.errorbar(np.mean([run.minutes for run in some]), mean, bar, **marks)
            parameters.errorbar(some[0].config["parameters"]["trained"], mean, bar, **marks)
        times.set_xlim(left=0)
        times.set_xlabel("training, minutes")
        times.set_ylabel(unit)
        parameters.set_xscale("log")
        low, high = parameters.get_xlim()
        parameters.xaxis.set_major_locator(LogLocator(subs=(1, 3) if high < 100 * low else (1,)))
        parameters.xaxis.set_major_formatter(EngFormatter())
        parameters.xaxis.set_minor_formatter(NullFormatter())
        parameters.set_xlabel("trained parameters")
        parameters.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        _save(figure, folder, name)


def _styles(runs: Runs) -> list[Style]:
    """The same for a method whatever the model."""
    methods = list(dict.fromkeys((some[0].experiment.method, some[0].experiment.variant) for some in runs.values()))
    experiments = [some[0].experiment for some in runs.values()]
    return [_style(methods.index((one.method, one.variant)), hollow=one.place != PLACES[0]) for one in experiments]


def _style(number: int, hollow: bool = False) -> Style:
    line, mark, grey = STYLES[number]
    face, width = ("white", 0.9) if hollow else (grey, 1.6)
    return dict(linestyle=line, marker=mark, color=grey, markerfacecolor=face, linewidth=width, markersize=3.5)


def _curve(axes, runs: Sequence[Outcome], column: str, label: str, style: Style) -> None:
    """The mean over the seeds against epochs, and their range, as far as all of them got."""
    values = [[line[column] for line in run.epochs] for run in runs]
    length = min(map(len, values))
    array = np.array([some[:length] for some in values])
    epochs = np.arange(1, length + 1)
    axes.plot(epochs, array.mean(axis=0), label=label, **style)
    if len(array) > 1:
        axes.fill_between(epochs, array.min(axis=0), array.max(axis=0), color=style["color"], alpha=0.15, linewidth=0)


def _finish(axes, unit: str) -> None:
    axes.set_xlabel("epoch")
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _save(figure, folder: Path, name: str) -> None:
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):  # no date, so the same bytes again
        figure.savefig(folder / f"{name}.{kind}", dpi=150, metadata=metadata)
    plt.close(figure)
