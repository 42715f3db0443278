"""A run is a folder: its settings, a line of metrics an epoch, the best model, and what it takes to go on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout

from config import InputError, read_json, refuse_special
from models.files import remove_leftovers, sha256, write_text
from training import ranks

_PACKAGES = (
    "torch", "transformers", "tokenizers", "peft", "safetensors", "huggingface_hub", "scikit-learn", "numpy",
    "sacrebleu", "pronouncing", "matplotlib", "optuna",
)  # fmt: skip
# Flags that do not decide what is trained: where things lie (what lies there is compared by its hash), and what is done
# with the model afterwards. They may differ between a run and its resumption.
WHERE = {
    "resume", "demo", "save_every_steps", "output_dir", "predictions_dir", "data_dir", "corpus", "leave_out",
    "model_path", "device", "shard", "push_to_hub", "track",
}  # fmt: skip
_AFTERWARDS = {
    "prediction_labels", "save_merged", "temperature", "top_k", "top_p", "num_candidates", "max_new_tokens",
}  # fmt: skip
_MUST_AGREE = ("data", "model", "precision")
EVENTS = "events.out.tfevents."  # how TensorBoard knows its files
TRACKED_AS = "tracked_as.txt"  # the name that Weights & Biases or Trackio knows the run by


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within it, no other run may have the folder. A process that dies loses it.

    Raises:
        InputError: another one has it, or it cannot be written to.
    """
    lock = FileLock(folder / ".lock")

    def acquire() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"--output_dir {folder}: another run is at work there; wait for it, or name another"
            ) from error
        except OSError as error:
            raise InputError(f"--output_dir {folder}: cannot be written to: {error.strerror or error}") from error

    ranks.on_first(acquire)
    try:
        yield
    finally:
        lock.release()


def refuse_full_disk(folder: Path, needed: int) -> None:
    """Raises InputError if a file system has no room for so many bytes, but for what lies in the folder already."""
    folder.mkdir(parents=True, exist_ok=True)
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    free = shutil.disk_usage(folder).free
    if needed > free + there:
        raise InputError(
            f"--output_dir {folder}: the run will write {needed / 2**20:,.0f} MiB, and {free / 2**20:,.0f} MiB are free"
        )


