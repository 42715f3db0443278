"""Predicts with a trained model: the class of each line of text, or how sonnets go on."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from training.flags import SAMPLING, Parser, add_hardware_flags, add_sampling_flags, whole_number

NEEDS_LESS = "shorter texts, fewer --num_candidates or --device cpu need less"


def parse_flags(arguments: list[str] | None = None) -> dict:
    parser = Parser(prog="predict.py", description=__doc__)
    parser.add_argument("model", metavar="RUN", help="a run's folder, a model's or an adapter's, or one on the Hub")
    parser.add_argument(
        "texts", nargs="*", default=[], metavar="TEXT",
        help="what to read, instead of standard input; of sonnets, the first lines of one",
    )  # fmt: skip
    what = parser.add_argument_group("what")
    what.add_argument("--input", metavar="FILE", help="what to read: a text a line, a tab between the texts of a pair")
    what.add_argument("--format", choices=("text", "csv", "jsonl"), default="text", help="of what is written")
    what.add_argument(
        "--task", choices=("sentiment", "paraphrase", "sonnet"),
        help="what the model is for, if its task.json does not say it: a text a line, a pair a line, or sonnets",
    )  # fmt: skip
    sonnets = parser.add_argument_group("sonnets", "what is not given is as it was in the run")
    add_sampling_flags(sonnets, dict.fromkeys(SAMPLING))
    sonnets.add_argument("--seed", type=whole_number(0, 2**63 - 1), metavar="N", help="of what is drawn")
    add_hardware_flags(parser)
    settings = vars(parser.parse_args(arguments))
    if settings["texts"] and settings["input"] is not None:
        parser.error("--input goes without TEXT")
    return settings


def main(arguments: list[str] | None = None) -> int:
    settings = parse_flags(arguments)

    from training.script import run_script

    return run_script("predict.py", lambda stop: run(settings, stop), goes_on="", needs_less=NEEDS_LESS)


def run(settings: dict, stop) -> None:
    from models.heads import GPT2LMHeadModel
    from training.finished import load_finished
    from training.hardware import Precision, make_deterministic, pick_device

    precision = Precision(settings["precision"], pick_device(settings["device"]))
    make_deterministic(0, precision.device)
    with lines_of(settings, stop) as (name, chunks):
        finished = load_finished(settings["model"], precision.device)
        with until_nobody_reads():
            if isinstance(finished.model, GPT2LMHeadModel):
                continue_all(finished, chunks, name, precision, settings, stop)
            else:
                label_all(finished, chunks, name, precision, settings, stop)


@contextmanager
def lines_of(settings: dict, stop) -> Iterator[tuple[str, Iterator]]:
    """What messages call the input, and its lines in chunks."""
    from config import InputError
    from tasks.lines import decoded, in_chunks

    if settings["texts"]:
        lines = (os.fsencode(text) for text in settings["texts"])
        yield "TEXT", iter([[(i, decoded(line, "TEXT", i)) for i, line in enumerate(lines, 1)]])
        return
    own = settings["input"] in (None, "-")
    name = "standard input" if own else settings["input"]
    if own and sys.stdin is None:
        raise InputError("standard input is closed; give texts as arguments, or --input FILE")
    try:
        file = open(sys.stdin.fileno() if own else name, "rb", buffering=0, closefd=not own)  # noqa: SIM115
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: {getattr(error, 'strerror', None) or error}") from error
    with file:
        yield name, in_chunks(file, name, stop)


def label_all(finished, chunks: Iterator, name: str, precision, settings: dict, stop) -> None:
    from config import InputError
    from tasks.paraphrase import PROMPT
    from tasks.prediction import Labeller, label_lines

    drawn = [f"--{flag}" for flag in (*SAMPLING, "seed") if settings[flag] is not None]
    if settings["task"] == "sonnet" or drawn:
        what = drawn[0] if drawn else "--task sonnet"
        raise InputError(f"{what}: {finished.directory} is a classifier, and writes no text")
    prompt = {None: finished.task.prompt, "paraphrase": PROMPT}.get(settings["task"])
    labeller = Labeller(finished, prompt, precision, stop)
    if settings["texts"] and labeller.places == 2 and not any("\t" in text for text in settings["texts"]):
        chunks = iter([in_pairs(next(chunks))])
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")
    label_lines(labeller, chunks, name, settings["format"], sys.stdout)


def in_pairs(lines: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Arguments that hold no tab are the first and the second text of a pair, by turns."""
    texts = [text for _, text in lines]
    return [(i + 1, "\t".join(texts[2 * i : 2 * i + 2])) for i in range((len(texts) + 1) // 2)]


def continue_all(finished, chunks: Iterator, name: str, precision, settings: dict, stop) -> None:
    from config import InputError
    from tasks.prediction import continue_sonnets, sampling_of, write_poems

    if settings["task"] not in (None, "sonnet"):
        raise InputError(f"--task {settings['task']}: {finished.directory} is a language model, without classes")
    sampling = sampling_of(finished.directory, settings)
    lines = [line for chunk in chunks for _, text in chunk for line in text.split("\n")]
    write_poems(continue_sonnets(finished, lines, name, sampling, precision, stop), settings["format"], sys.stdout)


@contextmanager
def until_nobody_reads() -> Iterator[None]:
    """Ends quietly what is within where the reader of standard output has gone, as `head` does."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes once more as it ends


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # for Ctrl-C among the imports
    sys.exit(main())
