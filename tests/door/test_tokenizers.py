"""Whatever a tokenizer's files hold: it is read, or refused in one line, and no text then takes forever."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from outcomes import HUGE, TINY, fresh, load, outcome_of, with_bytes, with_json

from models.gpt2 import GPT2Model
from models.pretrained import save_tokenizer
from models.tokenizer_files import token_ends, token_ids
from tasks.paraphrase import Paraphrase


def template(id_: int) -> dict:
    special = {"id": "[X]", "ids": [id_], "tokens": ["[X]"]}
    single = [{"SpecialToken": {"id": "[X]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": {"[X]": special}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["model"]["vocab"].update(zzz=400), "the id 400; the model's end at 399"),
        (lambda t: t["model"]["vocab"].update(zzz=2**32 - 1), "the id 4294967295"),
        (lambda t: t["model"]["vocab"].update(zzz=-1), "cannot be read"),
        (lambda t: t.update(post_processor=template(99999)), "the id 99999"),
        (lambda t: t["model"].update(vocab={"<|endoftext|>": 0}, merges=[]), "loses plain text"),
        (lambda t: t.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "Precompiled"),
        (lambda t: t["model"].update(merges=["a b c"]), "cannot be read"),
        (lambda t: t.clear(), "tokenizer"),
    ],
)
def test_tokenizers_that_the_model_cannot_take_are_refused(model, change, message):
    folder = fresh(model)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    change(tokenizer)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert message in outcome_of(lambda: load(folder))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("data", [b"", b"[" * 100_000, HUGE, b"[]", b"\xff", b'{"tokenizer_class": "ByT5Tokenizer"}'])
def test_tokenizers_that_are_none_are_refused(model, name, data):
    assert "tokenizer" in outcome_of(lambda: load(with_bytes(model, name, data)))


def test_a_tokenizer_that_cuts_and_pads_does_neither_here(model):
    whole = load(model).tokenizer("a warm story")["input_ids"]
    folder = with_json(
        model,
        "tokenizer.json",
        truncation={"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
            "pad_token": "x",
        },
    )  # fmt: skip
    assert load(folder).tokenizer("a warm story")["input_ids"] == whole


def as_written(folder: Path, change: Callable[[dict], object]) -> Path:
    """A copy whose tokenizer.json the library takes as it stands; GPT-2's own class reads its vocabulary only."""
    folder = fresh(folder)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "TokenizersBackend", "eos_token": "<|endoftext|>"})
    )
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    change(tokenizer)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def split(**pattern: str) -> dict:
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def replace(content: str, **pattern: str) -> dict:
    return {"type": "Replace", "pattern": pattern, "content": content}


def in_turn(kind: str, *steps: dict) -> dict:
    return {"type": "Sequence", kind: list(steps)}


def nested(depth: int) -> dict:
    return in_turn("normalizers", nested(depth - 1)) if depth else {"type": "NFC"}


