"""Trains while something fails, goes on, and compares with a run that nothing happened to.

Every trial returns how often something failed in it, and a list of what then was not as it should be.
"""

from __future__ import annotations

import errno
import os
import random
import signal
from functools import cache
from pathlib import Path

import disk
from cases import Case
from checks import contents, differences, ended_well, names_a_file, names_the_file, one_line, steps_too_many, torn
from damage import damage
from harness import Ended, Place

MOST_KILLS = 3  # of one run
Tried = tuple[int, list[str]]


class Trials:
    """
    Args:
        place: where they train.
    """

    def __init__(self, place: Place):
        self.place = place
        self.undisturbed = cache(self._undisturbed)
        self.kinds = {
            "kill": self.kill, "signal": self.signal, "call": self.call, "full": self.full, "damage": self.damage,
        }  # fmt: skip

    def try_one(self, kind: str, case: Case, seed: str) -> Tried:
        return self.kinds[kind](case, random.Random(f"{kind} {case.name} {seed}"))

    def _undisturbed(self, case: Case) -> tuple[Ended, dict[str, object]]:
        folder = self.place.fresh("undisturbed")
        ended = self.place.run(case, folder)
        if ended_well(ended):
            raise RuntimeError(f"{case.name} fails by itself: {ended.error}")
        return ended, contents(folder)

    def _end(self, case: Case, folder: Path, lost: int | None, resume: bool = True) -> list[str]:
        """Has a run go on to its end, and compares; `lost` as in `steps_too_many`."""
        ended = self.place.run(case, folder, resume=resume)
        return ended_well(ended) or self._compare(case, folder, ended, lost)

    def _compare(self, case: Case, folder: Path, ended: Ended, lost: int | None) -> list[str]:
        expected, files = self.undisturbed(case)
        many = [] if lost is None else steps_too_many(ended, expected, case.every, lost)
        return differences(files, folder) + many

    def _kill(self, case: Case, folder: Path, rng: random.Random, resume: bool) -> Ended:
        """At a random moment, or in the midst of a random change of a file."""
        expected, _ = self.undisturbed(case)
        if self.place.shim and rng.random() < 0.5:
            return self.place.run(case, folder, resume, fail_at=rng.randint(1, len(expected.changes)))
        after = rng.uniform(0, expected.seconds)
        return self.place.run(case, folder, resume, signal_after=(after, signal.SIGKILL))

    def kill(self, case: Case, rng: random.Random) -> Tried:
        """SIGKILL, up to some times, with `--resume` in between."""
        folder, kills, problems = self.place.fresh("trial"), 0, []
        _, files = self.undisturbed(case)
        for _ in range(rng.randint(1, MOST_KILLS)):
            ended = self._kill(case, folder, rng, resume=kills > 0)
            if ended.code != -signal.SIGKILL:
                return kills, problems + (ended_well(ended) or self._compare(case, folder, ended, kills))
            kills += 1
            problems += torn(files, folder)
        return kills, problems + self._end(case, folder, kills)

    def signal(self, case: Case, rng: random.Random) -> Tried:
        """SIGINT or SIGTERM at a random moment, once or twice at a random step."""
        folder, signum = self.place.fresh("trial"), rng.choice([signal.SIGINT, signal.SIGTERM])
        expected, files = self.undisturbed(case)
        times = rng.randint(0, 2)
        if times:
            step = rng.randint(1, expected.steps)
            ended = self.place.run(case, folder, stop_at_step=(step, signum, times))
            most = step
        else:
            ended = self.place.run(case, folder, signal_after=(rng.uniform(0, expected.seconds), signum))
            if ended.code == 0:
                return 0, differences(files, folder)
            most = (ended.steps_when_signalled or 0) + 1
        if times == 2 or (ended.code == -signum and not ended.output):  # before the script takes signals
            problems = [f"ended with {ended.code}, not {-signum}"] if ended.code != -signum else []
        else:
            problems = one_line(ended, (128 + signum,), "--resume")
        if ended.steps > most:
            problems.append(f"{ended.steps - most} steps more after the signal")
        return 1, problems + torn(files, folder) + self._end(case, folder, lost=int(times == 2))

    def call(self, case: Case, rng: random.Random) -> Tried:
        """One change of a file fails, or all from one on; in a run from the start or one that was killed before."""
        folder, lost = self.place.fresh("trial"), 1
        expected, files = self.undisturbed(case)
        resume = rng.random() < 0.3
        if resume:
            self._kill(case, folder, rng, resume=False)
            lost += 1
        number, code = rng.randint(1, len(expected.changes)), rng.choice([errno.ENOSPC, errno.EIO, errno.EACCES])
        before, fail_on = self._steps(folder), rng.random() < 0.5
        ended = self.place.run(case, folder, resume, fail_at=number, errno=code, fail_on=fail_on)
        if len(ended.changes) < number or ended.code == 0:  # not come to, or something that can be done without
            return int(len(ended.changes) >= number), ended_well(ended) or self._compare(case, folder, ended, lost)
        problems = one_line(ended, (1,) if ended.steps > before else (1, 2), os.strerror(code))
        failing = ended.changes[number - 1 :] if fail_on else ended.changes[number - 1 : number]
        problems += names_the_file(ended, failing, folder)
        where = f"{failing[0].call} of {failing[0].path.relative_to(folder)}: "
        problems = [where + problem for problem in problems + torn(files, folder)]
        return 1, problems + self._end(case, folder, lost)

    def _steps(self, folder: Path) -> int:
        steps = self.place.folder / f"{folder.name}.steps"
        return steps.stat().st_size if steps.exists() else 0

    def full(self, case: Case, rng: random.Random) -> Tried:
        """A disk that is too small, or fills up meanwhile; a limit on the size of files, where none can be mounted."""
        expected, _ = self.undisturbed(case)
        if not disk.can_mount():
            folder = self.place.fresh("trial")
            ended = self.place.run(case, folder, most_bytes=int(2 ** rng.uniform(6, 20)))
            return self._with_room(case, folder, ended, errno.EFBIG)
        small, after = rng.random() < 0.5, rng.uniform(0.001, expected.seconds)
        size = rng.randint(16, 1024) if small else 1 << 14
        with disk.small(self.place.folder / "disk", size) as (mounted, enlarge):
            folder = self.place.fresh("trial", mounted)
            ended = self.place.run(case, folder, fill_after=0 if small else after)
            enlarge()
            return self._with_room(case, folder, ended, errno.ENOSPC)

    def _with_room(self, case: Case, folder: Path, ended: Ended, code: int) -> Tried:
        _, files = self.undisturbed(case)
        if ended.code == 0:
            return 0, ended_well(ended) or self._compare(case, folder, ended, 0)
        if ended.code == 2 and "are free" in ended.error:  # known before training
            problems = one_line(ended, (2,), "--output_dir")
        else:
            problems = one_line(ended, (1,) if ended.steps else (1, 2), os.strerror(code))
            problems += names_a_file(ended, files)
        return 1, problems + torn(files, folder) + self._end(case, folder, lost=1)

    def damage(self, case: Case, rng: random.Random) -> Tried:
        """After a kill a file of `last/` or `best/`, or the metrics, are damaged: refused by name, or done without."""
        folder = self.place.fresh("trial")
        self._kill(case, folder, rng, resume=False)
        names = ("last/[!.]*", "best/[!.]*", "metrics.jsonl")
        found = sorted(path for name in names for path in folder.glob(f"runs/**/{name}"))
        if not found:
            return 0, []
        path = rng.choice(found)
        states = [state for state in found if state.parent.name == "last"]
        used = path in states and path == max(states, key=lambda state: state.stat().st_mtime_ns)
        where = f"{path.parent.name}/{path.name}, {damage(path, rng)}: "
        ended = self.place.run(case, folder, resume=True)
        if ended.code == 0:
            problems = ended_well(ended) or self._compare(case, folder, ended, lost=None)
            if used and path.name not in ended.output:
                problems.append("not a word of it")
        else:
            problems = one_line(ended, (2,), path.name) + self._end(case, folder, lost=None, resume=False)
        return 1, [where + problem for problem in problems]
