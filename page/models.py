"""The models that the page shows: trained ones, and what each of them began as."""

from __future__ import annotations

import os
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
    bases = {source: name for finished in trained.values() for source, name in _bases(finished, shelf)}
    for source, title in zip(bases, _base_titles(bases), strict=True):
        _add_base(models, shelf.base(source), title, asked, precision, stop)
    for title, finished in trained.items():
        name = f"{title} ({_method(finished)})"
        if isinstance(finished.model, GPT2LMHeadModel):
            sampling = sampling_of(finished.directory, AS_TRAINED)
            _add_poet(models, name, finished, sampling)
        else:
            labeller = Labeller(finished, finished.task.prompt, precision, stop)
            if labeller.places not in models.classifiers:
                raise InputError(f"{finished.directory}: it reads {labeller.places} texts; the page has room for two")
            labels = distinct(labeller.labels)
            models.classifiers[labeller.places][name] = Classifier(finished, labels, _unnumbered(labeller))
    if not (models.poets or any(models.classifiers.values())):
        raise InputError("none of the models can be shown")
    return models


def _add_base(
    models: Models, finished: Finished, title: str, asked: dict[tuple, str], precision: Precision, stop: StopRequest
) -> None:
    finished.use()
    _add_poet(models, f"{title} (base)", finished, SAMPLING | {"seed": 11711})
    for (labels, prompt), data in asked.items():
        there = models.classifiers.get(count_places(prompt), {})
        name = f"{title} (base)"
        for number in range(1, len(there) + 1):
            if name in there:
                name = f"{title} (base), asked as of {data}" + f" {number}" * (number > 1)
        try:
            answer = ZeroShot(finished, labels, prompt, precision, stop)
        except InputError as error:
            print(f"{finished.directory}: not asked about {', '.join(labels)}: {error}", flush=True)
        else:
            there[name] = Classifier(finished, distinct(labels), answer)


def _add_poet(models: Models, name: str, finished: Finished, sampling: dict) -> None:
    if finished.tokenizer.eos_token is None:
        print(f"{finished.directory}: writes no sonnets; its tokenizer has no end-of-text token, which ends one")
    else:
        models.poets[name] = Poet(finished, sampling)


def distinct(labels: Sequence[str]) -> list[str]:
    """Names for classes of which some have the same one, or none."""
    count = Counter(labels)
    return [label if label and count[label] == 1 else f"{label} (class {i})".strip() for i, label in enumerate(labels)]


def _unnumbered(labeller: Labeller) -> Callable[[Sequence[tuple[str, ...]]], np.ndarray]:
    return lambda examples: labeller(range(len(examples)), examples)


def _bases(finished: Finished, shelf: Shelf) -> Iterator[tuple[Path, str]]:
    """What a model was before it was trained, and its full name; nothing, if that is not known or out of reach."""
    if _is_adapter(finished):
        found = find_source({"model_path": str(finished.directory), "model_size": None})
    else:
        settings = settings_of_run(finished.directory)
        if not {"model_path", "model_size"} <= settings.keys():
            return
        try:
            found = find_source(settings)
            if not found.adapter:
                shelf.base(found.source)
        except InputError as error:
            print(f"{finished.directory}: shown without its base: {error}", flush=True)
            return
        if found.adapter:
            return
    yield found.source.resolve(), found.name


def _is_adapter(finished: Finished) -> bool:
    return (finished.directory / "adapter_config.json").is_file() and not (finished.directory / "config.json").is_file()


def _method(finished: Finished) -> str:
    if _is_adapter(finished):
        return "LoRA"
    settings = settings_of_run(finished.directory)
    return "LoRA, merged" if settings.get("use_lora") else settings.get("fine_tune_mode") or "full model"


def _base_titles(bases: dict[Path, str]) -> list[str]:
    titles = _titles(list(bases.values()))
    return titles if len(set(titles)) == len(titles) else _titles([str(source) for source in bases])


def _titles(names: Sequence[str]) -> list[str]:
    """As much of each path's end as tells them apart."""
    whole = [Path(os.path.abspath(name)) for name in names]  # for names such as `.`
    paths = [path.parts[:-1] if path.name in ("best", "merged") else path.parts for path in whole]
    for length in range(1, max(map(len, paths), default=0) + 1):
        titles = ["/".join(path[-length:]) for path in paths]
        if len(set(titles)) == len(titles):
            return titles
    return list(names)
