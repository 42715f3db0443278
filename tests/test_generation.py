"""Writing with a cache: the tokens of stock `generate`, each row as if alone, and draws from the right distribution."""

from __future__ import annotations

import pytest
import scipy.stats
import torch
import transformers
from conftest import scramble, stock_config
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as stock_warpers

from models.generation import Sampling, generate, noise
from models.gpt2 import GPT2Model
from models.heads import GPT2LMHeadModel
from models.lora import Adapters, Lora
from models.pretrained import EMBEDDED

GREEDY = Sampling(temperature=0)


def pair(tmp_path, dtype=torch.float64, **config):
    """A stock model and ours, of the same random weights; in float64, where no two logits are as good as equal."""
    torch.manual_seed(config.get("n_embd", 0))
    stock = scramble(transformers.GPT2LMHeadModel(stock_config(**config))).eval()
    stock.save_pretrained(tmp_path)
    return stock.to(dtype), GPT2LMHeadModel(GPT2Model.from_pretrained(tmp_path)).to(dtype)


def random_prompts(lengths, vocab_size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, vocab_size, (length,), generator=generator).tolist() for length in lengths]


def stock_continuations(stock, prompts, max_new_tokens):
    """What stock `generate` adds to each prompt, to the end-of-text token."""
    width, end = max(map(len, prompts)), stock.config.eos_token_id
    ids = torch.tensor([[end] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    written = stock.generate(
        ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=end
    )[:, width:].tolist()  # fmt: skip
    return [row[: row.index(end) + 1] if end in row else row for row in written]


@settings(max_examples=20, deadline=None)
@given(
    n_layer=st.integers(1, 3),
    head=st.sampled_from([(1, 8), (3, 16), (4, 8)]),
    vocab_size=st.sampled_from([7, 400]),  # of seven tokens, end-of-text comes soon
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    steps=st.integers(1, 24),
)
def test_greedy_decoding_gives_the_tokens_of_stock_generate(
    tmp_path_factory, n_layer, head, vocab_size, lengths, steps
):
    n_head, size = head
    shape = dict(n_layer=n_layer, n_head=n_head, n_embd=n_head * size, vocab_size=vocab_size, n_positions=64)
    stock, ours = pair(tmp_path_factory.mktemp("model"), **shape)
    prompts = random_prompts(lengths, vocab_size, steps)
    written = generate(ours, prompts, steps, GREEDY, seeds=[0] * len(prompts))
    assert [text for (text,) in written] == stock_continuations(stock, prompts, steps)


def test_greedy_decoding_up_to_the_last_position(tmp_path):
    stock, ours = pair(tmp_path, torch.float32, n_positions=320, n_embd=32, vocab_size=3000)
    lengths = [296, 319, 1, 300, 304, 308]
    prompts = random_prompts(lengths, 3000)
    written = generate(ours, prompts, 319, GREEDY, seeds=[0] * 6)
    assert [len(text) for (text,) in written] == [320 - length for length in lengths]
    for (text,), prompt in zip(written, prompts, strict=True):
        assert stock_continuations(stock, [prompt], 320 - len(prompt)) == [text]


def test_greedy_decoding_of_a_trained_model():
    tokenizer = transformers.AutoTokenizer.from_pretrained(EMBEDDED)
    prompts = tokenizer(["The film", "Shall I compare thee to a summer's day?\nThou art", "\n"])["input_ids"]
    stock = transformers.AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    ours = GPT2LMHeadModel(GPT2Model.from_pretrained(EMBEDDED))
    written = generate(ours, prompts, 60, GREEDY, seeds=[0, 0, 0])
    assert [text for (text,) in written] == stock_continuations(stock, prompts, 60)


@settings(max_examples=10, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=2, max_size=5),
    temperature=st.floats(0.3, 3.0),
    top_k=st.none() | st.integers(1, 60),
    top_p=st.floats(0.1, 1.0),
    candidates=st.integers(1, 4),
)
def test_a_text_does_not_depend_on_what_else_is_written(
    tmp_path_factory, lengths, temperature, top_k, top_p, candidates
):
    _, ours = pair(tmp_path_factory.mktemp("model"), vocab_size=50, n_positions=40)
    prompts, sampling = random_prompts(lengths, 50), Sampling(temperature, top_k, top_p)
    seeds = [100 + length for length in range(len(prompts))]
    together = generate(ours, prompts, 15, sampling, seeds, candidates)
    for prompt, seed, texts in zip(prompts, seeds, together, strict=True):
        assert generate(ours, [prompt], 15, sampling, [seed]) == [texts[:1]]
    assert any(len(set(map(tuple, texts))) > 1 for texts in together) or candidates == 1 or top_k == 1 or top_p < 0.9


@settings(max_examples=100, deadline=None)
@given(
    vocab_size=st.integers(1, 40),
    temperature=st.floats(0.1, 5.0),
    top_k=st.none() | st.integers(1, 50),
    top_p=st.floats(0.01, 1.0),
    seed=st.integers(0, 1000),
)
def test_draws_are_the_race_of_what_stock_warpers_leave(vocab_size, temperature, top_k, top_p, seed):
    logits = 3 * torch.randn(50, vocab_size, generator=torch.Generator().manual_seed(seed))
    warped = stock_warpers.TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        warped = stock_warpers.TopKLogitsWarper(top_k)(None, warped)
    p = stock_warpers.TopPLogitsWarper(top_p)(None, warped).softmax(dim=-1)
    seeds = torch.arange(50) * 1009 + seed
    race = p / -noise(seeds.unsqueeze(1), 7, torch.arange(vocab_size)).log()
    assert torch.equal(Sampling(temperature, top_k, top_p).draw(logits, seeds, 7), race.argmax(dim=-1))


def test_draws_have_their_probabilities():
    rows, p = 200_000, torch.tensor([0.5, 0.3, 0.15, 0.04, 0.01], dtype=torch.float64)
    counts = Sampling().draw(p.log().expand(rows, -1), torch.arange(rows), step=3).bincount()
    assert scipy.stats.chisquare(counts, rows * p).pvalue > 1e-3


def test_noise_is_never_0_or_1_and_no_token_without_probability_is_drawn():
    seed = torch.tensor([1543])  # its step 3 and token 209 have the highest number there is
    highest = noise(seed, 3, torch.tensor(209))
    assert 0.9999999 < highest.item() < 1
    assert Sampling().draw(torch.full((1, 300), -torch.inf).index_fill(1, torch.tensor(210), 0), seed, 3) == 210
    assert Sampling().draw(torch.full((1, 300), -torch.inf).index_fill(1, torch.tensor(209), 0), seed, 3) == 209


def test_noise_is_uniform_and_independent_along_every_axis():
    whole = noise(torch.arange(40)[:, None, None], torch.arange(50)[:, None], torch.arange(60))
    assert 0 < whole.min() < whole.max() < 1
    assert scipy.stats.kstest(whole.flatten().numpy(), "uniform").pvalue > 1e-4
    for axis in range(3):
        first, second = whole.narrow(axis, 0, 39).flatten(), whole.narrow(axis, 1, 39).flatten()
        assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.015


def test_ends_where_it_is_told_to_and_where_the_context_is_full(tmp_path):
    _, ours = pair(tmp_path, n_positions=32)
    prompts = random_prompts([32, 30, 4], 400)
    written = generate(
        ours, prompts, 10, GREEDY, [0, 0, 0], 2, is_done=lambda prompt, text: prompt == 2 and len(text) == 3
    )
    assert [len(texts[0]) for texts in written] == [0, 2, 3]
    assert all(texts[0] == texts[1] for texts in written)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.2, top_p=0.9)])
