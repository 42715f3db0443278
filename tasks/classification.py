"""What the classification tasks share: rows with their labels, the model's head, and scores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import InputError
from models.heads import GPT2ForSequenceClassification
from models.tokenizer_files import token_ids
from models.trained import count_places
from tasks.baselines import fit_baselines, fit_pair_baselines
from tasks.table import BadRow, Row, parse_label, read_table, refuse_if_too_many, sample
from tasks.tokens import read_ids, tokenized
from training.batching import TokenExamples
from training.methods import Forward
from training.network import Loaded
from training.objectives import Classification


@dataclass
class Split:
    """The rows of one file that are used.

    Attributes:
        ids: as they stand in the file.
        texts: without white space at the ends; a tuple of them where an example is several.
        labels: class numbers; None where a test row has none.
        bad: rows left out, and why.
    """

    path: Path
    ids: list[str]
    texts: list
    labels: list[int | None]
    bad: list[BadRow]

    def first(self, count: int | None) -> Split:
        """The first `count` rows; all, if None."""
        return Split(self.path, self.ids[:count], self.texts[:count], self.labels[:count], self.bad)

    def sample(self, count: int | None) -> Split:
        """`count` of the rows, in the file's order, always the same ones; all, if None."""
        return self.pick(sample(len(self.ids), count))

    def pick(self, indices: Sequence[int]) -> Split:
        """Some of the rows, in that order."""
        ids, texts, labels = ([column[i] for i in indices] for column in (self.ids, self.texts, self.labels))
        return Split(self.path, ids, texts, labels, self.bad)


def read_split(
    data_dir: Path, name: str, split: str, columns: Sequence[str], label: str, classes: int, skip_bad_rows: bool
) -> Split:
    """Reads `NAME-train.csv`, `NAME-dev.csv` or, as `test`, `NAME-test-student.csv`.

    Rows that cannot be used (no label, one that is not a whole number or not a class, no text) are left out of `train`
    and `dev`. Of `test` nothing is left out, and it need have no labels; those of a file of ids and labels beside it,
    `NAME-test-labels.csv`, are taken for its own. Ids need not differ: everything is in the order of the file.

    Args:
        columns: of the texts.
        label: the column of the class.
        classes: how many there are.
        skip_bad_rows: go on when more than 1 % of the file cannot be used.

    Raises:
        InputError: the file cannot be read, or more than 1 % of its rows cannot be used.
    """
    testing = split == "test"
    path = data_dir / f"{name}-{'test-student' if testing else split}.csv"
    rows = read_table(path, ("id", *columns) if testing else ("id", *columns, label))
    labels = _labels(data_dir / f"{name}-test-labels.csv", label) if testing else {}
    used, unlabelled = Split(path, [], [], [], []), []
    for row in rows:
        id_, value, problem = _id(row), None, row.problem
        texts = tuple(row.fields[column].strip() for column in columns)
        written = row.fields.get(label) or labels.get(id_, "")
        try:
            value = parse_label(written, classes)
        except ValueError as error:
            problem = problem or str(error)
            if testing and written.strip():
                unlabelled.append(f"{id_}: {error}")
        if not all(texts):
            problem = problem or "empty text"
        if problem and not testing:
            used.bad.append(BadRow(str(path), row.line, id_, problem))
            continue
        used.ids.append(id_)
        used.texts.append(texts if len(texts) > 1 else texts[0])
        used.labels.append(value)
    if unlabelled:
        print(f"{path}: {len(unlabelled)} of {len(rows)} rows are not scored; the first, {unlabelled[0]}")
    refuse_if_too_many(used.bad, len(rows), skip_bad_rows)
    if not used.ids:
        raise InputError(f"{path}: no row of it can be used; the first: {used.bad[0].reason}")
    return used


def _labels(path: Path, label: str) -> dict[str, str]:
    """Labels by id; none, if there is no such file.

    Raises:
        InputError: the file cannot be read, or it gives an id two labels.
    """
    labels: dict[str, str] = {}
    if not os.path.lexists(path):
        return labels
    for row in read_table(path, ("id", label)):
        text = row.fields[label].strip()
        if labels.setdefault(_id(row), text) != text:
            raise InputError(
                f"{path}: line {row.line}: {_id(row)} has the label {labels[_id(row)]!r} above, and {text!r}"
            )
    return labels


def _id(row: Row) -> str:
    """Without line breaks, which would part a line of the prediction file."""
    return " ".join(row.fields["id"].split())


