"""Whether two questions mean the same: Quora's pairs, put to the network as a cloze (paper, section 5.1)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from config import InputError
from tasks.baselines import fit_pair_baselines
from tasks.classification import ClassificationTask, Split, read_split
from tasks.tokens import rows_of_ids, tokenized
from training.batching import TokenExamples

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
    prediction_column = "Predicted_Is_Paraphrase"
    fit_baselines = staticmethod(fit_pair_baselines)

    def __init__(self, data_dir: str | Path, skip_bad_rows: bool = False, prediction_labels: str = "01"):
        self.data_dir = Path(data_dir)
        self.skip_bad_rows = skip_bad_rows
        self.prediction_labels = prediction_labels

    def read(self, split: str) -> Split:
        """Reads `train`, `dev` or `test`, as `read_split` says; a text is a pair."""
        columns = ["sentence1", "sentence2"]
        return read_split(self.data_dir, self.name, split, columns, "is_duplicate", 2, self.skip_bad_rows)

    def encode(self, tokenizer, split: Split) -> TokenExamples:
        """Token ids of the prompts; a pair that is too long for the context is shortened.

        Raises:
            InputError: the context is too short for the prompt alone.
        """
        limit = tokenizer.model_max_length

        def make() -> Iterator[list[int]]:
            prompts = [PROMPT.format(*pair) for pair in split.texts]
            for pair, ids in zip(split.texts, rows_of_ids(tokenizer, prompts), strict=True):
                yield ids if len(ids) <= limit else shortened(tokenizer, pair, limit)

        return TokenExamples(*tokenized(split.path.name, split.texts, tokenizer, [PROMPT, limit], make), split.labels)

    def written(self, predictions: np.ndarray) -> np.ndarray:
        """(n,) classes as prediction files say them."""
        return GPT2_ANSWERS[predictions] if self.prediction_labels == "tokens" else predictions


def shortened(tokenizer, pair: tuple[str, str], limit: int) -> list[int]:
    """Token ids of a prompt that loses the ends of its questions, the longer one's first, until it fits.

    Raises:
        InputError: it does not fit without any question.
    """
    ends = [[end for _, end in tokenizer(text, return_offsets_mapping=True)["offset_mapping"]] for text in pair]
    while True:
        cut = [text[: max(end, default=0)] for text, end in zip(pair, ends, strict=True)]
        ids = tokenizer(PROMPT.format(*cut))["input_ids"]
        excess = len(ids) - limit
        if excess <= 0:
            return ids
        if not any(ends):
            raise InputError(f"a context of {limit} tokens is too short for the prompt, which takes {len(ids)}")
        for _ in range(excess):
            del max(ends, key=len)[-1:]
