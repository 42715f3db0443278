"""What must hold of a run's files and of its last words."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from conftest import read_events
from harness import Change, Ended
from safetensors import SafetensorError, safe_open

EVENTS = "events.out.tfevents."


def contents(folder: Path) -> dict[str, object]:
    """All that a run leaves behind but the saves it goes on from, by file; without what may differ: seconds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or (path.parent.name == "last" and path.name[0] != "."):
            continue
        if name.startswith(("cache/", "tmp/", "predictions/.")):  # where others may be writing at the same time
            continue
        if path.name.startswith(EVENTS):
            found[f"{Path(name).parent}/{EVENTS}"] = read_events(path.parent)
        elif path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{k: v for k, v in line.items() if not k.endswith("_seconds")} for line in lines]
        elif path.name == "config.json" and path.parent.name != "best" and path.parent.name != "merged":
            config = json.loads(path.read_text())
            found[name] = config | {"settings": config["settings"] | {"resume": None}}
        else:
            found[name] = path.read_bytes()
    return found


def differences(expected: dict[str, object], folder: Path) -> list[str]:
    found = contents(folder)
    return [
        f"{name}: {'missing' if name not in found else 'not expected' if name not in expected else 'differs'}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]


def torn(expected: dict[str, object], folder: Path) -> list[str]:
    """Files under a final name that are not whole."""
    problems = []
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.name.startswith(".") or name.startswith("tmp/"):
            continue
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    file.keys()
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.name.startswith(EVENTS):  # the last event may be; those before it can be read
                read_events(path.parent)
            elif path.suffix == ".jsonl":
                lines = path.read_text()
                [json.loads(line) for line in lines.splitlines()]
                if lines and not lines.endswith("\n"):
                    raise ValueError("no end of line")
            elif path.read_bytes() != expected.get(name):
                raise ValueError("not what is expected")
        except (SafetensorError, ValueError) as error:
            problems.append(f"{name} is torn: {error}")
    return problems


def steps_too_many(ended: Ended, expected: Ended, every: int | None, lost: int) -> list[str]:
    """An interruption may cost the steps since the last save, which is whole, and no more.

    Args:
        ended: the last child of a run.
        expected: that of the run that was never stopped.
        lost: how many saves' worth of steps may have been done again.
    """
    most = expected.steps + lost * (every or expected.steps)
    return [f"{ended.steps} steps in all instead of at most {most}"] if ended.steps > most else []


def ended_well(ended: Ended) -> list[str]:
    if ended.code == 0 and not ended.error:
        return []
    return [f"ended with {ended.code}: {_last_line(ended.error)}"]


def one_line(ended: Ended, codes: tuple[int, ...], *said: str) -> list[str]:
    """Exactly one line of error, with all of `said` in it, and one of the exit codes."""
    problems = []
    if ended.code not in codes:
        problems.append(f"exit code {ended.code}, not {' or '.join(map(str, codes))}")
    if ended.error.count("\n") != 1 or "Traceback" in ended.error:
        problems.append(f"{ended.error.count(chr(10))} lines of error, the last: {_last_line(ended.error)}")
    else:
        problems += [f"{part!r} is not in: {ended.error.strip()}" for part in said if part not in ended.error]
    return problems


def names_the_file(ended: Ended, changes: list[Change], folder: Path) -> list[str]:
    """The file is one of those that were to be changed, or the folder that it lies in."""
    names = {change.name for change in changes} | {str(change.path.parent.relative_to(folder)) for change in changes}
    if any(name in ended.error for name in names - {"."}):
        return []
    return [f"the file is not in: {_last_line(ended.error)}"]


def names_a_file(ended: Ended, files: Iterable[str]) -> list[str]:
    """Any of a run's files, or a folder that one of them lies in."""
    paths = [Path(file) for file in files]
    known = {path.name for path in paths} | {str(path.parent) for path in paths} | {"last"}
    return [] if any(name in ended.error for name in known) else [f"no file is in: {_last_line(ended.error)}"]


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["nothing"])[-1]
