"""Safetensors files that show when they are damaged."""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from config import InputError
from models.files import replacing

_CHECKSUM = "sha256"  # in the file's metadata, which other programs pass over


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file, whole or not at all, with a checksum of its tensors and its metadata."""
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    checksum = _checksum(metadata, tensors, tensors.__getitem__)
    with replacing(path) as beside:
        try:
            save_file(tensors, beside, metadata=metadata | {_CHECKSUM: checksum})
        except SafetensorError as error:  # which does not name the file
            raise OSError(f"{path}: {error}") from error
        _sort_metadata(beside)


def _sort_metadata(path: Path) -> None:
    """The library writes a header's metadata in an order that changes from call to call; the same is to be the same."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(size)
        if len(text) != size:
            raise ValueError(f"{path}: its header cannot be written as safetensors writes it")
        file.seek(8)
        file.write(text)


def check_tensors(path: Path, file: safe_open, ours: bool = False) -> dict[str, str]:
    """Reads an open file once and returns its metadata. What other programs wrote has no checksum, and passes, unless
    it must be `ours`.

    Raises:
        InputError: it is not what was written.
    """
    metadata = file.metadata() or {}
    checksum = metadata.pop(_CHECKSUM, "")
    if (ours or checksum) and checksum != _checksum(metadata, file.keys(), file.get_tensor):
        raise InputError(f"{path}: damaged: its contents do not have the checksum that they were written with")
    return metadata


def _checksum(metadata: dict[str, str], names: Iterable[str], tensor_of: Callable[[str], Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(names):
        tensor = tensor_of(name)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # The bytes themselves: memory that `numpy()` once looked at, FSDP can no longer free.
        start = tensor.untyped_storage().data_ptr() + tensor.storage_offset() * tensor.element_size()
        digest.update((ctypes.c_char * tensor.nbytes).from_address(start))
    return digest.hexdigest()
