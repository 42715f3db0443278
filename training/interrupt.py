"""Ctrl-C and a polite kill: finish the step, save, end."""

from __future__ import annotations

import signal
from types import FrameType

from training import ranks


class Interrupted(Exception):
    """The user asked to stop; everything worth keeping is saved."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class StopRequest:
    """While entered, the first SIGINT or SIGTERM is only noted; a second one ends the process at once. One within
    another passes on what it has noted."""

    def __init__(self):
        self.signum: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        outer = getattr(self._before.get(self.signum), "__self__", None)
        if isinstance(outer, StopRequest):
            outer._note(self.signum, None)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        if ranks.under_torchrun():  # it repeats the terminal's Ctrl-C, and kills what does not end in half a minute
            return
        for other in (signal.SIGINT, signal.SIGTERM):
            signal.signal(other, signal.SIG_DFL)

    def agree(self) -> int | None:
        """The signal, if one has come to any of the processes."""
        self.signum = ranks.highest(self.signum or 0) or None
        return self.signum

    def check_together(self) -> None:
        """Raises Interrupted in all processes if a signal has come to any."""
        self.agree()
        self.check()

    def check(self) -> None:
        """Raises Interrupted if a signal has come."""
        if self.signum is not None:
            raise Interrupted(self.signum)
