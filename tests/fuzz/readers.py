"""Fuzz targets for what reads files, by Atheris: whatever a file holds, it is read or refused with an InputError.

    python tests/fuzz/readers.py TARGET [flags of libFuzzer, such as -max_total_time=60]

TARGET is table, sonnets, corpus, config, tokenizer, settings, weights, adapter, state, progress or outcome.

Not part of the test suite; `pip install atheris` first.
"""

from __future__ import annotations

import gzip
import json
import struct
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["config", "models", "reproduction", "tasks", "training.checkpoint"]):
    import torch

    from config import GPT2Config, InputError
    from models.gpt2 import GPT2Model
    from models.heads import GPT2LMHeadModel
    from models.lora import Adapters, Lora
    from models.pretrained import load_tokenizer, load_weights, save_pretrained, save_tokenizer
    from models.tensors import write_tensors
    from models.tokenizer import train_tokenizer
    from optimizer import AdamW
    from reproduction.grid import Experiment
    from reproduction.results import Outcome
    from tasks.classification import read_split
    from tasks.corpus import read_documents
    from tasks.sonnets import read_sonnets
    from training.checkpoint import FORMAT, load_state, save_state
    from training.trainer import Progress

TINY = GPT2Config(vocab_size=3, n_positions=2, n_embd=2, n_layer=1, n_head=1)


def table(folder: Path, data: bytes) -> None:
    (folder / "x-dev.csv").write_bytes(data)
    read_split(folder, "x", "dev", ["sentence"], "label", 2, skip_bad_rows=True)


def sonnets(folder: Path, data: bytes) -> None:
    (folder / "poems.txt").write_bytes(data)
    read_sonnets(folder / "poems.txt", skip_bad_rows=True)


def corpus(folder: Path, data: bytes) -> None:
    """As text, or unpacked where it begins as gzip does."""
    path = folder / ("text.txt.gz" if data.startswith(b"\x1f\x8b") else "text.txt")
    path.write_bytes(data)
    read_documents([path])


def config(folder: Path, data: bytes) -> None:
    (folder / "config.json").write_bytes(data)
    GPT2Config.from_file(folder / "config.json")


def as_safetensors(data: bytes) -> bytes:
    """A line of JSON and what follows it get the length in front that makes a header of the line; all else stays."""
    line, _, rest = data.partition(b"\n")
    return struct.pack("<Q", len(line)) + line + rest if line.startswith(b"{") else data


def tokenizer(folder: Path, data: bytes) -> None:
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    (folder / "tokenizer.json").write_bytes(data)
    load_tokenizer(folder, GPT2Config(vocab_size=300, eos_token_id=0))


def settings(folder: Path, data: bytes) -> None:
    (folder / "tokenizer_config.json").write_bytes(data)
    save_tokenizer(load_tokenizer(folder, GPT2Config(vocab_size=300, eos_token_id=0)), folder / "again")


def adapter(folder: Path, data: bytes) -> None:
    """The configuration; its tensors stay."""
    (folder / "adapter_config.json").write_bytes(data)
    model = GPT2Model(TINY)
    model.init_weights()
    Adapters(model).load("it", folder)


def outcome(folder: Path, data: bytes) -> None:
    """What a run logged, a file a line."""
    (folder / "run").mkdir(exist_ok=True)
    for name, line in zip(("config.json", "metrics.jsonl", "scores.json"), data.split(b"\n"), strict=False):
        (folder / "run" / name).write_bytes(line)
    Outcome(Experiment("sonnet", "sonnets", "gpt2", "full", "", ()), 1, folder).damage()


def weights(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(as_safetensors(data))
    model = GPT2Model(TINY)
    load_weights(model, folder)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def state(folder: Path, data: bytes) -> None:
    (folder / "state-1.safetensors").write_bytes(as_safetensors(data))
    parameters = {"a": torch.nn.Parameter(torch.zeros(2))}
    load_state(folder, parameters, AdamW(parameters.values()), Progress)


def progress(folder: Path, data: bytes) -> None:
    """A state with the right checksum, which somebody else wrote."""
    tensors = {"parameter.a": torch.ones(2), "generator.cpu": torch.get_rng_state()}
    header = {"format": FORMAT, "progress": data.decode(errors="replace")}
    write_tensors(folder / "state-1.safetensors", tensors, header)
    parameters = {"a": torch.nn.Parameter(torch.zeros(2))}
    load_state(folder, parameters, AdamW(parameters.values()), Progress)


def seeds(name: str, folder: Path) -> list[bytes]:
    """Files as they should be, to start from."""
    if name == "table":
        return [b'id\tsentence\tlabel\na\t"one ""two"" "\t1\n', b"\xef\xbb\xbfid\tsentence\tlabel\r\na\tb\t0.0\r\n"]
    if name == "sonnets":
        return [b"Title\n\n1\n\nA line\nanother\n\n2\n\nthird\n"]
    if name == "corpus":
        return [b"a text\n\nanother\r\n", gzip.compress(b"a text\n\nanother\n", mtime=0)]
    if name == "progress":
        return [json.dumps(asdict(Progress(lines=[{"epoch": 1}], sums=[0.5, 1.0], best_files={"a": "b"}))).encode()]
    if name == "outcome":
        first = b'{"settings": {"epochs": 1}, "parameters": {"trained": 1}}'
        return [first + b'\n{"epoch": 1}\n{"dev": {"it": {"chrf": 1}}}']
    if name in ("tokenizer", "settings"):
        save_tokenizer(train_tokenizer(["yes and yes"] * 9, 258, 8), folder)
        file = {"tokenizer": "tokenizer.json", "settings": "tokenizer_config.json"}[name]
        return [(folder / file).read_bytes()]
    model = GPT2Model(TINY)
    model.init_weights()
    if name == "adapter":
        Lora(GPT2LMHeadModel(model), "base", rank=1).save(folder)
        return [(folder / "adapter_config.json").read_bytes()]
    save_pretrained(model, TINY, folder)
    parameters = {"a": torch.nn.Parameter(torch.ones(2))}
    optimizer = AdamW(parameters.values())
    parameters["a"].sum().backward()
    optimizer.step()
    save_state(folder, parameters, optimizer, asdict(Progress(epoch=1, saves=1)))
    file = {"config": "config.json", "weights": "model.safetensors", "state": "state-1.safetensors"}[name]
    data = (folder / file).read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    return [data] if name == "config" else [data, data[8:size].rstrip() + b"\n" + data[size:]]


READERS = (table, sonnets, corpus, config, tokenizer, settings, weights, adapter, state, progress, outcome)
TARGETS = {target.__name__: target for target in READERS}


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
