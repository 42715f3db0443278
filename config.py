"""GPT-2's shape, how Hugging Face's `config.json` spells it, and what is said of input that is at fault."""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path


class InputError(ValueError):
    """What the user gave is at fault: the scripts print the message as one line and exit with 2.

    A message may quote what a file holds: white space in it becomes single spaces, what cannot be printed is escaped,
    and the middle of a long one is left out.
    """

    def __init__(self, message: str):
        if len(message) > 1200:
            message = f"{message[:800]} [...] {message[-300:]}"
        message = " ".join(message.split())
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


def refuse_special(path: str | Path) -> None:
    """Raises InputError for what a path leads to if that is no file: a directory, or a pipe or device, which may block.

    Raises OSError, as `os.stat` does, where there is nothing or no way to it.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a name that no file can have
        raise InputError(f"{path}: {error}") from error
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: is a {'directory' if stat.S_ISDIR(mode) else 'pipe or a device'}, not a file")


def read_json(path: str | Path) -> object:
    """What a JSON file holds.

    Raises:
        InputError: no file that can be read, or not JSON.
    """
    try:
        refuse_special(path)
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error


def is_number(value: object, least: float = -math.inf, above: float = -math.inf) -> bool:
    """Whether it is a number that a float32 can hold, no truth value, and in this range."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < 3e38 and value >= least and value > above


@dataclass
class GPT2Config:
    """The fields of a GPT-2 `config.json` that change what the network computes, under its own names.

    The defaults are the published 124M model's (Radford et al. 2019, Table 2).
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None  # width of the MLP; None is four times n_embd
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    bos_token_id: int | None = 50256
    eos_token_id: int | None = 50256
    pad_token_id: int | None = None
    id2label: dict[int, str] = field(default_factory=dict)  # empty for a model without a classifier

    def __post_init__(self):
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"):
            value, most = getattr(self, name), _MOST[name]
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (whole and 0 < value <= most) and not (name == "n_inner" and value is None):
                raise InputError(f"{name} must be a whole number above 0 and at most {most}, not {value!r}")
        if self.n_embd % self.n_head:
            raise InputError(f"n_embd {self.n_embd} does not divide into n_head {self.n_head} heads")
        for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
            value = getattr(self, name)
            if not (is_number(value, least=0) and value < 1):
                raise InputError(f"{name} must lie in [0, 1), not {value!r}")
        for name in ("layer_norm_epsilon", "initializer_range"):
            value = getattr(self, name)
            if not (is_number(value, above=0) and value <= 1):
                raise InputError(f"{name} must be a number above 0 and at most 1, not {value!r}")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            if not (value is None or (isinstance(value, int) and not isinstance(value, bool))):
                raise InputError(f"{name} must be a whole number, not {value!r}")

    @property
    def mlp_width(self) -> int:
        return self.n_inner or 4 * self.n_embd

    @classmethod
    def from_file(cls, path: str | Path) -> GPT2Config:
        """Reads a Hugging Face `config.json`.

        Raises:
            InputError: not a JSON object, not a GPT-2, or a variant of GPT-2 that the network here does not compute.
        """
        values = read_json(path)
        if not isinstance(values, dict) or values.get("model_type", "gpt2") != "gpt2":
            raise InputError(f"{path}: not the configuration of a GPT-2")
        for name, only in _FIXED.items():
            if name in values and values[name] not in only:
                raise InputError(f"{path}: {name} = {values[name]!r} is not supported, only {only[0]!r} is")
        known = {f.name for f in fields(cls)} & values.keys()
        try:
            labels = {int(index): str(label) for index, label in (values.get("id2label") or {}).items()}
            return cls(**{name: values[name] for name in known} | {"id2label": labels})
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"{path}: id2label is not a table of class numbers and names") from error

    def as_hugging_face(self, architecture: str) -> dict:
        """The contents of `config.json`, for stock `transformers` to build `architecture`, and to compute in float32 as
        we do, in whatever precision the weights are stored."""
        values = asdict(self) | {name: only[0] for name, only in _FIXED.items()}
        labels = values.pop("id2label")
        if labels:
            values["id2label"] = {str(index): label for index, label in labels.items()}
            values["label2id"] = {label: index for index, label in labels.items()}
            values["problem_type"] = "single_label_classification"
        first = {"model_type": "gpt2", "architectures": [architecture], "dtype": "float32"}
        return first | dict(sorted(values.items()))


# Far beyond any GPT-2, and few enough that a network of that shape can be laid out before its weights are looked at.
_MOST = {
    "vocab_size": 1 << 24,
    "n_positions": 1 << 24,
    "n_embd": 1 << 16,
    "n_layer": 1 << 10,
    "n_head": 1 << 16,
    "n_inner": 1 << 20,
}
# What GPT-2 variants may set and we do not compute otherwise; the first value is the one we write.
_FIXED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False, True),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
