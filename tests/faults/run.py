"""Trains small networks hundreds of times while processes are killed and files fail; counts what survived.

python tests/faults/run.py --kills 200
python tests/faults/run.py --repeat "kill sst-lora 0:17"
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from cases import CASES
from harness import Place, build_shim
from trials import Trials

TITLES = {
    "kill": "kills", "signal": "signals", "call": "failing calls", "full": "full disks", "damage": "damaged files",
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, metavar="N", help="default 200")
    for title in list(TITLES.values())[1:]:
        parser.add_argument(f"--{title.replace(' ', '-')}", type=int, metavar="N", help="default: half of --kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", choices=CASES, action="append", help="only these; may be given several times")
    parser.add_argument("--repeat", metavar="'KIND CASE SEED'", help="one trial, as a failure was listed")
    flags = vars(parser.parse_args())
    cases = [CASES[name] for name in flags["case"] or CASES]
    with tempfile.TemporaryDirectory() as folder:
        shim = build_shim(Path(folder))
        if not shim:
            print("no C compiler, or not Linux: no calls fail, and kills are at random moments only")
        (Path(folder) / "place").mkdir()
        with Place(Path(folder) / "place", shim) as place:
            trials = Trials(place)
            if flags["repeat"]:
                kind, name, seed = flags["repeat"].split()
                return report({kind: run([(kind, CASES[name], seed)], trials, 1)})
            results = {}
            for kind, title in TITLES.items():
                wanted = flags[title.replace(" ", "_")]
                wanted = flags["kills"] // 2 if wanted is None else wanted
                if kind == "call" and not shim:
                    continue
                endless = ((kind, cases[i % len(cases)], f"{flags['seed']}:{i}") for i in range(10 * wanted))
                results[kind] = run(endless, trials, wanted)
            return report(results)


def run(todo, trials: Trials, wanted: int) -> tuple[int, int, list[str]]:
    """Tries until so much has failed; returns what survived, what was tried, and the failures."""
    survived, tried, failures, started = 0, 0, [], time.monotonic()
    for kind, case, seed in todo:
        if tried >= wanted:
            break
        count, problems = trials.try_one(kind, case, seed)
        tried += count
        survived += count if not problems else 0
        if problems:
            failures.append(f"--repeat '{kind} {case.name} {seed}'" + "".join(f"\n    {p}" for p in problems))
            print(failures[-1], flush=True)
    print(f"{kind}: {survived} of {tried} in {time.monotonic() - started:.0f} s", flush=True)
    return survived, tried, failures


def report(results: dict[str, tuple[int, int, list[str]]]) -> int:
    print("\nsurvived of tried")
    for kind, (survived, tried, _) in results.items():
        print(f"  {TITLES[kind]:14} {survived:5} of {tried}")
    failures = [failure for _, _, some in results.values() for failure in some]
    if failures:
        print(f"\n{len(failures)} failed; each again: python {sys.argv[0]} --repeat ...", *failures, sep="\n  ")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
