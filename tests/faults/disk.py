"""Small disks."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path


def _mount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, capture_output=True)


@cache
def can_mount() -> bool:
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small(Path(folder), 16):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


@contextmanager
def small(folder: Path, kilobytes: int) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Mounts a disk of that size; gives the folder that it is in, and what makes it large."""
    folder.mkdir(exist_ok=True)
    _mount(folder, f"size={kilobytes}k")
    try:
        yield folder, lambda: _mount(folder, "remount,size=1g")
    finally:
        subprocess.run(["umount", folder], check=True)
