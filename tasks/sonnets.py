"""Shakespeare's sonnets: learning their next tokens, continuing others from their first lines (paper, section 5.1)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from config import InputError
from models.files import write_text
from models.generation import Sampling, generate, write
from models.heads import GPT2LMHeadModel
from models.tokenizer_files import text_of, token_ids
from tasks.table import BadRow, reading, refuse_if_too_many, sample, without_nul
from tasks.verse import LINES
from training.batching import Pieces
from training.interrupt import StopRequest
from training.methods import Forward
from training.network import Loaded
from training.objectives import NextToken

MOST_CHARACTERS = 100_000  # of a poem; one is scored against fifty others, and more is no sonnet
CACHE_BYTES = 2 << 30  # of keys and values; prompts that would need more, with all their candidates, come in groups


@dataclass
class Sonnets:
    """The poems of a file.

    Attributes:
        numbers: as they stand above each.
        poems: their lines, without blank ones before and after.
        bad: poems without lines, left out.
    """

    path: Path
    numbers: list[str]
    poems: list[list[str]]
    bad: list[BadRow] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        return self.numbers

    def first(self, count: int | None) -> Sonnets:
        """The first `count`; all, if None."""
        return Sonnets(self.path, self.numbers[:count], self.poems[:count], self.bad)

    def sample(self, count: int | None) -> Sonnets:
        """`count` of them, in the file's order, always the same ones; all, if None."""
        return replace(self.pick(sample(len(self.numbers), count)), bad=self.bad)

    def pick(self, indices: Sequence[int]) -> Sonnets:
        """Some of them, in that order."""
        return Sonnets(self.path, [self.numbers[i] for i in indices], [self.poems[i] for i in indices])


class SonnetTask:
    """What `training.finetune.Task` asks for."""

    score_first = True

    def describe(self) -> dict:
        """What `models.trained.read_task` reads again."""
        return {"name": "sonnets", "labels": None, "prompt": None}

    def build(self, loaded: Loaded, settings: dict) -> GPT2LMHeadModel:
        if loaded.tokenizer.eos_token is None:
            raise InputError(f"{loaded.source}: its tokenizer has no end-of-text token, which ends a sonnet")
        return GPT2LMHeadModel(loaded.network)

    def encode(self, tokenizer, sonnets: Sonnets) -> Pieces:
        """Each sonnet between two end-of-text tokens; one longer than the context is cut into several pieces."""
        texts = ["\n".join(poem) for poem in sonnets.poems]
        ids = token_ids(tokenizer, texts)
        return Pieces(ids, tokenizer.eos_token_id, tokenizer.model_max_length)

    def objective(self, model: GPT2LMHeadModel, forward: Forward) -> NextToken:
        return NextToken(model)


def read_sonnets(path: Path, keep_empty: bool = False, skip_bad_rows: bool = False) -> Sonnets:
    """Reads poems that are parted by lines with a number alone; what stands before the first number is no poem.

    Args:
        path: a UTF-8 file, with or without a byte-order mark, with any line ends.
        keep_empty: numbers without lines below are poems too.
        skip_bad_rows: else go on when there are more than 1 % of them.

    Raises:
        InputError: no such file, not UTF-8 text, no numbers, too many without lines, or a poem beyond all measure.
    """
    with reading(path):
        lines = list(without_nul(path, path.read_text(encoding="utf-8-sig").split("\n")))
    return sonnets_in(lines, path, keep_empty, skip_bad_rows)


