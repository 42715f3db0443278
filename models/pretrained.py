"""Checkpoints: from the Hub or a directory into our tensors, and back into a Hugging Face directory.

The published files hold what GPT-2's original code called a one-dimensional convolution, a linear layer with its
weight stored (in, out). Ours are `nn.Linear`, (out, in): those four weights of a block are turned once at load and
once at save.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from config import GPT2Config, InputError
from models.files import git_blob_hash, replacing, sha256, write_text

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDED = Path(__file__).parent / "mini"

_TRANSPOSED = re.compile(r"(c_attn|c_proj|c_fc)\.weight$")
_NOT_PARAMETERS = re.compile(r"(^|\.)h\.\d+\.attn\.(bias|masked_bias)$")  # causal masks that old files carry along
_HEADS = ("lm_head.weight", "score.weight")  # of other architectures than the one being loaded: not ours to refuse


def locate(model: str | Path) -> Path:
    """The local directory that holds a model's files, downloaded from the Hub if need be.

    Only what this project reads is fetched: the configuration, the safetensors and the tokenizer. Every fetched file
    is checked against the hash that the Hub names it by, each time.

    Args:
        model: a directory, `mini` (the model in this repository) or the name of a repository on the Hub.

    Raises:
        InputError: none of these, or out of reach; says what was tried and which flag helps.
    """
    if model == "mini":
        model = EMBEDDED
        if not (model / "config.json").is_file():
            raise InputError("--model_size mini: this version carries no embedded model yet; use --model_path DIR")
    if Path(model).is_dir():
        if not (Path(model) / "config.json").is_file():
            raise InputError(f"{model}: no config.json in it, so this is not a Hugging Face model directory")
        return Path(model)
    if isinstance(model, Path) or str(model).startswith((".", "/", "~")):
        raise InputError(f"{model}: no such directory")
    return _fetch(str(model))


def _fetch(repository: str) -> Path:
    try:
        config = _fetch_file(repository, "config.json")
        try:
            _fetch_file(repository, WEIGHTS)
        except EntryNotFoundError:
            for shard in _shards(_fetch_file(repository, INDEX)):
                _fetch_file(repository, shard)
        for name in ("tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt"):
            try:
                _fetch_file(repository, name)
            except EntryNotFoundError:
                continue  # a tokenizer comes as one file or as two; `load_tokenizer` says if neither is there
    except LocalEntryNotFoundError as error:
        raise _out_of_reach(repository, "it is not in the local cache and the Hub cannot be reached") from error
    except RepositoryNotFoundError as error:
        raise _out_of_reach(repository, "the Hub has no such repository") from error
    except EntryNotFoundError as error:
        raise _out_of_reach(repository, f"the repository has neither {WEIGHTS} nor {INDEX}") from error
    except HFValidationError as error:
        raise _out_of_reach(repository, "neither a directory nor a repository's name") from error
    except (HfHubHTTPError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise _out_of_reach(repository, f"the download broke off ({reason}); call again to go on with it") from error
    return config.parent


def _out_of_reach(repository: str, reason: str) -> InputError:
    return InputError(
        f"cannot get {repository} from {constants.ENDPOINT}: {reason}. "
        "--model_path DIR takes a local copy, --model_size mini the model in this repository"
    )


def _fetch_file(repository: str, name: str) -> Path:
    path = Path(hf_hub_download(repository, name))
    blob = path.resolve()
    expected = blob.name  # the cache names a file by its hash on the Hub: sha256 if large, git's blob hash if small
    if expected == path.name:  # a cache without symbolic links keeps no hash
        return path
    if (sha256(blob) if len(expected) == 64 else git_blob_hash(blob)) != expected:
        path.unlink()
        blob.unlink()
        raise _out_of_reach(repository, f"{name} does not have the checksum that the Hub gives it and was deleted")
    return path


def _shards(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{index}: not an index of safetensors files") from error
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(f"{index}: {name!r} is not the name of a safetensors file beside it")
    return names


def _tensors(directory: Path, files: ExitStack) -> Iterator[tuple[str, object]]:
    """Names and lazy slices of every tensor in a checkpoint; nothing is read until a slice is."""
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
            file = files.enter_context(safe_open(directory / name, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{directory / name}: not a whole safetensors file: {error}") from error
        for key in file.keys():
            yield key, file.get_slice(key)


@torch.no_grad()
def load_weights(module: nn.Module, directory: Path) -> None:
    """Copies a checkpoint into a module of the same architecture, whatever its floating-point type.

    Names match with or without the `transformer.` prefix, so that a bare `GPT2Model` reads a language model's or a
    classifier's file (and leaves out its head) and the other way round.

    Raises:
        InputError: tensors that are missing, unknown or of another shape, all named; or an untied `lm_head`.
    """
    wanted = {name.removeprefix("transformer."): parameter for name, parameter in module.named_parameters()}
    wanted |= dict(module.named_buffers())
    complaints = []
    with ExitStack() as files:
        found = {name.removeprefix("transformer."): part for name, part in _tensors(directory, files)}
        found = {name: part for name, part in found.items() if not _NOT_PARAMETERS.search(name)}
        complaints += [f"missing {name}" for name in sorted(wanted.keys() - found.keys())]
        complaints += [f"unknown {name}" for name in sorted(found.keys() - wanted.keys() - set(_HEADS))]
        for name in sorted(wanted.keys() & found.keys()):
            shape = tuple(found[name].get_shape())
            ours = tuple(wanted[name].shape)
            if shape != (ours[::-1] if _TRANSPOSED.search(name) else ours):
                complaints.append(f"{name} has shape {shape}, not {ours[::-1] if _TRANSPOSED.search(name) else ours}")
        if complaints:
            raise InputError(f"{directory}: the weights do not fit config.json: {'; '.join(complaints)}")
        for name in wanted.keys() & found.keys():
            tensor = found[name][:]
            if not tensor.is_floating_point():
                raise InputError(f"{directory}: {name} holds {tensor.dtype}, not floating-point numbers")
            wanted[name].copy_(tensor.t() if _TRANSPOSED.search(name) else tensor)
        if "lm_head.weight" in found and not torch.equal(found["lm_head.weight"][:].float(), wanted["wte.weight"]):
            raise InputError(f"{directory}: lm_head.weight differs from wte.weight; only tied logits are supported")


def checkpoint_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters as the published checkpoints hold them: on the CPU, linear weights turned."""
    return {
        name: (parameter.detach().t() if _TRANSPOSED.search(name) else parameter.detach()).cpu().contiguous()
        for name, parameter in module.named_parameters()
    }


