"""Sentiment of film reviews: SST with five classes, CFIMDB with two (paper, section 5.1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import InputError
from tasks.table import BadRow, parse_label, read_table, refuse_if_too_many

LABELS = {
    "sst": ["negative", "somewhat negative", "neutral", "somewhat positive", "positive"],
    "cfimdb": ["negative", "positive"],
}


@dataclass
class Split:
    """The rows of one file that are used.

    Attributes:
        ids: as they stand in the file.
        texts: without white space at the ends.
        labels: class numbers; None where a test row has none.
        bad: rows left out, and why.
    """

    path: Path
    ids: list[str]
    texts: list[str]
    labels: list[int | None]
    bad: list[BadRow]

    def first(self, count: int | None) -> Split:
        """The first `count` rows; all, if None."""
        return Split(self.path, self.ids[:count], self.texts[:count], self.labels[:count], self.bad)


class Sentiment:
    """One of the two data sets.

    Args:
        dataset: `sst` or `cfimdb`.
        data_dir: folder of the course's files.
        skip_bad_rows: go on when more than 1 % of a file cannot be used.
    """

    prediction_column = "Predicted_Sentiment"

    def __init__(self, dataset: str, data_dir: str | Path, skip_bad_rows: bool = False):
        self.name = dataset
        self.labels = LABELS[dataset]
        self.data_dir = Path(data_dir)
        self.skip_bad_rows = skip_bad_rows

    def read(self, split: str) -> Split:
        """Reads `train`, `dev` or `test`.

        Rows that cannot be used (no label, one that is not a whole number or not a class, no text) are left out of
        `train` and `dev`. Of `test` nothing is left out, and it need have no labels; those of a file of ids and labels
        beside it, `ids-DATASET-test-labels.csv`, are taken for its own.

        Raises:
            InputError: the file cannot be read, or more than 1 % of its rows cannot be used.
        """
        testing = split == "test"
        path = self.data_dir / f"ids-{self.name}-{'test-student' if testing else split}.csv"
        rows = read_table(path, ("id", "sentence") if testing else ("id", "sentence", "sentiment"))
        labels = self._labels_of_test() if testing else {}
        used = Split(path, [], [], [], [])
        for row in rows:
            id_, text, label, problem = row.fields["id"].strip(), row.fields["sentence"].strip(), None, row.problem
            try:
                label = parse_label(row.fields.get("sentiment") or labels.get(id_, ""), len(self.labels))
            except ValueError as error:
                problem = problem or str(error)
            if not text:
                problem = problem or "empty text"
            if problem and not testing:
                used.bad.append(BadRow(str(path), row.line, id_, problem))
                continue
            used.ids.append(id_)
            used.texts.append(text)
            used.labels.append(label)
        refuse_if_too_many(used.bad, len(rows), self.skip_bad_rows)
        if not used.ids:
            raise InputError(f"{path}: no row of it can be used; the first: {used.bad[0].reason}")
        return used

    def _labels_of_test(self) -> dict[str, str]:
        path = self.data_dir / f"ids-{self.name}-test-labels.csv"
        if not path.is_file():
            return {}
        return {row.fields["id"].strip(): row.fields["sentiment"] for row in read_table(path, ("id", "sentiment"))}

    def score(self, logits: np.ndarray, labels: list[int]) -> dict[str, float]:
        """
        Args:
            logits: (n, classes).
            labels: n class numbers.

        Returns:
            `loss`: mean cross-entropy in nats; `acc`; `f1`, the mean of the classes' F1 scores.
        """
        from sklearn.metrics import log_loss

        logits = logits.astype(np.float64)
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = exponents / exponents.sum(axis=1, keepdims=True)
        loss = log_loss(labels, probabilities, labels=range(len(self.labels)))
        return {"loss": float(loss)} | self.accuracy_and_f1(labels, logits.argmax(axis=1))

    def accuracy_and_f1(self, labels: list[int], predictions: np.ndarray) -> dict[str, float]:
        """`acc`, and `f1` as in `score`, of n predicted classes."""
        from sklearn.metrics import accuracy_score, f1_score

        return {
            "acc": float(accuracy_score(labels, predictions)),
            "f1": float(f1_score(labels, predictions, average="macro", zero_division=0)),
        }
