"""The sides of a comparison, as steps of training on the same rows: ours, and what stock `transformers` gives."""

from __future__ import annotations

import warnings

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn import functional as F

import classifier
from models.heads import GPT2ForSequenceClassification
from models.lora import TARGETS
from optimizer import AdamW
from tasks.classification import score
from tasks.paraphrase import Paraphrase
from tasks.sentiment import Sentiment
from training.batching import TokenExamples
from training.hardware import Precision, make_deterministic
from training.methods import choose
from training.network import Loaded, load_network
from training.objectives import Classification
from training.update import Update

METHODS = {  # flags of the scripts
    "full": {"fine_tune_mode": "full-model", "use_lora": False},
    "lora": {"fine_tune_mode": "full-model", "use_lora": True},
    "last-linear-layer": {"fine_tune_mode": "last-linear-layer", "use_lora": False},
}
CPU = torch.device("cpu")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
FP32 = Precision("fp32", CPU)


class Ours:
    """Training by the project's own parts, as the scripts put them together; no dropout before the head, as in stock.

    Args:
        task: whose training file is read, or its dev file.
        method: a key of `METHODS`.
        precision: of both sides, and on which device.
        more: settings that differ from the scripts' defaults; `model_path` at least.
    """

    def __init__(
        self, task: Sentiment | Paraphrase, method: str, precision: Precision = FP32, split: str = "train", **more
    ):
        self.settings = classifier.parse_flags([]) | METHODS[method] | {"lr": 1e-5} | more
        make_deterministic(self.settings["seed"], precision.device)
        self.loaded: Loaded = load_network(self.settings)
        self.model = GPT2ForSequenceClassification(self.loaded.network, task.labels)
        self.method = choose(self.settings, self.loaded, store_features=False)(self.model, self.settings)
        self.texts: TokenExamples = task.encode(self.loaded.tokenizer, task.read(split))
        self.model.to(precision.device)
        self.forward, _ = self.method.start({split: self.texts}, None)
        self.precision = precision
        optimizer = AdamW([p for p in self.model.parameters() if p.requires_grad], lr=self.settings["lr"])
        objective = Classification(self.model, self.forward, score)
        limits = self.settings["micro_batch_size"], self.settings["max_grad_norm"]
        self.update = Update(self.model, objective, optimizer, self.precision, *limits)
        self.model.train()

    def step(self, indices: list[int], watched: bool = False) -> Tensor:
        """One update on these rows; (), its loss, which to look at waits for a GPU."""
        sums, _ = self.update(self.texts, indices, watched)
        return sums[0] / len(indices)

    def read(self, indices: list[int]) -> Tensor:
        """(B, classes) logits of these rows, the short ones first."""
        self.model.eval()
        with torch.inference_mode(), self.precision.autocast():
            return self.forward(*self.texts.batch(indices, self.precision.device).inputs).float()

    def peak(self, rows: int) -> int:
        """Bytes that a step on the longest texts takes."""
        lengths = self.texts.lengths
        self.step(sorted(range(len(lengths)), key=lengths.__getitem__)[-rows:], watched=True)
        return self.update.memory.bytes()


