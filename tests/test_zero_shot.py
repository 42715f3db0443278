"""What a base says of classes: stock code's own likelihoods of their names, and nothing that adapters left behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from models.pretrained import EMBEDDED
from tasks.paraphrase import PROMPT
from tasks.zero_shot import QUESTION, ZeroShot
from training.finished import Shelf
from training.hardware import Precision
from training.interrupt import Interrupted, StopRequest

ON_CPU = Precision("fp32", torch.device("cpu"))
LABELS = ("negative", "somewhat positive", "wanted")
texts = st.text(st.sampled_from('abc é\n{}0"'), max_size=30)


@pytest.fixture(scope="module")
def base():
    return Shelf(ON_CPU.device).base(EMBEDDED)


@pytest.fixture(scope="module")
def stock():
    tokenizer = transformers.AutoTokenizer.from_pretrained(EMBEDDED)
    model = transformers.AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32).eval()

    def log_likelihood(prompt: str, name: str) -> float:
        ids, new = tokenizer(prompt)["input_ids"], tokenizer(name)["input_ids"]
        with torch.no_grad():
            steps = model(torch.tensor([ids + new])).logits[0, len(ids) - 1 : -1].log_softmax(dim=-1)
        return sum(steps[i, token].item() for i, token in enumerate(new))

    return log_likelihood


@settings(max_examples=15, deadline=None)
@given(examples=st.lists(st.tuples(texts, texts), min_size=1, max_size=3), pairs=st.booleans())
def test_is_what_stock_code_would_rather_go_on_with(base, stock, examples, pairs):
    prompt, labels, space = (PROMPT, ("no", "yes"), "") if pairs else (QUESTION, LABELS, " ")
    examples = examples if pairs else [example[:1] for example in examples]
    said = ZeroShot(base, labels, PROMPT if pairs else None, ON_CPU, StopRequest())(examples)
    nothing = [""] * len(examples[0])
    for example, row in zip(examples, said, strict=True):
        logits = [
            stock(prompt.format(*example), space + label) - stock(prompt.format(*nothing), space + label)
            for label in labels
        ]
        expected = torch.tensor(logits, dtype=torch.float64).softmax(dim=0).numpy()
        np.testing.assert_allclose(row, expected, atol=1e-4)


def test_texts_beyond_the_context_are_shortened(base):
    zero_shot = ZeroShot(base, LABELS, None, ON_CPU, StopRequest())
    said = zero_shot([("a film " * 2000,), ("",)])
    assert said.shape == (2, 3)
    assert np.isfinite(said).all()
    np.testing.assert_allclose(said.sum(axis=1), 1)
    np.testing.assert_allclose(said[1], 1 / 3, atol=1e-5)  # no text says nothing


def test_can_be_interrupted(base):
    stop = StopRequest()
    zero_shot = ZeroShot(base, LABELS, None, ON_CPU, stop)
    stop.signum = 2
    with pytest.raises(Interrupted):
        zero_shot([("a film",)])


def test_adapters_and_base_share_a_network_and_answer_as_if_alone():
    shelf = Shelf(ON_CPU.device)
    sst, sonnets = (shelf.load(str(EMBEDDED / "adapters" / name)) for name in ("sst", "sonnets"))
    base = shelf.base(EMBEDDED)
    assert sst.model.transformer is sonnets.model.transformer is base.model.transformer
    alone = Shelf(ON_CPU.device).base(EMBEDDED)
    expected = ZeroShot(alone, LABELS, None, ON_CPU, StopRequest())([("a dull film",)])
    for other in (sst, sonnets, sst):
        other.use()
        base.use()
        assert (ZeroShot(base, LABELS, None, ON_CPU, StopRequest())([("a dull film",)]) == expected).all()
