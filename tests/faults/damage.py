"""What disks, and other versions of a program, do to files."""

from __future__ import annotations

import random
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file


def damage(path: Path, rng: random.Random) -> str:
    """Damages a file in a random way, and says in which."""
    kinds = [_cut, _flip, _zeros, _empty] + [_newer] * (path.parent.name == "last")
    return rng.choice(kinds)(path, rng)


def _cut(path: Path, rng: random.Random) -> str:
    contents = path.read_bytes()
    size = rng.randrange(len(contents))
    path.write_bytes(contents[:size])
    return f"cut to {size} of {len(contents)} bytes"


def _flip(path: Path, rng: random.Random) -> str:
    contents = bytearray(path.read_bytes())
    bit = rng.randrange(8 * len(contents))
    contents[bit // 8] ^= 1 << bit % 8
    path.write_bytes(contents)
    return f"bit {bit} of {8 * len(contents)} flipped"


def _zeros(path: Path, rng: random.Random) -> str:
    path.write_bytes(bytes(path.stat().st_size))
    return "all zeros"


def _empty(path: Path, rng: random.Random) -> str:
    path.write_bytes(b"")
    return "emptied"


def _newer(path: Path, rng: random.Random) -> str:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        header = file.metadata() | {"format": "99"}
    save_file(tensors, path, header)
    return "of a newer version"
