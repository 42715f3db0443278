"""Checkpoints: from the Hub or a directory into our tensors, and back into a Hugging Face directory.

The published files hold what GPT-2's original code called a one-dimensional convolution, a linear layer with its
weight stored (in, out). Ours are `nn.Linear`, (out, in): those four weights of a block are turned once at load and
once at save.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import logging
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from config import GPT2Config, InputError, read_json, refuse_special
from models.files import git_blob_hash, replacing, sha256, write_text
from models.tensors import check_tensors, write_tensors
from models.tokenizer_files import copy_harmless, tokenizing

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PUBLISHED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
EMBEDDED = Path(__file__).parent / "mini"

ADVICE = "--model_path DIR takes a local copy, --model_size mini the model in this repository"
PROBE = "Yes, no: a naïve 1\n"
MOST_WEIGHT = 1e6  # those of GPT-2 are below 100, and products of larger ones leave float32
MOST_BESIDE = 1 << 30  # bytes of a file of weights that are no parameters of ours: heads, and the masks of old files
MOST_ADDED = 8  # tokens, to a text
_TRANSPOSED = re.compile(r"(c_attn|c_proj|c_fc)\.weight$")
_NOT_PARAMETERS = re.compile(r"(^|\.)h\.\d+\.attn\.(bias|masked_bias)$")  # causal masks that old files carry along
_HEADS = ("lm_head.weight", "score.weight")  # of other architectures than the one being loaded: not ours to refuse


def locate(model: str | Path) -> Path:
    """The local directory that holds a model's files, downloaded from the Hub if need be.

    Only what this project reads is fetched: the configuration, the safetensors and the tokenizer. Every file in the
    Hub's cache is checked against the hash that the Hub names it by, each time (where the file system has symbolic
    links, by which the cache keeps the hash).

    Args:
        model: a directory as a `Path`; or as text `mini` (the model in this repository), the name of a published
            GPT-2, a directory, or the name of another repository on the Hub.

    Raises:
        InputError: none of these, or out of reach; says what was tried and which flag helps.
    """
    if model == "mini":
        return EMBEDDED
    if model in PUBLISHED:
        return _fetch(model)
    if Path(model).is_dir():
        if not (Path(model) / "config.json").is_file():
            raise InputError(f"{model}: no config.json in it, so this is not a Hugging Face model directory")
        return Path(model)
    if isinstance(model, Path) or model.startswith((".", "/", "~")):
        raise InputError(f"{model}: no such directory")
    return _fetch(model)


def _fetch(repository: str) -> Path:
    config = _fetch_file(repository, "config.json")
    if not _fetch_file(repository, WEIGHTS, optional=True):
        for shard in _shards(_fetch_file(repository, INDEX)):
            _fetch_file(repository, shard)
    for name in ("tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt"):
        _fetch_file(repository, name, optional=True)  # in one file or in two; `load_tokenizer` says if it is in neither
    return config.parent


def _fetch_file(repository: str, name: str, optional: bool = False) -> Path | None:
    logging.set_verbosity_error()  # its warnings of every retry would drown the one line that says what happened
    try:
        path = Path(hf_hub_download(repository, name))
    except RepositoryNotFoundError as error:
        raise _out_of_reach(repository, "the Hub has no such repository") from error
    except EntryNotFoundError as error:
        if optional:
            return None
        if isinstance(error, LocalEntryNotFoundError):
            raise _out_of_reach(repository, "it is not in the local cache and the Hub cannot be reached") from error
        wanted = f"neither {WEIGHTS} nor {INDEX}" if name == INDEX else f"no {name}"
        raise _out_of_reach(repository, f"the repository has {wanted}") from error
    except HFValidationError as error:
        raise _out_of_reach(repository, "neither a directory nor the name of a repository") from error
    except (HTTPError, OSError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _out_of_reach(repository, f"the download broke off ({reason}); call again to go on with it") from error
    if not path.is_symlink():  # a cache without symbolic links keeps no hash
        return path
    # The link's target is named by the file's hash on the Hub, sha256 if large and git's blob hash if small; it may in
    # turn be a link into a store that names files otherwise.
    expected, contents = Path(os.readlink(path)).name, path.resolve()
    if (sha256(contents) if len(expected) == 64 else git_blob_hash(contents)) != expected:
        contents.unlink()
        (path.parent / os.readlink(path)).unlink(missing_ok=True)
        path.unlink()
        raise _out_of_reach(repository, f"{name} does not have the checksum that the Hub gives it and was deleted")
    return path


def _out_of_reach(repository: str, reason: str) -> InputError:
    return InputError(f"cannot get {repository} from {constants.ENDPOINT}: {reason}. {ADVICE}")


def _shards(index: Path) -> list[str]:
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
    except (KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{index}: not an index of safetensors files") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(f"{index}: {name!r} is not the name of a safetensors file beside it")
    return names


def _tensors(directory: Path, files: ExitStack, most: int) -> Iterator[tuple[str, object]]:
    """Names and lazy slices of every tensor in a checkpoint, none of whose files is to have more than `most` bytes:
    one that carries a checksum is read to its end."""
    if (directory / WEIGHTS).is_file():
        names = [WEIGHTS]
    elif (directory / INDEX).is_file():
        names = _shards(directory / INDEX)
    elif (directory / "pytorch_model.bin").is_file():
        raise InputError(
            f"{directory}: holds pickled weights only, which can run code and are not read; write {WEIGHTS} with "
            "transformers: AutoModel.from_pretrained(DIR).save_pretrained(DIR)"
        )
    else:
        raise InputError(f"{directory}: holds neither {WEIGHTS} nor {INDEX}")
    for name in names:
        try:
            refuse_special(directory / name)
            size = (directory / name).stat().st_size
            if size > most:
                raise InputError(f"{directory / name}: the weights do not fit config.json: {size:,} bytes are too many")
            file = files.enter_context(safe_open(directory / name, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{directory / name}: not a whole safetensors file: {error}") from error
        check_tensors(directory / name, file)
        for key in file.keys():
            yield key, file.get_slice(key)


@torch.no_grad()
def load_weights(module: nn.Module, directory: Path) -> None:
    """Copies a checkpoint into a module of the same architecture, whatever its floating-point type.

    Names match with or without the `transformer.` prefix, so that a bare `GPT2Model` reads a language model's or a
    classifier's file (and leaves out its head) and the other way round. A module on the meta device gets its memory
    once the shapes are known to fit.

    Raises:
        InputError: tensors that are missing, unknown or of another shape, named; one that holds anything but finite
            numbers; or an untied `lm_head`.
    """
    wanted = _parameters(module)
    complaints, found = [], {}
    with ExitStack() as files:
        most = MOST_BESIDE + sum(8 * parameter.numel() for parameter in wanted.values())
        for full_name, part in _tensors(directory, files, most):
            name = full_name.removeprefix("transformer.")
            if name in found:
                complaints.append(f"{name} twice")
            if not _NOT_PARAMETERS.search(name):
                found[name] = part
        complaints += [f"missing {name}" for name in sorted(wanted.keys() - found.keys())]
        complaints += [f"unknown {name}" for name in sorted(found.keys() - wanted.keys() - set(_HEADS))]
        for name in sorted(wanted.keys() & found.keys()):
            shape = tuple(found[name].get_shape())
            ours = tuple(wanted[name].shape)
            if shape != (ours[::-1] if _TRANSPOSED.search(name) else ours):
                complaints.append(f"{name} has shape {shape}, not {ours[::-1] if _TRANSPOSED.search(name) else ours}")
        if complaints:
            raise InputError(f"{directory}: the weights do not fit config.json: {'; '.join(complaints)}")
        if any(parameter.is_meta for parameter in wanted.values()):
            wanted = _parameters(module.to_empty(device="cpu"))
        for name in sorted(wanted):
            tensor = _read(directory, name, found[name])
            wanted[name].copy_(tensor.t() if _TRANSPOSED.search(name) else tensor)
            refuse_not_finite(directory, name, wanted[name])
        if "lm_head.weight" in found:
            logits = _read(directory, "lm_head.weight", found["lm_head.weight"]).float()
            if not torch.equal(logits, wanted["wte.weight"]):
                raise InputError(f"{directory}: lm_head.weight differs from wte.weight; only tied logits are supported")


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("transformer."): parameter for name, parameter in module.named_parameters()}


def _read(directory: Path, name: str, part: object) -> Tensor:
    """A slice's tensor of floating-point numbers, of any shape."""
    kind = part.get_dtype()
    if kind not in ("F64", "F32", "F16", "BF16"):
        raise InputError(f"{directory}: {name} holds {kind}, not floating-point numbers")
    return part[:] if part.get_shape() else torch.empty(())


