"""The two sides of a comparison, each in a process of its own and as its users have it: in ours the C library's memory
is set up as the scripts do it, in stock's it is not."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection

from timing import Timing, finish, in_turn

Work = Callable[[int], object]
SIDES = ("ours", "stock")


class OutOfMemory(Exception):
    """A side, named, needs more memory than there is."""


class Apart:
    """Work in a process of its own; calling it does the work there, and waits.

    Args:
        setup: called there once, with the side's name and the case; gives the work, a function of a number. It and the
            case are sent to the process.
        side: `ours` or `stock`.

    Attributes:
        results: what the work gave, call by call.

    Raises:
        InputError: when set up, or called: the input is at fault.
        OutOfMemory: likewise, and where the system has killed the process.
    """

    def __init__(self, setup: Callable[..., Work], side: str, *case):
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, setup, side, *case), daemon=True)
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that asks to act on
        self.process.start()
        signal.signal(signal.SIGINT, handler)
        other.close()
        self.side = side
        self.results: list = []

    def wait(self) -> None:
        """Until it is set up."""
        self._answer()

    def __call__(self, number: int) -> None:
        with suppress(ConnectionError):  # it may have ended while the other side was at work
            self.connection.send(number)
        self.results.append(self._answer())

    def _answer(self) -> object:
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            if self.process.exitcode == -signal.SIGKILL:  # as Linux ends whoever needs the most
                raise OutOfMemory(self.side) from None
            sys.exit(self.process.exitcode or 1)  # it has said why
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """Ends it, whatever it is at."""
        self.connection.close()
        self.process.terminate()
        self.process.join()


def _serve(connection: Connection, setup: Callable[..., Work], side: str, *case) -> None:
    from config import InputError
    from training.hardware import is_out_of_memory, keep_freed_memory

    if side == "ours":
        keep_freed_memory()
    sys.stdout = sys.stderr  # the other holds a table
    with suppress(EOFError, ConnectionError):  # the other end is closed
        try:
            work, result = setup(side, *case), None
            while True:
                finish()
                connection.send(result)
                result = work(connection.recv())
        except InputError as error:
            connection.send(error)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            connection.send(OutOfMemory(side))


def both(setup: Callable[..., Work], *case, pairs: int) -> tuple[Timing, list, list]:
    """Times both sides in turn, `pairs` times after a warm-up, number 0.

    Returns:
        The timing, and the results of ours and of stock.
    """
    sides = [Apart(setup, side, *case) for side in SIDES]
    try:
        for side in sides:
            side.wait()
        timing = in_turn(*sides, pairs)
    finally:
        for side in sides:
            side.close()
    return timing, *(side.results for side in sides)


def one_by_one(setup: Callable[..., Work], *case) -> list:
    """What the work gives once, of ours and of stock, the one after the other."""
    results = []
    for name in SIDES:
        side = Apart(setup, name, *case)
        try:
            side.wait()
            side(0)
        finally:
            side.close()
        results += side.results
    return results
