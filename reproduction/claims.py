"""The paper's claims (sections 5.4 to 7), and whether these runs bear them out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean

from reproduction.document import Table
from reproduction.grid import NAMES, PLACES, RANKS
from reproduction.results import Outcome, Results
from reproduction.uncertainty import interval

HELD, NOT_HELD, UNTESTED = "held", "not held", "not testable with these runs"
TASKS = {"paraphrase": "", "sonnet": "0.9-2"}  # of LoRA, and the variant that is compared

Row = list[str]


def table(results: Results) -> Table:
    """A line a claim, task and model: what the paper says, whether it is so here, and the numbers."""
    claims = (_scores, _times, _ranks, _early_stopping, _larger_is_better, _tuning_cures_overfitting)
    return Table(["the paper says", "here", "numbers"], [row for claim in claims for row in claim(results)])


def _row(claim: str, held: bool | None, numbers: str) -> Row:
    return [claim, UNTESTED if held is None else HELD if held else NOT_HELD, numbers]


def _score(runs: Sequence[Outcome]) -> float:
    return mean(run.score for run in runs)


def _full_and_lora(results: Results) -> Iterator[tuple[str, list[Outcome], list[Outcome]]]:
    for place in results.places:
        for task, variant in TASKS.items():
            if results.find(task=task, place=place):
                wanted = dict(task=task, place=place, variant=variant)
                full, lora = (results.done(method=method, **wanted) for method in ("full", "lora-16"))
                yield f"{task}, {NAMES[place]}", full, lora


def _scores(results: Results) -> Iterator[Row]:
    claim = "LoRA reaches at least 90 % of full fine-tuning's score"
    for name, full, lora in _full_and_lora(results):
        if not full or not lora:
            yield _row(claim, None, name)
            continue
        least = _without_learning(results, full[0])
        ratio = _score(lora) / _score(full)
        numbers = f"{name}, rank 16: {ratio:.0%}; without learning anything {least / _score(full):.0%}"
        yield _row(claim, ratio >= 0.9 if _score(full) > least else None, numbers)


def _without_learning(results: Results, run: Outcome) -> float:
    """The score of the majority class, or of the given lines alone."""
    if run.experiment.task == "sonnet":
        return next(iter(run.sonnet_scores.values()))["chrf"]
    return float(results.baselines(run.experiment.dataset)["majority class"].mean())


def _times(results: Results) -> Iterator[Row]:
    claim = "and takes at most 60 % of its time an epoch"
    for name, full, lora in _full_and_lora(results):
        if full and lora:
            ratio = mean(run.seconds for run in lora) / mean(run.seconds for run in full)
            yield _row(claim, ratio <= 0.6, f"{name}, rank 16: {ratio:.0%}")
        else:
            yield _row(claim, None, name)


def _ranks(results: Results) -> Iterator[Row]:
    claim = "A rank above 16 does not help"
    for place in results.places:
        for task, variant in TASKS.items():
            if not results.find(task=task, place=place):
                continue
            wanted = dict(task=task, place=place, variant=variant)
            runs = {rank: results.done(method=f"lora-{rank}", **wanted) for rank in RANKS}
            scores = {rank: _score(some) for rank, some in runs.items() if some}
            if 16 not in scores or len(scores) < 2:
                yield _row(claim, None, f"{task}, {NAMES[place]}")
                continue
            if task == "sonnet":
                chance = scores[16] + mean(run.form["chrf_within"] for run in runs[16])
            else:
                chance = interval([results.right(run) for run in runs[16]])[1]
            numbers = ", ".join(f"{rank}: {score:.3g}" for rank, score in scores.items())
            held = all(score <= chance for score in scores.values())
            numbers = f"{task}, {NAMES[place]}, by rank {numbers}; rank 16's interval ends at {chance:.3g}"
            yield _row(claim, held, numbers)


def _early_stopping(results: Results) -> Iterator[Row]:
    claim = "Early stopping decides sonnets: LoRA scores higher where it ends training than where it does not"
    for place in results.places:
        experiments = results.find(task="sonnet", place=place, variant=TASKS["sonnet"])
        ended: dict[bool, list[Outcome]] = {True: [], False: []}
        for experiment in experiments:
            if experiment.method.startswith("lora"):
                for run in results.of(experiment):
                    ended[len(run.epochs) < run.config["settings"]["epochs"]].append(run)
        early, whole = ended[True], ended[False]
        numbers = f"{NAMES[place]}: {len(early)} runs were ended early, {len(whole)} were not"
        if early and whole:
            numbers += f"; chrF {_score(early):.1f} and {_score(whole):.1f}"
            yield _row(claim, _score(early) > _score(whole), numbers)
        elif experiments:
            yield _row(claim, None, numbers)


def _larger_is_better(results: Results) -> Iterator[Row]:
    claim = "The larger model is better"
    for task, variant in TASKS.items():
        if results.find(task=task):
            runs = [results.done(task=task, place=place, method="full", variant=variant) for place in PLACES]
            if all(runs):
                small, large = map(_score, runs)
                yield _row(claim, large > small, f"{task}: {small:.3g} and {large:.3g}")
            else:
                yield _row(claim, None, f"{task}: there are no runs of two models")


def _tuning_cures_overfitting(results: Results) -> Iterator[Row]:
    claim = "A lower rate and a larger batch cure the overfitting of full fine-tuning"
    for dataset in ("sst", "cfimdb"):
        if not results.find(dataset=dataset):
            continue
        default, tuned = (results.done(dataset=dataset, method="full", variant=v) for v in ("default", "tuned"))
        if not default or not tuned:
            yield _row(claim, None, NAMES[dataset])
            continue
        before, after = (mean(_gap(run.epochs[-1]) for run in some) for some in (default, tuned))
        numbers = (
            f"{NAMES[dataset]}, default and tuned: train less dev accuracy after the last epoch {before:.3f} and "
            f"{after:.3f}, best dev accuracy {_score(default):.3f} and {_score(tuned):.3f}"
        )
        yield _row(claim, after < before and _score(tuned) > _score(default), numbers)


def _gap(epoch: dict) -> float:
    return epoch["train_acc"] - epoch["dev_acc"]
