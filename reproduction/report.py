"""All tables and figures of the paper, beside ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from reproduction import claims, figures, tables
from reproduction.document import Block, Figure, Heading, Text, write
from reproduction.grid import METHODS, NAMES
from reproduction.results import Results
from tasks.report import model_name

TITLE = "Can we make GPT-2 better? The paper's tables and figures, and ours"
READING = """\
In each cell ours stands first: the mean over seeds and, where there are several, ± their standard deviation; then the \
95 % bootstrap interval over the examples of dev (of sonnets, sacreBLEU's over the poems); then the paper's. A \
classifier's dev score is that of the epoch which dev itself chose, in the paper as here, and so somewhat too good; of \
sonnets, a part of the training file chose it. The learning rates and the temperature that the quick preset gives the \
small model were chosen by dev scores too. Where no run takes the place of one of the paper's models, its figures \
stand alone. Times are measured, and differ a little each time; nothing else does."""


def write_report(folder: Path, results: Results) -> None:
    """Writes `report.md`, `report.html` and the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, TITLE, list(_blocks(folder, results)))


def _blocks(folder: Path, results: Results) -> Iterator[Block]:
    standing = []
    for place in results.places:
        models = dict.fromkeys(model_name(run.config["settings"]) for run in results.done(place=place))
        standing.append(f"in the place of {NAMES[place]} stands {' and '.join(models) or 'nothing yet'}")
    standing = "; ".join(standing)
    seeds = dict.fromkeys(outcome.seed for outcome in results.outcomes)
    yield Text(f"{standing[0].upper()}{standing[1:]}. Seeds: {', '.join(map(str, seeds))}. {READING}")
    tasks = {experiment.task for experiment in results.experiments}
    yield Heading("The paper's claims")
    yield claims.table(results)
    if "sentiment" in tasks:
        yield from _sentiment(folder, results)
    if tasks - {"sentiment"}:
        yield Heading("Table 1: training time of an epoch")
        yield tables.training_time(results)
    if "paraphrase" in tasks:
        yield from _paraphrase(folder, results)
    if "sonnet" in tasks:
        yield from _sonnets(folder, results)
    if tasks - {"sonnet"}:
        yield Heading("Which differences are real")
        yield Text(
            "McNemar's exact test on the dev predictions of each method's first seed; p as it is, and real what Holm's "
            "procedure holds for real at 5 %, over all pairs of a data set."
        )
        yield tables.differences(results)
    failures = tables.failures(results)
    if failures.rows:
        yield Heading("Runs without a result")
        yield failures
    yield Heading("Made on")
    yield tables.machine(results)


def _sentiment(folder: Path, results: Results) -> Iterator[Block]:
    yield Heading("Sentiment (section 5.4)")
    yield tables.sentiment(results)
    for name, variant in (("figure-2", "default"), ("figure-3", "tuned")):
        runs = {NAMES[d]: results.done(dataset=d, method="full", variant=variant) for d in ("sst", "cfimdb")}
        if all(runs.values()):
            figures.sentiment(folder, name, runs)
            yield Figure(name, f"{name.capitalize().replace('-', ' ')}: full fine-tuning with the {variant} settings")
    for dataset in ("sst", "cfimdb"):
        runs = {}
        for experiment in results.find(dataset=dataset):
            if results.of(experiment):
                name = ", ".join(part for part in (METHODS[experiment.method], experiment.variant) if part)
                runs[name] = results.of(experiment)
        if runs:
            yield _costs(folder, dataset, NAMES[dataset], runs, "dev accuracy")


def _paraphrase(folder: Path, results: Results) -> Iterator[Block]:
    yield Heading("Table 2: paraphrase detection")
    yield tables.paraphrase(results)
    runs = _by_method(results, task="paraphrase")
    if runs:
        figures.curves(folder, "figure-4", runs, {"dev_acc": "dev"}, "accuracy")
        yield Figure("figure-4", "Figure 4: dev accuracy of paraphrase detection")
        yield _costs(folder, "paraphrase", "paraphrase detection", runs, "dev accuracy")


def _sonnets(folder: Path, results: Results) -> Iterator[Block]:
    yield Heading("Table 2: sonnet generation")
    yield tables.sonnets(results)
    runs = _by_method(results, task="sonnet", variant="0.9-2")
    if runs:
        yield Text("What chrF does not see, with train_size 0.9 and patience 2:")
        yield tables.form(results)
        columns = {"train_loss": "train", "val_loss": "validation"}
        figures.curves(folder, "figure-5", runs, columns, "cross-entropy, nats a token")
        yield Figure("figure-5", "Figure 5: losses of sonnet generation, train_size 0.9, patience 2")
        yield _costs(folder, "sonnets", "sonnet generation", runs, "dev chrF")


def _costs(folder: Path, name: str, title: str, runs: figures.Runs, unit: str) -> Figure:
    figures.costs(folder, f"costs-{name}", runs, unit)
    caption = f"Not in the paper: what the score of each method costs, {title}"
    if any(some[0].experiment.method == "last-linear-layer" for some in runs.values()):
        caption += " (of the last linear layer, after the one pass of the network over the texts)"
    return Figure(f"costs-{name}", caption)


def _by_method(results: Results, **wanted: str) -> figures.Runs:
    """Runs with a result, named by their method, and by the model too where there are several."""
    runs = {}
    for place in results.places:
        for method, name in METHODS.items():
            some = results.done(place=place, method=method, **wanted)
            if some:
                runs[f"{NAMES[place]}, {name}" if len(results.places) > 1 else name] = some
    return runs
