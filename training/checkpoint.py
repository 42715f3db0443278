"""`last/`: what an interrupted run needs to go on as if nothing had happened.

One safetensors file holds the trained parameters, the optimizer's moments and the states of the random generators as
tensors, and the rest as JSON in its header. Nothing in it can run.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from config import InputError
from models.files import replacing
from optimizer import AdamW

FORMAT = "2"
_FILE = "state.safetensors"


def save_state(folder: Path, parameters: dict[str, Tensor], optimizer: AdamW, progress: dict) -> None:
    """Writes everything, whole or not at all.

    Args:
        folder: `last/` of a run.
        parameters: the trained ones, by name; none if the run is finished, and nothing is left to go on with.
        optimizer: their optimizer.
        progress: whatever else the trainer must know, as JSON.
    """
    tensors = {f"parameter.{name}": parameter.detach().contiguous() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value.contiguous()
    tensors["generator.cpu"] = torch.get_rng_state()
    if torch.cuda.is_initialized():
        tensors["generator.cuda"] = torch.cuda.get_rng_state()
    with replacing(folder / _FILE) as path:
        save_file(tensors, path, metadata={"format": FORMAT, "progress": json.dumps(progress)})


@torch.no_grad()
def load_state(folder: Path, parameters: dict[str, Tensor], optimizer: AdamW) -> dict:
    """Puts everything back in place and returns `progress`.

    Raises:
        InputError: no state there, a torn file, or the state of another network.
    """
    path = folder / _FILE
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise InputError(f"{path}: written by another version of this program; leave out --resume")
            names = set(file.keys())
            finished = not any(name.startswith("parameter.") for name in names)
            for name, parameter in () if finished else parameters.items():
                parameter.copy_(file.get_tensor(f"parameter.{name}"))
            for saved in names:
                if saved.startswith("optimizer."):
                    _, key, name = saved.split(".", 2)
                    value, parameter = file.get_tensor(saved), parameters[name]
                    optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device)
            torch.set_rng_state(file.get_tensor("generator.cpu"))
            if "generator.cuda" in names and torch.cuda.is_initialized():
                torch.cuda.set_rng_state(file.get_tensor("generator.cuda"))
            return json.loads(header["progress"])
    except (OSError, SafetensorError, RuntimeError, KeyError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: cannot be resumed from ({error}); leave out --resume to start afresh") from error
