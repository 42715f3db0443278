"""When to stop training: after some epochs in a row without a better score (paper, section 5.3)."""

from __future__ import annotations

import math


class EarlyStopping:
    """Counts the epochs since the best one.

        val loss    4.1   3.8   3.9   3.7   3.7   3.9        patience 2
        waited       0     0     1     0     1     2         over after the sixth epoch, best the fourth

    Args:
        patience: epochs without a better score that end training, 1 the first of them; None never does.
        best: the best score so far, and
        waited: the epochs since then, to go on where an interrupted run was.
    """

    def __init__(self, patience: int | None = None, best: float = -math.inf, waited: int = 0):
        self.patience, self.best, self.waited = patience, best, waited

    def improves(self, score: float) -> bool:
        """Takes note of an epoch's score, higher is better, and says whether it is the best so far."""
        if score > self.best:
            self.best, self.waited = score, 0
            return True
        self.waited += 1
        return False

    @property
    def over(self) -> bool:
        return self.patience is not None and self.waited >= self.patience
