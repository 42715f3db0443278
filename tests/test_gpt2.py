"""The network against stock `transformers`, and its fast paths against its slow ones."""

from __future__ import annotations

import math
from unittest import mock

import pytest
import torch
import transformers
from conftest import scramble, stock_config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from config import GPT2Config
from models.gpt2 import GPT2Model
from models.pretrained import checkpoint_tensors
from modules.dropout import dropout, keep_mask
from modules.dropout_attention import QUERIES, DropoutAttention
from modules.gelu import gelu
from modules.linear import Linear, lay_out, linear
from modules.ragged import Rows, pack

TOLERANCE = 1e-5  # of a tensor's largest value


def twins(**shape) -> tuple[GPT2Model, transformers.GPT2LMHeadModel]:
    """Our network and the stock one with the same weights."""
    torch.manual_seed(0)
    stock = scramble(transformers.GPT2LMHeadModel(stock_config(**shape)))
    fields = {
        name: getattr(stock.config, name) for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
    }
    ours = GPT2Model(GPT2Config(**fields, n_inner=stock.config.n_inner, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0))
    parameters = dict(stock.transformer.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(turned(name, parameters[name]))
    return ours, stock


def turned(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.t() if ".c_" in name and tensor.dim() == 2 else tensor


def padded(lengths: list[int], side: str, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(lengths)
    ids = torch.randint(vocab_size, (len(lengths), width))
    columns = torch.arange(width)
    counts = torch.tensor(lengths).unsqueeze(1)
    mask = columns < counts if side == "right" else columns >= width - counts
    return ids, mask.long()


def assert_close(ours: torch.Tensor, stock: torch.Tensor, what: str) -> None:
    error = (ours - stock).abs().max() / stock.abs().max()
    assert error <= TOLERANCE, f"{what}: {error:.1e} of the largest value"


def compare(ours: GPT2Model, stock: transformers.GPT2LMHeadModel, lengths: list[int], side: str) -> None:
    """Hidden states, logits and every gradient."""
    ids, mask = padded(lengths, side, stock.config.vocab_size)
    real = mask.bool()
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    theirs = stock(input_ids=ids, attention_mask=mask, position_ids=positions, output_hidden_states=True)
    hidden = theirs.hidden_states[-1][real]
    output = ours(ids, mask)
    logits = ours.hidden_state_to_token(output["last_hidden_state"])[real]
    assert_close(output["last_hidden_state"][real], hidden, "hidden states")
    assert_close(logits, theirs.logits[real], "logits")
    last = torch.tensor(lengths).cumsum(dim=0) - 1
    assert_close(output["last_token"], hidden[last], "last token")
    assert output["last_hidden_state"][~real].eq(0).all()

    targets = torch.randint(stock.config.vocab_size, (len(hidden),))
    for model, scores in ((ours, logits), (stock, theirs.logits[real])):
        model.zero_grad()
        F.cross_entropy(scores, targets).backward()
    gradients = {name: parameter.grad for name, parameter in stock.transformer.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, turned(name, gradients[name]), f"gradient of {name}")


SMALL = twins()
WIDER = twins(n_layer=3, n_embd=96, n_head=6, vocab_size=211)


@settings(max_examples=25, deadline=None)
@given(
    model=st.sampled_from([SMALL, WIDER]),
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=6),
    side=st.sampled_from(["left", "right"]),
)
def test_equals_stock(model, lengths, side):
    compare(*model, lengths, side)


@pytest.mark.parametrize("side", ["left", "right"])
def test_equals_stock_up_to_the_whole_context(side):
    compare(*SMALL, [1, 1024, 130, 517], side)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(dict(n_layer=1, n_embd=768, n_head=12, vocab_size=50257), id="gpt2, 1 layer"),
        pytest.param(dict(n_layer=12), id="gpt2's 12 layers"),
        pytest.param(dict(n_layer=1, n_embd=1024, n_head=16), id="gpt2-medium, 1 layer"),
        pytest.param(dict(n_inner=100, n_positions=80), id="narrow MLP"),
    ],
)
def test_equals_stock_in_published_shapes(shape):
    compare(*twins(**shape), [1, 7, 64, 33], "right")


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5), seed=st.integers(0, 1000), data=st.data())
def test_padding_may_stand_anywhere_and_hold_anything(lengths, seed, data):
    ours, _ = SMALL
    torch.manual_seed(seed)
    rows = [torch.randint(400, (length,)) for length in lengths]
    width = max(lengths) + 3
    ids = torch.randint(-(10**6), 10**6, (len(rows), width))
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        places = data.draw(st.permutations(range(width)))[: len(tokens)]
        places = torch.tensor(sorted(places))
        ids[row, places], mask[row, places] = tokens, 1
    with torch.no_grad():
        together = ours(ids, mask)
        for row, tokens in enumerate(rows):
            alone = ours(tokens.unsqueeze(0))
            real = together["last_hidden_state"][row][mask[row].bool()]
            torch.testing.assert_close(real, alone["last_hidden_state"][0], rtol=0, atol=2e-5)
            torch.testing.assert_close(together["last_token"][row], alone["last_token"][0], rtol=0, atol=2e-5)


