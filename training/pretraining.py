"""Next-token training of a fresh network on documents, within a budget of tokens or minutes."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import asdict, dataclass, field

from tqdm import tqdm

from models.heads import GPT2LMHeadModel
from optimizer import Muon
from training import ranks
from training.batching import Pieces, shuffled
from training.checkpoint import load_state, save_state
from training.hardware import Precision
from training.interrupt import StopRequest
from training.objectives import NextToken, TrainingFailed, total_loss
from training.run import Run
from training.tracking import EVERY, Tracker
from training.update import Update

WARM_UP = 0.02  # of the budget
# 500,000 tokens, 3 layers x 224, 1,024 tokens a step, held-out nats a token: AdamW at 1e-3 for everything 6.22; at 5e-4
# for the matrices and 2e-3 for the embeddings 6.09; Muon for the matrices, with embeddings at 1e-3 6.06, at 4e-3 5.90.
MATRIX_RATE = 20 / 3  # times that of AdamW: 0.02 with its default
MOMENTUM = 0.95


@dataclass
class Progress:
    """How far training has come; all that `last/` holds besides tensors."""

    passes: int = 0  # over the documents, done
    step: int = 0  # steps done in the pass under way
    steps: int = 0
    saves: int = 0
    micro_batch_size: int | None = None  # that of the settings, or what fitted into memory
    lines: list[dict] = field(default_factory=list)  # of `metrics.jsonl`
    tokens: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0  # since the last line of metrics
    loss_tokens: int = 0
    tracked: list[float] = field(default_factory=lambda: [0.0, 0])  # the same, since the tracker was last told
    scaler: dict | None = None  # fp16 loss scaling


class Pretrainer:
    """Trains until the budget is spent: linear warm-up, then linear decay to nothing (Bergsma et al. 2025).
    The blocks' matrices are trained by Muon, the rest by AdamW.

    Args:
        model: in training from its present weights.
        train, held_out: what to learn from, and what to score on.
        settings: the flags `tokens` or `minutes`, `batch_tokens`, `micro_batch_size`, `max_grad_norm`, `lr`,
            `weight_decay`, `seed`, `save_every_steps`, `eval_every_steps`, `track`.
        run: where metrics and saves go.
        precision: what to compute in, and where.
        stop: asked after every step whether the user wants an end.
    """

    def __init__(
        self,
        model: GPT2LMHeadModel,
        train: Pieces,
        held_out: Pieces,
        settings: dict,
        run: Run,
        precision: Precision,
        stop: StopRequest,
    ):
        self.model, self.train, self.held_out = model, train, held_out
        self.settings, self.run, self.precision, self.stop = settings, run, precision, stop
        self.parameters = dict(model.named_parameters())
        self.optimizer = make_optimizer(model, settings["weight_decay"])
        limits = settings["micro_batch_size"], settings["max_grad_norm"]
        self.update = Update(model, NextToken(model), self.optimizer, precision, *limits)
        self.progress = Progress()

    def fit(self) -> None:
        """Spends what is left of the budget.

        Raises:
            Interrupted: the user asked to stop; `last/` holds the step just done.
            TrainingFailed: the loss is not a finite number.
            InputError: `--track`'s library refuses.
        """
        if self.run.resuming:
            self.progress = load_state(self.run.last, self.parameters, self.optimizer, Progress)
            self.run.write_lines(self.progress.lines)
            self.update.micro_batch_size = self.progress.micro_batch_size
            if self.progress.scaler:
                self.precision.scaler.load_state_dict(self.progress.scaler)
        form = "{desc} {n:.1f}% |{bar}| {elapsed}<{remaining}"
        with (
            Tracker(self.run, self.settings, first=self.progress.steps + 1) as self.tracker,
            tqdm(total=100, initial=min(100, 100 * self.spent()), disable=None, bar_format=form) as bar,
        ):
            while self.spent() < 1:
                self._pass(bar)

    def spent(self) -> float:
        """The share of the budget that is spent."""
        if self.settings["tokens"]:
            return self.progress.tokens / self.settings["tokens"]
        return self.progress.seconds / (60 * self.settings["minutes"])

    def _pass(self, bar: tqdm) -> None:
        progress = self.progress
        count = len(self.train.starts)
        (order,) = shuffled(count, count, self.settings["seed"], progress.passes)
        batches = self.train.batches(order, self.settings["batch_tokens"])
        self.model.train()
        while progress.step < len(batches) and self.spent() < 1:
            started = time.perf_counter()
            tokens = sum(self.train.lengths[i] for i in batches[progress.step])
            loss = self._step(batches[progress.step])
            progress.step += 1
            progress.steps += 1
            progress.tokens += tokens
            progress.loss_sum += loss
            progress.loss_tokens += tokens
            self._track(loss, tokens)
            progress.seconds = ranks.shared(progress.seconds + time.perf_counter() - started)
            if not bar.disable:
                speed = progress.tokens / progress.seconds
                text = f"loss {loss / tokens:.3f}, lr {self._rate():.2g}, {speed:.0f} tokens/s"
                bar.set_description_str(text, refresh=False)
                bar.update(min(100, 100 * self.spent()) - bar.n)
            evaluating = progress.steps % self.settings["eval_every_steps"] == 0 or self.spent() >= 1
            if evaluating:
                self._evaluate()
            every = self.settings["save_every_steps"]
            if self.stop.agree() is not None or evaluating or (every and progress.steps % every == 0):
                progress.saves += 1
                progress.micro_batch_size = self.update.micro_batch_size
                progress.scaler = self.precision.scaler.state_dict()
                save_state(self.run.last, self.parameters, self.optimizer, asdict(progress))
                self.stop.check()
        if progress.step == len(batches):
            progress.passes, progress.step = progress.passes + 1, 0

    def _step(self, indices: list[int]) -> float:
        """One update; returns the summed loss."""
        spent = self.spent()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings["lr"] * group["rate"] * min((spent + 1e-4) / WARM_UP, 1 - spent)
        sums, norm = self.update(self.train, indices)
        loss = sums[0].item()
        if not math.isfinite(loss if self.precision.skips_steps else loss + norm):
            raise TrainingFailed(
                f"step {self.progress.steps + 1}: the loss or its gradient is not a finite number; try a lower --lr"
            )
        return loss

    def _track(self, loss: float, tokens: int) -> None:
        """Tells the tracker, every so many steps, what they came to."""
        progress = self.progress
        progress.tracked = [progress.tracked[0] + loss, progress.tracked[1] + tokens]
        if progress.steps % EVERY == 0:
            mean = progress.tracked[0] / progress.tracked[1]
            self.tracker.log(progress.steps, {"train/loss": mean, "train/learning_rate": self._rate()})
            progress.tracked = [0.0, 0]

    def _rate(self) -> float:
        """AdamW's, which Muon's goes along with."""
        return next(group["lr"] for group in self.optimizer.param_groups if group["rate"] == 1)

    def _evaluate(self) -> None:
        progress, started = self.progress, time.perf_counter()
        nats = total_loss(self.model, self.held_out, self.precision)
        self.model.train()
        metrics = {
            "step": progress.steps,
            "train_loss": progress.loss_sum / progress.loss_tokens,
            "val_loss": nats / sum(self.held_out.lengths),
            "val_nats_per_byte": nats / self.held_out.bytes,
            "train_tokens": progress.tokens,
            "train_seconds": round(progress.seconds, 3),
            "eval_seconds": round(time.perf_counter() - started, 3),
        }
        progress.loss_sum, progress.loss_tokens = 0.0, 0
        progress.lines.append(metrics)
        self.run.log(metrics)
        self.tracker.log(progress.steps, {name: value for name, value in metrics.items() if name != "step"})
        spent = min(1, self.spent())
        left = progress.seconds * (1 - spent) / spent / 60
        tqdm.write(
            f"step {progress.steps}, {spent:.1%} of the budget, {left:.0f} min left, {progress.tokens:,} tokens: "
            f"train loss {metrics['train_loss']:.3f}, held-out loss {metrics['val_loss']:.3f} nats a token, "
            f"{metrics['val_nats_per_byte']:.4f} a byte, {progress.tokens / progress.seconds:.0f} tokens/s",
        )
        sys.stdout.flush()


def make_optimizer(model: GPT2LMHeadModel, weight_decay: float) -> Muon:
    """Muon for the matrices of the blocks, AdamW for the rest; `rate` of a group is its learning rate's share."""
    groups = {"query, key and value": [], "other matrices": [], "embeddings": [], "norms and biases": []}
    for name, parameter in model.named_parameters():
        if "wte" in name or "wpe" in name:
            groups["embeddings"].append(parameter)
        elif parameter.dim() == 1:
            groups["norms and biases"].append(parameter)
        else:
            groups["query, key and value" if "c_attn" in name else "other matrices"].append(parameter)
    muon = {"rate": MATRIX_RATE, "momentum": MOMENTUM, "weight_decay": weight_decay}
    settings = {
        "query, key and value": muon | {"parts": 3},
        "other matrices": muon,
        "embeddings": {"rate": 1, "weight_decay": weight_decay},
        "norms and biases": {"rate": 1},
    }
    # Batches are small, so the squares are averaged over more of them than the usual 20.
    return Muon([{"params": groups[name], **settings[name]} for name in groups], betas=(0.9, 0.99), eps=1e-8)
