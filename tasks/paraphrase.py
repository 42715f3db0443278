"""Whether two questions mean the same: Quora's pairs, put to the network as a cloze (paper, section 5.1)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tasks.classification import ClassificationTask

# In training and at test alike. What follows it is one of `Paraphrase.answers`.
PROMPT = 'Question 1: "{}"\nQuestion 2: "{}"\nDo these two questions mean the same, yes or no?\n'
GPT2_ANSWERS = np.array([3919, 8505])  # the words no and yes in GPT-2's vocabulary


class Paraphrase(ClassificationTask):
    """The Quora question pairs.

    Args:
        data_dir: folder of the course's files.
        skip_bad_rows: go on when more than 1 % of a file cannot be used.
        prediction_labels: what prediction files say, `01` or `tokens`: class numbers, or GPT-2's ids of the answers.
    """

    name = "quora"
    labels = answers = ("no", "yes")
    columns = ("sentence1", "sentence2")
    label_column = "is_duplicate"
    prediction_column = "Predicted_Is_Paraphrase"
    prompt = PROMPT

    def __init__(self, data_dir: str | Path, skip_bad_rows: bool = False, prediction_labels: str = "01"):
        super().__init__(data_dir, skip_bad_rows)
        self.prediction_labels = prediction_labels

    def written(self, predictions: np.ndarray) -> np.ndarray:
        """(n,) classes as prediction files say them."""
        return GPT2_ANSWERS[predictions] if self.prediction_labels == "tokens" else predictions
