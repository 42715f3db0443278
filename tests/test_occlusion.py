"""Words that moved a class: by a classifier that counts, whose words are known to matter."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tasks.occlusion import MOST_PARTS, occlude


def count_good(examples: list[tuple[str, ...]]) -> np.ndarray:
    """Each `good` makes the second class likelier by a hundredth."""
    p = np.array([0.5 + 0.01 * sum(text.split().count("good") for text in texts) for texts in examples])
    return np.stack([1 - p, p], axis=1)


words = st.sampled_from(["good", "bad", "plain", "é", "a-b", "&amp;"])
spaces = st.sampled_from([" ", "  ", "\n", "\t "])
texts = st.lists(st.tuples(words, spaces), max_size=15).map(lambda pairs: "".join(w + s for w, s in pairs))


@given(st.tuples(texts) | st.tuples(texts, texts))
def test_each_word_has_moved_what_it_says(example):
    whole, parts = occlude(count_good, example)
    assert (whole == count_good([example])[0]).all()
    assert ["".join(word for word, _ in text) for text in parts] == [text if text.split() else "" for text in example]
    for word, moved in (part for text in parts for part in text):
        np.testing.assert_allclose(moved, 0.01 * (word.strip() == "good"), atol=1e-12)


@given(st.integers(0, 300), st.integers(0, 300))
def test_many_words_are_left_out_together(first, second):
    asked = []

    def classify(examples):
        asked.extend(examples)
        return np.full((len(examples), 2), 0.5)

    _, parts = occlude(classify, ("w " * first, "v " * second))
    assert len(asked) == 1 + sum(map(len, parts)) <= 2 + MOST_PARTS
    assert sum(len(part.split()) for text in parts for part, _ in text) == first + second