def sonnets_in(lines: list[str], path: Path, keep_empty: bool = False, skip_bad_rows: bool = False) -> Sonnets:
    """As `read_sonnets`, of the lines of a file."""
    starts = [i for i, line in enumerate(lines) if line.strip().isdecimal()]
    if not starts:
        raise InputError(f"{path}: no line holds a number alone, which is what parts one sonnet from the next")
    before = sum(bool(line.strip()) for line in lines[: starts[0]])
    if before >= LINES:
        print(f"{path}: {before} lines before the first number are not read; does a sonnet lack its number?")
    sonnets = Sonnets(path, [], [])
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        number, poem = lines[start].strip(), lines[start + 1 : end]
        while poem and not poem[0].strip():
            del poem[0]
        while poem and not poem[-1].strip():
            del poem[-1]
        if not poem and not keep_empty:
            sonnets.bad.append(BadRow(str(path), start + 1, number, "no lines below the number"))
            continue
        characters = sum(map(len, poem))
        if characters > MOST_CHARACTERS:
            raise InputError(
                f"{path}: sonnet {number}, on line {start + 1}, has {characters:,} characters, more than "
                f"{MOST_CHARACTERS:,}; does the next lack its number?"
            )
        if len(poem) >= 2 * LINES:
            print(f"{path}: sonnet {number} has {len(poem)} lines; does the next lack its number?")
        sonnets.numbers.append(number)
        sonnets.poems.append(poem)
    refuse_if_too_many(sonnets.bad, len(starts), skip_bad_rows)
    if not sonnets.poems:
        raise InputError(f"{path}: no sonnet in it has lines")
    return sonnets


def split(sonnets: Sonnets, train_size: float, seed: int) -> tuple[Sonnets, Sonnets]:
    """A random share to learn from, and the rest to validate on, at least one of each (paper, section 5.3).

    Raises:
        InputError: there is only one sonnet.
    """
    count = len(sonnets.poems)
    if count < 2:
        raise InputError(f"{sonnets.path}: one sonnet cannot be split into training and validation")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    learned = min(max(round(train_size * count), 1), count - 1)
    train, validation = sonnets.pick(sorted(order[:learned])), sonnets.pick(sorted(order[learned:]))
    train.bad = sonnets.bad
    return train, validation


