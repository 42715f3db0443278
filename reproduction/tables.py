"""The paper's tables with ours above its figures and baselines beside them, and which differences are real."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from statistics import mean

import numpy as np

from reproduction.document import Table
from reproduction.grid import METHODS, NAMES, PLACES
from reproduction.results import Results
from reproduction.uncertainty import holm, interval, mcnemar, spread

PAPER = json.loads((Path(__file__).parent / "paper_results.json").read_text(encoding="utf-8"))
NONE = "none"


def cell(results: Results, paper: float | None, **wanted: str) -> str:
    """Ours, the interval below it, the paper's below that.

    Args:
        paper: its figure, if it has one.
        wanted: attributes of the one experiment.
    """
    runs = results.done(**wanted)
    lines = _reason(results, **wanted)
    if runs:
        sonnets = wanted["task"] == "sonnet"
        form = ".1f" if sonnets else ".3f"
        ours = [run.score for run in runs]
        if sonnets:
            within = mean(run.form["chrf_within"] for run in runs)
            low, high = mean(ours) - within, mean(ours) + within
        else:
            low, high = interval([results.right(run) for run in runs])
        lines = [f"**{spread(ours, form)}**", f"{low:{form}} to {high:{form}}"]
    return "\n".join([*lines, f"paper: {NONE if paper is None else f'{paper:.3f}'}"])


def _reason(results: Results, **wanted: str) -> list[str]:
    """Why there is no result; nothing, where no model takes the place of the paper's."""
    return [f"({results.problem(**wanted)})"] if results.find(**wanted) else []


def training_time(results: Results) -> Table:
    """The paper's Table 1."""
    paper = PAPER["training_time_per_epoch"]
    rows = []
    for place in PLACES:
        for method in ("full", "lora-16"):
            row = [NAMES[place], METHODS[method]]
            for task, variant, hours, unit in (
                ("paraphrase", "", paper["paraphrase_hours"], "h"),
                ("sonnet", "0.9-2", paper["sonnet_minutes"], "min"),
            ):
                wanted = dict(task=task, place=place, method=method, variant=variant)
                runs = results.done(**wanted)
                lines = (
                    [f"**{spread([run.seconds for run in runs], '.1f')} s**"] if runs else _reason(results, **wanted)
                )
                row.append("\n".join([*lines, f"paper: {hours[place][method.replace('-', '_')]} {unit}"]))
            rows.append(row)
    return Table(["", "", "paraphrase detection", "sonnet generation"], rows)


def sentiment(results: Results) -> Table:
    """The figures of section 5.4."""
    baselines = {dataset: results.baselines(dataset) for dataset in ("sst", "cfimdb")}
    rows = _baseline_rows(baselines)
    for name, method, variant, key in (
        ("last linear layer", "last-linear-layer", "", "last_linear_layer"),
        ("full model, default settings", "full", "default", "full_default"),
        ("full model, tuned settings", "full", "tuned", "full_tuned"),
    ):
        paper = PAPER["sentiment_dev_accuracy"][key]
        wanted = dict(task="sentiment", method=method, variant=variant)
        rows.append([name, *(cell(results, paper[dataset], dataset=dataset, **wanted) for dataset in baselines)])
    return Table(["dev accuracy", *(NAMES[dataset] for dataset in baselines)], rows)


def _baseline_rows(baselines: dict[str, dict[str, np.ndarray]]) -> list[list[str]]:
    names = dict.fromkeys(name for right in baselines.values() for name in right)
    return [
        [name, *(f"{right[name].mean():.3f}" if name in right else NONE for right in baselines.values())]
        for name in names
    ]


def paraphrase(results: Results) -> Table:
    """The left half of the paper's Table 2, a column a model."""
    rows = _baseline_rows({place: results.baselines("quora") for place in PLACES})
    for method in ("full", "lora-16", "lora-32"):
        row = [METHODS[method]]
        for place in PLACES:
            paper = PAPER["paraphrase_accuracy"][place].get(method.replace("-", "_"), {}).get("dev")
            row.append(cell(results, paper, task="paraphrase", place=place, method=method))
        rows.append(row)
    return Table(["dev accuracy", *(NAMES[place] for place in PLACES)], rows)


