"""How sure a number is."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest

RESAMPLINGS = 2000


def spread(values: Sequence[float], form: str) -> str:
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
