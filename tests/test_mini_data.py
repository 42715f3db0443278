"""The small data of our own: in the course's formats, as much as promised, and nothing twice."""

from __future__ import annotations

import csv
import re
from collections import Counter

import pytest
from conftest import ROOT

from tasks.sentiment import Sentiment

MINI = ROOT / "data" / "mini"


def column(name: str, *columns: str) -> list[tuple[str, ...]]:
    with open(MINI / name, encoding="utf-8", newline="") as file:
        return [tuple(row[c] for c in columns) for row in csv.DictReader(file, delimiter="\t", strict=True)]


@pytest.mark.parametrize(("name", "least"), [("sst", 300), ("cfimdb", 60)])
def test_reviews_are_read_whole_and_every_class_is_in_every_part(name, least):
    task = Sentiment(name, MINI)
    splits = {part: task.read(part) for part in ("train", "dev", "test")}
    assert not any(split.bad for split in splits.values())
    texts = [text for split in splits.values() for text in split.texts]
    assert len(texts) == len(set(texts)) >= least
    labels = {part: splits[part].labels for part in ("train", "dev")}
    labels["test"] = [int(label) for (label,) in column(f"ids-{name}-test-labels.csv", "sentiment")]
    for part, known in labels.items():
        assert len(known) == len(splits[part].texts)
        assert set(known) == set(range(len(task.labels))), part
    assert [i for (i,) in column(f"ids-{name}-test-labels.csv", "id")] == splits["test"].ids


def test_unlike_questions_share_as_many_words_as_like_ones():
    pairs = [
        row
        for part in ("train", "dev")
        for row in column(f"quora-{part}.csv", "sentence1", "sentence2", "is_duplicate")
    ]
    labels = dict(column("quora-test-labels.csv", "id", "is_duplicate"))
    pairs += [(a, b, labels[i]) for i, a, b in column("quora-test-student.csv", "id", "sentence1", "sentence2")]
    assert len(set(pairs)) == len(pairs) >= 200
    overlap = {"0.0": [], "1.0": []}
    for first, second, label in pairs:
        words = [set(re.findall(r"\w+", question.lower())) for question in (first, second)]
        overlap[label].append(len(words[0] & words[1]) / len(words[0] | words[1]))
    unlike, like = (sum(values) / len(values) for values in overlap.values())
    assert unlike > like - 0.05
    assert 0.4 < len(overlap["1.0"]) / len(pairs) < 0.6


def test_sonnets_have_their_form():
    poems = {}
    for name in ("sonnets.txt", "TRUE_sonnets_held_out_dev.txt", "TRUE_sonnets_held_out.txt"):
        parts = re.split(r"^(\d+)\n\n", (MINI / name).read_text(encoding="utf-8"), flags=re.M)
        poems |= {
            int(number): text.strip("\n").split("\n") for number, text in zip(parts[1::2], parts[2::2], strict=True)
        }
    assert sorted(poems) == list(range(1, 25))
    lines = Counter(line for poem in poems.values() for line in poem)
    assert max(lines.values()) == 1
    for poem in poems.values():
        assert len(poem) == 14
        assert [line.startswith("  ") for line in poem] == [False] * 12 + [True] * 2
    for part in ("_dev", ""):
        heads = re.split(r"^(\d+)\n\n", (MINI / f"sonnets_held_out{part}.txt").read_text(encoding="utf-8"), flags=re.M)
        for number, text in zip(heads[1::2], heads[2::2], strict=True):
            assert text.strip("\n").split("\n") == poems[int(number)][:3]
