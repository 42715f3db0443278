"""Which words moved a class: what its probability loses when they are left out."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import numpy as np

MOST_PARTS = 32  # of an example; where it has more words, several in a row are left out together

Classify = Callable[[Sequence[tuple[str, ...]]], np.ndarray]  # n examples of one or two texts -> (n, classes)


def occlude(classify: Classify, texts: tuple[str, ...]) -> tuple[np.ndarray, list[list[tuple[str, float]]]]:
    """Leaves out each word in turn (Zeiler & Fergus 2014, section 4.2; of words, Li et al. 2016).

    Args:
        classify: asked once for everything.
        texts: those of one example.

    Returns:
        (classes,) probabilities of the whole example; and for each of its texts the parts it consists of, each with
        what the likeliest class's probability is more with it than without, in [-1, 1].
    """
    words = sum(len(text.split()) for text in texts)
    size = max(1, math.ceil(words / MOST_PARTS))
    parts = [_parts(text, size) for text in texts]
    without = [
        (*texts[:place], "".join(cut[:i] + cut[i + 1 :]), *texts[place + 1 :])
        for place, cut in enumerate(parts)
        for i in range(len(cut))
    ]
    whole, *others = classify([texts, *without])
    moved = iter(float(whole.max() - other[whole.argmax()]) for other in others)
    return whole, [[(part, next(moved)) for part in cut] for cut in parts]


def _parts(text: str, size: int) -> list[str]:
    """A text cut before every so many words, each with the white space that follows it."""
    found = re.findall(r"\s*\S+\s*", text)
    return ["".join(found[i : i + size]) for i in range(0, len(found), size)]