def refuse_not_finite(path: Path, name: str, tensor: Tensor) -> None:
    """Raises InputError if a tensor of weights holds NaN or infinity, or what soon leads there."""
    most = torch.stack(tensor.aminmax()).abs().max().item() if tensor.numel() else 0
    if not most <= MOST_WEIGHT:
        what = f"numbers as large as {most:.3g}" if math.isfinite(most) else "NaN or infinity"
        raise InputError(f"{path}: {name} holds {what}; training may have diverged, or the file is damaged")


def checkpoint_tensors(module: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A module's parameters as the published checkpoints hold them: on the CPU, linear weights turned."""
    return {
        name: (parameter.detach().t() if _TRANSPOSED.search(name) else parameter.detach()).to("cpu", dtype).contiguous()
        for name, parameter in module.named_parameters()
    }


def save_pretrained(module: nn.Module, config: GPT2Config, directory: Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes `config.json` and `model.safetensors`, with tensors of `dtype`, for stock `transformers` to load as the
    class of the same name."""
    architecture = type(module).__name__.removeprefix("FSDP")  # what sharding puts before it
    write_text(directory / "config.json", json.dumps(config.as_hugging_face(architecture), indent=2) + "\n")
    write_tensors(directory / WEIGHTS, checkpoint_tensors(module, dtype), {"format": "pt"})


def load_tokenizer(directory: Path, config: GPT2Config):
    """The stock tokenizer of a model directory, set up so that what it is saved with loads as a whole pipeline.

    The end-of-text token is what `config` says where the tokenizer names none, and padding is that token where the
    tokenizer names none, as GPT-2's does not.

    Raises:
        InputError: the directory has no tokenizer, or one with ids beyond the model's vocabulary.
    """
    from transformers import AutoTokenizer  # takes seconds to import; the network alone does not need it

    with TemporaryDirectory() as folder:
        copy_harmless(directory, Path(folder))
        with tokenizing(f"{directory}: its tokenizer cannot be read"):
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    tokenizer.name_or_path = str(directory)
    if not 0 < len(tokenizer) <= config.vocab_size:
        raise InputError(f"{directory}: {len(tokenizer)} tokens in the tokenizer, {config.vocab_size} in the model")
    _refuse_other_ids(directory, tokenizer, config.vocab_size)
    if tokenizer.eos_token is None and config.eos_token_id in range(len(tokenizer)):
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(f"{directory}: eos_token_id {config.eos_token_id} of config.json is not in the tokenizer")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = config.n_positions
    return tokenizer


def _refuse_other_ids(directory: Path, tokenizer, vocab_size: int) -> None:
    """Of its vocabulary, and of what it adds to every text."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise InputError(f"{directory}: {type(tokenizer).__name__} is not a tokenizer that tokenizer.json describes")
    with tokenizing(f"{directory}: its tokenizer cannot read plain text"):
        empty, ids = tokenizer(["", PROBE])["input_ids"]
        again = tokenizer.decode(ids)
    added = max(len(empty), len(ids) - 2 * len(PROBE))  # a byte may be a token, and a letter two bytes
    if added > MOST_ADDED:
        raise InputError(f"{directory}: its tokenizer adds {added} tokens to every text")
    outside = [i for i in (*tokenizer.get_vocab().values(), *ids) if not 0 <= i < vocab_size]
    if outside:
        raise InputError(f"{directory}: its tokenizer has the id {outside[0]}; the model's end at {vocab_size - 1}")
    if "yes" not in again.lower():
        raise InputError(f"{directory}: its tokenizer loses plain text: {PROBE!r} becomes {again!r}")


def save_tokenizer(tokenizer, directory: Path) -> None:
    """Writes a tokenizer's files into a model's directory, each whole or not at all."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).iterdir()):
            with replacing(directory / file.name) as beside:
                shutil.copyfile(file, beside)
