"""The form of English sonnets: lines, syllables, rhymes, and what is borrowed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

import pronouncing

LINES = 14
SCHEME = ((0, 2), (1, 3), (4, 6), (5, 7), (8, 10), (9, 11), (12, 13))  # ABAB CDCD EFEF GG


def words(text: str) -> list[str]:
    """In lower case, with apostrophes, without anything else."""
    return re.findall(r"[a-z]+(?:'[a-z]+)*", text.lower().replace("\u2019", "'"))


def syllables(line: str) -> int:
    """As the CMU dictionary has them; of a word it does not know, the groups of vowels that are heard."""
    return sum(_syllables(word) for word in words(line))


@cache
def _syllables(word: str) -> int:
    phones = _phones(word)
    if phones:
        return pronouncing.syllable_count(phones[0])
    groups = re.findall(r"[aeiouy]+", re.sub(r"(?<=[^aeiouy])(e|es|ed)$", "", word))
    return max(1, len(groups))


@cache
def _phones(word: str) -> list[str]:
    return pronouncing.phones_for_word(word) or pronouncing.phones_for_word(word.replace("'", ""))


def rhyme(first: str, second: str) -> bool:
    """Whether the last words of two lines rhyme: from the last stressed vowel on they sound alike in some
    pronunciation, or, where the dictionary lacks one, are spelled alike. A word does not rhyme with itself."""
    a, b = (words(line)[-1:] for line in (first, second))
    if not a or not b or a == b:
        return False
    sounds, others = ({pronouncing.rhyming_part(phones) for phones in _phones(word)} for (word,) in (a, b))
    if sounds and others:
        return bool(sounds & others)
    # Of a word without end the search would take a time that grows with the square of its length.
    endings = [re.search(r"[aeiouy]+[^aeiouy]*(e|es|ed)?$", word[-100:]) for (word,) in (a, b)]
    return all(endings) and endings[0].group() == endings[1].group()


def rhymes(lines: Sequence[str]) -> int:
    """How many of the seven pairs of the scheme ABAB CDCD EFEF GG rhyme."""
    return sum(rhyme(lines[a], lines[b]) for a, b in SCHEME if b < len(lines))


def letters(lines: Sequence[str]) -> list[str]:
    """The scheme that lines have, as `ABAB...`: a line that rhymes with an earlier one, the nearest, or ends in the
    same word, has its letter."""
    scheme: list[str] = []
    for i, line in enumerate(lines):
        ends = (j for j in reversed(range(i)) if rhyme(line, lines[j]) or words(line)[-1:] == words(lines[j])[-1:])
        alike = next(ends, None)
        scheme.append(chr(ord("A") + len(set(scheme))) if alike is None else scheme[alike])
    return scheme


def four_grams(lines: Iterable[str]) -> list[tuple[str, ...]]:
    """All runs of four words, across the ends of lines."""
    text = words("\n".join(lines))
    return list(zip(text, text[1:], text[2:], text[3:], strict=False))
