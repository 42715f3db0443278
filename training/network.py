"""The network that the flags name, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from config import GPT2Config, InputError, read_json
from models.files import sha256
from models.gpt2 import GPT2Model
from models.pretrained import EMBEDDED, PUBLISHED, load_tokenizer, locate, refuse_not_finite


@dataclass
class Source:
    """
    Attributes:
        source: the directory of the weights.
        adapter: that of the adapter folded into them, if any.
        name: of the source, as others can find it: a directory, or a repository on the Hub.
    """

    source: Path
    adapter: Path | None
    name: str

    def hashes(self) -> dict[str, str]:
        """Of the files that decide what the network computes, by name.

        Raises:
            InputError: one of them cannot be read.
        """
        names = ("config.json", "tokenizer.json", "vocab.json", "merges.txt")
        files = [path for path in sorted(self.source.iterdir()) if path.suffix == ".safetensors" or path.name in names]
        if self.adapter:
            files += [self.adapter / name for name in ("adapter_config.json", "adapter_model.safetensors")]
        try:
            return {path.name: sha256(path) for path in files if path.is_file()}
        except OSError as error:
            raise InputError(f"{error.filename or self.source}: cannot be read: {error.strerror or error}") from error


@dataclass
class Loaded(Source):
    """
    Attributes:
        network: with the flags' dropout, and the tokenizer's end-of-text and padding tokens in its configuration.
    """

    network: GPT2Model
    tokenizer: object


def find_source(settings: dict) -> Source:
    """What `--model_path`, or else `--model_size`, names. A path may lead to an adapter, whose base is the source.

    Raises:
        InputError: out of reach, or no model.
    """
    wanted, adapter = settings["model_size"], None
    if settings["model_path"] == "":
        raise InputError("--model_path is empty; name a directory, or leave it out")
    try:
        if settings["model_path"]:
            path = Path(settings["model_path"])
            if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
                adapter, wanted = path, _base(path)
            else:
                wanted = path
        source = locate(wanted)
    except OSError as error:  # no right to look into it, or a name too long
        raise InputError(f"{settings['model_path'] or wanted}: {error.strerror or error}") from error
    local = isinstance(wanted, Path) or source == EMBEDDED or (wanted not in PUBLISHED and Path(wanted).is_dir())
    return Source(source, adapter, str(source.resolve()) if local else wanted)


def load_network(settings: dict) -> Loaded:
    """Reads what `find_source` finds; an adapter is folded into its base.

    Raises:
        InputError: out of reach, not a GPT-2, damaged, or an adapter that does not fit its base.
    """
    found = find_source(settings)
    config = GPT2Config.from_file(found.source / "config.json")
    if settings["dropout"] is not None:
        p = settings["dropout"]
        config = replace(config, embd_pdrop=p, attn_pdrop=p, resid_pdrop=p)
    tokenizer = load_tokenizer(found.source, config)
    config = replace(config, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    network = GPT2Model.from_pretrained(found.source, config)
    network.checkpoint_activations = settings["checkpoint_activations"]
    if found.adapter:
        from models.lora import Adapters  # PEFT takes seconds to import

        adapters = Adapters(network)
        adapters.load("it", found.adapter)
        network = adapters.merge()
        for name, parameter in network.named_parameters():
            refuse_not_finite(found.adapter, f"{name}, with the adapter folded in,", parameter)
    return Loaded(found.source, found.adapter, found.name, network, tokenizer)


def _base(adapter: Path) -> str:
    path = adapter / "adapter_config.json"
    try:
        base = read_json(path)["base_model_name_or_path"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: names no base model") from error
    if not isinstance(base, str) or not base:
        raise InputError(f"{path}: base_model_name_or_path is {base!r}, not the name of a model")
    return base