class Stock:
    """What a user would write: rows padded to the longest on the right, `GPT2ForSequenceClassification`, PEFT, AdamW,
    autocast. It starts from our head, and sees our token ids. AdamW takes one pass over memory, as
    `transformers.Trainer` asks for it.
    """

    def __init__(self, ours: Ours, method: str):
        self.texts, self.precision = ours.texts, ours.precision
        torch.use_deterministic_algorithms(False)  # as stock has it
        torch.manual_seed(ours.settings["seed"])
        labels = ours.model.score.out_features
        model = transformers.GPT2ForSequenceClassification.from_pretrained(
            ours.loaded.source, num_labels=labels, dtype=torch.float32
        )
        self.padding = model.config.pad_token_id = ours.loaded.tokenizer.pad_token_id
        with torch.no_grad():
            model.score.weight.copy_(ours.model.score.weight)
        if method == "lora":
            names = ("rank", "alpha", "dropout")
            rank, alpha, dropout = (ours.settings[f"lora_{name}"] for name in names)
            config = LoraConfig(
                task_type="SEQ_CLS", r=rank, lora_alpha=alpha, lora_dropout=dropout, fan_in_fan_out=True,
                target_modules=TARGETS[ours.settings["lora_target"]],
            )  # fmt: skip
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of transformers, about what peft asks it
                model = get_peft_model(model, config)
        elif method == "last-linear-layer":
            model.transformer.requires_grad_(False)
        self.model = model.to(self.precision.device).train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, ours.settings["lr"], eps=1e-6, weight_decay=0.0, fused=True)

    def step(self, indices: list[int]) -> Tensor:
        """One update on these rows; (), its loss."""
        with self.precision.autocast():
            loss = self._loss(indices)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def _loss(self, indices: list[int]) -> Tensor:
        ids, mask, labels = self._batch(indices)
        return self.model(input_ids=ids, attention_mask=mask, labels=labels).loss

    def read(self, indices: list[int]) -> Tensor:
        """(B, classes) logits of these rows, the short ones first."""
        self.model.eval()
        ids, mask, _ = self._batch(indices)
        with torch.inference_mode(), self.precision.autocast():
            return self.model(input_ids=ids, attention_mask=mask).logits.float()

    def _batch(self, indices: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        batch = self.texts.batch(indices, CPU)
        tokens, rows = batch.inputs
        ids = torch.nn.utils.rnn.pad_sequence(tokens.split(rows.lengths), True, self.padding)
        mask = (torch.arange(ids.size(1)) < torch.tensor(rows.lengths)[:, None]).long()
        return tuple(tensor.to(self.precision.device) for tensor in (ids, mask, batch.labels))


class Naive(Stock):
    """The least that leaves padding out: stock's layers on the flat list of tokens, padded inside attention alone."""

    def _loss(self, indices: list[int]) -> Tensor:
        batch = self.texts.batch(indices, CPU)
        tokens, rows = batch.inputs
        device, lengths, p = self.precision.device, rows.lengths, self.model.config.resid_pdrop
        slots = torch.cat([torch.arange(length) + row * max(lengths) for row, length in enumerate(lengths)]).to(device)
        model = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        network, heads = model.transformer, model.config.n_head
        tokens, positions = (tensor[: sum(lengths)].to(device) for tensor in (tokens, rows.positions))
        x = F.dropout(network.wte(tokens) + network.wpe(positions), model.config.embd_pdrop)
        for block in network.h:
            qkv = block.attn.c_attn(block.ln_1(x))
            padded = qkv.new_zeros(len(lengths) * max(lengths), qkv.size(1)).index_copy(0, slots, qkv)
            q, k, v = padded.view(len(lengths), max(lengths), 3, heads, -1).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=model.config.attn_pdrop, is_causal=True)
            x = x + F.dropout(block.attn.c_proj(y.transpose(1, 2).flatten(2).flatten(0, 1)[slots]), p)
            x = x + F.dropout(block.mlp.c_proj(F.gelu(block.mlp.c_fc(block.ln_2(x)), approximate="tanh")), p)
        return F.cross_entropy(model.score(network.ln_f(x[rows.last.to(device)])).float(), batch.labels.to(device))


def optimizers(model: torch.nn.Module, embeddings: int | None = None) -> tuple[AdamW, torch.optim.AdamW]:
    """Ours over the model's parameters and torch's fused one over copies, with the same gradients.

    Only so many random rows of the token embedding have one, if a number is given.
    """
    ours = list(model.parameters())
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    for mine, other in zip(ours, theirs, strict=True):
        mine.grad = other.grad = torch.randn_like(mine) * 1e-3
    if embeddings is not None:
        weight = model.wte.weight
        weight.grad[torch.randperm(len(weight))[embeddings:]] = 0
    return AdamW(ours, lr=1e-5), torch.optim.AdamW(theirs, lr=1e-5, eps=1e-6, weight_decay=0.0, fused=True)
