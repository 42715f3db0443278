"""How sure a number is."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest

RESAMPLINGS = 2000


def spread(values: Sequence[float], form: str = ".3f") -> str:
    """Their mean, and their standard deviation if they are several."""
    mean = format(statistics.mean(values), form)
    return f"{mean} ± {format(statistics.stdev(values), form)}" if len(values) > 1 else mean


def interval(right: Sequence[np.ndarray]) -> tuple[float, float]:
    """95 % bootstrap interval of an accuracy, over the examples.

    Args:
        right: for each seed, (n,) which of the same examples were right; their mean is resampled.
    """
    share = np.mean(right, axis=0)
    rows = np.random.default_rng(0).integers(len(share), size=(RESAMPLINGS, len(share)))
    low, high = np.quantile(share[rows].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def holm(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which of several hypotheses can be refused, with a chance of at most `level` that one of them is refused wrongly
    (Holm 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    refused = [False] * len(p_values)
    for rank, i in enumerate(order):
        if p_values[i] > level / (len(order) - rank):
            break
        refused[i] = True
    return refused


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact p-value of the hypothesis that two classifiers are equally good, from the examples on which one alone is
    right (McNemar 1947).

    Args:
        first: (n,) which examples it had right.
        second: the same of the other.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)
