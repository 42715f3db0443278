"""A search over settings with Optuna (Akiba et al. 2019), by as many processes as share its storage.

Neither dev nor test is looked at: a setting is judged by a tenth of the training file that it does not learn from.
"""

from __future__ import annotations

import json
import random
import shutil
import time
import traceback
import uuid
import warnings
from pathlib import Path

import optuna
import torch
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FixedTrial, FrozenTrial, TrialState
from sqlalchemy.exc import DatabaseError, SQLAlchemyError

from config import InputError
from models.files import sha256
from reproduction.results import task_of
from reproduction.runner import SCRIPTS, output_to, script_of
from tasks.classification import Split
from tasks.sonnets import Sonnets, SonnetTask, read_sonnets
from training.finetune import fine_tune
from training.interrupt import Interrupted, StopRequest
from training.network import find_source
from training.objectives import TrainingFailed
from training.run import WHERE

DATASETS = {"sentiment": ("sst", "cfimdb"), "paraphrase": ("quora",), "sonnet": ("sonnets",)}
HELD_OUT = 0.1  # of the training file
HEARTBEAT, SILENCE = 10, 60  # seconds between a worker's signs of life, and after which its trial goes to another
PAUSE = 2.0  # seconds between two looks at what other workers are at
RETRIES = 10  # of a trial whose workers die
OPENINGS = 6  # tries to open a storage

warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
optuna.logging.set_verbosity(optuna.logging.ERROR)


def suggest(task: str, trial: optuna.trial.BaseTrial) -> list[str]:
    """Flags of a script: what the paper varied by hand, and what it left as it was."""
    choose, draw = trial.suggest_categorical, trial.suggest_float
    lora = choose("method", ["full", "lora"]) == "lora"
    flags = {
        # two ranges, since LoRA's best rate is some ten times as high
        "lr": draw("lora_lr", 1e-5, 1e-2, log=True) if lora else draw("lr", 1e-6, 3e-3, log=True),
        "batch_size": choose("batch_size", [8, 16, 32]),
        "dropout": draw("dropout", 0.0, 0.3, step=0.1),
        "patience": trial.suggest_int("patience", 1, 3),
    }
    if lora:
        flags["lora_rank"] = choose("lora_rank", [8, 16, 32, 64])
        flags["lora_alpha"] = choose("lora_alpha", [8, 16, 32, 64])
        flags["lora_target"] = choose("lora_target", ["attention", "all-linear"])
        flags["lora_dropout"] = draw("lora_dropout", 0.0, 0.2, step=0.1)
    if task == "sonnet":
        flags["train_size"] = choose("train_size", [0.8, 0.9])
    else:
        flags["hidden_dropout_prob"] = draw("hidden_dropout_prob", 0.0, 0.3, step=0.1)
    switches = ["--use_lora"] if lora else []
    if task == "sentiment":
        switches += ["--fine_tune_mode", "full-model"]
    return [*switches, *(text for name, value in flags.items() for text in (f"--{name}", str(value)))]