def sonnets(results: Results) -> Table:
    """The right half of the paper's Table 2, with every `train_size` and patience."""
    methods = [method for method in METHODS if method != "last-linear-layer"]
    runs = results.done(task="sonnet")
    rows = []
    if runs:
        *names, _ = runs[0].sonnet_scores
        rows = [[name, *[f"{runs[0].sonnet_scores[name]['chrf']:.1f}"] * len(methods)] for name in names]
    for place in PLACES:
        for size, patience in (("0.9", "2"), ("0.9", "1"), ("0.8", "2"), ("0.8", "1")):
            row = [f"{NAMES[place]}, train_size {size}, patience {patience}"]
            papers = {method: _paper_chrf(place, method, size, patience) for method in methods}
            if place not in results.places and not any(papers.values()):
                continue
            for method, paper in papers.items():
                wanted = dict(task="sonnet", place=place, method=method, variant=f"{size}-{patience}")
                row.append(cell(results, paper, **wanted))
            rows.append(row)
    return Table(["dev chrF", *(METHODS[method] for method in methods)], rows)


def _paper_chrf(place: str, method: str, size: str, patience: str) -> float | None:
    paper = PAPER["sonnet_chrf_dev"]
    if patience == "1":  # of one run only
        described = (place, method, size) == ("gpt2-medium", "full", "0.9")
        return paper["patience"]["1"]["chrf"] if described else None
    return paper.get(place if size == "0.9" else f"{place}_train_size_{size}", {}).get(method.replace("-", "_"))


FORM: dict[str, Callable[[dict], str]] = {
    "chrF of new lines": lambda row: f"{row['new_chrf']:.1f}",
    "lines": lambda row: f"{row['lines']:.1f}",
    "characters": lambda row: f"{row['characters']:.0f}",
    "syllables a line": lambda row: f"{row['syllables']:.1f}",
    "rhymes of 7": lambda row: f"{row['rhymes']:.1f}",
    "copied 4-grams": lambda row: f"{row['copied']:.1%}",
}


def form(results: Results) -> Table:
    """What chrF does not say of the sonnets: means over the seeds."""
    scores: dict[str, list[dict]] = {}
    for experiment in results.find(task="sonnet", variant="0.9-2"):
        runs = results.of(experiment)
        for run in runs:
            *names, _ = run.sonnet_scores
            scores |= {name: [run.sonnet_scores[name]] for name in names}
        if runs:
            scores[f"{NAMES[experiment.place]}, {METHODS[experiment.method]}"] = [run.form for run in runs]
    means = {name: {key: mean(row[key] for row in rows) for key in rows[0]} for name, rows in scores.items()}
    return Table(["", *FORM], [[name, *(say(row) for say in FORM.values())] for name, row in means.items()])


def differences(results: Results) -> Table:
    """McNemar's test between any two classifiers of a data set, TF-IDF among them: of each the first seed that has a
    result. What is called real is so at 5 % for all pairs of the data set together."""
    rows = []
    for dataset in ("sst", "cfimdb", "quora"):
        runs = results.done(dataset=dataset)
        if not runs:
            continue
        first = {str(run.experiment): results.right(run) for run in reversed(runs)}
        tf_idf = {name: right for name, right in results.baselines(dataset).items() if "TF-IDF" in name}
        pairs = list(combinations((tf_idf | dict(reversed(first.items()))).items(), 2))
        p_values = [mcnemar(a, b) for (_, a), (_, b) in pairs]
        for ((one, a), (other, b)), p, real in zip(pairs, p_values, holm(p_values), strict=True):
            only = str(int((a & ~b).sum())), str(int((b & ~a).sum()))
            rows.append([NAMES[dataset], one, other, *only, f"{p:.2g}", "yes" if real else "no"])
    return Table(["", "first", "second", "only first right", "only second right", "p", "real"], rows)


def machine(results: Results) -> Table:
    """What the runs were made on, how many, and how long they trained and evaluated."""
    runs: Counter = Counter()
    seconds: Counter = Counter()
    for run in results.done():
        hardware, versions = run.config["hardware"], run.config["versions"]
        key = (hardware["device"], str(hardware["threads"]), run.config["precision"], versions["torch"])
        runs[key] += 1
        seconds[key] += sum(line["train_seconds"] + line["eval_seconds"] for line in run.epochs)
    rows = [[*key, str(runs[key]), f"{seconds[key] / 60:.0f} min"] for key in runs]
    return Table(["device", "threads", "precision", "torch", "runs", "time"], rows)


def failures(results: Results) -> Table:
    """Runs without a result, and why."""
    missing = [one for one in results.outcomes if one.problem]
    return Table(["run", "seed", "why"], [[str(one.experiment), str(one.seed), one.problem] for one in missing])
