"""The training loop: epochs, batches, precision, the best epoch, when to stop, going on after an interruption."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from optimizer import AdamW
from training import ranks
from training.batching import shuffled
from training.checkpoint import load_state, save_state
from training.early_stopping import EarlyStopping
from training.hardware import Precision
from training.interrupt import Interrupted, StopRequest
from training.objectives import Examples, Objective, TrainingFailed
from training.run import Run
from training.tracking import EVERY, Tracker
from training.update import Update


@dataclass
class Progress:
    """How far training has come; all that `last/` holds besides tensors."""

    epoch: int = 0  # epochs done
    step: int = 0  # steps done in the epoch under way
    best: float = -math.inf  # merit of the best epoch
    waited: int = 0  # epochs since then
    best_files: dict[str, str] | None = None  # hashes of what it wrote
    saves: int = 0
    micro_batch_size: int | None = None  # that of the settings, or what fitted into memory
    lines: list[dict] = field(default_factory=list)  # of `metrics.jsonl`, should that be damaged
    sums: list[float] | None = None  # of the objective, over the epoch under way
    examples: int = 0
    tokens: int = 0
    tracked: list[float] | None = None  # `sums`, `examples` and `tokens` when they were last told to the tracker
    seconds: float = 0.0
    kept_memory: int = 0
    scaler: dict | None = None  # fp16 loss scaling


class Trainer:
    """Trains for some epochs, or until no epoch is better than an earlier one for a while, and keeps the best.

    Args:
        model: holds the parameters; those that require gradients are trained.
        objective: what is lowered, and what is best.
        settings: the flags `epochs`, `patience`, `batch_size`, `micro_batch_size`, `max_grad_norm`, `lr`,
            `weight_decay`, `seed`, `save_every_steps` and `track`.
        run: where metrics and saves go.
        save_best: writes the model as it stands to `run.best`, and returns the hashes of what it wrote.
        precision: what to compute in, and where.
        stop: asked after every step whether the user wants an end.
        watch: called with each epoch's metrics, once all is saved; what it raises ends training.
        name_row: what to call a training example in a message.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        settings: dict,
        run: Run,
        save_best: Callable[[], dict[str, str]],
        precision: Precision,
        stop: StopRequest,
        watch: Callable[[dict], None] | None = None,
        name_row: Callable[[int], str] = str,
    ):
        self.model, self.objective, self.run, self.save_best = model, objective, run, save_best
        self.settings, self.precision, self.stop, self.watch = settings, precision, stop, watch
        self.name_row = name_row
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = AdamW(self.parameters.values(), lr=settings["lr"], weight_decay=settings["weight_decay"])
        limits = settings["micro_batch_size"], settings["max_grad_norm"]
        self.update = Update(model, objective, self.optimizer, precision, *limits)
        self.progress = Progress()
        self.stopping = EarlyStopping(settings["patience"])

    def fit(self, train: Examples, dev: Examples, score_first: bool = False) -> None:
        """Trains for the epochs that are left.

        Args:
            train: examples to learn from.
            dev: examples to choose the epoch by.
            score_first: log what the model gives before it is trained, as epoch 0.

        Raises:
            Interrupted: the user asked to stop; `last/` holds the step just done.
            TrainingFailed: the loss or its gradient is not a finite number, or one example alone fills the memory.
            InputError: `--track`'s library refuses.
        """
        if self.run.resuming:
            self._restore()
        self.epoch_steps = math.ceil(len(train) / self.settings["batch_size"])
        evaluated = self.progress.step < self.epoch_steps  # or stopped within: the step's numbers are still to come
        with Tracker(self.run, self.settings, first=self._step() + evaluated) as self.tracker:
            if score_first and not self.run.resuming:
                scores = self._evaluate(dev)
                print(f"before training: {_in_words(scores)}", flush=True)
                self._log({"epoch": 0} | scores)
            while not self._done():
                self._train_epoch(train)
                self._finish_epoch(dev)
        ranks.on_first(lambda: self.run.refuse_damaged_best(self.progress.best_files or {}))
        waited = self.stopping.waited
        why = f"{waited} in a row without a better one (--patience)" if self.stopping.over else "all of --epochs"
        print(f"ended after epoch {self.progress.epoch}: {why}; the best is epoch {self.best_epoch}", flush=True)

    def _train_epoch(self, train: Examples) -> None:
        progress, device, every = self.progress, self.precision.device, self.settings["save_every_steps"]
        batches = shuffled(len(train), self.settings["batch_size"], self.settings["seed"], progress.epoch)
        largest = max(range(len(batches)), key=lambda step: self.update.widest(train, batches[step]))
        exact = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPU knows no float64
        sums = torch.tensor(progress.sums or [0.0, 0.0], dtype=exact, device=device)
        label = f"epoch {progress.epoch + 1}/{self.settings['epochs']}"
        started = time.perf_counter() - progress.seconds
        unseen: list[Tensor] = []  # a number for each of the latest steps, which is finite if all is well
        self.model.train()
        how = dict(total=len(train), initial=progress.examples, desc=label, unit=" examples")
        with tqdm(**how, disable=None, leave=False) as bar:
            while progress.step < len(batches):
                indices = batches[progress.step]
                more, norm = self.update(train, indices, watched=progress.step == largest)
                sums += more
                unseen.append(more[0] if self.precision.skips_steps else more[0] + norm)
                progress.step += 1
                progress.examples += len(indices)
                progress.tokens += sum(train.lengths[i] for i in indices)
                save = self.stop.agree() is not None or (every and progress.step % every == 0)
                done = progress.step == len(batches)
                tracked = progress.step % EVERY == 0 and not done
                if save or done or tracked or device.type == "cpu":  # looking at a number waits for a GPU
                    self._refuse_what_is_not_finite(unseen, label, batches)
                    unseen.clear()
                    progress.sums = sums.tolist()
                    progress.seconds = time.perf_counter() - started
                    self._show(bar)
                bar.update(len(indices))
                if tracked:
                    self._track()
                if save:
                    self._save()
                    self.stop.check()

    def _show(self, bar: tqdm) -> None:
        """The epoch's loss so far and the learning rate, beside what tqdm shows itself."""
        if not bar.disable:
            progress = self.progress
            scores = self.objective.training_scores(progress.sums, progress.examples, progress.tokens)
            bar.set_postfix(loss=f"{scores['train_loss']:.3f}", lr=f"{self._rate():g}", refresh=False)

    def _track(self) -> None:
        """Tells what the steps came to since this was last called in the epoch."""
        progress = self.progress
        counts = [*progress.sums, progress.examples, progress.tokens]
        *sums, examples, tokens = (now - then for now, then in zip(counts, progress.tracked or [0] * 4, strict=True))
        loss = self.objective.training_scores(sums, examples, tokens)["train_loss"]
        self.tracker.log(self._step(), {"train/loss": loss, "train/learning_rate": self._rate()})
        progress.tracked = counts

    def _step(self) -> int:
        """Since the start of training."""
        return self.progress.epoch * self.epoch_steps + self.progress.step

    def _rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def _refuse_what_is_not_finite(self, numbers: list[Tensor], label: str, batches: list[list[int]]) -> None:
        for step, number in enumerate(numbers, start=self.progress.step - len(numbers)):
            if not math.isfinite(number):
                rows = ", ".join(map(self.name_row, batches[step]))
                raise TrainingFailed(
                    f"{label}, step {step + 1} of {len(batches)}: the loss or its gradient is not a finite number, "
                    f"with --lr {self.settings['lr']:g}, on the rows {rows}; what was saved before is untouched; "
                    "a lower --lr or --max_grad_norm 1 may help"
                )

    def _evaluate(self, dev: Examples) -> dict[str, float]:
        started = time.perf_counter()
        scores = self.objective.evaluate(dev, self.precision, self.stop)
        return scores | {"eval_seconds": round(time.perf_counter() - started, 3)}

    def _finish_epoch(self, dev: Examples) -> None:
        progress = self.progress
        try:
            scores = self._evaluate(dev)
        except Interrupted:
            self._save()
            raise
        seconds = scores.pop("eval_seconds")
        metrics = {
            "epoch": progress.epoch + 1,
            **self.objective.training_scores(progress.sums, progress.examples, progress.tokens),
            **scores,
            "train_seconds": round(progress.seconds, 3),
            "eval_seconds": seconds,
            "train_examples": progress.examples,
            "train_tokens": progress.tokens,
            "peak_memory_bytes": ranks.highest(self.update.memory.bytes()),
        }
        speed = f"{progress.examples / progress.seconds:.0f} examples/s"
        print(f"epoch {metrics['epoch']}/{self.settings['epochs']}: {_in_words(metrics)}, {speed}", flush=True)
        if self.stopping.improves(self.objective.merit(scores)):
            progress.best_files = self.save_best()
        self._log(metrics)
        self.progress = Progress(
            progress.epoch + 1,
            best=self.stopping.best,
            waited=self.stopping.waited,
            best_files=progress.best_files,
            lines=progress.lines,
            saves=progress.saves,
        )
        self._save()
        if self.watch:
            self.watch(metrics)

    def _log(self, line: dict) -> None:
        self.progress.lines.append(line)
        self.run.log(line)
        self.tracker.log(self._step(), line)

    @property
    def best_epoch(self) -> int:
        """Counted from 1."""
        return self.progress.epoch - self.stopping.waited

    def _done(self) -> bool:
        return self.progress.epoch == self.settings["epochs"] or self.stopping.over

    def _save(self) -> None:
        progress = self.progress
        progress.saves += 1
        progress.scaler = self.precision.scaler.state_dict()
        progress.micro_batch_size, progress.kept_memory = self.update.micro_batch_size, self.update.memory.kept
        parameters = {} if self._done() else self.parameters  # then nothing but that is worth keeping
        save_state(self.run.last, parameters, self.optimizer, asdict(progress))

    def _restore(self) -> None:
        self.progress = load_state(self.run.last, self.parameters, self.optimizer, Progress)
        self.stopping = EarlyStopping(self.settings["patience"], self.progress.best, self.progress.waited)
        self.run.write_lines(self.progress.lines)
        self.update.micro_batch_size = self.progress.micro_batch_size
        self.update.memory.kept = self.progress.kept_memory
        if self.progress.scaler:
            self.precision.scaler.load_state_dict(self.progress.scaler)


def _in_words(metrics: dict[str, float]) -> str:
    """`train loss 1.234, dev acc 0.567`"""
    scores = {name: value for name, value in metrics.items() if name.endswith(("_loss", "_acc", "_f1"))}
    return ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in scores.items())
