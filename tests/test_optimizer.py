"""AdamW and Muon against torch's, fast paths against the formulas, and what an optimizer must put up with."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import optimizer
from optimizer import AdamW, Muon, orthogonal


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


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from([(400, 16), (100, 3), (64, 2, 8), (300, 1), (20, 16)]),
    rows_a_step=st.sampled_from([0, 1, 2, 9]),
    weight_decay=st.lists(st.sampled_from([0.0, 0.0, 0.1]), min_size=3, max_size=3),
    scale=st.sampled_from([1.0, 1e-30]),
    transposed=st.booleans(),
)
def test_rows_without_a_gradient_are_where_an_update_of_all_leaves_them(
    seed, shape, rows_a_step, weight_decay, scale, transposed
):
    """Few rows with gradients, saved and loaded on the way, weight decay now and then; the last steps are dense."""
    torch.manual_seed(seed)
    start = torch.randn(shape)
    if transposed and len(shape) == 2:
        start = start.t().contiguous().t()
    ours, theirs = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    mine, torchs = AdamW([ours], lr=1e-2), torch.optim.AdamW([theirs], lr=1e-2, eps=1e-6)
    for step in range(30):
        if step % 10 == 0:
            state, mine = copy.deepcopy(mine.state_dict()), AdamW([ours], lr=1e-2)
            mine.load_state_dict(state)
        mine.param_groups[0]["weight_decay"] = torchs.param_groups[0]["weight_decay"] = weight_decay[step % 3]
        rows = torch.arange(len(start)) if step > 27 else torch.randint(len(start), (rows_a_step,))
        gradient = torch.zeros_like(start)
        gradient[rows] = scale * torch.randn(len(rows), *shape[1:])
        ours.grad, theirs.grad = gradient, gradient.clone()
        mine.step()
        torchs.step()
    assert_same([ours], [theirs])
    for name in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(mine.state[ours][name], torchs.state[theirs][name], rtol=1e-5, atol=0)


def test_few_rows_are_updated_alone_and_to_the_same_bits(monkeypatch):
    few, all_ = parameters([(320, 32)]), parameters([(320, 32)])
    first, second = AdamW(few, lr=1e-2), AdamW(all_, lr=1e-2)
    monkeypatch.setattr(second, "_few_rows", lambda *arguments: None)
    updated, fused = [], optimizer.fused_update

    def counted(arguments, group):
        updated.append(len(arguments[0][0]))
        fused(arguments, group)

    monkeypatch.setattr(optimizer, "fused_update", counted)
    for step in range(12):
        gradient = torch.zeros(320, 32)
        gradient[[step, 300 - 2 * step]] = 0.1 + step
        few[0].grad, all_[0].grad = gradient, gradient.clone()
        first.step()
        second.step()
    assert_same(few, all_, 0)
    assert updated[::2] == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 320, 320]


def test_a_gradient_that_is_not_a_number_reaches_its_row():
    (parameter,) = parameters([(64, 4)])
    parameter.grad = torch.zeros(64, 4)
    parameter.grad[5, 1] = torch.nan
    AdamW([parameter], lr=1e-2).step()
    assert parameter.isnan().nonzero().tolist() == [[5, 1]]


@pytest.mark.parametrize(
    "arguments", [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}, {"eps": -1e-8}, {"weight_decay": -1}]
)
def test_refuses_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        AdamW(parameters([(2,)]), **arguments)


@pytest.mark.parametrize("setting", ["amsgrad", "maximize"])
def test_refuses_states_of_another_algorithm(setting):
    other = torch.optim.AdamW(parameters([(2,)]), **{setting: True})
    with pytest.raises(ValueError, match=setting):
        AdamW(parameters([(2,)])).load_state_dict(other.state_dict())


def test_refuses_sparse_gradients():
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="dense"):
        AdamW(embedding.parameters()).step()


sizes = st.integers(1, 12)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 4), rows=sizes, columns=sizes, scale=st.floats(1e-3, 1e3))
def test_orthogonal_keeps_singular_vectors_and_maps_singular_values(count, rows, columns, scale):
    torch.manual_seed(count + 5 * rows + 61 * columns)
    x = scale * torch.randn(count, rows, columns, dtype=torch.float64)
    left, values, right = torch.linalg.svd(x, full_matrices=False)
    values = values / (x.norm(dim=(1, 2)).unsqueeze(1) + 1e-7)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    torch.testing.assert_close(orthogonal(x), left * values.unsqueeze(1) @ right)


@settings(max_examples=15, deadline=None)
@given(
    shapes=st.lists(st.sampled_from([(8, 8), (16, 8), (8, 24)]), min_size=1, max_size=4),
    lr=st.floats(1e-3, 0.1),
    momentum=st.floats(0.5, 0.99),
    weight_decay=st.sampled_from([0.0, 0.1]),
)
def test_muon_equals_torchs_but_for_its_bf16(shapes, lr, momentum, weight_decay):
    ours, theirs = parameters(shapes), parameters(shapes)
    arguments = dict(lr=lr, weight_decay=weight_decay, momentum=momentum)
    mine, torchs = Muon([{"params": ours, **arguments}]), torch.optim.Muon(theirs, **arguments)
    start = [parameter.detach().clone() for parameter in ours]
    for step in range(5):
        set_gradients(step, ours, theirs)
        mine.step()
        torchs.step()
    for a, b, before in zip(ours, theirs, start, strict=True):
        assert (a - b).norm() <= 0.1 * (b - before).norm()


def test_muon_takes_matrices_on_top_of_one_another_apart():
    (whole,) = parameters([(15, 5)])
    thirds = [torch.nn.Parameter(part.clone()) for part in whole.detach().chunk(3)]
    arguments = dict(lr=0.02, momentum=0.95, weight_decay=0.1)
    first, second = Muon([{"params": [whole], "parts": 3, **arguments}]), Muon([{"params": thirds, **arguments}])
    for step in range(5):
        set_gradients(step, [whole])
        for part, gradient in zip(thirds, whole.grad.chunk(3), strict=True):
            part.grad = gradient.clone()
        first.step()
        second.step()
    assert_same([whole], [torch.cat(thirds)])


def test_muon_without_momentum_is_adamw_and_goes_on_where_it_was_saved():
    shapes = [(6, 4), (4,), (6, 4)]
    straight, resumed, plain = parameters(shapes), parameters(shapes), parameters(shapes)
    groups = lambda p: [{"params": p[:1], "lr": 0.02, "momentum": 0.9}, {"params": p[1:]}]  # noqa: E731
    whole, begun = Muon(groups(straight), lr=1e-2), Muon(groups(resumed), lr=1e-2)
    adamw = AdamW(plain[1:], lr=1e-2)
    for step in range(10):
        if step == 5:
            state = copy.deepcopy(begun.state_dict())
            begun = Muon(groups(resumed), lr=1e-2)
            begun.load_state_dict(state)
        set_gradients(step, straight, resumed, plain)
        whole.step()
        begun.step()
        adamw.step()
    assert_same(resumed, straight, 0)
    assert_same(plain[1:], straight[1:], 0)


@pytest.mark.parametrize(
    ("shape", "setting", "message"),
    [
        ((4, 4), {"momentum": 1.0}, "momentum"),
        ((4,), {"momentum": 0.9}, "(4,)"),
        ((4, 4), {"momentum": 0.9, "parts": 3}, "3"),
    ],
)
def test_muon_refuses_what_it_cannot_train(shape, setting, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Muon([{"params": parameters([shape]), **setting}])
