"""`last/`: what an interrupted run needs to go on as if nothing had happened.

One safetensors file holds the trained parameters, the optimizer's moments and the states of the random generators as
tensors, and the rest as JSON in its header. Nothing in it can run. Two files take turns, so that the save before is
there until the new one is whole, and after that, should the new one turn out to be damaged.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import TypeVar, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from config import InputError, refuse_special
from models.tensors import check_tensors, write_tensors
from optimizer import AdamW
from training import ranks

Progress = TypeVar("Progress")

FORMAT = "3"
_FILES = ("state-0.safetensors", "state-1.safetensors")


def save_state(folder: Path, parameters: dict[str, Tensor], optimizer: AdamW, progress: dict) -> None:
    """Writes everything, whole or not at all; every process takes part, and the first one writes.

    Args:
        folder: `last/` of a run.
        parameters: the trained ones, by name; none if the run is finished, and nothing is left to go on with.
        optimizer: their optimizer.
        progress: whatever else the trainer must know, as JSON; `saves` is this save's number.
    """
    tensors = {f"parameter.{name}": _on_first(parameter) for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = _on_first(value)
    for device, states in _generators().items():
        tensors |= {_generator(device, rank): state for rank, state in enumerate(ranks.gather(states))}
    turn = progress["saves"] % 2

    def write() -> None:
        write_tensors(folder / _FILES[turn], tensors, {"format": FORMAT, "progress": json.dumps(progress)})
        if not parameters:
            (folder / _FILES[1 - turn]).unlink(missing_ok=True)

    ranks.on_first(write)


def _on_first(tensor: Tensor) -> Tensor:
    """All of it, in the memory of the first process; of the others nothing is written."""
    whole = ranks.whole(tensor)
    return whole.detach().cpu() if ranks.rank() == 0 else torch.empty(0)


def _generators() -> dict[str, Tensor]:
    """The states of this process's random generators, by device."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {})


def _generator(device: str, rank: int) -> str:
    """What the state of a process's generator is called."""
    return f"generator.{device}" + (f".{rank}" if rank else "")


def load_state(folder: Path, parameters: dict[str, Tensor], optimizer: AdamW, kind: type[Progress]) -> Progress:
    """Puts everything of the latest save back in place; of the save before, and says so, if the latest is damaged.

    Args:
        kind: the dataclass that `progress` was made from.

    Returns:
        `progress`, as it was saved.

    Raises:
        InputError: no whole save there, or that of another network or another version of this program.
    """
    saves = [folder / name for name in _FILES if os.path.lexists(folder / name)]
    problems = []
    for path in sorted(saves, key=_number, reverse=True):
        try:
            progress = _load(path, parameters, optimizer, kind)
        except InputError as problem:
            problems.append(str(problem))
            continue
        for problem in problems:
            print(f"{problem}; going on from the save before, {path.name}", flush=True)
        return progress
    reasons = "; ".join(problems) or f"{folder}: nothing is saved there"
    raise InputError(f"{reasons}; leave out --resume to start afresh")


def _number(path: Path) -> float:
    """Which save it is; one that cannot be read counts as the latest, so that it is spoken of."""
    try:
        refuse_special(path)
        with safe_open(path, framework="pt") as file:
            return float(json.loads(file.metadata()["progress"])["saves"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError):
        return math.inf


@torch.no_grad()
def _load(path: Path, parameters: dict[str, Tensor], optimizer: AdamW, kind: type[Progress]) -> Progress:
    try:
        refuse_special(path)
        with safe_open(path, framework="pt") as file:
            header = check_tensors(path, file, ours=True)
            if header.get("format") != FORMAT:
                raise InputError(f"{path}: written by another version of this program")
            progress = _as(kind, json.loads(header["progress"]))
            names = set(file.keys())
            finished = not any(name.startswith("parameter.") for name in names)
            for name, parameter in () if finished else parameters.items():
                parameter.copy_(_of_shape(file.get_tensor(f"parameter.{name}"), parameter))
            moments = [name.split(".", 2)[1:] for name in sorted(names) if name.startswith("optimizer.")]
            if moments and {name for _, name in moments} != parameters.keys():
                raise KeyError("the optimizer's state of some parameters")
            for key, name in moments:
                value, parameter = file.get_tensor(f"optimizer.{key}.{name}"), parameters[name]
                optimizer.state[parameter][key] = value if key == "step" else _of_shape(value, parameter)
            own = {device: _generator(device, ranks.rank()) for device in _generators()}
            if own["cpu"] in names:  # more processes than were saved go on with the numbers that they start with
                torch.set_rng_state(file.get_tensor(own["cpu"]))
            if own.get("cuda") in names:
                torch.cuda.set_rng_state(file.get_tensor(own["cuda"]))
            return progress
    except InputError:
        raise
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: cannot be resumed from ({error})") from error


def _of_shape(value: Tensor, parameter: Tensor) -> Tensor:
    """A tensor in a parameter's place. Raises ValueError if its shape is another, which copying might repeat to fit."""
    if value.shape != parameter.shape:
        raise ValueError(f"a tensor of shape {tuple(value.shape)} in the place of {tuple(parameter.shape)}")
    return ranks.part_of(value.to(parameter.device), parameter)


def _as(kind: type[Progress], values: dict) -> Progress:
    """A dataclass of values from JSON. Raises TypeError for other names or types than it has."""
    progress, hints = kind(**values), get_type_hints(kind)
    for field in fields(kind):
        if not _fits(getattr(progress, field.name), hints[field.name]):
            raise TypeError(f"{field.name} = {getattr(progress, field.name)!r}")
    return progress


def _fits(value: object, hint: type | UnionType) -> bool:
    """Whether a value from JSON is of a type as dataclasses name it."""
    if isinstance(hint, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if not isinstance(value, int | float if kind is float else kind):
        return False
    return not inner or all(_fits(one, inner[-1]) for one in (value.values() if kind is dict else value))