class Search:
    """The study of a data set: trials until there are as many as were asked for.

    Args:
        task: `sentiment`, `paraphrase` or `sonnet`.
        dataset: one of its `DATASETS`.
        flags: of every trial, such as the model's.
        data_dir: the course's files.
        folder: where trials are trained, each in a folder that another worker can go on in if it sees the same disk.
        storage: an Optuna storage URL, which workers share.
        stop: asked after every step whether the user wants an end.

    Raises:
        InputError: the storage cannot be used, or its study was made with other flags or data.
    """

    def __init__(
        self, task: str, dataset: str, flags: list[str], data_dir: str, folder: Path, storage: str, stop: StopRequest
    ):
        self.task, self.dataset, self.flags, self.data_dir, self.stop = task, dataset, flags, data_dir, stop
        path, self.rows = _read(dataset, data_dir)
        settings = script_of(task).parse_flags(flags)
        made_with = {
            "settings": {name: value for name, value in settings.items() if name not in WHERE},
            "weights": find_source(settings).hashes(),
            "data": sha256(path),
        }
        self.study = _open(storage, dataset)
        before = self.study.user_attrs.get("made_with", made_with)
        for name in made_with:
            if not isinstance(before, dict) or before.get(name) != made_with[name]:
                raise InputError(f"--storage {storage}: its study of {dataset} has other {name}; give another storage")
        self.study.set_user_attr("made_with", made_with)
        if "folder" not in self.study.user_attrs:  # of its own, for the runs of another study may lie beside
            self.study.set_user_attr("folder", f"{dataset}-{uuid.uuid4().hex[:8]}")
        name = self.study.user_attrs["folder"]
        if not isinstance(name, str) or Path(name).name != name or not 0 < len(name) < 100 or not name.isprintable():
            raise InputError(f"--storage {storage}: its study of {dataset} is another program's; give another")
        self.folder = folder / name
        self.error: InputError | None = None

    def run(self, trials: int) -> FrozenTrial:
        """Works until the study has so many trials, other workers' among them, and waits for those that they are at.

        Returns:
            The best.

        Raises:
            Interrupted: the user asked to stop; whoever comes next goes on with the trial under way.
            TrainingFailed: not one trial was trained to its end, or the storage is gone.
        """
        try:
            self._work(trials)
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            raise TrainingFailed(f"the storage is gone: {_first_line(error)}") from error
        if not any(trial.state == TrialState.COMPLETE for trial in self.study.trials):
            raise TrainingFailed(f"no trial was trained to its end; see {self.folder}/trial-0/log.txt")
        return self.study.best_trial

    def _work(self, trials: int) -> None:
        waiting = False
        while True:
            self.stop.check()
            fail_stale_trials(self.study)
            states = [trial.state for trial in self._own_trials()]
            if sum(state.is_finished() for state in states) >= trials:
                break
            if TrialState.WAITING not in states and len(states) >= trials:
                if not waiting:
                    print(f"waiting for {states.count(TrialState.RUNNING)} trials of other workers", flush=True)
                waiting = True
                time.sleep(PAUSE)
                continue
            try:
                self.study.optimize(self._train, n_trials=1, catch=Exception, callbacks=[self._tell])
            except ValueError as error:
                if "Cannot tell" not in str(error):
                    raise
                print("a trial was given to another worker, this one having been silent for too long", flush=True)
            if self.error:
                error, self.error = self.error, None
                raise error

    def _own_trials(self) -> list[FrozenTrial]:
        """But for those that a retry stands for."""
        trials = self.study.trials
        retried = {n for trial in trials for n in RetryHeartbeatStaleTrialCallback.retry_history(trial)}
        return [trial for trial in trials if trial.number not in retried]

    def _train(self, trial: optuna.Trial) -> float:
        """The lowest validation loss of a trial's epochs, in nats.

        Raises:
            optuna.TrialPruned: it is behind most others at the same epoch, or its loss is no longer a number.
        """
        folder = self._folder(self.study.trials[trial.number])
        flags = [*self.flags, *suggest(self.task, trial), "--output_dir", str(folder / "run"), "--resume"]
        settings = script_of(self.task).parse_flags([*flags, "--data_dir", self.data_dir])

        def watch(metrics: dict) -> None:
            if self.study.trials[trial.number].state != TrialState.RUNNING:
                raise optuna.TrialPruned  # given to another worker
            trial.report(_loss(metrics), metrics["epoch"])
            if trial.should_prune():
                raise optuna.TrialPruned

        with output_to(folder):
            try:
                splits = self._splits(settings)
                trained = fine_tune(folder / "run", self._task(), splits, settings, self.stop, watch=watch)
            except TrainingFailed as error:
                raise optuna.TrialPruned from error
            except InputError as error:
                self.error = error
                raise
            except (Interrupted, optuna.TrialPruned):
                raise
            except Exception:
                traceback.print_exc()
                raise
        lines = (trained.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return min(_loss(line) for line in map(json.loads, lines) if line["epoch"])

    def _task(self):
        return SonnetTask() if self.task == "sonnet" else task_of(self.dataset, self.data_dir)

    def _splits(self, settings: dict) -> dict[str, Split | Sonnets]:
        """What a trial learns from, and the tenth that it is judged by: the same for all."""
        rows = self.rows.sample(settings["max_train_samples"])
        count = len(rows.numbers if self.task == "sonnet" else rows.ids)
        if count < 2:
            raise InputError(f"{rows.path}: one row cannot be split into training and validation")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(settings["seed"])).tolist()
        held_out = max(1, round(HELD_OUT * count))
        learned = min(round(settings.get("train_size", 1) * count), count - held_out)
        return {"train": rows.pick(order[-learned:]), "dev": rows.pick(order[:held_out])}

    def _tell(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Prints what became of a trial, and frees the disk of its weights; one that the user broke off, or that
        bad input did, is left to whoever comes next."""
        if trial.state == TrialState.FAIL and (self.error or self.stop.signum is not None):
            RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)(study, trial)
            return
        end = f"loss {trial.value:.4f}" if trial.state == TrialState.COMPLETE else trial.state.name.lower()
        settings = ", ".join(f"{name} {_in_words(value)}" for name, value in trial.params.items())
        print(f"{self.dataset}, trial {trial.number}: {end}; {settings}", flush=True)
        for part in ("best", "last"):
            shutil.rmtree(self._folder(trial) / "run" / part, ignore_errors=True)

    def _folder(self, trial: FrozenTrial) -> Path:
        """A retry goes on in that of the trial it stands for."""
        first = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
        return self.folder / f"trial-{trial.number if first is None else first}"


def search(
    task: str, trials: int, flags: list[str], data_dir: str, folder: Path, storage: str, stop: StopRequest
) -> None:
    """Searches the settings of a task, and prints the best of each data set as a command.

    Raises:
        InputError, Interrupted, TrainingFailed: as `Search` and `Search.run`.
    """
    for dataset in DATASETS[task]:
        here = ["--dataset", dataset] if task == "sentiment" else []
        best = Search(task, dataset, [*flags, *here], data_dir, folder, storage, stop).run(trials)
        try:
            found = suggest(task, FixedTrial(best.params))
        except ValueError as error:
            raise InputError(
                f"--storage {storage}: trial {best.number} of {dataset} has settings of no search; give another: "
                f"{_first_line(error)}"
            ) from error
        command = " ".join([SCRIPTS[task] + ".py", *flags, *here, *found])
        print(f"{dataset}: trial {best.number} is the best, loss {best.value:.4f}:\n  python {command}", flush=True)


def _open(url: str, name: str) -> optuna.Study:
    """The study of that name in a storage, made if there is none. Workers that make it at the same moment stand in one
    another's way, and try again."""
    for tries_left in reversed(range(OPENINGS)):
        try:
            retry = RetryHeartbeatStaleTrialCallback(RETRIES, inherit_intermediate_values=True)
            storage = RDBStorage(
                url, heartbeat_interval=HEARTBEAT, grace_period=SILENCE, heartbeat_stale_trial_callback=retry
            )
            pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2)  # never after the first epoch
            return optuna.create_study(study_name=name, storage=storage, pruner=pruner, load_if_exists=True)
        except (DatabaseError, optuna.exceptions.StorageInternalError) as error:
            if not tries_left:
                raise InputError(f"--storage {url}: {_first_line(error)}") from error
            time.sleep(random.uniform(0, PAUSE / 2))
        except (SQLAlchemyError, ImportError, ValueError, RuntimeError) as error:
            raise InputError(f"--storage {url}: {_first_line(error)}") from error
    raise AssertionError("the last try returns or raises")


def _read(dataset: str, data_dir: str) -> tuple[Path, Split | Sonnets]:
    """The training file and its rows."""
    if dataset == "sonnets":
        path = Path(data_dir) / "sonnets.txt"
        return path, read_sonnets(path)
    rows = task_of(dataset, data_dir).read("train")
    return rows.path, rows


def _loss(metrics: dict) -> float:
    return metrics["val_loss"] if "val_loss" in metrics else metrics["dev_loss"]


def _in_words(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
