"""The paper's runs (section 5.3, Tables 1 and 2, Figures 2 to 5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

TASKS = ("sentiment", "paraphrase", "sonnet")
PLACES = ("gpt2", "gpt2-medium")  # the paper's two models, whose places others may take
RANKS = (16, 32, 64, 128)
NAMES = {"gpt2": "GPT-2", "gpt2-medium": "GPT-2 Medium", "sst": "SST", "cfimdb": "CFIMDB", "quora": "Quora"}
METHODS = {"last-linear-layer": "last linear layer", "full": "full model", **{f"lora-{r}": f"LoRA {r}" for r in RANKS}}
SAVES = ("--save_every_steps", "1000")

Cell = tuple[str, str, str, tuple[str, ...]]  # dataset, method, variant, flags


@dataclass(frozen=True)
class Experiment:
    """Runs that differ in nothing but their seed.

    Attributes:
        task: one of `TASKS`.
        dataset: `sst`, `cfimdb`, `quora` or `sonnets`.
        place: whose place in the paper's tables it takes, one of `PLACES`.
        method: a key of `METHODS`.
        variant: what else tells it from others: `default` or `tuned`, `0.8-1` (train_size and patience), or nothing.
        flags: of the script.
    """

    task: str
    dataset: str
    place: str
    method: str
    variant: str
    flags: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its runs' folders, but for the seed."""
        return "-".join(part for part in (self.dataset, self.place, self.method, self.variant) if part)

    def __str__(self) -> str:
        """`GPT-2, full model, tuned`"""
        return ", ".join(part for part in (NAMES[self.place], METHODS[self.method], self.variant) if part)


@dataclass(frozen=True)
class Preset:
    """How much of everything.

    Attributes:
        models: the flags that name the model in each place; a place without one is left out.
        flags: for every run of a task.
        rates: learning rates by task and `full` or `lora`, where they are not the paper's.
        ranks: of LoRA.
        stops: of sonnets, train_size and patience.
    """

    models: dict[str, tuple[str, ...]]
    flags: dict[str, tuple[str, ...]] = field(default_factory=dict)
    rates: dict[tuple[str, str], str] = field(default_factory=dict)
    ranks: tuple[int, ...] = RANKS
    stops: tuple[tuple[str, str], ...] = (("0.9", "2"), ("0.9", "1"), ("0.8", "2"), ("0.8", "1"))


# The embedded model learns next to nothing of pairs and sonnets at the paper's 1e-5 (README.md, "Results").
SMALL_RATES = {
    ("paraphrase", "full"): "3e-4",
    ("paraphrase", "lora"): "3e-4",
    ("sonnet", "full"): "1e-3",
    ("sonnet", "lora"): "3e-3",
}
MINI = {"gpt2": ("--model_size", "mini")}
PRESETS = {
    "paper": Preset({place: ("--model_size", place) for place in PLACES}),
    "quick": Preset(
        MINI,
        {
            "sentiment": ("--epochs", "3", "--max_train_samples", "1500"),
            "paraphrase": ("--epochs", "3", "--max_train_samples", "1500", "--max_eval_samples", "1000"),
            "sonnet": ("--epochs", "8", "--temperature", "1.0"),
        },
        SMALL_RATES,
    ),
    "demo": Preset(
        MINI,
        {
            "sentiment": ("--epochs", "2"),
            "paraphrase": ("--epochs", "2"),
            "sonnet": ("--epochs", "2", "--temperature", "1.0", "--max_new_tokens", "50"),
        },
        SMALL_RATES,
        ranks=(16,),
        stops=(("0.9", "2"),),
    ),
}


def grid(preset: Preset, tasks: Sequence[str]) -> list[Experiment]:
    """Every experiment of the tasks, in the order in which they are run."""
    experiments = []
    for task in dict.fromkeys(tasks):
        for place, model in preset.models.items():
            for dataset, method, variant, flags in _CELLS[task](preset, place):
                kind = "lora" if method.startswith("lora") else "full"
                rate = preset.rates.get((task, kind))
                rates = ("--lr", rate) if rate else ()
                all_flags = (*model, *flags, *preset.flags.get(task, ()), *rates, *SAVES)
                experiments.append(Experiment(task, dataset, place, method, variant, all_flags))
    return experiments


def _sentiment(preset: Preset, place: str) -> Iterator[Cell]:
    """With the small model only, as in the paper."""
    if place != PLACES[0]:
        return
    for dataset in ("sst", "cfimdb"):
        where = ("--dataset", dataset)
        yield dataset, "last-linear-layer", "", (*where, "--fine_tune_mode", "last-linear-layer")
        full = (*where, "--fine_tune_mode", "full-model")
        yield dataset, "full", "default", full
        yield dataset, "full", "tuned", (*full, "--lr", "1e-4", "--batch_size", "16")


def _lora(rank: int) -> tuple[str, ...]:
    return "--use_lora", "--lora_rank", str(rank)


def _paraphrase(preset: Preset, place: str) -> Iterator[Cell]:
    yield "quora", "full", "", ()
    for rank in preset.ranks[:2]:
        yield "quora", f"lora-{rank}", "", _lora(rank)


def _sonnets(preset: Preset, place: str) -> Iterator[Cell]:
    for size, patience in preset.stops:
        how = ("--train_size", size, "--patience", patience)
        yield "sonnets", "full", f"{size}-{patience}", how
        for rank in preset.ranks:
            yield "sonnets", f"lora-{rank}", f"{size}-{patience}", (*how, *_lora(rank))


_CELLS = {"sentiment": _sentiment, "paraphrase": _paraphrase, "sonnet": _sonnets}
