"""What a fine-tuning run leaves behind, wherever it lies, and what it was trained for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import Formatter

from config import InputError, read_json
from models.pretrained import ADVICE, PUBLISHED, locate
from models.pretrained import _fetch_file as fetch_file

TASK = "task.json"  # beside the weights
NAMES = ("config.json", "adapter_config.json")  # one of which every model or adapter has


@dataclass
class TaskFile:
    """What a model was trained for.

    Attributes:
        name: of the data set; None if no file says it.
        labels: names of the classes; None of a language model, or where they are not known.
        prompt: what texts are put into, a `{}` for each; None for one that is read as it is.
    """

    name: str | None = None
    labels: list[str] | None = None
    prompt: str | None = None


def locate_trained(model: str) -> Path:
    """The local directory of a model or an adapter, downloaded from the Hub if need be.

    Args:
        model: a run's folder, a directory of weights such as its `best/`, or the name of a repository on the Hub.

    Raises:
        InputError: none of these, or out of reach.
    """
    try:
        for path in (Path(model) / "best", Path(model)):
            is_run = (path / "last").is_dir()  # whose own config.json is not a model's
            if model and not is_run and any((path / name).is_file() for name in NAMES):
                return path
        here = not model or Path(model).exists()
    except (OSError, ValueError) as error:  # no right to look into it, or a name that no file can have
        raise InputError(f"{model}: {getattr(error, 'strerror', None) or error}") from error
    if here:
        raise InputError(
            f"{model or 'an empty name'}: neither a run that has a best/ nor the directory of a model or an adapter"
        )
    try:
        return _fetch(model)
    except InputError as error:
        raise InputError(f"{model}: no such folder; {str(error).removesuffix(ADVICE)}") from error


def _fetch(repository: str) -> Path:
    if repository in ("mini", *PUBLISHED):
        return locate(repository)
    fetch_file(repository, TASK, optional=True)
    adapter = fetch_file(repository, "adapter_config.json", optional=True)
    if adapter and not fetch_file(repository, "config.json", optional=True):
        return fetch_file(repository, "adapter_model.safetensors").parent
    return locate(repository)


def read_task(directory: Path) -> TaskFile:
    """What `task.json` says; nothing, where there is none.

    Raises:
        InputError: it is not what a run writes there.
    """
    path = directory / TASK
    if not path.exists():
        return TaskFile()
    try:
        task = TaskFile(**read_json(path))
        if not isinstance(task.labels, list | None) or not all(
            isinstance(text, str) for text in [task.name or "", task.prompt or "", *(task.labels or [])]
        ):
            raise TypeError("not all of it is text")
        count_places(task.prompt)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: not what a run says of its task: {error}") from error
    return task


def settings_of_run(directory: Path) -> dict:
    """The flags of the run whose `best/` or `merged/` this is, as its `config.json` has them; none, if it is none.

    Raises:
        InputError: that file cannot be read.
    """
    run = directory.resolve().parent / "config.json"
    saved = read_json(run) if directory.resolve().name in ("best", "merged") and run.is_file() else {}
    settings = saved.get("settings") if isinstance(saved, dict) else None
    return settings if isinstance(settings, dict) else {}


def count_places(prompt: str | None) -> int:
    """How many texts go into a prompt.

    Raises:
        ValueError: it is none, or has more in its braces than nothing.
    """
    if prompt is None:
        return 1
    places = [part[1:] for part in Formatter().parse(prompt) if part[1] is not None]
    if not places or any(place != ("", "", None) for place in places):
        raise ValueError("a prompt has a {} for each text")
    return len(places)
