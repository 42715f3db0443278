"""Sentiment of film reviews: SST with five classes, CFIMDB with two (paper, section 5.1)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tasks.baselines import fit_baselines
from tasks.classification import ClassificationTask, Split, read_split
from tasks.tokens import rows_of_ids, tokenized
from training.batching import TokenExamples

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

    prediction_column = "Predicted_Sentiment"
    fit_baselines = staticmethod(fit_baselines)

    def __init__(self, dataset: str, data_dir: str | Path, skip_bad_rows: bool = False):
        self.name = dataset
        self.labels = LABELS[dataset]
        self.data_dir = Path(data_dir)
        self.skip_bad_rows = skip_bad_rows

    def read(self, split: str) -> Split:
        """Reads `train`, `dev` or `test`, as `read_split` says."""
        name, classes = f"ids-{self.name}", len(self.labels)
        return read_split(self.data_dir, name, split, ["sentence"], "sentiment", classes, self.skip_bad_rows)

    def encode(self, tokenizer, split: Split) -> TokenExamples:
        """Token ids of the texts, cut at the end of the context; an empty text becomes the end-of-text token."""
        limit = tokenizer.model_max_length

        def make() -> Iterator[list[int]]:
            return (ids or [tokenizer.pad_token_id] for ids in rows_of_ids(tokenizer, split.texts))

        ids, lengths = tokenized(split.path.name, split.texts, tokenizer, ["the text", tokenizer.pad_token_id], make)
        long = sum(length > limit for length in lengths)
        if long:
            print(f"{split.path}: {long} of {len(lengths)} texts are longer than {limit} tokens and cut there")
        return TokenExamples(ids, lengths, split.labels, limit)

    def written(self, predictions: np.ndarray) -> np.ndarray:
        """(n,) classes as prediction files say them."""
        return predictions
