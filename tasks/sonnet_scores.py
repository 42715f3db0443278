"""How good continued sonnets are, beside what costs no model at all."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from sacrebleu.metrics import CHRF

from tasks.verse import four_grams, rhymes, syllables

DRAWS = 50  # of the baseline that takes its lines from a random training sonnet
TAIL = 11  # lines of it
RESAMPLINGS = 1000  # of the poems, for an interval

Poem = Sequence[str]


@dataclass
class Scores:
    """Of the poems that one method gives; the last five are of their lines, whatever the truth is.

    Attributes:
        chrf: corpus chrF of the whole poems; None where the truth is not known.
        chrf_within: half the width of its 95 % interval, from resampling the poems.
        new_chrf: corpus chrF of the lines that were not given.
        lines: a poem.
        characters: a poem.
        syllables: a line.
        rhymes: pairs of the scheme ABAB CDCD EFEF GG that rhyme, of seven.
        copied: share of the new lines' runs of four words that the training sonnets hold too.
    """

    chrf: float | None
    chrf_within: float | None
    new_chrf: float | None
    lines: float
    characters: float
    syllables: float
    rhymes: float
    copied: float


class Judge:
    """Scores poems that begin with the same lines.

    Args:
        given: the lines that each begins with.
        truth: the whole poems, or None where they are not known.
        training: what may have been copied.
    """

    def __init__(self, given: Sequence[Poem], truth: Sequence[Poem] | None, training: Sequence[Poem]):
        self.given, self.truth, self.training = given, truth, training
        self.known = {gram for poem in training for gram in four_grams(poem)}

    def score(self, poems: Sequence[Poem], interval: bool = True) -> Scores:
        """One method's; `chrf_within`, which takes most of the time, only if an interval is wanted."""
        new = [poem[len(given) :] for given, poem in zip(self.given, poems, strict=True)]
        grams = [gram for poem in new for gram in four_grams(poem)]
        lines = [line for poem in poems for line in poem]
        chrf = within = new_chrf = None
        if self.truth:
            whole = _chrf(poems, self.truth, RESAMPLINGS if interval else 1)
            chrf = float(whole.score)
            within = float(whole._ci) if interval else None  # sacreBLEU's own bootstrap; no other way to it
            new_chrf = _chrf(
                new, [poem[len(given) :] for given, poem in zip(self.given, self.truth, strict=True)]
            ).score
        return Scores(
            chrf,
            within,
            new_chrf,
            lines=len(lines) / len(poems),
            characters=sum(map(len, lines)) / len(poems),
            syllables=float(np.mean([syllables(line) for line in lines])) if lines else 0.0,
            rhymes=float(np.mean([rhymes(poem) for poem in poems])),
            copied=sum(gram in self.known for gram in grams) / max(1, len(grams)),
        )

    def baselines(self) -> dict[str, Scores]:
        """What is given alone; then with the last eleven lines of random training sonnets below, the mean of fifty
        draws, with the first draw's interval; and, where they are known, the poems themselves."""
        rows = {"the given lines alone": self.score(self.given)}
        draws = []
        for seed in range(DRAWS):
            pick = random.Random(seed).choice
            draws.append(self.score([[*given, *pick(self.training)[-TAIL:]] for given in self.given], not draws))
        columns = zip(*(asdict(draw).values() for draw in draws), strict=True)
        known = ([value for value in column if value is not None] for column in columns)
        means = (float(np.mean(values)) if values else None for values in known)
        rows[f"and a training sonnet's last {TAIL}"] = Scores(*means)
        return rows | ({"the sonnets themselves": self.score(self.truth)} if self.truth else {})


def _chrf(poems: Sequence[Poem], truth: Sequence[Poem], resamplings: int = 1):
    texts, references = (["\n".join(poem) for poem in some] for some in (poems, truth))
    return CHRF().corpus_score(texts, [references], n_bootstrap=resamplings)


def _signature() -> str:
    chrf = CHRF()
    chrf.corpus_score(["a"], [["a"]], n_bootstrap=RESAMPLINGS)
    return str(chrf.get_signature())


SIGNATURE = _signature()  # which chrF this is, as sacreBLEU says it

COLUMNS: dict[str, Callable[[Scores], str]] = {
    "chrF": lambda s: "" if s.chrf is None else f"{s.chrf:.1f} ± {s.chrf_within:.1f}",
    "of new lines": lambda s: "" if s.new_chrf is None else f"{s.new_chrf:.1f}",
    "lines": lambda s: f"{s.lines:.1f}",
    "characters": lambda s: f"{s.characters:.0f}",
    "syllables a line": lambda s: f"{s.syllables:.1f}",
    "rhymes of 7": lambda s: f"{s.rhymes:.1f}",
    "copied 4-grams": lambda s: f"{s.copied:.1%}",
}


def print_scores(title: str, rows: dict[str, Scores]) -> None:
    """A table, a method a line."""
    width = max(map(len, [*rows, title]))
    print(f"{title:{width}}" + "".join(f"  {column:>{max(len(column), 11)}}" for column in COLUMNS))
    for name, scores in rows.items():
        cells = (f"  {cell(scores):>{max(len(column), 11)}}" for column, cell in COLUMNS.items())
        print(f"{name:{width}}" + "".join(cells))
