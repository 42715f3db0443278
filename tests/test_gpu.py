"""What only a CUDA GPU does: steps that are recorded and replayed."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
from torch.nn import functional as F

from config import GPT2Config
from models.gpt2 import GPT2Model
from models.heads import GPT2ForSequenceClassification, GPT2LMHeadModel
from models.lora import Lora
from modules.attention import attend
from modules.ragged import Rows
from optimizer import AdamW
from tasks.classification import score
from training import recording
from training.batching import Pieces, TokenExamples, shuffled
from training.hardware import Precision, make_deterministic
from training.methods import Model
from training.objectives import Classification, Examples, NextToken
from training.update import Update

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
CUDA = torch.device("cuda")


def some_model(use_lora: bool = False, writes: bool = False, p: float = 0.1) -> Model:
    torch.manual_seed(0)
    config = GPT2Config(400, 256, 64, 3, 4, embd_pdrop=p, attn_pdrop=p, resid_pdrop=p)
    network = GPT2Model(config)
    network.init_weights()
    model = GPT2LMHeadModel(network) if writes else GPT2ForSequenceClassification(network, ["a", "b", "c"], p)
    if use_lora:
        Lora(model, "base", rank=4)
    return model.to(CUDA)


def some_examples(writes: bool = False) -> Examples:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 60, (48,), generator=generator).tolist()
    ids = torch.randint(400, (sum(lengths),), generator=generator)
    if writes:
        return Pieces([text.tolist() for text in ids.split(lengths)], 0, 256)
    return TokenExamples(ids, lengths, torch.randint(3, (len(lengths),), generator=generator).tolist())


def update_of(model: Model, precision: str = "bf16", recorded: bool = True, **limits) -> Update:
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    limits = {"micro_batch_size": None, "max_grad_norm": 1.0} | limits
    writes = isinstance(model, GPT2LMHeadModel)
    objective = NextToken(model) if writes else Classification(model, model, score)
    update = Update(model, objective, optimizer, Precision(precision, CUDA), **limits)
    if not recorded:
        update.recorder = None
    return update


def train(update: Update, texts: Examples, epochs: int = 4) -> list[str]:
    update.objective.model.train()
    torch.manual_seed(1)
    batches = [batch for epoch in range(epochs) for batch in shuffled(len(texts), 6, 0, epoch)]
    return [str([*sums.tolist(), norm.item()]) for sums, norm in (update(texts, batch) for batch in batches)]


@pytest.fixture
def deterministic():
    make_deterministic(0, CUDA)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("use_lora", [False, True])
@pytest.mark.parametrize("writes", [False, True])
def test_recorded_steps_are_the_steps_they_recorded(deterministic, use_lora, writes, precision):
    """To the bit, with dropout, and with batches of several shapes."""
    texts, first = some_examples(writes), some_model(use_lora, writes)
    second = copy.deepcopy(first)
    recorded = update_of(first, precision)
    assert train(recorded, texts) == train(update_of(second, precision, recorded=False), texts)
    assert 2 <= len(recorded.recorder.recordings) < 20
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_gpu_computes_what_a_cpu_does():
    texts, other = some_examples(), some_model(p=0.0)
    model = copy.deepcopy(other).cpu()
    for batch in shuffled(len(texts), 8, 0, 0):
        found = []
        for one, device in ((model, torch.device("cpu")), (other, CUDA)):
            inputs = texts.batch(batch, device).inputs
            one.zero_grad()
            logits = one(*inputs)
            logits.square().sum().backward()
            found.append([logits.detach().cpu(), *(parameter.grad.cpu() for parameter in one.parameters())])
        for one, two in zip(*found, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


CLOSE = {torch.float32: 2e-3, torch.float16: 1e-2, torch.bfloat16: 6e-2}
LENGTHS = [1, 130, 64, 300, 17]
N_HEAD = 4


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("capability", [None, (7, 5)])  # its own, or a T4's
@pytest.mark.parametrize("make_rows", [Rows, Rows.filled])
def test_attention_is_that_of_each_row_alone(dtype, capability, make_rows, monkeypatch):
    if capability:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    torch.manual_seed(0)
    rows = make_rows(LENGTHS, CUDA)
    tokens = sum(LENGTHS) + rows.filler
    qkv = torch.randn(tokens, 3 * N_HEAD * 16, device=CUDA, dtype=dtype, requires_grad=True)
    dy = torch.randn(tokens, N_HEAD * 16, device=CUDA, dtype=dtype)
    dy[sum(LENGTHS) :] = 0
    y = attend(qkv, rows, N_HEAD)
    (gradient,) = torch.autograd.grad(y, qkv, dy)
    other = qkv.detach().double().requires_grad_()
    expected = []
    for row in other[: sum(LENGTHS)].split(LENGTHS):
        q, k, v = row.unflatten(-1, (3, N_HEAD, -1)).permute(1, 2, 0, 3)
        expected.append(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).flatten(1))
    torch.testing.assert_close(y[: sum(LENGTHS)].double(), torch.cat(expected), rtol=0, atol=CLOSE[dtype])
    (expected,) = torch.autograd.grad(torch.cat(expected), other, dy[: sum(LENGTHS)].double())
    torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=CLOSE[dtype])


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_attention_drops_weights_and_scales_the_others(dtype, p):
    rows, draws = Rows(LENGTHS, CUDA), []
    qkv = torch.randn(sum(LENGTHS), 3 * N_HEAD * 16, device=CUDA, dtype=dtype)
    qkv[:, -N_HEAD * 16 :] = 1  # of these values attention gives the sum of its weights
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(attend(qkv, rows, N_HEAD, p)[:, ::16].float())
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    first = draws[0][0]  # of a text of one token: all of it, or nothing
    assert all(value == 0 or abs(value - 1 / (1 - p)) < 0.02 for value in first.tolist())
    assert abs(draws[0].mean() - 1) < 0.05
    assert draws[0].std() > 0.05


def test_without_room_for_a_recording_training_goes_on_without_one(deterministic):
    texts, model = some_examples(), some_model()
    expected = train(update_of(copy.deepcopy(model), recorded=False), texts)
    loss = Classification.loss

    def loss_of_few_recordings(self, batch):
        result = loss(self, batch)
        if torch.cuda.is_current_stream_capturing() and len(update.recorder.recordings) == 1:
            torch.empty(1 << 45, device=CUDA)
        return result

    with mock.patch.object(Classification, "loss", loss_of_few_recordings):
        update = update_of(model)
        assert train(update, texts) == expected
    assert update.recorder.full
    assert not update.recorder.recordings


def test_what_is_not_decided_by_shapes_is_not_recorded():
    model, texts = some_model(), some_examples()
    model.transformer.checkpoint_activations = True
    assert update_of(model).recorder is None
    pieces = update_of(some_model(), micro_batch_size=2)
    train(pieces, texts, 2)
    assert not pieces.recorder.recordings
    with mock.patch.object(recording, "MOST_RECORDINGS", 1):
        few = update_of(some_model())
        train(few, texts)
    assert len(few.recorder.recordings) == 1
