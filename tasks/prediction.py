"""What a trained model says of texts that are in no data file."""

from __future__ import annotations

import contextlib
import csv
import json
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import numpy as np
import torch

from config import InputError
from models.generation import Sampling
from models.trained import count_places, settings_of_run
from tasks.classification import probabilities
from tasks.lines import Numbered
from tasks.sonnets import Sonnets, complete, most_like_the_others, sonnets_in, written
from tasks.tokens import read_ids
from training.batching import TokenExamples
from training.finished import Finished
from training.flags import SAMPLING, sampling_problem
from training.hardware import Precision
from training.interrupt import StopRequest
from training.objectives import TrainingFailed, predict


class Labeller:
    """Gives texts a class.

    Args:
        finished: a classifier.
        prompt: what the texts are put into, a `{}` for each; None for one that is read as it is.
        precision: what to compute in, and where.
        stop: asked after every batch whether the user wants an end.

    Attributes:
        labels: names of the classes.
        remarks: by what is remarkable of a line, the first such line and how many there were.
    """

    def __init__(self, finished: Finished, prompt: str | None, precision: Precision, stop: StopRequest):
        self.model, self.tokenizer, self.prompt = finished.model, finished.tokenizer, prompt
        self.precision, self.stop = precision, stop
        self.labels = [" ".join(label.split()) for label in self.model.config.id2label.values()]
        self.places = count_places(prompt)
        self.remarks: dict[str, tuple[int, int]] = {}

    def parts(self, line: str, name: str, number: int) -> tuple[str, ...]:
        """The texts of a line, which tabs part, as a data file's are read: without white space at the ends.

        Raises:
            InputError: not as many as the prompt has places.
        """
        texts = tuple(text.strip() for text in line.split("\t")) if self.places > 1 else (line.strip(),)
        if len(texts) != self.places:
            raise InputError(
                f"{name}: line {number} holds {len(texts)} texts; this model reads {self.places}, with tabs between"
            )
        if not all(texts):
            self._remark("is empty or lacks a text", number)
        return texts

    def __call__(self, numbers: Sequence[int], texts: Sequence[tuple[str, ...]]) -> np.ndarray:
        """n texts of the lines of these numbers -> (n, classes) probabilities, in float64.

        Raises:
            Interrupted: the user asked to stop.
            TrainingFailed: what the model computes is not finite.
        """
        limit = self.tokenizer.model_max_length
        ids, lengths = array("i"), []
        examples = [text if self.places > 1 else text[0] for text in texts]
        cut = "shortened" if self.prompt else "cut there"
        too_long = f"does not fit the context of {limit} tokens and is {cut}"
        for row in read_ids(self.tokenizer, examples, self.prompt, lambda i: self._remark(too_long, numbers[i])):
            ids.extend(row)
            lengths.append(len(row))
        examples = TokenExamples(torch.frombuffer(ids, dtype=torch.int32), lengths, limit=limit)
        logits = predict(self.model, self.model, examples, self.precision, self.stop, "texts")
        if not np.isfinite(logits).all():
            raise TrainingFailed(f"the model does not give finite numbers in {self.precision.name}; --precision fp32")
        return probabilities(logits)

    def _remark(self, what: str, number: int) -> None:
        first, count = self.remarks.get(what, (number, 0))
        self.remarks[what] = first, count + 1


def label_lines(labeller: Labeller, chunks: Iterator[Numbered], name: str, form: str, out: TextIO) -> None:
    """Writes what the model says of each line, in their order, chunk by chunk.

    Args:
        chunks: lines by their numbers.
        name: what a message calls where they came from.
        form: `text`, `csv` or `jsonl`.
    """
    write = _WRITERS[form](labeller.labels, labeller.places, out)
    try:
        for chunk in chunks:
            problem, numbers, texts = None, [], []
            for number, line in chunk:
                try:
                    texts.append(labeller.parts(line, name, number))
                except InputError as error:
                    problem = error  # what comes before it is still answered
                    break
                numbers.append(number)
            if texts:
                for number, parts, row in zip(numbers, texts, labeller(numbers, texts), strict=True):
                    write(number, parts, row)
                out.flush()
            if problem:
                raise problem
    finally:
        for what, (first, count) in labeller.remarks.items():
            print(f"{name}: line {first}{f' and {count - 1} more' if count > 1 else ''}: {what}", file=sys.stderr)


class _Text:
    """The likeliest class and its probability, parted by a tab."""

    def __init__(self, labels: Sequence[str], places: int, out: TextIO):
        self.labels, self.out = labels, out

    def __call__(self, number: int, texts: Sequence[str], row: np.ndarray) -> None:
        print(f"{self.labels[row.argmax()]}\t{row.max():.3f}", file=self.out)


