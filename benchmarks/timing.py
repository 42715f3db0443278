"""Two pieces of work side by side, in turn, so that a machine whose speed drifts is fair to both."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks are scripts of the project's root


def paired(name: str, ours: Callable[[], object], theirs: Callable[[], object], repeats: int = 15) -> float:
    """Runs both `repeats` times after a warm-up and prints medians and the ratio ours / theirs, pair by pair.

    Returns:
        The median ratio; below 1, ours is faster.
    """
    seconds = {ours: [], theirs: []}
    for repeat in range(repeats + 1):
        for work in (ours, theirs):
            started = time.perf_counter()
            work()
            if repeat:
                seconds[work].append(time.perf_counter() - started)
    ratios = sorted(a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True))
    medians = [1e3 * statistics.median(seconds[work]) for work in (ours, theirs)]
    ratio = statistics.median(ratios)
    print(
        f"{name}: {medians[0]:.1f} ms against {medians[1]:.1f} ms, ratio {ratio:.2f} "
        f"(from {ratios[0]:.2f} to {ratios[-1]:.2f} over {repeats} pairs)",
        flush=True,
    )
    return ratio


def describe_machine() -> None:
    """Prints what the figures below it were measured on."""
    import torch

    from training.hardware import describe

    machine = describe(torch.device("cpu"))
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    print(f"{machine['device']}, {machine['threads']} threads, {versions}")
