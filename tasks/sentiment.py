"""Sentiment of film reviews: SST with five classes, CFIMDB with two (paper, section 5.1)."""

from __future__ import annotations

from pathlib import Path

from tasks.classification import ClassificationTask

LABELS = {
    "sst": ["negative", "somewhat negative", "neutral", "somewhat positive", "positive"],
    "cfimdb": ["negative", "positive"],
}


class Sentiment(ClassificationTask):
    """One of the two data sets.

    Args:
        dataset: `sst` or `cfimdb`.
        data_dir: folder of the course's files.
        skip_bad_rows: go on when more than 1 % of a file cannot be used.
    """

    label_column = "sentiment"
    prediction_column = "Predicted_Sentiment"

    def __init__(self, dataset: str, data_dir: str | Path, skip_bad_rows: bool = False):
        super().__init__(data_dir, skip_bad_rows)
        self.name = dataset
        self.labels = LABELS[dataset]

    @property
    def files(self) -> str:
        return f"ids-{self.name}"
