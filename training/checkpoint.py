"""`last/`: what an interrupted run needs to go on as if nothing had happened.

One safetensors file holds the trained parameters, the optimizer's moments and the states of the random generators as
tensors, and the rest as JSON in its header. Nothing in it can run. Two files take turns, so that the save before is
there until the new one is whole, and after that, should the new one turn out to be damaged.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from config import InputError, refuse_special
from models.tensors import check_tensors, write_tensors
from optimizer import AdamW

FORMAT = "3"
_FILES = ("state-0.safetensors", "state-1.safetensors")


def save_state(folder: Path, parameters: dict[str, Tensor], optimizer: AdamW, progress: dict) -> None:
    """Writes everything, whole or not at all.

    Args:
        folder: `last/` of a run.
        parameters: the trained ones, by name; none if the run is finished, and nothing is left to go on with.
        optimizer: their optimizer.
        progress: whatever else the trainer must know, as JSON; `saves` is this save's number.
    """
    tensors = {f"parameter.{name}": parameter for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    tensors["generator.cpu"] = torch.get_rng_state()
    if torch.cuda.is_initialized():
        tensors["generator.cuda"] = torch.cuda.get_rng_state()
    turn = progress["saves"] % 2
    write_tensors(folder / _FILES[turn], tensors, {"format": FORMAT, "progress": json.dumps(progress)})
    if not parameters:
        (folder / _FILES[1 - turn]).unlink(missing_ok=True)


def load_state(folder: Path, parameters: dict[str, Tensor], optimizer: AdamW) -> dict:
    """Puts everything of the latest save back in place and returns `progress`; of the save before, and says so, if the
    latest is damaged.

    Raises:
        InputError: no whole save there, or that of another network or another version of this program.
    """
    saves = [folder / name for name in _FILES if os.path.lexists(folder / name)]
    problems = []
    for path in sorted(saves, key=_number, reverse=True):
        try:
            progress = _load(path, parameters, optimizer)
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
def _load(path: Path, parameters: dict[str, Tensor], optimizer: AdamW) -> dict:
    try:
        refuse_special(path)
        with safe_open(path, framework="pt") as file:
            header = check_tensors(path, file, ours=True)
            if header.get("format") != FORMAT:
                raise InputError(f"{path}: written by another version of this program")
            names = set(file.keys())
            finished = not any(name.startswith("parameter.") for name in names)
            for name, parameter in () if finished else parameters.items():
                parameter.copy_(_of_shape(file.get_tensor(f"parameter.{name}"), parameter))
            for saved in names:
                if saved.startswith("optimizer."):
                    _, key, name = saved.split(".", 2)
                    value, parameter = file.get_tensor(saved), parameters[name]
                    moment = value if key == "step" else _of_shape(value, parameter).to(parameter.device)
                    optimizer.state[parameter][key] = moment
            torch.set_rng_state(file.get_tensor("generator.cpu"))
            if "generator.cuda" in names and torch.cuda.is_initialized():
                torch.cuda.set_rng_state(file.get_tensor("generator.cuda"))
            return dict(json.loads(header["progress"]))
    except InputError:
        raise
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: cannot be resumed from ({error})") from error


def _of_shape(value: Tensor, parameter: Tensor) -> Tensor:
    """Raises ValueError if it is of another one, which copying might repeat to fit."""
    if value.shape != parameter.shape:
        raise ValueError(f"a tensor of shape {tuple(value.shape)} in the place of {tuple(parameter.shape)}")
    return value
