"""The models that the page shows: trained ones, and what each of them began as."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from config import InputError
from models.heads import GPT2LMHeadModel
from models.pretrained import EMBEDDED
from models.trained import count_places, settings_of_run
from tasks.paraphrase import Paraphrase
from tasks.prediction import Labeller, sampling_of
from tasks.sentiment import LABELS
from tasks.zero_shot import ZeroShot
from training.finished import Finished, Shelf
from training.flags import SAMPLING
from training.hardware import Precision
from training.interrupt import StopRequest
from training.network import find_source

TOY = [str(EMBEDDED / "adapters" / name) for name in ("sst", "quora", "sonnets")]
USUAL = [(tuple(LABELS["sst"]), None), (Paraphrase.labels, Paraphrase.prompt)]  # what a base is asked without runs
AS_TRAINED = dict.fromkeys([*SAMPLING, "seed"])  # no flag says otherwise


@dataclass
class Classifier:
    """
    Attributes:
        finished: the model below.
        labels: names of the classes.
        answer: n examples -> (n, classes) probabilities.
    """

    finished: Finished
    labels: list[str]
    answer: Callable[[Sequence[tuple[str, ...]]], np.ndarray]

    def __call__(self, examples: Sequence[tuple[str, ...]]) -> np.ndarray:
        """n examples of as many texts as the model reads -> (n, classes) probabilities."""
        self.finished.use()
        return self.answer(examples)


@dataclass
class Poet:
    """
    Attributes:
        finished: a language model.
        sampling: how it writes, as `tasks.prediction.sampling_of` has it.
    """

    finished: Finished
    sampling: dict


@dataclass
class Models:
    """What there is to choose from, by the names that the page shows, bases first.

    Attributes:
        classifiers: by how many texts they read, one or two.
        poets: what continues sonnets.
    """

    classifiers: dict[int, dict[str, Classifier]] = field(default_factory=lambda: {1: {}, 2: {}})
    poets: dict[str, Poet] = field(default_factory=dict)


def load_models(names: Sequence[str], precision: Precision, stop: StopRequest) -> Models:
    """Reads runs, adapters or models, and their bases, each base once.

    Args:
        names: as `models.trained.locate_trained` takes them; the embedded model's own adapters, if there are none.

    Raises:
        InputError: one of them is out of reach, damaged, or given twice.
    """
    names = names or TOY
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"{name} is given twice")
    shelf = Shelf(precision.device)
    trained = dict(zip(_titles(names), map(shelf.load, names), strict=True))
    asked: dict[tuple, str] = {}  # the classes and prompt of each classifier, with the name of its data
    for finished in trained.values():
        if not isinstance(finished.model, GPT2LMHeadModel):
            labels = tuple(finished.model.config.id2label.values())
            asked.setdefault((labels, finished.task.prompt), finished.task.name or "another task")
    for usual in USUAL:
        if not any(count_places(prompt) == count_places(usual[1]) for _, prompt in asked):
            asked[usual] = ""

    models = Models()
    for source, title in {base: title for finished in trained.values() for base, title in _bases(finished)}.items():
        finished = shelf.base(source)
        finished.use()
        models.poets[f"{title} (base)"] = Poet(finished, SAMPLING | {"seed": 11711})
        for (labels, prompt), data in asked.items():
            there = models.classifiers[count_places(prompt)]
            name = f"{title} (base)" if f"{title} (base)" not in there else f"{title} (base), asked as of {data}"
            there[name] = Classifier(finished, list(labels), ZeroShot(finished, labels, prompt, precision, stop))
    for title, finished in trained.items():
        name = f"{title} ({_method(finished)})"
        if isinstance(finished.model, GPT2LMHeadModel):
            models.poets[name] = Poet(finished, sampling_of(finished.directory, AS_TRAINED))
        else:
            labeller = Labeller(finished, finished.task.prompt, precision, stop)
            models.classifiers[labeller.places][name] = Classifier(finished, labeller.labels, _unnumbered(labeller))
    return models


def _unnumbered(labeller: Labeller) -> Callable[[Sequence[tuple[str, ...]]], np.ndarray]:
    return lambda examples: labeller(range(len(examples)), examples)


def _bases(finished: Finished) -> Iterator[tuple[Path, str]]:
    """What a model was before it was trained, and what to call that; nothing, if that is not known or out of reach."""
    if _is_adapter(finished):
        found = find_source({"model_path": str(finished.directory), "model_size": None})
    else:
        settings = settings_of_run(finished.directory)
        if not {"model_path", "model_size"} <= settings.keys():
            return
        try:
            found = find_source(settings)
        except InputError as error:
            print(f"{finished.directory}: shown without its base: {error}", flush=True)
            return
        if found.adapter:
            return
    yield found.source.resolve(), Path(found.name).name


def _is_adapter(finished: Finished) -> bool:
    return (finished.directory / "adapter_config.json").is_file() and not (finished.directory / "config.json").is_file()


def _method(finished: Finished) -> str:
    if _is_adapter(finished):
        return "LoRA"
    settings = settings_of_run(finished.directory)
    return "LoRA, merged" if settings.get("use_lora") else settings.get("fine_tune_mode") or "full model"


def _titles(names: Sequence[str]) -> list[str]:
    """As much of each path's end as tells them apart."""
    paths = [Path(name).parts[:-1] if Path(name).name == "best" else Path(name).parts for name in names]
    for length in range(1, max(map(len, paths)) + 1):
        titles = ["/".join(path[-length:]) for path in paths]
        if len(set(titles)) == len(titles):
            return titles
    return list(names)