class ClassificationTask:
    """What `training.finetune.Task` asks for, as tasks with classes answer it. One of them says what differs.

    Attributes:
        name: of the data set. Its files are `NAME-train.csv`, `NAME-dev.csv` and `NAME-test-student.csv`.
        labels: names of the classes.
        columns: of the files, that hold an example's text, or its two texts.
        label_column: of the files.
        prediction_column: of the prediction files.
        prompt: what the texts are put into, a `{}` for each; None for one that is read as it is.
        answers: words a language model could name the classes by; None if it is not asked to.

    Args:
        data_dir: folder of the files.
        skip_bad_rows: go on when more than 1 % of a file cannot be used.

    Raises:
        TypeError: the prompt has other places than there are columns.
    """

    name: str
    labels: Sequence[str]
    columns: Sequence[str] = ("sentence",)
    label_column = "label"
    prediction_column = "Predicted_Label"
    prompt: str | None = None
    answers: Sequence[str] | None = None

    def __init__(self, data_dir: str | Path, skip_bad_rows: bool = False):
        self.data_dir, self.skip_bad_rows = Path(data_dir), skip_bad_rows
        if len(self.columns) != count_places(self.prompt):
            raise TypeError(f"{type(self).__name__}.prompt must have a {{}} for each of its columns")

    @property
    def files(self) -> str:
        """What the names of its files begin with."""
        return self.name

    @property
    def score_first(self) -> bool:
        return self.answers is not None

    def describe(self) -> dict:
        """What `models.trained.read_task` reads again."""
        return {"name": self.name, "labels": list(self.labels), "prompt": self.prompt}

    def read(self, split: str) -> Split:
        """Reads `train`, `dev` or `test`, as `read_split` says."""
        columns, classes = (self.columns, self.label_column), len(self.labels)
        return read_split(self.data_dir, self.files, split, *columns, classes, self.skip_bad_rows)

    def encode(self, tokenizer, split: Split) -> TokenExamples:
        """Token ids of the texts, as `read_ids` gives them; without a prompt they are cut at the end of the context."""
        limit, padding, texts = tokenizer.model_max_length, tokenizer.pad_token_id, split.texts
        recipe = ["the text", padding] if self.prompt is None else [self.prompt, limit]
        ids, lengths = tokenized(
            split.path.name, texts, tokenizer, recipe, lambda: read_ids(tokenizer, texts, self.prompt)
        )
        long = sum(length > limit for length in lengths)
        if long:
            print(f"{split.path}: {long} of {len(lengths)} texts are longer than {limit} tokens and cut there")
        return TokenExamples(ids, lengths, split.labels, limit)

    def fit_baselines(self, texts: Sequence, labels: Sequence[int]) -> dict:
        """As `tasks.baselines` says, by the name to print."""
        return (fit_baselines if len(self.columns) == 1 else fit_pair_baselines)(texts, labels)

    def written(self, predictions: np.ndarray) -> np.ndarray:
        """(n,) classes as prediction files say them."""
        return predictions

    def build(self, loaded: Loaded, settings: dict) -> GPT2ForSequenceClassification:
        """The network with a linear layer that gives a logit a class."""
        model = GPT2ForSequenceClassification(loaded.network, self.labels, settings["hidden_dropout_prob"])
        if settings.get("head_init") == "cloze":
            firsts = [ids[:1] for ids in token_ids(loaded.tokenizer, list(self.answers))]
            if not all(firsts) or len({id_ for (id_,) in firsts}) < len(firsts):
                raise InputError(
                    f"--head_init cloze: {loaded.source}: its tokenizer does not tell {' and '.join(self.answers)} "
                    "apart by their first token; take --head_init random"
                )
            model.start_head_from([id_ for (id_,) in firsts])
        return model

    def objective(self, model: GPT2ForSequenceClassification, forward: Forward) -> Classification:
        return Classification(model, forward, score)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """(n, classes) of any precision -> (n, classes) in float64, which add up to 1."""
    logits = logits.astype(np.float64)
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def score(logits: np.ndarray, labels: list[int]) -> dict[str, float]:
    """
    Args:
        logits: (n, classes).
        labels: n class numbers.

    Returns:
        `loss`: mean cross-entropy in nats; `acc`; `f1`, the mean of the classes' F1 scores.
    """
    from sklearn.metrics import log_loss

    loss = log_loss(labels, probabilities(logits), labels=range(logits.shape[1]))
    return {"loss": float(loss)} | accuracy_and_f1(labels, logits.argmax(axis=1))


def accuracy_and_f1(labels: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """`acc`, and `f1` as in `score`, of n predicted classes."""
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "acc": float(accuracy_score(labels, predictions)),
        "f1": float(f1_score(labels, predictions, average="macro", zero_division=0)),
    }