SPECIAL = [{"SpecialToken": {"id": "[X]", "type_id": 0}}]
CHANGES = {
    "a pattern that never ends": (
        lambda t: t.update(pre_tokenizer=in_turn("pretokenizers", split(Regex="(a+)+$"), BYTES)),
        "the regular expression '(a+)+$' is not supported",
    ),
    "one in a normalizer": (lambda t: t.update(normalizer=replace("x", Regex="(.*)*x")), "not supported"),
    "one in a decoder": (
        lambda t: t.update(decoder=in_turn("decoders", t["decoder"], replace("x", Regex="(a|a)*b"))),
        "not supported",
    ),
    "a text that doubles again and again": (
        lambda t: t.update(normalizer=in_turn("normalizers", *[replace("aa", String="a")] * 60)),
        "replacing 'a' by something longer",
    ),
    "one that doubles as it is written": (
        lambda t: t.update(decoder=in_turn("decoders", t["decoder"], *[replace("ee", String="e")] * 60)),
        "something longer",
    ),
    "what is before every text": (
        lambda t: t.update(normalizer=in_turn("normalizers", *[{"type": "Prepend", "prepend": "x" * 1000}] * 1000)),
        "characters of settings",
    ),
    "little of it": (lambda t: t.update(normalizer={"type": "Prepend", "prepend": "x" * 99}), "tokens to every text"),
    "nothing replaced": (lambda t: t.update(normalizer=replace("x", String="")), "replacing ''"),
    "merges left out at random": (lambda t: t["model"].update(dropout=0.5), "dropout"),
    "a pile": (lambda t: t.update(normalizer=nested(200)), "recursion"),
    "letters escaped": (
        lambda t: t.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "Precompiled",
    ),
    "words of any length": (
        lambda t: t["model"].update(max_input_chars_per_word=10**9),
        "max_input_chars_per_word is 1000000000",
    ),
    "an entry of any length": (lambda t: t["model"].update(vocab=[["a" * 10**5, 0.0]]), "longer than 1000"),
    "no model": (lambda t: t.update(model=[]), "no model"),
    # The library's Rust code panics at these.
    "pieces with a prefix": (lambda t: t["model"].update(continuing_subword_prefix="##"), "cannot be read"),
    "chunks of no length": (
        lambda t: t.update(pre_tokenizer={"type": "FixedLength", "length": 0}),
        "cannot read plain text",
    ),
    "a template with a token it has not": (
        lambda t: t.update(post_processor=template(0) | {"special_tokens": {}, "single": SPECIAL}),
        "cannot",
    ),
    "a decoder that takes more than there is": (
        lambda t: t.update(decoder={"type": "Strip", "content": "Y", "start": 10**9, "stop": 10**9}),
        "cannot read plain text",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_tokenizers_that_hang_grow_or_panic_are_refused(model, what, capfd):
    change, message = CHANGES[what]
    folder = as_written(model, change)
    if what == "letters escaped":
        text = (folder / "tokenizer.json").read_text()
        (folder / "tokenizer.json").write_text(text.replace("Precompiled", r"Precom\u0070iled"))
    assert message in outcome_of(lambda: load(folder))
    assert capfd.readouterr().err == ""


def test_the_patterns_of_published_tokenizers_are_read(model):
    plain = load(model).tokenizer("it's a warm\n\n story, 12")["input_ids"]
    folder = as_written(
        model, lambda t: t.update(pre_tokenizer=in_turn("pretokenizers", split(Regex=GPT2), BYTES))
    )  # fmt: skip
    assert load(folder).tokenizer("it's a warm\n\n story, 12")["input_ids"] == plain


def without_unknown(kind: str) -> Callable[[dict], object]:
    """A tokenizer of the words of the probe, with no token for any other."""
    words = {word: i for i, word in enumerate(["Yes", ",", "no", ":", "a", "naïve", "1"])}
    model = {"type": kind, "vocab": words, "unk_token": "[UNK]"}
    model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100} if kind == "WordPiece" else {}
    before = {"type": "BertPreTokenizer"}
    return lambda t: t.update(model=model, pre_tokenizer=before, decoder=None, added_tokens=[])


@pytest.mark.parametrize("kind", ["WordLevel", "WordPiece"])
def test_a_word_that_a_tokenizer_has_no_token_for_is_an_error_of_one_line(model, kind):
    tokenizer = load(as_written(model, without_unknown(kind))).tokenizer
    assert token_ids(tokenizer, ["no"]) == [[2]]
    for ask in (lambda: token_ids(tokenizer, ["story"]), lambda: token_ends(tokenizer, "story")):
        assert "cannot read a text" in outcome_of(ask)


def test_a_head_does_not_start_from_one_token_for_two_answers(model):
    tokenizer = load(as_written(model, lambda t: t.update(post_processor=template(0)))).tokenizer
    loaded = mock.Mock(tokenizer=tokenizer, network=GPT2Model(TINY), source="x")
    said = outcome_of(lambda: Paraphrase("").build(loaded, {"hidden_dropout_prob": 0.0, "head_init": "cloze"}))
    assert "does not tell no and yes apart" in said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eos_token": "\ud800"}, "surrogates"),
        ({"eos_token": 5}, "eos_token is 5"),
        ({"tokenizer_class": ["x"]}, "tokenizer_class is ['x']"),
        ({"add_prefix_space": "no"}, "add_prefix_space is 'no'"),
        ({"added_tokens_decoder": [1]}, "added_tokens_decoder is [1]"),
        # Not read, of whatever type: the library would write them, open them or speak of them.
        ({"chat_template": {"x": 1}, "errors": "\ud800", "verbose": True, "vocab_file": "/dev/zero"}, ""),
        ({"model_max_length": "x", "padding_side": 7, "init_inputs": 5, "gguf_file": "x"}, ""),
    ],
)
def test_settings_of_other_types_are_refused_or_not_read(model, tmp_path, settings, message, capfd):
    folder = with_bytes(model, "tokenizer_config.json", json.dumps(settings).encode())
    said = outcome_of(lambda: save_tokenizer(load(folder).tokenizer, tmp_path))
    assert message in said
    assert bool(message) == bool(said)
    assert capfd.readouterr().err == ""


def test_the_library_sees_no_file_but_the_tokenizers(model):
    """It would open some of these, and fill the memory with names for the labels that config.json promises."""
    folder = with_json(model, "config.json", num_labels=10**30, tokenizer_class=5)
    for name in ("chat_template.jinja", "tokenizer.model", "tekken.json", "processor_config.json"):
        os.mkfifo(folder / name)
    assert load(folder).tokenizer.name_or_path == str(folder)
