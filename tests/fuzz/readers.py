"""Fuzz targets for what reads files, by Atheris: whatever a file holds, it is read or refused with an InputError.

    python tests/fuzz/readers.py table|sonnets|config|weights|state [flags of libFuzzer, such as -max_total_time=60]

Not part of the test suite; `pip install atheris` first.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["config", "models.pretrained", "tasks", "training.checkpoint"]):
    import torch

    from config import GPT2Config, InputError
    from models.gpt2 import GPT2Model
    from models.pretrained import load_weights, save_pretrained
    from optimizer import AdamW
    from tasks.classification import read_split
    from tasks.sonnets import read_sonnets
    from training.checkpoint import load_state, save_state

TINY = GPT2Config(vocab_size=3, n_positions=2, n_embd=2, n_layer=1, n_head=1)


def table(folder: Path, data: bytes) -> None:
    (folder / "x-dev.csv").write_bytes(data)
    read_split(folder, "x", "dev", ["sentence"], "label", 2, skip_bad_rows=True)


def sonnets(folder: Path, data: bytes) -> None:
    (folder / "poems.txt").write_bytes(data)
    read_sonnets(folder / "poems.txt", skip_bad_rows=True)


def config(folder: Path, data: bytes) -> None:
    (folder / "config.json").write_bytes(data)
    GPT2Config.from_file(folder / "config.json")


def as_safetensors(data: bytes) -> bytes:
    """A line of JSON and what follows it get the length in front that makes a header of the line; all else stays."""
    line, _, rest = data.partition(b"\n")
    return struct.pack("<Q", len(line)) + line + rest if line.startswith(b"{") else data


def weights(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(as_safetensors(data))
    model = GPT2Model(TINY)
    load_weights(model, folder)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def state(folder: Path, data: bytes) -> None:
    (folder / "state-1.safetensors").write_bytes(as_safetensors(data))
    parameters = {"a": torch.nn.Parameter(torch.zeros(2))}
    load_state(folder, parameters, AdamW(parameters.values()))


def seeds(name: str, folder: Path) -> list[bytes]:
    """Files as they should be, to start from."""
    if name == "table":
        return [b'id\tsentence\tlabel\na\t"one ""two"" "\t1\n', b"\xef\xbb\xbfid\tsentence\tlabel\r\na\tb\t0.0\r\n"]
    if name == "sonnets":
        return [b"Title\n\n1\n\nA line\nanother\n\n2\n\nthird\n"]
    model = GPT2Model(TINY)
    model.init_weights()
    save_pretrained(model, TINY, folder)
    parameters = {"a": torch.nn.Parameter(torch.ones(2))}
    optimizer = AdamW(parameters.values())
    parameters["a"].sum().backward()
    optimizer.step()
    save_state(folder, parameters, optimizer, {"epoch": 1, "saves": 1})
    file = {"config": "config.json", "weights": "model.safetensors", "state": "state-1.safetensors"}[name]
    data = (folder / file).read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    return [data] if name == "config" else [data, data[8:size].rstrip() + b"\n" + data[size:]]


TARGETS = {target.__name__: target for target in (table, sonnets, config, weights, state)}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(__doc__)
    name = sys.argv.pop(1)
    with TemporaryDirectory() as scratch, TemporaryDirectory() as corpus:
        folder = Path(scratch)
        for number, seed in enumerate(seeds(name, folder)):
            (Path(corpus) / str(number)).write_bytes(seed)

        def once(data: bytes) -> None:
            try:
                TARGETS[name](folder, data)
            except InputError as error:
                if not str(error).isprintable():
                    raise AssertionError(error) from error

        atheris.Setup([*sys.argv, corpus], once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
