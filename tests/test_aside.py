"""Weights' gradients and steps made beside the backward pass: the step of the whole, and the same every time."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from config import GPT2Config
from models.gpt2 import GPT2Model
from models.heads import GPT2ForSequenceClassification, GPT2LMHeadModel
from models.lora import Lora
from optimizer import AdamW
from tasks.classification import score
from training.batching import Pieces, TokenExamples
from training.hardware import Precision
from training.objectives import Classification, Examples, NextToken
from training.update import Update

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def some_model(writes: bool = False, p: float = 0.1) -> nn.Module:
    torch.manual_seed(0)
    network = GPT2Model(GPT2Config(50, 64, 16, 3, 2, embd_pdrop=p, attn_pdrop=p, resid_pdrop=p))
    network.init_weights()
    return (GPT2LMHeadModel(network) if writes else GPT2ForSequenceClassification(network, ["a", "b", "c"], p)).train()


def some_examples(lengths: list[int], writes: bool = False) -> Examples:
    ids = torch.randint(50, (sum(lengths),), generator=torch.Generator().manual_seed(0))
    if writes:
        return Pieces([text.tolist() for text in ids.split(lengths)], 0, 64)
    return TokenExamples(ids, lengths, [length % 3 for length in lengths])


def update_of(
    model: nn.Module,
    precision: str = "fp32",
    aside: bool = True,
    weight_decay: float = 0.0,
    micro_batch_size: int | None = None,
    max_grad_norm: float | None = None,
) -> Update:
    objective = NextToken(model) if isinstance(model, GPT2LMHeadModel) else Classification(model, model, score)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = AdamW(learned, lr=1e-2, weight_decay=weight_decay)
    update = Update(model, objective, optimizer, Precision(precision, CPU), micro_batch_size, max_grad_norm)
    if not aside:
        update.aside = None
    return update


def steps(update: Update, examples: Examples, count: int = 3) -> list[list[float]]:
    torch.manual_seed(1)
    return [update(examples, list(range(len(examples))))[0].tolist() for _ in range(count)]


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    writes=st.booleans(),
    cores=st.integers(1, 4),
    weight_decay=st.sampled_from([0.0, 0.1]),
)
def test_steps_are_those_of_the_whole(lengths, writes, cores, weight_decay):
    torch.set_num_threads(cores)
    first, examples = some_model(writes).double(), some_examples(lengths, writes)
    second = copy.deepcopy(first)
    one, other = update_of(first, weight_decay=weight_decay), update_of(second, aside=False, weight_decay=weight_decay)
    for a, b in zip(steps(one, examples), steps(other, examples), strict=True):
        assert a == pytest.approx(b, rel=1e-9)
    assert bool(one.aside.pool) == (cores % 2 == 0)
    assert torch.get_num_threads() == cores
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert a.grad is None
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("writes", [False, True])
def test_bits_are_the_same_every_time(writes, precision):
    model, examples = some_model(writes), some_examples([20, 9, 25, 14], writes)
    runs = []
    for _ in range(4):
        again = copy.deepcopy(model)
        runs.append((steps(update_of(again, precision), examples, 5), list(again.parameters())))
    for numbers, parameters in runs[1:]:
        assert numbers == runs[0][0]
        assert all(map(torch.equal, parameters, runs[0][1]))


def test_in_16_bits_steps_are_those_of_the_whole():
    """Small gradients round otherwise, and Adam makes whole steps of them: a few of lr = 0.01 may go astray."""
    first, examples = some_model(), some_examples([20, 9, 25, 14])
    second = copy.deepcopy(first)
    numbers, expected = steps(update_of(first, "bf16"), examples), steps(update_of(second, "bf16", False), examples)
    for a, b in zip(numbers, expected, strict=True):
        assert a == pytest.approx(b, rel=0.02)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert (a - b).abs().mean() < 1e-3


@pytest.mark.parametrize("place", [0.1, 0.5])  # of c_attn the latter is a key's, whose bias has no gradient
@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("layer", ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"])
def test_a_gradient_that_is_not_finite_shows_in_those_that_are_left(block, layer, place):
    model, examples = some_model(), some_examples([20, 9, 25])
    layer = model.transformer.h[block].get_submodule(layer)
    with_bias = layer.with_bias

    def spoiled(x, bias):
        y = with_bias(x, bias)
        column = torch.tensor([int(place * y.size(1))])
        y.register_hook(lambda dy: dy.index_fill(1, column, torch.inf))
        return y

    layer.with_bias = spoiled
    _, norm = update_of(model)(examples, [0, 1, 2])
    assert not norm.isfinite()


def test_where_a_step_needs_all_gradients_first_or_none_is_of_a_weight_all_is_made_in_turn():
    examples = some_examples([20, 9, 25])
    clipped = update_of(some_model(), max_grad_norm=1e-3)
    assert clipped.aside is None
    in_pieces = update_of(some_model(), micro_batch_size=2)
    steps(in_pieces, examples)
    assert in_pieces.aside.pool is None
    model = some_model()
    Lora(model, "base", rank=2)
    low_rank = update_of(model)
    steps(low_rank, examples)
    assert low_rank.aside.pool is None


@pytest.mark.parametrize("error", [MemoryError, IndexError])
def test_what_goes_wrong_in_either_thread_is_raised_and_leaves_no_work_behind(monkeypatch, error):
    model, examples = some_model(), some_examples([20, 9, 25])
    update, calls = update_of(model), []
    step_one = update.optimizer.step_one

    def fail_at_third(parameter):
        calls.append(parameter)
        if len(calls) == 3:
            raise error("of a weight")
        step_one(parameter)

    monkeypatch.setattr(update.optimizer, "step_one", fail_at_third)
    with pytest.raises(error):
        update(examples, [0, 1, 2])
    assert not update.aside.jobs
    assert torch.get_num_threads() == 2
    model.zero_grad()
    count = len(calls)
    update(examples, [0, 1, 2])
    assert len(calls) - count == len(update.aside.weights) - 1  # not that of the last block's c_attn