def test_pad_token_id_may_be_a_word():
    ours, _ = SMALL
    tokens = torch.tensor([[5, 0, 7]])
    padded_row = torch.tensor([[5, 0, 7, 0, 0]])
    torch.testing.assert_close(
        ours(padded_row, torch.tensor([[1, 1, 1, 0, 0]]))["last_token"], ours(tokens)["last_token"], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (torch.zeros(2, 1025, dtype=torch.long), None, r"row 0 has 1025 tokens: the limit is 1024"),
        (torch.zeros(3, 4, dtype=torch.long), [[1, 1, 1, 1], [0] * 4, [1, 0, 0, 0]], r"row 1 is empty.*at least 1"),
        (torch.tensor([[1, 2], [3, 400], [400, 1]]), None, r"row 1 holds the token id 400: ids run from 0 to 399"),
        (torch.tensor([[1, 2], [3, 4], [5, -1]]), None, r"row 2 holds the token id -1"),
        (torch.zeros(2, 3, dtype=torch.long), [[1, 1]], r"must both be \(batch, length\)"),
    ],
)
def test_refuses_by_row(ids, mask, message):
    with pytest.raises(ValueError, match=message):
        SMALL[0](ids, None if mask is None else torch.tensor(mask))


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=8), training=st.booleans())
def test_last_token_alone_equals_last_token_of_all(lengths, training):
    ours, _ = WIDER
    ours.train(training)
    ids, mask = padded(lengths, "right", 211)
    tokens, rows = pack(ids, mask)
    results = []
    for only_last in (False, True):
        ours.zero_grad()
        hidden = ours.encode(tokens, rows, only_last)
        hidden = hidden if only_last else hidden[rows.last]
        hidden.square().sum().backward()
        results.append([hidden.detach(), *(p.grad.clone() for p in ours.parameters())])
    for whole, last in zip(*results, strict=True):
        torch.testing.assert_close(last, whole, rtol=1e-4, atol=1e-4 * float(whole.abs().max()) + 1e-7)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=12))
