"""AdamW against torch's, its fused path against the formula, and what an optimizer must put up with."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import optimizer
from optimizer import AdamW


def parameters(shapes, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]


def set_gradients(step, *lists, skip=()):
    """The same random gradients for each list of parameters; none for those in `skip`."""
    generator = torch.Generator().manual_seed(step)
    for index, group in enumerate(zip(*lists, strict=True)):
        gradient = torch.randn(group[0].shape, generator=generator).to(group[0].dtype)
        for parameter in group:
            parameter.grad = None if index in skip else gradient.clone()


def assert_same(ours, theirs, tolerance=1e-6):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@settings(max_examples=8, deadline=None)
@given(
    lr=st.floats(1e-5, 1e-2),
    beta1=st.floats(0.0, 0.95),
    beta2=st.floats(0.9, 0.9999),
    eps=st.sampled_from([1e-8, 1e-6, 1e-3]),
    weight_decay=st.sampled_from([0.0, 0.01, 0.3]),
    shapes=st.lists(st.sampled_from([(3,), (5, 4), (1,), (2, 3, 4)]), min_size=1, max_size=3),
)
def test_equals_torch_over_a_thousand_steps(lr, beta1, beta2, eps, weight_decay, shapes):
    ours, theirs = parameters(shapes), parameters(shapes)
    arguments = dict(lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay)
    mine, torchs = AdamW(ours, **arguments), torch.optim.AdamW(theirs, **arguments)
    for step in range(1000):
        set_gradients(step, ours, theirs)
        mine.step()
        torchs.step()
    assert_same(ours, theirs)


@pytest.mark.parametrize("correct_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_path_equals_the_formula(correct_bias, dtype, monkeypatch):
    shapes = [(40, 30), (7,)]
    fused, formula = parameters(shapes, dtype=dtype), parameters(shapes, dtype=dtype)
    arguments = dict(lr=1e-2, weight_decay=0.1, correct_bias=correct_bias)
    first, second = AdamW(fused, **arguments), AdamW(formula, **arguments)
    for step in range(50):
        set_gradients(step, fused, formula)
        first.step()
        with monkeypatch.context() as patch:
            patch.setattr(
                optimizer, "fused_update", lambda all_, group: [optimizer.update(*one, group) for one in all_]
            )
            second.step()
    assert_same(fused, formula)


def test_without_bias_correction_is_the_papers_formula_with_corrections_of_one():
    (parameter,) = parameters([(6,)])
    p, m, v = parameter.detach().double().clone(), torch.zeros(6).double(), torch.zeros(6).double()
    adamw = AdamW([parameter], lr=0.01, eps=1e-6, weight_decay=0.1, correct_bias=False)
    for step in range(20):
        set_gradients(step, [parameter])
        g = parameter.grad.double()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        p = p * (1 - 0.01 * 0.1) - 0.01 * m / (v.sqrt() + 1e-6)
        adamw.step()
    torch.testing.assert_close(parameter.detach().double(), p, rtol=0, atol=1e-5)


def test_transposed_parameters_and_missing_gradients():
    ours, theirs = parameters([(5, 4), (3,), (2, 2)]), parameters([(5, 4), (3,), (2, 2)])
    ours[0] = torch.nn.Parameter(ours[0].detach().t().contiguous().t())
    mine, torchs = AdamW(ours, weight_decay=0.1), torch.optim.AdamW(theirs, eps=1e-6, weight_decay=0.1)
    for step in range(20):
        set_gradients(step, ours, theirs, skip=(1,) if step % 2 else (2,))
        mine.step()
        torchs.step()
    assert_same(ours, theirs)


def test_groups_and_schedulers():
    ours, theirs = parameters([(4,), (5,)]), parameters([(4,), (5,)])
    make = lambda ps: [{"params": ps[:1], "lr": 1e-3, "weight_decay": 0.0}, {"params": ps[1:], "betas": (0.8, 0.99)}]  # noqa: E731
    pairs = []
    for kind, group in ((AdamW, ours), (torch.optim.AdamW, theirs)):
        adamw = kind(make(group), lr=1e-2, eps=1e-6, weight_decay=0.05)
        pairs.append((adamw, torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: 1 / (1 + step))))
    for step in range(30):
        set_gradients(step, ours, theirs)
        for adamw, scheduler in pairs:
            adamw.step()
            scheduler.step()
    assert_same(ours, theirs)


def test_closure_is_run_with_gradients_and_its_loss_returned():
    (parameter,) = parameters([(3,)])
    adamw = AdamW([parameter], lr=0.1)
    before = parameter.detach().clone()

    def closure():
        adamw.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    loss = adamw.step(closure)
    assert loss.item() == pytest.approx(before.square().sum().item())
    assert (parameter.abs() < before.abs()).all()


@pytest.mark.parametrize("source", [AdamW, torch.optim.AdamW])
def test_state_goes_on_where_it_was_saved(source):
    """Ours into ours, and torch's into ours."""
    straight, first, second = (parameters([(4, 3), (2,)]) for _ in range(3))
    arguments = dict(lr=1e-2, eps=1e-6, weight_decay=0.1)
    whole, begun = source(straight, **arguments), source(first, **arguments)
    for step in range(10):
        set_gradients(step, straight, first)
        whole.step()
        begun.step()
    resumed = AdamW(second, **arguments)
    resumed.load_state_dict(copy.deepcopy(begun.state_dict()))
    with torch.no_grad():
        for new, old in zip(second, first, strict=True):
            new.copy_(old)
    for step in range(10, 20):
        set_gradients(step, straight, second)
        whole.step()
        resumed.step()
    assert_same(second, straight, 0 if source is AdamW else 1e-6)


@pytest.mark.parametrize(
    "arguments", [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}, {"eps": -1e-8}, {"weight_decay": -1}]
)
def test_refuses_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        AdamW(parameters([(2,)]), **arguments)


def test_refuses_sparse_gradients():
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="dense"):
        AdamW(embedding.parameters()).step()
