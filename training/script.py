"""What every script does around its work: signals, exit codes, one line for what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable

from safetensors import SafetensorError

from config import InputError
from training.hardware import NEEDS_LESS, is_out_of_memory, keep_freed_memory
from training.interrupt import Interrupted, StopRequest
from training.objectives import TrainingFailed


def run_script(name: str, work: Callable[[StopRequest], None]) -> int:
    """Does `work` and returns the exit code: 0, 2 for bad input, 1 for any other failure, 130 or 143 interrupted."""
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):  # a name that is not UTF-8, or a terminal that is not, ends no run
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with StopRequest() as stop:
            work(stop)
    except InputError as error:
        print(f"{name}: error:", *str(error).split(), file=sys.stderr)
        return 2
    except Interrupted as interrupt:
        print(f"{name}: {interrupt}: stopped; --resume goes on from the last save", file=sys.stderr)
        return interrupt.exit_code
    except (TrainingFailed, OSError, SafetensorError) as error:
        print(f"{name}:", *str(error).split(), file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"{name}: out of memory; {NEEDS_LESS}; --resume goes on from the last save", file=sys.stderr)
        return 1
    return 0