def test_in_bf16_too_a_text_does_not_depend_on_what_else_is_written(sampling):
    tokenizer = transformers.AutoTokenizer.from_pretrained(EMBEDDED)
    prompts = tokenizer(["The film", "Shall I compare thee to a summer's day?\nThou art", "\n"])["input_ids"]
    ours = GPT2LMHeadModel(GPT2Model.from_pretrained(EMBEDDED))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        together = generate(ours, prompts, 12, sampling, seeds=[1, 2, 3])
        assert [generate(ours, [prompt], 12, sampling, [i]) for i, prompt in enumerate(prompts, 1)] == [
            [texts] for texts in together
        ]


@pytest.mark.parametrize("variant", ["lora", "dora"])
@pytest.mark.parametrize("bf16", [False, True])
def test_writes_through_an_adapter(tmp_path, variant, bf16):
    _, ours = pair(tmp_path / "model", torch.float32)
    lora = Lora(ours, str(tmp_path / "model"), rank=4, variant=variant, target="all-linear")
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    lora.save(tmp_path / "adapter")
    prompts, merged = random_prompts([5, 9], 400), Adapters(GPT2Model.from_pretrained(tmp_path / "model"))
    merged.load("it", tmp_path / "adapter")
    assert merged.heads == {"it": None}
    plain = GPT2LMHeadModel(merged.merge())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        wrapped, folded = (generate(model, prompts, 12, GREEDY, [0, 0]) for model in (ours, plain))
    assert all(len(texts[0]) == 12 or texts[0][-1] == 0 for texts in wrapped)
    assert wrapped == folded or bf16  # bf16 rounds the two apart


@pytest.mark.parametrize(
    ("prompts", "message"), [([[1], []], "row 1 is empty"), ([[1] * 33], "33 tokens"), ([[1], [400]], "row 1.*400")]
)
def test_refuses_prompts_that_it_cannot_read(tmp_path, prompts, message):
    _, ours = pair(tmp_path, n_positions=32)
    with pytest.raises(ValueError, match=message):
        generate(ours, prompts, 5, GREEDY, [0] * len(prompts))


def test_nothing_to_write_and_seeds_that_are_missing(tmp_path):
    _, ours = pair(tmp_path)
    assert generate(ours, [], 5, GREEDY, []) == []
    with pytest.raises(ValueError, match="2 prompts and 1 seeds"):
        generate(ours, [[1], [2]], 5, GREEDY, [0])


@pytest.mark.parametrize("setting", [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": 0}, {"top_p": 0}])
def test_refuses_sampling_out_of_range(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        Sampling(**setting)