def save_pretrained(module: nn.Module, config: GPT2Config, directory: Path) -> None:
    """Writes `config.json` and `model.safetensors` for stock `transformers` to load as the class of the same name."""
    write_text(directory / "config.json", json.dumps(config.to_dict(type(module).__name__), indent=2) + "\n")
    with replacing(directory / WEIGHTS) as path:
        save_file(checkpoint_tensors(module), path, metadata={"format": "pt"})


def load_tokenizer(directory: Path, config: GPT2Config):
    """The stock tokenizer of a model directory, set up so that what it is saved with loads as a whole pipeline.

    Padding is the end-of-text token, as GPT-2 has none of its own; texts are cut at the end of the context.

    Raises:
        InputError: the directory has no tokenizer, or one with ids beyond the model's vocabulary.
    """
    from transformers import AutoTokenizer  # takes seconds to import; the network alone does not need it

    if not any((directory / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise InputError(f"{directory}: has no tokenizer; put tokenizer.json, or vocab.json and merges.txt, beside it")
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise InputError(f"{directory}: its tokenizer cannot be read: {error}") from error
    if len(tokenizer) > config.vocab_size:
        raise InputError(f"{directory}: {len(tokenizer)} tokens in the tokenizer, {config.vocab_size} in the model")
    if config.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = config.n_positions
    return tokenizer
