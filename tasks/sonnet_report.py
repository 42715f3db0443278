"""From a trained model to continued sonnets, their files and their scores."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from config import InputError
from models.files import write_text
from models.generation import Sampling
from tasks import card
from tasks.sonnet_scores import COLUMNS, SIGNATURE, Judge, Poem, Scores, print_scores
from tasks.sonnets import Sonnets, complete, most_like_the_others, read_sonnets, write_sonnets
from training.finetune import Trained
from training.interrupt import StopRequest

FILES = {"dev": "generated_sonnets_dev.txt", "test": "generated_sonnets.txt"}


@dataclass
class Prompts:
    """What is to be continued.

    Attributes:
        given: the first lines of each poem.
        truth: the whole poems, where they are known.
    """

    given: Sonnets
    truth: list[list[str]] | None


def read_prompts(data_dir: Path, name: str, limit: int | None) -> Prompts:
    """Of `dev` or `test`: `sonnets_held_out_dev.txt` or `sonnets_held_out.txt`, and the file of the same name with
    `TRUE_` before it where there is one.

    Args:
        limit: the first so many only.

    Raises:
        InputError: as `read_sonnets`; or the whole poems have other numbers, or other first lines, than the prompts.
    """
    file = {"dev": "sonnets_held_out_dev.txt", "test": "sonnets_held_out.txt"}[name]
    given, truth = read_sonnets(data_dir / file, keep_empty=True), data_dir / f"TRUE_{file}"
    if not os.path.lexists(truth):
        return Prompts(given.first(limit), None)
    whole = read_sonnets(truth, keep_empty=True)
    if whole.numbers != given.numbers:
        raise InputError(
            f"{truth}: its {len(whole.numbers)} sonnets have other numbers than the {len(given.numbers)} of {file}"
        )
    for number, lines, poem in zip(given.numbers, given.poems, whole.poems, strict=True):
        if [line.strip() for line in poem[: len(lines)]] != [line.strip() for line in lines]:
            raise InputError(f"{truth}: sonnet {number} does not begin with the lines that {file} gives")
    return Prompts(given.first(limit), whole.poems[:limit])


def generate_and_score(
    trained: Trained,
    name: str,
    prompts: dict[str, Prompts],
    training: Sequence[Poem],
    settings: dict,
    stop: StopRequest,
) -> dict[str, dict[str, Scores]]:
    """Continues the sonnets, writes them, prints their scores beside the baselines', and keeps those in `scores.json`.

    Args:
        name: of the model, for the table.
        training: the sonnets that it may have learned by heart.
        settings: the script's flags.

    Returns:
        Of `dev` and `test`, each method's scores, the model's by its name.

    Raises:
        Interrupted: the user asked to stop.
    """
    sampling = Sampling(settings["temperature"], settings["top_k"], settings["top_p"])
    scores = {}
    for split, some in prompts.items():
        started = time.perf_counter()
        with trained.precision.autocast():
            candidates = complete(
                trained.model, trained.tokenizer, some.given, sampling,
                settings["seed"], settings["max_new_tokens"], settings["num_candidates"],
                stop,
            )  # fmt: skip
        poems = []
        for versions in candidates:
            poems.append(most_like_the_others(versions))
            stop.check()
        write_sonnets(Path(settings["predictions_dir"]) / FILES[split], replace(some.given, poems=poems))
        seconds = time.perf_counter() - started
        judge = Judge(some.given.poems, some.truth, training)
        rows = judge.baselines() | {name: judge.score(poems)}
        print_scores(f"{split} ({len(poems)} sonnets, written in {seconds:.0f} s)", rows)
        scores[split] = rows
    kept = {split: {method: asdict(row) for method, row in rows.items()} for split, rows in scores.items()}
    write_text(trained.run / "scores.json", json.dumps({"signature": SIGNATURE} | kept, indent=2) + "\n")
    print(f"chrF is sacreBLEU's {SIGNATURE}; ± is half of a 95 % interval over resampled sonnets")
    return scores


def write_sonnet_card(
    trained: Trained,
    name: str,
    model: str,
    sizes: dict[str, int],
    scores: dict[str, dict[str, Scores]],
    own: str,
    settings: dict,
) -> None:
    """As `tasks.card.write_card`; `own` is what the scores call the model."""
    tables, metrics = [], []
    for split, rows in scores.items():
        cells = {method: [cell(row) for cell in COLUMNS.values()] for method, row in rows.items()}
        tables.append(card.Scores(split, list(COLUMNS), cells))
        if rows[own].chrf is not None:
            metrics.append(card.Metric("chrf", "chrF", rows[own].chrf, split))
    card.write_card(trained, name, model, sizes, tables, metrics, settings)


def print_sonnet_summary(trained: Trained, scores: dict[str, dict[str, Scores]], own: str) -> None:
    """As `tasks.card.print_summary`."""
    chrf = {method: COLUMNS["chrF"](row) or "not known" for method, row in scores["dev"].items()}
    others = "; ".join(f"{method} {value}" for method, value in chrf.items() if method != own)
    card.print_summary(trained, f"dev chrF {chrf[own]}; {others}")