def complete(
    model: GPT2LMHeadModel,
    tokenizer,
    prompts: Sonnets,
    sampling: Sampling,
    seed: int,
    max_new_tokens: int,
    num_candidates: int,
    stop: StopRequest,
) -> list[list[list[str]]]:
    """Continues poems until they end or have fourteen lines.

    A poem's seed follows from its own lines and `seed`, so it is continued in the same way whatever the others are.
    One that fills the context, or has fourteen lines, comes back as it is.

    Returns:
        For each poem, `num_candidates` versions of its lines, the given ones first and unchanged.

    Raises:
        Interrupted: the user asked to stop.
    """
    texts, ids = _opening(tokenizer, prompts.poems)
    open_ = []
    for i, poem in enumerate(prompts.poems):
        if len(ids[i]) >= model.config.n_positions:
            print(f"sonnet {prompts.numbers[i]} fills the context of {model.config.n_positions} tokens: not continued")
        elif len(poem) < LINES:
            open_.append(i)
    ends_line = _line_ends(tokenizer)

    def is_full(i: int, new: list[int]) -> bool:
        stop.check()
        return new[-1] in ends_line and len(prompts.poems[i]) + len(_whole_lines(tokenizer, new)) >= LINES

    completed = [[poem] * num_candidates for poem in prompts.poems]
    cut = 0
    width = min(max((len(ids[i]) for i in open_), default=0) + max_new_tokens, model.config.n_positions)
    row = 8 * model.config.n_layer * model.config.n_embd * width  # bytes
    at_once = max(1, CACHE_BYTES // (row * num_candidates))
    for start in range(0, len(open_), at_once):
        group = open_[start : start + at_once]
        seeds = [_seed(seed, texts[i]) for i in group]
        written = generate(
            model, [ids[i] for i in group], max_new_tokens, sampling, seeds, num_candidates,
            lambda prompt, new, group=group: is_full(group[prompt], new),
        )  # fmt: skip
        for i, candidates in zip(group, written, strict=True):
            poem = prompts.poems[i]
            news = [lines_with_words(text_of(tokenizer, new, skip_special_tokens=True)) for new in candidates]
            completed[i] = [[*poem, *new][:LINES] for new in news]
            cut += sum(new[-1] != tokenizer.eos_token_id and not is_full(i, new) for new in candidates)
            if not all(completed[i]):
                print(f"sonnet {prompts.numbers[i]} has no given lines, and the model ends it before its first")
    if cut:
        print(f"{cut} of {len(open_) * num_candidates} continuations are cut off by --max_new_tokens or the context")
    return completed


def recite(
    model: GPT2LMHeadModel,
    tokenizer,
    poem: list[str],
    sampling: Sampling,
    seed: int,
    max_new_tokens: int,
    stop: StopRequest,
) -> Iterator[list[str]]:
    """As `complete` continues one poem, for who wants to read along: yields its lines so far, the given ones to begin
    with, and whenever there is another.

    Raises:
        Interrupted: the user asked to stop.
    """
    yield poem
    (text,), (ids,) = _opening(tokenizer, [poem])
    if len(ids) >= model.config.n_positions or len(poem) >= LINES:
        return
    ends_line, lines, new = _line_ends(tokenizer), [], []
    for ((new,),) in write(model, [ids], max_new_tokens, sampling, [_seed(seed, text)]):
        stop.check()
        if new and new[-1] in ends_line and len(_whole_lines(tokenizer, new)) > len(lines):
            lines = _whole_lines(tokenizer, new)
            yield [*poem, *lines][:LINES]
            if len(poem) + len(lines) >= LINES:
                return
    yield [*poem, *lines_with_words(text_of(tokenizer, new, skip_special_tokens=True))][:LINES]


def _opening(tokenizer, poems: Sequence[list[str]]) -> tuple[list[str], list[list[int]]]:
    """Poems as text and as what the model reads of them, before it goes on."""
    texts = ["".join(f"{line}\n" for line in poem) for poem in poems]
    return texts, [[tokenizer.eos_token_id, *ids] for ids in token_ids(tokenizer, texts)]


def _seed(seed: int, text: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\n{text}".encode()).digest()[:7])


def _line_ends(tokenizer) -> set[int]:
    return {token for text, token in tokenizer.get_vocab().items() if "Ċ" in text}  # how GPT-2 spells \n


def _whole_lines(tokenizer, new: list[int]) -> list[str]:
    return lines_with_words(text_of(tokenizer, new).rpartition("\n")[0])


def lines_with_words(text: str) -> list[str]:
    """The lines of a poem: none that is blank, or a number alone, which would part it in two; nor NUL characters, which
    a model of bytes may write and no file of text has."""
    lines = (line.rstrip() for line in re.split(r"\r\n?|\n", text.replace("\0", "")))
    return [line for line in lines if line and not line.strip().isdecimal()]


def most_like_the_others(candidates: Sequence[list[str]]) -> list[str]:
    """Minimum Bayes risk (Eikema & Aziz 2020): the candidate with the highest mean chrF against the others."""
    from sacrebleu.metrics import CHRF

    if len(candidates) == 1:
        return candidates[0]
    texts, chrf = ["\n".join(lines) for lines in candidates], CHRF()

    def likeness(i: int) -> float:
        return sum(chrf.sentence_score(texts[i], [other]).score for j, other in enumerate(texts) if j != i)

    return candidates[max(range(len(texts)), key=likeness)]


def written(sonnets: Sonnets) -> str:
    """A file as the course's programs read it, by the lines that hold a number alone."""
    poems = ("\n".join(poem) for poem in sonnets.poems)
    parts = [f"\n{number}\n{poem}\n" for number, poem in zip(sonnets.numbers, poems, strict=True)]
    return "".join(["--Generated Sonnets-- \n\n", *parts])


def write_sonnets(path: Path, sonnets: Sonnets) -> None:
    """Writes `written` to a file."""
    write_text(path, written(sonnets))