def test_rectangles_hold_every_token_once_in_order(lengths):
    tokens = torch.arange(sum(lengths), dtype=torch.float32).unsqueeze(1) + 1
    rows = Rows(lengths)
    parts = tokens.split([run.tokens for run in rows.rectangles])
    seen = []
    for run, part in zip(rows.rectangles, parts, strict=True):
        rectangle = run.pad(part)
        assert rectangle.shape == (run.rows, run.width, 1)
        torch.testing.assert_close(run.unpad(rectangle), part)
        real = torch.ones(run.rows, run.width) if run.is_real is None else run.is_real[:, 0].float()
        assert (rectangle[..., 0] > 0).float().equal(real)
        seen += real.sum(dim=1).int().tolist()
    assert seen == lengths
    assert rows.positions.tolist() == [position for length in lengths for position in range(length)]
    assert (tokens[rows.last, 0] == torch.tensor(lengths).cumsum(0)).all()


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), filler=st.integers(1, 70), only_last=st.booleans(),
    training=st.booleans(),
)  # fmt: skip
def test_tokens_of_no_text_change_nothing(lengths, filler, only_last, training):
    ours, _ = WIDER
    ours.train(training)
    tokens, results = torch.randint(211, (sum(lengths),)), []
    for more in (0, filler):
        ours.zero_grad()
        rows = Rows(lengths, filler=more)
        states = ours.encode(torch.cat([tokens, tokens[:1].expand(more)]), rows, only_last)
        states = states if only_last else states[: len(tokens)]
        states.square().sum().backward()
        results.append([states.detach(), *(p.grad.clone() for p in ours.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4 * float(one.abs().max()) + 1e-7)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40) | st.integers(1, 3 * QUERIES), min_size=1, max_size=7),
    n_head=st.sampled_from([1, 3]),
    p=st.sampled_from([0.1, 0.7]),
    dtype=st.sampled_from([torch.float64, torch.bfloat16]),
)
def test_attention_with_dropout_equals_its_formula(lengths, n_head, p, dtype):
    """The blocks and the gradients written by hand, against autograd on whole rows that drop the same weights."""
    rows, masks = Rows(lengths), []

    def recorded(*arguments):
        keep, scale = keep_mask(*arguments)
        masks.append(keep.double() * scale)
        return keep, scale

    qkv = torch.randn(sum(lengths), 3 * n_head * 8, dtype=dtype, requires_grad=True)
    exact = qkv.detach().double().requires_grad_()
    with mock.patch("modules.dropout_attention.keep_mask", recorded):
        ours = DropoutAttention.apply(qkv, rows, n_head, p)
    masks, outputs = iter(masks), []
    for run, part in zip(rows.rounded(dtype), rows.split(exact), strict=True):
        shape = (run.rows, run.width, 3, n_head, 8)
        q, k, v = run.pad(part).view(shape).permute(2, 0, 3, 1, 4)  # (b, nh, T, hs) each
        future = torch.ones(run.width, run.width, dtype=torch.bool).triu(1)
        weights = (q @ k.transpose(2, 3) / 8**0.5).masked_fill(future, -torch.inf).softmax(dim=-1)
        kept = torch.zeros_like(weights)
        start = 0
        while start < run.width:
            block = next(masks)  # (b * nh, queries, keys up to the last of them)
            kept[:, :, start : start + block.size(1), : block.size(2)] = block.view(run.rows, n_head, *block.shape[1:])
            start += block.size(1)
        outputs.append(run.unpad((weights * kept @ v).transpose(1, 2).flatten(2)))
    theirs = torch.cat(outputs)
    gradient = torch.randn_like(ours)
    (dours,) = torch.autograd.grad(ours, qkv, gradient)
    (dtheirs,) = torch.autograd.grad(theirs, exact, gradient.double())
    for one, other in ((ours, theirs), (dours, dtheirs)):
        rounding = {} if dtype is torch.float64 else {"rtol": 0.05, "atol": 0.02 * float(other.abs().max())}
        torch.testing.assert_close(one.double(), other, **rounding)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    at_once=st.integers(1, 3000),
    spread=st.sampled_from([0.1, 3, 100]),
    turned=st.booleans(),
)
def test_gelu_and_its_slope_are_torchs(shape, dtype, at_once, spread, turned):
    x = (torch.randn(shape, dtype=torch.float64) * spread).to(dtype)
    x = (x.mT if turned and x.dim() > 1 else x).requires_grad_()
    exact = x.detach().double().requires_grad_()
    with mock.patch("modules.gelu.AT_ONCE", at_once):
        y = gelu(x)
    expected = F.gelu(exact, approximate="tanh")
    dy = torch.randn_like(y)
    (dx,), (slope,) = torch.autograd.grad(y, x, dy), torch.autograd.grad(expected, exact, torch.ones_like(expected))
    eps = torch.finfo(dtype).eps
    assert y.dtype == dx.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=4 * eps, atol=4 * eps)
    lost = 4 * eps if dtype == torch.bfloat16 else 200 * eps  # in bf16 what is lost is lost at the end
    torch.testing.assert_close(dx.double(), dy.double() * slope, rtol=4 * eps, atol=lost)
    with torch.no_grad():
        torch.testing.assert_close(gelu(x), F.gelu(x, approximate="tanh"))


