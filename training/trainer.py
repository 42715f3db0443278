"""The training loop: epochs, batches, precision, the best epoch, going on after an interruption."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from optimizer import AdamW
from training.batching import Batch, FeatureExamples, TokenExamples, by_length, shuffled
from training.checkpoint import load_state, save_state
from training.hardware import PeakMemory, Precision
from training.interrupt import Interrupted, StopRequest
from training.run import Run

Examples = TokenExamples | FeatureExamples


@dataclass
class Progress:
    """How far training has come; all that `last/` holds besides tensors."""

    epoch: int = 0  # epochs done
    step: int = 0  # steps done in the epoch under way
    best: float = -1.0  # dev accuracy of the best epoch
    loss_sum: float = 0.0  # over the examples of the epoch under way
    correct: int = 0
    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    kept_memory: int = 0
    scaler: dict | None = None  # fp16 loss scaling


class TrainingFailed(Exception):
    """Training cannot go on for a reason that is not the user's input."""


class Trainer:
    """Fits a classifier and keeps the epoch with the best dev accuracy.

    Args:
        model: holds the parameters; those that require gradients are trained.
        forward: arguments of a batch -> (B, classes) logits; the model itself, or its head on stored features.
        settings: the flags `epochs`, `batch_size`, `lr`, `weight_decay`, `seed` and `save_every_steps`.
        run: where metrics and saves go.
        save_best: writes the model as it stands to `run.best`.
        precision: what to compute in, and where.
        stop: asked after every step whether the user wants an end.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[..., Tensor],
        settings: dict,
        run: Run,
        save_best: Callable[[], None],
        precision: Precision,
        stop: StopRequest,
    ):
        self.model, self.forward, self.run, self.save_best = model, forward, run, save_best
        self.settings, self.precision, self.stop = settings, precision, stop
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = AdamW(self.parameters.values(), lr=settings["lr"], weight_decay=settings["weight_decay"])
        self.memory = PeakMemory(model, self.optimizer, precision.device)
        self.progress = Progress()

    def fit(
        self,
        train: Examples,
        dev: Examples,
        score: Callable[[np.ndarray, list[int]], dict],
        score_first: bool = False,
    ) -> None:
        """Trains for the epochs that are left.

        Args:
            train: examples to learn from.
            dev: examples to choose the epoch by.
            score: logits and labels -> `loss`, `acc` and `f1`.
            score_first: log what the model gives before it is trained, as epoch 0.

        Raises:
            Interrupted: the user asked to stop; `last/` holds the step just done.
            TrainingFailed: the loss is not a finite number.
        """
        if self.run.resuming:
            self._restore()
        elif score_first:
            self._score_untrained(dev, score)
        while self.progress.epoch < self.settings["epochs"]:
            self._train_epoch(train)
            self._finish_epoch(dev, score)

    def _train_epoch(self, train: Examples) -> None:
        progress, device, every = self.progress, self.precision.device, self.settings["save_every_steps"]
        batches = shuffled(len(train), self.settings["batch_size"], self.settings["seed"], progress.epoch)
        largest = max(range(len(batches)), key=lambda step: sum(train.lengths[i] for i in batches[step]))
        exact = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPU knows no float64
        totals = torch.tensor([progress.loss_sum, progress.correct], dtype=exact, device=device)
        label = f"epoch {progress.epoch + 1}/{self.settings['epochs']}"
        bar = tqdm(total=len(train), initial=progress.examples, desc=label, unit=" examples", disable=None, leave=False)
        started = time.perf_counter() - progress.seconds
        self.model.train()
        while progress.step < len(batches):
            batch = train.batch(batches[progress.step], device)
            totals += self._step(batch, watched=progress.step == largest)
            progress.step += 1
            progress.examples += batch.examples
            progress.tokens += batch.tokens
            bar.update(batch.examples)
            if not bar.disable and progress.step % 10 == 0:  # not every step: reading the loss waits for a GPU
                bar.set_postfix(loss=f"{totals[0].item() / progress.examples:.3f}")
            save = (every and progress.step % every == 0) or self.stop.signum is not None
            if save or progress.step == len(batches):
                progress.loss_sum, progress.correct = totals[0].item(), int(totals[1].item())
                progress.seconds = time.perf_counter() - started
                if not math.isfinite(progress.loss_sum):
                    raise TrainingFailed(f"{label}: the loss is no longer a finite number; try a lower --lr")
            if save:
                self._save()
                self.stop.check()
        bar.close()

    def _step(self, batch: Batch, watched: bool) -> Tensor:
        """One update; returns the batch's summed loss and number of right answers."""
        with self.precision.autocast(), self.memory.watch() if watched else nullcontext():
            logits = self.forward(*batch.inputs).float()
        loss = F.cross_entropy(logits, batch.labels)
        self.precision.update(loss, self.optimizer)
        correct = (logits.argmax(dim=1) == batch.labels).sum()
        return torch.stack([loss.detach() * batch.examples, correct])

    def _score_untrained(self, dev: Examples, score: Callable[[np.ndarray, list[int]], dict]) -> None:
        scores = self._evaluate(dev, score)
        print(f"before training: dev loss {scores['dev_loss']:.3f}, dev acc {scores['dev_acc']:.3f}", flush=True)
        self.run.log({"epoch": 0} | scores)

    def _evaluate(self, dev: Examples, score: Callable[[np.ndarray, list[int]], dict]) -> dict:
        started = time.perf_counter()
        logits = predict(self.model, self.forward, dev, self.precision, self.stop, "dev")
        if not np.isfinite(logits).all():
            raise TrainingFailed("the model no longer gives finite numbers; try a lower --lr")
        scores = {f"dev_{name}": value for name, value in score(logits, dev.labels.tolist()).items()}
        return scores | {"eval_seconds": round(time.perf_counter() - started, 3)}

    def _finish_epoch(self, dev: Examples, score: Callable[[np.ndarray, list[int]], dict]) -> None:
        progress = self.progress
        try:
            scores = self._evaluate(dev, score)
        except Interrupted:
            self._save()
            raise
        seconds = scores.pop("eval_seconds")
        metrics = {
            "epoch": progress.epoch + 1,
            "train_loss": progress.loss_sum / progress.examples,
            "train_acc": progress.correct / progress.examples,
            **scores,
            "train_seconds": round(progress.seconds, 3),
            "eval_seconds": seconds,
            "train_examples": progress.examples,
            "train_tokens": progress.tokens,
            "peak_memory_bytes": self.memory.bytes(),
        }
        print(
            f"epoch {metrics['epoch']}/{self.settings['epochs']}: train loss {metrics['train_loss']:.3f}, "
            f"train acc {metrics['train_acc']:.3f}, dev loss {metrics['dev_loss']:.3f}, "
            f"dev acc {metrics['dev_acc']:.3f}, {progress.examples / progress.seconds:.0f} examples/s",
            flush=True,
        )
        best = max(progress.best, metrics["dev_acc"])
        if metrics["dev_acc"] > progress.best:
            self.save_best()
        self.run.log(metrics)
        self.progress = Progress(epoch=progress.epoch + 1, best=best, kept_memory=self.memory.kept)
        self._save()

    def _save(self) -> None:
        self.progress.scaler = self.precision.scaler.state_dict()
        self.progress.kept_memory = self.memory.kept
        done = self.progress.epoch == self.settings["epochs"]  # then nothing but that is worth keeping
        save_state(self.run.last, {} if done else self.parameters, self.optimizer, asdict(self.progress))

    def _restore(self) -> None:
        self.progress = Progress(**load_state(self.run.last, self.parameters, self.optimizer))
        self.run.keep_lines(lambda line: line["epoch"] <= self.progress.epoch)
        self.memory.kept = self.progress.kept_memory
        if self.progress.scaler:
            self.precision.scaler.load_state_dict(self.progress.scaler)


@torch.inference_mode()
def predict(
    model: nn.Module,
    forward: Callable[..., Tensor],
    examples: Examples,
    precision: Precision,
    stop: StopRequest,
    name: str,
) -> np.ndarray:
    """Runs a model in evaluation mode over examples in batches of like length.

    Returns:
        (n, width) what `forward` gives for each example, in float32, in the order of the examples.

    Raises:
        Interrupted: the user asked to stop.
    """
    model.eval()
    outputs: list[np.ndarray] = []
    order: list[int] = []
    with tqdm(total=len(examples), desc=name, unit=" examples", disable=None, leave=False) as bar:
        for indices in by_length(examples.lengths):
            indices = sorted(indices, key=examples.lengths.__getitem__)  # the order a batch puts them in
            batch = examples.batch(indices, precision.device)
            with precision.autocast():
                outputs.append(forward(*batch.inputs).float().cpu().numpy())
            order += indices
            bar.update(batch.examples)
            stop.check()
    result = np.concatenate(outputs)
    result[order] = result.copy()
    return result
