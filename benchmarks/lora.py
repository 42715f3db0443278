"""LoRA against full fine-tuning: time of a step and peak memory on SST; and the merged model against its base.

./setup.sh python benchmarks/lora.py --model_path DIR --data_dir ../shared/data [--lora_rank 16 --batch_size 8 ...]
"""

from __future__ import annotations

from timing import describe_machine, paired  # isort: skip

from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.nn import functional as F

import classifier
from models.gpt2 import GPT2Model
from models.heads import GPT2ForSequenceClassification
from models.lora import Adapters
from optimizer import AdamW
from tasks.sentiment import Sentiment
from training.batching import shuffled
from training.hardware import PeakMemory, keep_freed_memory
from training.methods import choose
from training.network import load_network

STEPS = 4  # timed at once


class Training:
    """One way of training on SST, a few steps at a call."""

    def __init__(self, settings: dict, use_lora: bool):
        settings = settings | {"use_lora": use_lora, "fine_tune_mode": "full-model"}
        loaded, self.cpu = load_network(settings), torch.device("cpu")
        task = Sentiment("sst", settings["data_dir"])
        self.model = GPT2ForSequenceClassification(loaded.network, task.labels, settings["hidden_dropout_prob"])
        self.method = choose(settings, loaded)(self.model, settings)
        examples = {"train": task.encode(loaded.tokenizer, task.read("train"))}
        self.forward, examples = self.method.start(examples, None)
        self.examples = examples["train"]
        self.optimizer = AdamW([p for p in self.model.parameters() if p.requires_grad], lr=settings["lr"])
        self.memory = PeakMemory(self.model, self.optimizer, self.cpu)
        self.batch_size = settings["batch_size"]
        self.batches = cycle(shuffled(len(self.examples), self.batch_size, settings["seed"], 0))
        self.model.train()

    def __call__(self) -> None:
        for _ in range(STEPS):
            self._step(next(self.batches))

    def peak(self) -> int:
        """Bytes that a step on the longest texts takes."""
        lengths = self.examples.lengths
        with self.memory.watch():
            self._step(sorted(range(len(lengths)), key=lengths.__getitem__)[-self.batch_size :])
        return self.memory.bytes()

    def _step(self, indices: list[int]) -> None:
        batch = self.examples.batch(indices, self.cpu)
        F.cross_entropy(self.forward(*batch.inputs), batch.labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def main() -> None:
    keep_freed_memory()
    describe_machine()
    settings = classifier.parse_flags()
    lora, full = Training(settings, use_lora=True), Training(settings, use_lora=False)
    paired(f"{STEPS} steps of batch {settings['batch_size']}, LoRA against everything", lora, full, repeats=25)
    sizes = [training.peak() for training in (lora, full)]
    print(
        f"peak memory: {sizes[0] / 2**20:,.0f} MiB against {sizes[1] / 2**20:,.0f} MiB, {sizes[0] / sizes[1]:.2f} of it"
    )

    with TemporaryDirectory() as folder:
        lora.method.save(Path(folder))
        adapters = Adapters(GPT2Model.from_pretrained(lora.method.source))
        adapters.load("it", Path(folder))
    merged, base = adapters.merge().eval(), GPT2Model.from_pretrained(lora.method.source)
    inputs = lora.examples.batch(next(lora.batches), lora.cpu).inputs

    def read(network: GPT2Model) -> None:
        with torch.inference_mode():
            for _ in range(STEPS):
                network.encode(*inputs, only_last=True)

    paired("reading a batch, merged against its base", lambda: read(merged), lambda: read(base))


if __name__ == "__main__":
    main()