@pytest.mark.parametrize("p", [0.1, 0.3, 0.75])
def test_dropout_drops_scales_and_keeps_the_mean(p):
    torch.manual_seed(1)
    x = torch.ones(999, 1001, requires_grad=True)
    y = dropout(x, p)
    y.sum().backward()
    share = (y == 0).float().mean().item()
    assert abs(share - p) < 5 * (p * (1 - p) / y.numel()) ** 0.5 + 2**-16
    assert y[y != 0].unique().tolist() == pytest.approx([1 / (1 - p)], rel=1e-4)
    assert torch.equal(x.grad, y.detach())
    by_row, by_column = (y == 0).float().mean(dim=1), (y == 0).float().mean(dim=0)
    assert by_row.std() < 1.3 * (p * (1 - p) / 1001) ** 0.5
    assert by_column.std() < 1.3 * (p * (1 - p) / 999) ** 0.5


def test_dropout_follows_the_seed():
    x = torch.randn(7, 13)
    torch.manual_seed(3)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.5), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("where", ["embd_pdrop", "attn_pdrop", "resid_pdrop"])
def test_dropout_stands_where_gpt2_has_it(where):
    """Each of the three changes training and leaves evaluation alone; the mean over many draws is what it was."""
    settings_ = dict(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0) | {where: 0.2}
    model = GPT2Model(GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2, **settings_))
    model.init_weights(torch.Generator().manual_seed(0))
    ids = torch.randint(50, (2, 9))
    model.eval()
    without = model(ids)["last_token"]
    assert torch.equal(model(ids)["last_token"], without)
    model.train()
    torch.manual_seed(0)
    assert not torch.allclose(model(ids)["last_token"], without, atol=1e-3)


def test_fresh_weights_have_gpt2s_spread():
    model = GPT2Model(GPT2Config(vocab_size=1000, n_embd=128, n_layer=8, n_head=4))
    model.init_weights(torch.Generator().manual_seed(0))
    assert model.wte.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.h[3].mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert model.h[3].attn.c_attn.bias.eq(0).all()
    assert model.ln_f.weight.eq(1).all()


def test_checkpoint_tensors_are_those_of_the_stock_model():
    ours, stock = SMALL
    theirs = stock.transformer.state_dict()
    tensors = checkpoint_tensors(ours)
    assert tensors.keys() == theirs.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, theirs[name]), name


