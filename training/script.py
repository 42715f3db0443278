"""What every script does around its work: signals, exit codes, one line for what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable

from safetensors import SafetensorError

from config import InputError
from training import ranks
from training.hardware import NEEDS_LESS, is_out_of_memory, keep_freed_memory
from training.interrupt import Interrupted, StopRequest
from training.objectives import TrainingFailed
from training.ranks import FailedElsewhere

GOES_ON = "; --resume goes on from the last save"


def run_script(
    name: str, work: Callable[[StopRequest], None], goes_on: str = GOES_ON, needs_less: str = NEEDS_LESS
) -> int:
    """Does `work` and returns the exit code: 0, 2 for bad input, 1 for any other failure, 130 or 143 interrupted.

    Args:
        goes_on: what to say after an interruption.
        needs_less: what to say where the memory is full.
    """
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):  # a name that is not UTF-8, or a terminal that is not, ends no run
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with ranks.joined(), StopRequest() as stop:
            work(stop)
    except FailedElsewhere as failure:
        return failure.exit_code
    except InputError as error:
        return _say(f"{name}: error: {error}", 2)
    except Interrupted as interrupt:
        return _say(f"{name}: {interrupt}: stopped{goes_on}", interrupt.exit_code, agreed=True)
    except TrainingFailed as error:
        return _say(f"{name}: {error}", 1, agreed=True)
    except (OSError, SafetensorError) as error:
        return _say(f"{name}: {error}", 1)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            return _say(f"{name}: out of memory; {needs_less}{goes_on}", 1)
        if ranks.is_lost_connection(error):
            return _say(f"{name}: another process has died{goes_on} ({error})", 1)
        raise
    return 0


def _say(text: str, exit_code: int, agreed: bool = False) -> int:
    """Prints a line, and says whose it is, unless all processes would say the same."""
    by = f"[rank {ranks.rank()}] " if ranks.rank() else ""
    if not (by and agreed):
        print(by + " ".join(text.split()), file=sys.stderr)
    return exit_code