class Run:
    """`config.json`, `metrics.jsonl`, `bad_rows.jsonl`, TensorBoard's events, `best/` and `last/` in one folder.

    Args:
        path: the folder, made if need be. What an earlier run left there is replaced, unless `resume`.
        settings: every flag of the run.
        facts: what else `config.json` records: hardware, hashes of the data.
        resume: keep what is there, if it was made with the same settings and data.

    Raises:
        InputError: `resume`, and the settings or the data differ from the saved run's; or the folder holds
            something else than a run.
    """

    def __init__(self, path: Path, settings: dict, facts: dict, resume: bool = False):
        self.path, self.best, self.last = path, path / "best", path / "last"
        self.metrics_file = path / "metrics.jsonl"
        resume = ranks.restarted() or resume
        self.resuming = ranks.on_first(lambda: self._begin(settings, facts, resume))

    def _begin(self, settings: dict, facts: dict, resume: bool) -> bool:
        """Makes the folder ready, and says whether there is something to go on with."""
        config = self.path / "config.json"
        self._refuse_what_is_no_run(config)
        resuming = resume and config.is_file() and any(self.last.glob("[!.]*"))
        if resuming:
            self._refuse_other_settings(config, settings, facts)
        else:
            if resume:
                print(f"{self.path}: nothing to resume there; starting afresh", flush=True)
            elif self.metrics_file.is_file():
                print(f"{self.path}: replacing the earlier run", flush=True)
            # In this order: a state without its model would pass for finished.
            for old in (self.last, self.best, self.path / "merged"):
                if old.exists():
                    shutil.rmtree(old)
            events = self.path.glob(f"{EVENTS}*")
            for old in (self.metrics_file, self.path / "scores.json", self.path / TRACKED_AS, *events):
                old.unlink(missing_ok=True)
        for folder in (self.path, self.best, self.last, self.path / "merged"):
            remove_leftovers(folder)
        versions = {name: importlib.metadata.version(name) for name in _PACKAGES} | {"python": sys.version.split()[0]}
        write_text(config, json.dumps({"settings": settings, "versions": versions} | facts, indent=2) + "\n")
        return resuming

    def _refuse_what_is_no_run(self, config: Path) -> None:
        """Nothing that this program did not make is replaced."""
        try:
            ours = not os.path.lexists(config) or "settings" in read_json(config)
        except (InputError, TypeError):
            ours = False
        events = list(self.path.glob(f"{EVENTS}*"))
        if not ours or (not config.exists() and (self.best.exists() or self.last.exists() or events)):
            raise InputError(f"--output_dir {self.path}: there is something else in it, which a run would replace")
        for folder in (self.best, self.last, self.path / "merged"):
            if os.path.lexists(folder) and not folder.is_dir():
                raise InputError(f"{folder}: is no folder, where a run makes one; move it, or name another")
        names = ("metrics.jsonl", "scores.json", "bad_rows.jsonl", TRACKED_AS)
        for file in (*(self.path / name for name in names), *events):
            if os.path.lexists(file) and not file.is_file():
                raise InputError(f"{file}: is no file, where a run writes one; move it, or name another")

    def _refuse_other_settings(self, config: Path, settings: dict, facts: dict) -> None:
        try:
            saved = read_json(config)
            before = dict(saved["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{config}: not the settings of a run; leave out --resume to start afresh") from error
        for name in sorted((before.keys() | settings.keys()) - WHERE - _AFTERWARDS):
            if before.get(name) != settings.get(name):
                raise InputError(
                    f"--resume: {self.path} was trained with --{name} {before.get(name)}, not {settings.get(name)}; "
                    "give the same, or leave out --resume to start afresh"
                )
        for name in _MUST_AGREE:
            if saved.get(name) != facts[name]:
                raise InputError(
                    f"--resume: the {name} of {self.path} was {saved.get(name)} and is now {facts[name]}; "
                    "leave out --resume to start afresh"
                )

    def list_bad_rows(self, rows: list) -> None:
        """Writes the rows left out to `bad_rows.jsonl`, a JSON object of their fields a line, and says how many."""
        lines = [json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows]
        ranks.on_first(lambda: write_text(self.path / "bad_rows.jsonl", "".join(lines)))
        if rows:
            print(f"{len(rows)} rows that cannot be used are left out: {self.path / 'bad_rows.jsonl'}", flush=True)

    def hashes_of_best(self) -> dict[str, str]:
        """Of the files in `best/`, by name, but for weights, which hold a checksum themselves, and the model's card,
        which is written at the end."""
        files = (path for path in self.best.glob("[!.]*") if path.suffix not in (".safetensors", ".md"))
        return {path.name: sha256(path) for path in files}

    def refuse_damaged_best(self, hashes: dict[str, str]) -> None:
        """Raises InputError if a file in `best/` is not what `hashes_of_best` once said."""
        found = self.hashes_of_best()
        for name, expected in hashes.items():
            if found.get(name) != expected:
                raise InputError(
                    f"{self.best / name}: damaged: not what was written there; leave out --resume to start afresh"
                )

    def log(self, metrics: dict) -> None:
        """Appends a line to `metrics.jsonl`."""

        def append() -> None:
            lines = self.metrics_file.read_text(encoding="utf-8") if self.metrics_file.is_file() else ""
            write_text(self.metrics_file, lines + json.dumps(metrics) + "\n")

        ranks.on_first(append)

    def metrics(self) -> list[dict]:
        """The epochs logged so far."""
        if not self.metrics_file.is_file():
            return []
        try:
            refuse_special(self.metrics_file)
            lines = [json.loads(line) for line in self.metrics_file.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"{self.metrics_file}: not lines of metrics ({error}); leave out --resume to start afresh"
            ) from error
        if not all(isinstance(line, dict) and line.keys() & {"epoch", "step"} for line in lines):
            raise InputError(f"{self.metrics_file}: not lines of metrics; leave out --resume to start afresh")
        return lines

    def write_lines(self, lines: list[dict]) -> None:
        """Replaces what is logged."""
        text = "".join(json.dumps(line) + "\n" for line in lines)
        ranks.on_first(lambda: write_text(self.metrics_file, text))