class _Csv:
    """Everything, under a header."""

    def __init__(self, labels: Sequence[str], places: int, out: TextIO):
        self.labels, self.write = labels, csv.writer(out, lineterminator="\n").writerow
        texts = ["text"] if places == 1 else [f"text{i + 1}" for i in range(places)]
        self.write(["line", *texts, "label", "probability", *(f"p({label})" for label in labels)])

    def __call__(self, number: int, texts: Sequence[str], row: np.ndarray) -> None:
        numbers = [f"{value:.6f}" for value in (row.max(), *row)]
        self.write([number, *texts, self.labels[row.argmax()], *numbers])


class _Jsonl:
    """Everything, a JSON object a line."""

    def __init__(self, labels: Sequence[str], places: int, out: TextIO):
        self.labels, self.out = labels, out

    def __call__(self, number: int, texts: Sequence[str], row: np.ndarray) -> None:
        values = [round(float(value), 6) for value in row]
        said = {"line": number} | ({"text": texts[0]} if len(texts) == 1 else {"texts": texts})
        said |= {"label": self.labels[row.argmax()], "probability": max(values)}
        said |= {"probabilities": dict(zip(self.labels, values, strict=True))}
        print(json.dumps(said), file=self.out)


_WRITERS = {"text": _Text, "csv": _Csv, "jsonl": _Jsonl}


def sampling_of(directory: Path, settings: dict) -> dict:
    """How a model of sonnets writes: as the flags say, else as the run that trained it did, else as its script would.

    Args:
        directory: of the weights; `config.json` of the folder above it is the run's.

    Raises:
        InputError: flags that contradict one another.
    """
    saved = {k: v for k, v in settings_of_run(directory).items() if k in (*SAMPLING, "seed")}
    usual = SAMPLING | {"seed": 11711} | saved
    chosen = usual | {k: settings[k] for k in usual if settings[k] is not None}
    try:
        Sampling(chosen["temperature"], chosen["top_k"], chosen["top_p"])
        whole = all(isinstance(chosen[k], int) and chosen[k] >= 0 for k in ("max_new_tokens", "num_candidates", "seed"))
        problem = sampling_problem(chosen) if whole else "not whole numbers"
    except (TypeError, ValueError) as error:
        raise InputError(f"{directory.resolve().parent / 'config.json'}: {error}") from error
    if problem:
        raise InputError(problem)
    return chosen


def continue_sonnets(
    finished: Finished, lines: list[str], name: str, sampling: dict, precision: Precision, stop: StopRequest
) -> Sonnets:
    """Continues poems from their first lines. What there is to say of one goes to standard error.

    Args:
        lines: of a file in the course's format, where a number stands above each poem; else of one poem.
        name: what a message calls where they came from.
        sampling: as `sampling_of` has it.

    Returns:
        The poems; where no number stood above the one there is, it has none.
    """
    if finished.tokenizer.eos_token is None:
        raise InputError(f"{finished.directory}: its tokenizer has no end-of-text token, which ends a sonnet")
    with contextlib.redirect_stdout(sys.stderr), precision.autocast():
        if any(line.strip().isdecimal() for line in lines):
            given = sonnets_in(lines, Path(name), keep_empty=True)
        else:
            given = Sonnets(Path(name), [""], [[line for line in lines if line.strip()]])
        how = Sampling(sampling["temperature"], sampling["top_k"], sampling["top_p"])
        candidates = complete(
            finished.model, finished.tokenizer, given, how,
            sampling["seed"], sampling["max_new_tokens"], sampling["num_candidates"], stop,
        )  # fmt: skip
        return replace(given, poems=[most_like_the_others(versions) for versions in candidates])


def write_poems(sonnets: Sonnets, form: str, out: TextIO) -> None:
    """In the course's format, a single one by its lines alone; or as `csv` or `jsonl`, a record each."""
    poems = list(zip(sonnets.numbers, sonnets.poems, strict=True))
    if form == "csv":
        csv.writer(out, lineterminator="\n").writerows(
            [("number", "text"), *((number, "\n".join(lines)) for number, lines in poems)]
        )
    elif form == "jsonl":
        out.writelines(json.dumps({"number": number, "lines": lines}) + "\n" for number, lines in poems)
    elif sonnets.numbers == [""]:
        out.writelines(f"{line}\n" for line in sonnets.poems[0])
    else:
        out.write(written(sonnets))
    out.flush()
