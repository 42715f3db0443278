"""A batch's halves in two threads: the gradients of the whole, and the same every time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from config import GPT2Config
from models.gpt2 import GPT2Model
from models.heads import GPT2ForSequenceClassification, GPT2LMHeadModel
from models.lora import VARIANTS, Lora
from optimizer import AdamW
from tasks.classification import score
from training.batching import Pieces, TokenExamples
from training.halves import Halves
from training.hardware import Precision
from training.objectives import Classification, NextToken
from training.update import Update

CPU = torch.device("cpu")


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def classifier(p: float, variant: str | None = None) -> GPT2ForSequenceClassification:
    network = GPT2Model(GPT2Config(50, 64, 16, 2, 2, embd_pdrop=p, attn_pdrop=p, resid_pdrop=p))
    network.init_weights()
    model = GPT2ForSequenceClassification(network, ["a", "b", "c"], dropout=p)
    if variant:
        Lora(model, "base", rank=2, dropout=p, target="all-linear", variant=variant)
    return model.train()


def texts(lengths: list[int]) -> TokenExamples:
    return TokenExamples(torch.randint(50, (sum(lengths),)), lengths, [length % 3 for length in lengths])


def gradients(model: nn.Module, examples, precision: str, halves: bool) -> tuple[list[Tensor], Tensor]:
    """Of a step on all examples, which is not taken; and what the loss adds up."""
    objective = Classification(model, model, score)
    if isinstance(model, GPT2LMHeadModel):
        objective = NextToken(model)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    update = Update(model, objective, AdamW(learned), Precision(precision, CPU), None, None)
    assert update.halves
    update.aside = None  # which leaves few gradients behind
    update.halves.fewest = 0 if halves else float("inf")
    sums = update._accumulate(examples, list(range(len(examples))), watched=False)
    assert bool(update.halves.pool) == halves
    found = [parameter.grad for parameter in learned]
    model.zero_grad()
    return found, sums


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(20, 24), min_size=4, max_size=9),
    variant=st.sampled_from([None, *VARIANTS]),
    cores=st.integers(1, 4),
)
def test_halves_have_the_gradients_of_the_whole(lengths, variant, cores):
    model, examples = classifier(0.0, variant).double(), texts(lengths * 2)
    with threads(cores):
        (one, loss), (other, sums) = (gradients(model, examples, "fp32", halves) for halves in (False, True))
        assert torch.get_num_threads() == cores
    torch.testing.assert_close(sums, loss)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_halves_of_a_language_model_have_the_gradients_of_the_whole():
    model = GPT2LMHeadModel(GPT2Model(GPT2Config(50, 64, 16, 2, 2, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0)))
    pieces = Pieces([torch.randint(50, (length,)).tolist() for length in (9, 30, 31, 12, 8, 25)], 0, 32)
    (one, loss), (other, sums) = (gradients(model.double().train(), pieces, "fp32", halves) for halves in (False, True))
    torch.testing.assert_close(sums, loss)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", [None, *VARIANTS])
def test_halves_give_the_same_bits_every_time(variant, precision):
    """With dropout, of which torch's own generator, the one that is saved, decides every number."""
    torch.manual_seed(0)
    model, examples = classifier(0.3, variant), texts([20, 30, 25, 24, 29, 21])
    found, states = [], []
    for cores in (2, 2, 2, 4, 1):
        torch.manual_seed(1)
        with threads(cores):
            found.append(gradients(model, examples, precision, True)[0])
        states.append(torch.get_rng_state())
    for other, state in zip(found[1:3], states[1:3], strict=True):
        assert all(map(torch.equal, found[0], other))
        assert torch.equal(state, states[0])
    for a, b, c in zip(found[0], *found[3:], strict=True):  # others round differently, but drop the same
        torch.testing.assert_close(b, a, rtol=0.05, atol=0.05 * a.abs().max().item())
        torch.testing.assert_close(c, a, rtol=0.05, atol=0.05 * a.abs().max().item())
    torch.manual_seed(2)
    assert not all(map(torch.equal, found[0], gradients(model, examples, precision, True)[0]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=10))
def test_texts_are_dealt_as_fairly_as_can_be(lengths):
    halves = Halves(classifier(0.0))
    halves.fewest = 0
    sums = [sum(some) for n in range(len(lengths)) for some in combinations(lengths, n)]
    fairest = max(total for total in sums if 2 * total <= sum(lengths))
    indices = list(range(len(lengths)))[::-1]
    dealt = halves._halves(texts(lengths), indices)
    if fairest < 0.45 * sum(lengths):
        assert dealt is None
    else:
        assert sorted(dealt[0] + dealt[1]) == sorted(indices)
        assert min(sum(lengths[i] for i in half) for half in dealt) == fairest


def test_a_second_gradient_of_everything_needs_many_tokens(monkeypatch):
    full, low_rank = Halves(classifier(0.0)), Halves(classifier(0.0, "lora"))
    examples = texts([30] * 24)
    assert full._halves(examples, list(range(8))) is None
    assert full._halves(examples, list(range(24)))
    assert low_rank._halves(examples, list(range(10)))
    assert low_rank._halves(examples, list(range(8))) is None
    monkeypatch.setattr("training.halves.MOST_BYTES", 360 * 64 * 4)
    assert Halves(classifier(0.0))._halves(examples, list(range(24)))
    monkeypatch.setattr("training.halves.MOST_BYTES", 359 * 64 * 4)
    assert Halves(classifier(0.0))._halves(examples, list(range(24))) is None
    monkeypatch.setattr("training.halves.MOST_BYTES", 50 * 16 * 4 // 2 - 1)  # half of the embedding's gradient
    assert Halves(classifier(0.0)).most == 0


def test_what_one_half_raises_is_raised_once_both_have_ended():
    model, examples = classifier(0.0), texts([20] * 6)
    halves = Halves(model)
    halves.fewest, ended = 0, []

    def loss(batch, size):
        if batch.examples and not ended:
            ended.append("the first")
            raise MemoryError("can't allocate memory")
        ended.append("the other")
        return model(*batch.inputs).sum(), torch.zeros(2)

    with pytest.raises(MemoryError):
        halves(loss, examples, list(range(6)), torch.tensor(6))
    assert ended == ["the first", "the other"]
    assert halves(loss, examples, list(range(6)), torch.tensor(6)) is not None
