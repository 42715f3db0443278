"""Pretraining: the loss in pieces, documents that do not see one another, and what stock code makes of the result."""

from __future__ import annotations

import gzip
import json
import math
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
import torch
import transformers
from conftest import BAD, FILLER, GOOD, ROOT, scramble, stock_config
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.append(str(ROOT / "benchmarks"))

from held_out import ngram_nats

import pretrain
from config import GPT2Config, InputError
from models.gpt2 import GPT2Model
from models.heads import GPT2LMHeadModel
from models.pretrained import WEIGHTS, load_weights
from models.tokenizer import train_tokenizer
from modules.cross_entropy import LinearCrossEntropy
from tasks.corpus import find_texts, hold_out, leave_out, read_documents
from training.batching import Pieces
from training.hardware import Precision
from training.interrupt import Interrupted, StopRequest
from training.objectives import total_loss

CPU = torch.device("cpu")


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 60), vocabulary=st.integers(1, 50), at_a_time=st.integers(1, 400), without=st.integers(0, 20)
)
def test_loss_in_pieces_equals_torchs_in_one(count, vocabulary, at_a_time, without):
    x = torch.randn(count, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(vocabulary, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(vocabulary, (count,))
    targets[torch.randperm(count)[:without]] = -1
    whole = F.cross_entropy(F.linear(x, weight), targets, reduction="sum", ignore_index=-1)
    with mock.patch("modules.cross_entropy.LOGITS", at_a_time):
        ours = LinearCrossEntropy.apply(x, weight, targets)
    torch.testing.assert_close(ours, whole)
    gradients = [torch.autograd.grad(3 * loss, (x, weight)) for loss in (ours, whole)]
    torch.testing.assert_close(*gradients)


def test_loss_takes_gradients_of_what_wants_them_and_computes_in_bf16_under_autocast():
    x, weight, targets = torch.randn(9, 16), torch.randn(30, 16), torch.randint(30, (9,))
    whole = F.cross_entropy(x @ weight.t(), targets, reduction="sum")
    assert not LinearCrossEntropy.apply(x, weight, targets).requires_grad
    weight.requires_grad_()
    LinearCrossEntropy.apply(x, weight, targets).backward()
    assert weight.grad is not None
    assert x.grad is None
    with Precision("bf16", CPU).autocast():
        half = LinearCrossEntropy.apply(x, weight, targets)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(whole.item(), rel=0.02)
    assert half.item() != whole.item()
    exact = weight.grad.clone()
    with mock.patch("modules.cross_entropy.ROWS", 7), mock.patch("modules.cross_entropy.LOGITS", 100):
        weight.grad = None
        with Precision("bf16", CPU).autocast():
            LinearCrossEntropy.apply(x, weight, targets).backward()
    torch.testing.assert_close(weight.grad, exact, rtol=0.05, atol=0.05)


class LargestTensor(TorchDispatchMode):
    """Takes note of the most elements that any operation gave."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_loss_never_builds_all_logits():
    x, weight = torch.randn(2000, 8, requires_grad=True), torch.randn(5000, 8, requires_grad=True)
    targets = torch.randint(5000, (2000,))
    with mock.patch("modules.cross_entropy.LOGITS", 1 << 16), LargestTensor() as largest:
        LinearCrossEntropy.apply(x, weight, targets).backward()
    assert largest.elements <= 1 << 16
    with LargestTensor() as largest:
        F.cross_entropy(x @ weight.t(), targets).backward()
    assert largest.elements == 2000 * 5000


documents_of_few_ids = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=12), min_size=1, max_size=8)
documents_of_ids = st.lists(st.lists(st.integers(1, 90), max_size=40), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(documents=documents_of_ids, context=st.integers(2, 50), most_tokens=st.integers(1, 80), seed=st.integers(0, 9))
def test_every_token_is_asked_for_once_after_its_own_document(documents, context, most_tokens, seed):
    pieces = Pieces(documents, 0, context, 1)
    order = torch.randperm(len(pieces.starts), generator=torch.Generator().manual_seed(seed)).tolist()
    asked = Counter()
    for indices in pieces.batches(order, most_tokens):
        assert len(indices) == 1 or sum(pieces.lengths[i] for i in indices) <= most_tokens
        tokens, rows, targets = pieces.batch(indices, CPU).inputs
        assert max(rows.lengths) <= context
        for read, expected in zip(tokens.split(rows.lengths), targets.split(rows.lengths), strict=True):
            assert torch.equal(read[1:], expected[:-1])
            asked.update(expected.tolist())
    assert asked == Counter(token for document in documents for token in [*document, 0])


def test_loss_over_documents_equals_the_stock_models_one_by_one():
    torch.manual_seed(0)
    stock = scramble(transformers.GPT2LMHeadModel(stock_config(vocab_size=91, n_positions=64))).eval()
    model = GPT2LMHeadModel(GPT2Model(GPT2Config(vocab_size=91, n_positions=64, n_embd=64, n_layer=2, n_head=4)))
    tensors = dict(stock.transformer.named_parameters())
    with torch.no_grad():
        for name, parameter in model.transformer.named_parameters():
            turned = ".c_" in name and parameter.dim() == 2
            parameter.copy_(tensors[name].t() if turned else tensors[name])
    documents = [torch.randint(1, 91, (length,)).tolist() for length in (1, 5, 30, 62, 12)]
    pieces = Pieces(documents, 0, 64, 1)
    expected = 0.0
    for document in documents:
        ids = torch.tensor([[0, *document, 0]])
        expected += stock(ids, labels=ids).loss.item() * (len(document) + 1)
    assert total_loss(model, pieces, Precision("fp32", CPU)) == pytest.approx(expected, rel=1e-5)


def test_documents_are_parted_by_blank_lines_whatever_the_file_looks_like(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\nstill one\r\n\r\n \r\ntwo\r\n \t \r\nthree".encode())
    with gzip.open(tmp_path / "b.txt.gz", "wb") as file:
        file.write("vier und fünf\n\n\nsix\n<|endoftext|>\nseven<|endoftext|>".encode())
    (tmp_path / "c.md").write_text("not this")
    files = find_texts([str(tmp_path)])
    assert [file.name for file in files] == ["a.txt", "b.txt.gz"]
    documents = read_documents(files)
    assert documents == ["one\nstill one", "two", "three", "vier und fünf", "six", "seven"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(min_size=1), min_size=40, unique=True), st.data())
def test_a_document_keeps_its_side(documents, data):
    try:
        training, held_out = hold_out(documents, 0.3)
    except InputError:
        return
    assert sorted(training + held_out) == sorted(documents)
    some = data.draw(st.lists(st.sampled_from(documents), min_size=20))
    for side, others in zip((training, held_out), hold_out(some + training[:1] + held_out[:1], 0.3), strict=True):
        assert set(others) <= set(side)


words = st.lists(st.sampled_from("one two three four five".split()), max_size=30)


@settings(max_examples=200, deadline=None)
@given(documents=st.lists(words, max_size=4), passages=st.lists(words, min_size=1, max_size=4))
def test_documents_that_share_eight_words_with_what_is_scored_on_are_left_out(tmp_path_factory, documents, passages):
    file = tmp_path_factory.mktemp("scored") / "on.csv"
    lines = [" ".join(passage) for passage in passages]
    file.write_text("\t".join(lines[:2]) + "\n" + "\n".join(lines[2:]))

    def runs(words, length):
        return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}

    # Eight words in a row, or a whole passage of five to seven.
    forbidden = set().union(*(runs(words, min(len(words), 8)) for words in passages if len(words) >= 5))
    found = [set().union(*(runs(words, length) for length in range(5, 9))) for words in documents]
    texts = [", ".join(words).upper() + "!" for words in documents] + ["six"]
    expected = [text for text, seen in zip(texts, [*found, set()], strict=True) if not seen & forbidden]
    assert leave_out(texts, [file]) == expected


@pytest.mark.parametrize(
    "spelling",
    [
        "In the end , White Oleander is n't an adaptation .",
        "in the end, white oleander isn't an adaptation",
        "In the end -LRB- White Oleander -RRB- isn\u2019t an adaptation",
    ],
)
def test_the_treebanks_spelling_is_known(tmp_path, spelling):
    (tmp_path / "scored.csv").write_text("1\tIn the end, (White Oleander) isn't an adaptation.")
    assert leave_out([spelling, "another"], [tmp_path / "scored.csv"]) == ["another"]
    with pytest.raises(InputError, match="no document of the corpus remains"):
        leave_out([spelling], [tmp_path / "scored.csv"])


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_tokenizer_gives_back_any_text(text):
    tokenizer = small_tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def small_tokenizer(made={}):  # noqa: B006 -- made once
    if not made:
        made["it"] = train_tokenizer([" ".join(GOOD + BAD + FILLER)] * 3, 300, 64)
    return made["it"]


def corpus(folder: Path) -> Path:
    folder.mkdir()
    words = GOOD + BAD + FILLER
    documents = [" ".join(words[(i * j) % len(words)] for j in range(1, 8 + i % 40)) for i in range(1, 200)]
    (folder / "words.txt").write_text("\n\n".join(documents))
    return folder


SMALL = ["--vocab_size", 300, "--n_layer", 2, "--n_embd", 32, "--n_head", 2, "--n_positions", 32, "--batch_tokens", 256]
SMALL += ["--held_out", 0.1, "--lr", 0.01, "--device", "cpu", "--precision", "fp32"]


def call(folder: Path, output: Path, *flags: object) -> int:
    arguments = ["--corpus", folder, "--output_dir", output, *SMALL, *flags]
    return pretrain.main([str(argument) for argument in arguments])


def test_stock_code_loads_what_comes_out_and_it_has_learned(tmp_path):
    folder = corpus(tmp_path / "corpus")
    output = tmp_path / "run"
    assert call(folder, output, "--tokens", 30_000, "--dtype", "float16", "--eval_every_steps", 40) == 0
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["train_tokens"] >= 30_000
    assert lines[-1]["val_loss"] < lines[0]["val_loss"] < 5.7  # nats of 300 equally likely tokens

    tokenizer = transformers.AutoTokenizer.from_pretrained(output / "best")
    stock = transformers.AutoModelForCausalLM.from_pretrained(output / "best")
    assert {tensor.dtype for tensor in load_file(output / "best" / WEIGHTS).values()} == {torch.float16}
    ours = GPT2LMHeadModel(GPT2Model(GPT2Config.from_file(output / "best" / "config.json"))).eval()
    load_weights(ours, output / "best")
    ids = tokenizer("the film a story with its cast", return_tensors="pt")["input_ids"]
    hidden = ours.transformer(ids)["last_hidden_state"]
    torch.testing.assert_close(ours.transformer.hidden_state_to_token(hidden), stock(ids).logits, rtol=1e-4, atol=1e-4)

    held_out = hold_out(read_documents(find_texts([str(folder)])), 0.1)[1]
    nats = 0.0
    for document in held_out:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(document)["input_ids"], tokenizer.eos_token_id]])
        for start in range(0, ids.size(1) - 1, 32):
            read, asked = ids[:, start : start + 33][:, :-1], ids[:, start + 1 : start + 33]
            nats += F.cross_entropy(stock(read).logits[0], asked[0], reduction="sum").item()
    assert nats / sum(len(d.encode()) for d in held_out) == pytest.approx(lines[-1]["val_nats_per_byte"], rel=5e-3)


@pytest.mark.parametrize("stops", [(3,), (0, 17)])
def test_interrupted_and_resumed_is_as_never_stopped(tmp_path, stops):
    folder = corpus(tmp_path / "corpus")
    flags = ("--tokens", 9000, "--dropout", 0.1, "--eval_every_steps", 7)
    assert call(folder, tmp_path / "whole", *flags) == 0
    for stop in stops:
        steps = iter(range(stop))

        def check(request, steps=steps):
            if next(steps, None) is None:
                raise Interrupted(15)

        with mock.patch("training.interrupt.StopRequest.check", check):
            assert call(folder, tmp_path / "parts", *flags, "--save_every_steps", 1, "--resume") == 143
    assert call(folder, tmp_path / "parts", *flags, "--resume") == 0
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        files = [tmp_path / run / "best" / name for run in ("whole", "parts")]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    logs = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("whole", "parts")]
    for whole, parts in zip(*(map(json.loads, log) for log in logs), strict=True):
        assert whole.keys() == parts.keys()
        assert all(whole[key] == parts[key] for key in whole if not key.endswith("_seconds"))


def test_pieces_change_nothing_but_rounding_and_metrics_are_saved_with_the_state(tmp_path):
    folder = corpus(tmp_path / "corpus")
    flags = ("--tokens", 4000, "--eval_every_steps", 7, "--save_every_steps", 4)
    assert call(folder, tmp_path / "whole", *flags) == 0
    less = ("--micro_batch_size", 3, "--checkpoint_activations")
    settings_ = [str(a) for a in ("--corpus", folder, "--output_dir", tmp_path / "parts", *SMALL, *flags, *less)]
    with pytest.raises(Interrupted):
        pretrain.pretrain(pretrain.parse_flags(settings_), StopAfter(10))
    (tmp_path / "parts" / "metrics.jsonl").write_text("spoilt")
    assert call(folder, tmp_path / "parts", *flags, *less, "--resume") == 0
    logs = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("whole", "parts")]
    for whole, parts in zip(*(map(json.loads, log) for log in logs), strict=True):
        for key in whole:
            assert key.endswith("_seconds") or parts[key] == pytest.approx(whole[key], rel=1e-4), key


class StopAfter(StopRequest):
    """As if a signal had come during some step."""

    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps

    @property
    def signum(self):
        self.steps -= 1
        return 15 if self.steps < 0 else None

    @signum.setter
    def signum(self, value):
        pass


def test_a_signal_saves_at_once_and_minutes_go_on_where_they_were(tmp_path):
    folder = corpus(tmp_path / "corpus")
    flags = [str(a) for a in ("--corpus", folder, "--output_dir", tmp_path / "run", "--minutes", 0.02, *SMALL)]
    settings_ = pretrain.parse_flags(flags)
    with pytest.raises(Interrupted):
        pretrain.pretrain(settings_, StopAfter(3))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert any((tmp_path / "run" / "last").glob("state-*.safetensors"))
    pretrain.pretrain(settings_ | {"resume": True}, StopRequest())
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] > 3
    assert 1.2 <= last["train_seconds"] < 1.2 + 60  # what is left of the budget, and the step that ends it
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()


def test_resume_refuses_another_corpus(tmp_path, capsys):
    one, two = corpus(tmp_path / "one"), tmp_path / "two.txt"
    two.write_text("another text\n\n" * 3)
    where = ("--tokens", 2000)
    assert call(one, tmp_path / "run", *where, "--leave_out", two) == 0
    assert call(one, tmp_path / "run", *where, "--resume") == 2
    assert "the data of" in capsys.readouterr().err


@pytest.mark.parametrize("there", ["config.json", "best/mine.txt", "last/mine.txt", "events.out.tfevents.1"])
def test_a_folder_that_is_no_run_is_left_alone(tmp_path, capsys, there):
    file = tmp_path / "mine" / there
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    (tmp_path / "mine" / ".other.tmp").write_text("x")
    assert call(corpus(tmp_path / "corpus"), tmp_path / "mine", "--tokens", 100) == 2
    assert "there is something else in it" in capsys.readouterr().err
    assert file.read_text() == "{}"
    assert (tmp_path / "mine" / ".other.tmp").exists()


def test_a_folder_that_cannot_be_made_is_known_at_once(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert call(tmp_path / "no corpus", tmp_path / "file" / "run", "--tokens", 100) == 2
    assert "--output_dir" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no such file"),
        (lambda folder: folder.mkdir(), "no .txt or .txt.gz file"),
        (lambda folder: folder.write_bytes(b"\xff\xfe text"), "cannot be read as UTF-8"),
        (lambda folder: folder.write_text(" \n\n"), "no text in there"),
        (lambda folder: folder.write_text("short"), "too few to hold out"),
        (lambda folder: folder.write_text("\n\n".join(f"a{i}" for i in range(300))), "gives only"),
    ],
)
def test_bad_input_gets_one_line_and_2(tmp_path, capsys, make, message):
    make(tmp_path / "text")
    assert call(tmp_path / "text", tmp_path / "run", "--tokens", 100, "--vocab_size", 5000) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_torn_gzip_file_is_named(tmp_path):
    whole = gzip.compress(b"some text " * 1000)
    (tmp_path / "torn.txt.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"torn\.txt\.gz"):
        read_documents(find_texts([str(tmp_path)]))


def kneser_ney(train, held_out, end_of_text, vocab_size, order):
    """The textbook's recursion, a dictionary an order."""
    counts = [Counter() for _ in range(order)]
    for document in train:
        ids = [end_of_text] * (order - 1) + document + [end_of_text]
        for i in range(order - 1, len(ids)):
            counts[-1][tuple(ids[i - order + 1 : i + 1])] += 1
    for k in range(order - 2, -1, -1):
        counts[k] = Counter(gram[1:] for gram in counts[k + 1])

    def probability(context, token, k):
        if k < 0:
            return 1 / vocab_size
        lower = probability(context[1:], token, k - 1)
        after = {gram[-1]: n for gram, n in counts[k].items() if gram[:-1] == context}
        if not after:
            return lower
        once, twice = (sum(n == wanted for n in counts[k].values()) for wanted in (1, 2))
        discount = once / (once + 2 * twice) if once else 0.5
        total = sum(after.values())
        return max(after.get(token, 0) - discount, 0) / total + discount * len(after) / total * lower

    nats = 0.0
    for document in held_out:
        ids = [end_of_text] * (order - 1) + document + [end_of_text]
        for i in range(order - 1, len(ids)):
            nats -= math.log(probability(tuple(ids[i - order + 1 : i]), ids[i], order - 1))
    return nats


@settings(max_examples=25, deadline=None)
@given(train=documents_of_few_ids, held_out=documents_of_few_ids)
def test_yardstick_of_5_grams_equals_the_textbooks(train, held_out):
    assert ngram_nats(train, held_out, 0, 7) == pytest.approx(kneser_ney(train, held_out, 0, 7, 5), rel=1e-9)
