"""Two pieces of work side by side, in turn, so that a machine whose speed drifts is fair to both."""

from __future__ import annotations

import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks are scripts of the project's root


@dataclass
class Timing:
    """Stock's time over ours, pair by pair, and seconds of each side's median."""

    pairs: int
    ratio: float
    low: float
    high: float
    ours: float
    stock: float

    def times(self, stock: float) -> Timing:
        """The same, had stock done its work so many times."""
        return replace(self, **{k: stock * getattr(self, k) for k in ("ratio", "low", "high", "stock")})

    def __str__(self) -> str:
        spread = f"{self.low:.2f} to {self.high:.2f}, {self.pairs} pairs" if self.pairs > 1 else "one pair"
        return f"{self.ratio:.2f} ({spread})"


def in_turn(ours: Callable[[int], object], stock: Callable[[int], object], pairs: int) -> Timing:
    """Times both `pairs` times after a warm-up; each call is given its number, and who goes first changes."""
    seconds: dict[Callable, list[float]] = {ours: [], stock: []}
    for number in range(pairs + 1):
        for side in (ours, stock) if number % 2 else (stock, ours):
            started = time.perf_counter()
            side(number)
            finish()
            if number:
                seconds[side].append(time.perf_counter() - started)
    ratios = [b / a for a, b in zip(seconds[ours], seconds[stock], strict=True)]
    return Timing(pairs, median(ratios), min(ratios), max(ratios), median(seconds[ours]), median(seconds[stock]))


def finish() -> None:
    """Waits for a GPU, where one is at work."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def paired(name: str, ours: Callable[[], object], theirs: Callable[[], object], repeats: int = 15) -> float:
    """Times both in turn and prints medians and the ratio ours / theirs.

    Returns:
        The median ratio; below 1, ours is faster.
    """
    timing = in_turn(lambda _: ours(), lambda _: theirs(), repeats)
    print(
        f"{name}: {1e3 * timing.ours:.1f} ms against {1e3 * timing.stock:.1f} ms, ratio {1 / timing.ratio:.2f} "
        f"(from {1 / timing.high:.2f} to {1 / timing.low:.2f} over {repeats} pairs)",
        flush=True,
    )
    return 1 / timing.ratio


def peak_of_process() -> int:
    """Most bytes that this process ever had in memory, on Linux. Not `ru_maxrss`, which a process inherits from the one
    that started it, if that was larger."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1))


def describe_machine(device: str = "cpu") -> None:
    """Prints what the figures below it were measured on."""
    import torch

    from training.hardware import describe

    machine = describe(torch.device(device))
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    print(f"{machine['device']}, {machine['threads']} threads, {versions}")


def run(main: Callable[[], None]) -> None:
    """Calls a command's `main`; where the input is at fault, ends with a line that says what, and exit code 2; 130 if
    it is interrupted."""
    from config import InputError

    try:
        main()
    except InputError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
