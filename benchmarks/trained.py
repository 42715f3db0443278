"""A side of a comparison that trains as a user of `transformers` does: its `Trainer`, whole."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from tempfile import gettempdir

import transformers
from sides import CPU, Ours, Stock
from torch import Tensor
from transformers import DataCollatorWithPadding, TrainingArguments


class Trained(Stock):
    """Stock with `transformers.Trainer` around it, which runs in a thread of its own and waits for each batch: its
    collator, its optimizer and schedule, and what else it does between two steps. It does not cut gradients, which is
    not ours to do either unless it is asked for; its own default is a norm of 1.

    Args:
        optim: the trainer's name for its optimizer.
    """

    def __init__(self, ours: Ours, method: str, optim: str):
        super().__init__(ours, method)
        arguments = TrainingArguments(
            output_dir=gettempdir(), save_strategy="no", report_to="none", disable_tqdm=True, max_steps=1_000_000,
            optim=optim, learning_rate=ours.settings["lr"], adam_epsilon=1e-6, lr_scheduler_type="constant",
            max_grad_norm=0.0, bf16=self.precision.name == "bf16", use_cpu=self.precision.device.type == "cpu",
        )  # fmt: skip
        self.collate = DataCollatorWithPadding(ours.loaded.tokenizer)
        self.asked: SimpleQueue[list[int]] = SimpleQueue()
        self.done: SimpleQueue[Tensor | Exception | None] = SimpleQueue()
        self.trainer = _Trainer(self._batches(), model=self.model, args=arguments)
        threading.Thread(target=self._train, daemon=True).start()
        self._wait()

    def step(self, indices: list[int]) -> Tensor:
        """One update on these rows; (), its loss."""
        self.asked.put(indices)
        return self._wait()

    def _wait(self) -> Tensor | None:
        answer = self.done.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _train(self) -> None:
        try:
            self.trainer.train()
            self.done.put(RuntimeError("the Trainer has ended"))
        except Exception as error:  # which ends this thread, and is raised in the one that waits for it
            self.done.put(error)

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        while True:
            self.done.put(self.trainer.loss)  # the step before is done when the next batch is asked for
            batch = self.texts.batch(self.asked.get(), CPU)
            tokens, rows = batch.inputs
            texts = [tokens.tolist() for tokens in tokens.split(rows.lengths)]
            examples = zip(texts, batch.labels.tolist(), strict=True)
            yield self.collate([{"input_ids": text, "labels": label} for text, label in examples])


class _Trainer(transformers.Trainer):
    loss: Tensor | None = None  # of the latest step

    def __init__(self, batches: Iterator[dict[str, Tensor]], **more):
        super().__init__(**more)
        self.batches = batches

    def get_train_dataloader(self) -> Iterator[dict[str, Tensor]]:
        return self.batches

    def compute_loss(self, *inputs, **more) -> Tensor:
        loss = super().compute_loss(*inputs, **more)
        self.loss = loss.detach()
        return loss
