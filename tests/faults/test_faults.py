"""A few of the trials of `run.py`, chosen by a seed: training survives kills, failing and full disks, damaged files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cases import CASES
from harness import Place, build_shim
from trials import Trials

MOST = 10  # seeds, until one fails something: a run may end before its kill


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trials]:
    shim = build_shim(tmp_path_factory.mktemp("shim"))
    with Place(tmp_path_factory.mktemp("place"), shim) as place:
        yield Trials(place)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("kill", ["sst-full", "sst-lora", "sst-patience", "sonnets-full"]),
        ("signal", ["sst-micro", "quora-lora"]),
        ("call", ["sst-full", "sst-lora", "sst-patience"]),
        ("full", ["sst-full", "sst-last"]),
        ("damage", ["sst-full", "sst-lora", "sst-patience"]),
    ],
)
def test_survives(trials: Trials, kind: str, names: list[str]):
    if kind == "call" and not trials.place.shim:
        pytest.skip("no C compiler, or not Linux: calls cannot be made to fail")
    failures = []
    for name in names:
        for seed in range(MOST):
            tried, problems = trials.try_one(kind, CASES[name], f"0:{seed}")
            if problems:
                failures += [f"python tests/faults/run.py --repeat '{kind} {name} 0:{seed}'", *problems]
            if tried:
                break
        else:
            failures.append(f"{kind} {name}: nothing failed")
    assert not failures, "\n".join(failures)


def test_place_counts_changes_of_every_kind(trials: Trials):
    if not trials.place.shim:
        pytest.skip("no C compiler, or not Linux: changes of files are not counted")
    ended, files = trials.undisturbed(CASES["sst-full"])
    assert {change.call for change in ended.changes} >= {"open", "write", "fsync", "rename", "mkdir"}
    changed = {change.name.rstrip("0123456789") for change in ended.changes}  # an event file's name ends with its time
    assert {Path(name).name for name in files} <= changed
    assert ended.steps == 10