@settings(max_examples=80, deadline=None)
@given(
    shape=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    width=st.integers(1, 40),
    outputs=st.integers(1, 70),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    biased=st.booleans(),
    frozen=st.booleans(),
    turned=st.booleans(),
)
def test_linear_layer_is_torchs(shape, width, outputs, dtype, biased, frozen, turned):
    """With and without gradients, also of inputs and weights that do not lie in memory as they are read."""
    x = torch.randn(*shape, width, dtype=dtype)
    x = (x.mT.contiguous().mT if turned and x.dim() > 1 else x).requires_grad_()
    weight = torch.randn(width, outputs, dtype=dtype).t() if turned else torch.randn(outputs, width, dtype=dtype)
    weight.requires_grad_(not frozen)
    bias = torch.randn(outputs, dtype=dtype, requires_grad=True) if biased else None
    y, expected = linear(x, weight, bias), F.linear(x, weight, bias)
    torch.testing.assert_close(y, expected)
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight, bias), expected)
    learned = [p for p in (x, weight, bias) if p is not None and p.requires_grad]
    dy = torch.randn_like(expected)
    for a, b in zip(*(torch.autograd.grad(z, learned, dy) for z in (y, expected)), strict=True):
        summed = 8 * torch.finfo(dtype).eps * max(outputs, math.prod(shape))  # what so many numbers around 1 may lose
        torch.testing.assert_close(a, b, rtol=1e-5, atol=summed)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 200),
    width=st.integers(1, 100),
    outputs=st.integers(1, 100),
    bf16=st.booleans(),
    biased=st.booleans(),
)
def test_a_weight_that_is_laid_out_computes_the_same(rows, width, outputs, bf16, biased):
    """Also after it has changed; and it stays as it is where there is no room."""
    plain, ours = (Linear(width, outputs, bias=biased).requires_grad_(False) for _ in range(2))
    ours.load_state_dict(plain.state_dict())
    lay_out(ours, ours.weight.nbytes)
    lay_out(plain, plain.weight.nbytes - 1)
    assert ours.lays_out
    assert not plain.lays_out
    x, dy = torch.randn(rows, width, requires_grad=True), torch.randn(rows, outputs)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y, expected = ours(x), plain(x)
        torch.testing.assert_close(y, expected)
        dx, expected = (torch.autograd.grad(z, x, dy.to(z.dtype))[0] for z in (y, expected))
        torch.testing.assert_close(dx, expected)
        with torch.no_grad():
            ours.weight.mul_(2)
            plain.weight.mul_(2)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=2),
    width=st.integers(1, 40),
    outputs=st.integers(1, 40),
    biased=st.booleans(),
    frozen=st.booleans(),
)
def test_linear_layer_in_16_bits_is_autocasts(shape, width, outputs, biased, frozen):
    """Also after the weight has changed, and in evaluation."""
    layer = Linear(width, outputs, bias=biased)
    layer.weight.requires_grad_(not frozen)
    for _ in range(2):
        x = torch.randn(*shape, width, requires_grad=True)
        dy = torch.randn(*shape, outputs)
        with torch.autocast("cpu", torch.bfloat16):
            y, expected = layer(x), F.linear(x, layer.weight, layer.bias)
            with torch.no_grad():
                assert torch.equal(layer.eval()(x), linear(x, layer.weight, layer.bias))
        layer.train()
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y, expected)
        learned = [p for p in (x, layer.weight, layer.bias) if p is not None and p.requires_grad]
        ours, stock = (torch.autograd.grad(z, learned, dy.bfloat16()) for z in (y, expected))
        for a, b in zip(ours, stock, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2 * b.abs().max().item())
            assert a.dtype == torch.float32
        with torch.no_grad():
            layer.weight.add_(torch.randn_like(layer.weight))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.sampled_from([0.0, 0.3]), st.integers(0, 99))
def test_softmax_does_not_see_the_keys_bias(lengths, p, seed):
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=11, n_positions=9, n_embd=8, n_layer=2, n_head=2, attn_pdrop=p, resid_pdrop=0)
    network = scramble(GPT2Model(config), seed).train(p > 0)
    rows, tokens = Rows(lengths), torch.randint(11, (sum(lengths),))
    for only_last in (False, True):
        torch.manual_seed(seed)
        before = network.encode(tokens, rows, only_last)
        before.square().sum().backward()
        with torch.no_grad():
            for block in network.h:
                _, k, v = block.attn.c_attn.bias.grad.chunk(3)
                assert not k.any()
                assert p or v.any()  # with dropout, a short row may lose every value
                block.attn.c_attn.bias[8:16] += torch.randn(8)
        torch.manual_seed(seed)
        torch.testing.assert_close(network.encode(tokens, rows, only_last), before, atol=1e-4, rtol=1e-4)
