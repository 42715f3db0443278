"""Whatever lies in a file or stands in a flag: it is read, or refused in one line; it never runs, hangs or ends in a
traceback."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
import transformers
from conftest import scramble, stock_config, write_tokenizer
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import classifier
import paraphrase_detection
import pretrain
import reproduce
import sonnet_generation
from config import GPT2Config, InputError
from models.gpt2 import GPT2Model
from models.heads import GPT2ForSequenceClassification
from models.lora import Lora
from models.pretrained import load_weights, save_pretrained
from optimizer import AdamW
from reproduction import search
from reproduction.grid import Experiment
from reproduction.results import Outcome, Results
from reproduction.runner import Study, _begun
from tasks.classification import read_split
from tasks.corpus import find_texts, read_documents
from tasks.report import make_folder
from tasks.sonnet_report import read_prompts
from tasks.sonnets import lines_with_words, read_sonnets
from tasks.table import sample
from tasks.tokens import tokenized
from training.checkpoint import load_state
from training.finetune import fine_tune
from training.flags import Parser
from training.interrupt import StopRequest
from training.network import load_network

SCRIPTS = (classifier, paraphrase_detection, sonnet_generation, pretrain, reproduce)
TINY = GPT2Config(vocab_size=3, n_positions=2, n_embd=2, n_layer=1, n_head=1)
GOOD = b"id\tsentence\tlabel\na\tb\t1\n"
anywhere = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def outcome_of(read: Callable[[], object]) -> str:
    """What the one line says; nothing, if all was well. Any other exception is a failure."""
    said = ""
    try:
        read()
    except InputError as error:
        said = str(error) or "nothing"
    assert said.isprintable() or not said
    assert len(said) < 1300
    return said


def read_dev(folder: Path):
    return read_split(folder, "x", "dev", ["sentence"], "label", 2, skip_bad_rows=True)


# Bytes as they come, and text that looks like what is expected.
pieces = st.lists(
    st.sampled_from(
        [
            "id",
            "sentence",
            "label",
            "\t",
            "\n",
            "\r\n",
            "\r",
            '"',
            '""',
            "1",
            "0.0",
            "a",
            "\ufeff",
            "\0",
            "é",
            "\x1b[2J",
        ]
    ),
    max_size=40,
)
contents = st.one_of(
    st.binary(max_size=80),
    pieces.map(lambda parts: "".join(parts).encode()),
    pieces.map(lambda parts: b"id\tsentence\tlabel\n" + "".join(parts).encode()),
)


@anywhere
@given(data=contents)
@example(GOOD.decode().encode("utf-16"))
@example(GOOD.decode().encode("utf-16-le"))
@example(GOOD + b"c\td\0\t1\n")
@example(GOOD + b'c\t"never closed\t1\n')
@example(b"\x1b[2J\n\xe2\x80\xa8id\tx\n1\t2\n")
@example(b"id\tsentence\tsentence\tlabel\na\tb\tc\t1\n")
@example(b"\t" * 100_000 + b"\n" + b"x\n" * 1000)
def test_a_file_of_rows_is_read_or_refused_in_one_line(tmp_path, data):
    (tmp_path / "x-dev.csv").write_bytes(data)

    def read() -> None:
        split = read_dev(tmp_path)
        assert len(split.ids) == len(split.texts) == len(split.labels) > 0
        assert set(split.labels) <= {0, 1}
        assert not any("\0" in text for text in split.texts)

    outcome_of(read)


@anywhere
@given(data=st.one_of(contents, st.lists(st.sampled_from(["1", "\n", "12\n", "line", "\0", "٣", "\r\n"])).map("".join)))
def test_a_file_of_poems_is_read_or_refused_in_one_line(tmp_path, data):
    (tmp_path / "poems.txt").write_bytes(data if isinstance(data, bytes) else data.encode())

    def read() -> None:
        poems = read_sonnets(tmp_path / "poems.txt", skip_bad_rows=True)
        assert len(poems.numbers) == len(poems.poems) > 0
        assert all(poems.poems)

    outcome_of(read)
    outcome_of(lambda: read_documents(find_texts([str(tmp_path / "poems.txt")])))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GOOD.decode().encode("utf-16-le"), "line 1 holds a NUL character"),
        (GOOD + b"c\td\0\t1\n", "line 3 holds a NUL character"),
        (GOOD + b"x\t" + b"y" * 50_000_000, "line 3: field larger than field limit"),
        (b"id\tsentence\tsentence\tlabel\na\tb\tc\t1\n", "column sentence is twice in its header"),
        (b"id\tsentence\tlabel" + b"\tx" * 1000 + b"\na\tb\t1\n", "1003 columns in its header"),
        (b"\x1b[2Jid\n1\n", r"only \\x1b\[2Jid"),
    ],
)
def test_what_no_table_holds_is_named(tmp_path, data, message):
    (tmp_path / "x-dev.csv").write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_dev(tmp_path)


@pytest.mark.parametrize("data", [GOOD[:-1], GOOD.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + GOOD, GOOD + b"\n\n"])
def test_line_ends_and_marks_change_nothing(tmp_path, data):
    (tmp_path / "x-dev.csv").write_bytes(data)
    split = read_dev(tmp_path)
    assert (split.ids, split.texts, split.labels) == (["a"], ["b"], [1])


def test_rows_of_one_id_are_all_there_and_labels_must_agree(tmp_path):
    (tmp_path / "x-dev.csv").write_bytes(GOOD + b'"a\nb"\tc\t0\na\td\t0\n')
    assert read_dev(tmp_path).ids == ["a", "a b", "a"]
    assert read_dev(tmp_path).labels == [1, 0, 0]
    (tmp_path / "x-test-student.csv").write_bytes(b"id\tsentence\na\tb\n")
    (tmp_path / "x-test-labels.csv").write_bytes(b"id\tlabel\na\t1\na\t1\na\t0\n")
    with pytest.raises(InputError, match=r"line 4: a has the label '1' above, and '0'"):
        read_split(tmp_path, "x", "test", ["sentence"], "label", 2, skip_bad_rows=False)


MADE = {
    "a directory": Path.mkdir,
    "a pipe": os.mkfifo,
    "a loop of links": lambda path: path.symlink_to(path),
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", MADE)
def test_what_is_no_file_is_refused_at_once(model, adapter, tmp_path, kind):
    """Also in the places of files that need not be there."""

    def replaced(folder: Path, name: str) -> Path:
        (folder / name).unlink(missing_ok=True)
        MADE[kind](folder / name)
        return folder

    (tmp_path / "x-test-student.csv").write_bytes(b"id\tsentence\na\tb\n")
    (tmp_path / "sonnets_held_out.txt").write_bytes(b"1\n\nline\n")
    for name in ("x-dev.csv", "x-test-labels.csv", "TRUE_sonnets_held_out.txt", "state-0.safetensors"):
        replaced(tmp_path, name)
    assert outcome_of(lambda: read_dev(tmp_path))
    assert outcome_of(lambda: read_split(tmp_path, "x", "test", ["sentence"], "label", 2, skip_bad_rows=True))
    assert outcome_of(lambda: read_prompts(tmp_path, "test", None))
    assert "state-0" in outcome_of(lambda: load_state(tmp_path, {}, AdamW([torch.zeros(1)])))
    assert outcome_of(lambda: read_documents(find_texts([str(tmp_path / "x-dev.csv")])))
    assert outcome_of(lambda: GPT2Config.from_file(tmp_path / "x-dev.csv"))
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert outcome_of(lambda name=name: load(replaced(fresh(model), name)))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert outcome_of(lambda name=name: load(replaced(fresh(adapter), name)))
    shards = fresh(model)
    (shards / "model.safetensors").unlink()
    (shards / "model.safetensors.index.json").write_text('{"weight_map": {"a": "f.safetensors"}}')
    assert outcome_of(lambda: load(replaced(shards, "f.safetensors")))
    outcome = Outcome(Experiment("sonnet", "sonnets", "gpt2", "full", "", ()), 1, tmp_path)
    (tmp_path / "run").mkdir()
    for name in ("config.json", "metrics.jsonl", "scores.json"):
        replaced(tmp_path / "run", name)
    assert outcome.damage()
    assert _begun(replaced(tmp_path, "begun.json")) == {"attempts": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    scramble(transformers.GPT2LMHeadModel(stock_config(n_positions=64))).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    Lora(GPT2ForSequenceClassification(GPT2Model.from_pretrained(model), ["a", "b"]), str(model), rank=4).save(folder)
    return folder


def fresh(folder: Path) -> Path:
    """A copy, in the place of the last one."""
    shutil.rmtree(folder.parent / "copy", ignore_errors=True)
    return shutil.copytree(folder, folder.parent / "copy")


def load(folder: object):
    with mock.patch.dict(os.environ, HF_HUB_OFFLINE="1"), mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True):
        settings = {"model_size": "mini", "model_path": str(folder), "dropout": None, "checkpoint_activations": False}
        return load_network(settings)


def with_json(folder: Path, name: str, **values: object) -> Path:
    folder = fresh(folder)
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))
    return folder


def with_tensors(folder: Path, name: str, change: Callable[[dict], object]) -> Path:
    folder = fresh(folder)
    tensors = load_file(folder / name)
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, folder / name, metadata={"format": "pt"})
    return folder


def with_bytes(folder: Path, name: str, data: bytes) -> Path:
    folder = fresh(folder)
    (folder / name).write_bytes(data)
    return folder


HUGE = b'{"n_layer": ' + b"9" * 5000 + b"}"  # more digits than Python reads


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "adapter_config.json"])
@pytest.mark.parametrize(
    "data", [b"", b"[" * 100_000, HUGE, b"[]", b"null", b'{"a": "\xe9"}', b"\xef\xbb\xbf{}", b"\0"]
)
def test_json_that_is_none_is_refused(model, adapter, name, data):
    folder = with_bytes(adapter if name.startswith("adapter") else model, name, data)
    if "index" in name:
        (folder / "model.safetensors").unlink()
    assert name in outcome_of(lambda: load(folder))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([10**30, 1e400, -0.0, "\0", "\ud800"]),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=3), some, max_size=3),
    max_leaves=5,
)


@anywhere
@given(name=st.sampled_from(sorted(set(vars(TINY)) | {"model_type", "activation_function"})), value=json_values)
@example("n_layer", 10**9)
@example("layer_norm_epsilon", math.inf)
@example("initializer_range", 10**400)
def test_any_value_in_config_is_used_or_refused(tmp_path, name, value):
    save_pretrained(GPT2Model(TINY), TINY, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    outcome_of(lambda: GPT2Model.from_pretrained(tmp_path))


@pytest.mark.parametrize("settings", [{"n_embd": 1 << 16}, {"vocab_size": 1 << 24, "n_embd": 1 << 12}])
def test_a_config_that_promises_more_than_the_file_holds_takes_no_memory(model, settings):
    with mock.patch.object(torch.nn.Module, "to_empty", side_effect=AssertionError("memory was asked for")):
        assert "do not fit config.json" in outcome_of(
            lambda: GPT2Model.from_pretrained(with_json(model, "config.json", **settings))
        )


def header(values: object, length: int | None = None) -> bytes:
    """The beginning of a safetensors file."""
    text = values if isinstance(values, bytes) else json.dumps(values).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def entry(**values: object) -> dict:
    return {"wte.weight": {"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24]} | values}


@anywhere
@given(data=st.one_of(st.binary(max_size=60), st.binary(max_size=60).map(header), json_values.map(header)))
@example(header(b"{}", 10**10))
@example(header(b"{}", 2**64 - 1))
@example(header(b'{"a":' * 100_000))
@example(header(entry(shape=[10**30])))
@example(header(entry(shape=[2**62, 4])))
@example(header(entry(shape=[-1])))
@example(header(entry(data_offsets=[0, 10**30])))
@example(header(entry()) + b"\0" * 23)
@example(header(entry(dtype="X")) + b"\0" * 24)
@example(header({"\x1b[31m\n\u2028x": entry()["wte.weight"]}) + b"\0" * 24)
@example(header({"lm_head.weight": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}) + b"\0" * 4)
def test_weights_are_read_or_refused_in_one_line(tmp_path, data):
    (tmp_path / "model.safetensors").write_bytes(data)
    assert outcome_of(lambda: load_weights(GPT2Model(TINY), tmp_path))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["transformer.h.1.attn.c_attn.weight", "transformer.ln_f.bias"])
def test_weights_that_are_not_finite_are_named(model, name, value):
    folder = with_tensors(model, "model.safetensors", lambda tensors: tensors[name].view(-1)[-1].fill_(value))
    assert f"{name.removeprefix('transformer.')} holds NaN or infinity" in outcome_of(lambda: load(folder))


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_of_other_types_are_refused(model, dtype):
    def change(tensors: dict) -> None:
        tensors["transformer.ln_f.bias"] = tensors["transformer.ln_f.bias"].to(dtype)

    assert "ln_f.bias holds" in outcome_of(lambda: load(with_tensors(model, "model.safetensors", change)))


@pytest.mark.parametrize("logits", [torch.ones(()), torch.ones(3), torch.ones(3, dtype=torch.int32)])
def test_logits_of_another_shape_are_refused(model, logits):
    folder = with_tensors(model, "model.safetensors", lambda tensors: tensors.update({"lm_head.weight": logits}))
    assert "lm_head.weight" in outcome_of(lambda: load(folder))


@pytest.mark.parametrize(
    "names", [5, ["a"], "../a.safetensors", "/a.safetensors", "a\0.safetensors", "\ud800.safetensors", "x" * 5000, ""]
)
def test_names_of_shards_stay_in_the_folder(model, names):
    folder = with_bytes(model, "model.safetensors.index.json", json.dumps({"weight_map": {"a": names}}).encode())
    shutil.move(folder / "model.safetensors", folder.parent / "a.safetensors")
    assert outcome_of(lambda: load(folder))


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 10**9}, "rank 1000000000 is larger"),
        ({"r": 2.5}, "not a rank"),
        ({"r": 5}, "size mismatch"),
        ({"rank_pattern": {"c_attn": 10**30}}, "is larger"),
        ({"rank_pattern": []}, ""),
        ({"rank_pattern": None}, ""),
        ({"lora_alpha": math.nan}, "lora_alpha=nan"),
        ({"lora_alpha": math.inf}, "lora_alpha=inf"),
        ({"lora_alpha": 10**400}, "lora_alpha=1000"),
        ({"alpha_pattern": {"c_attn": math.nan}}, "lora_alpha=nan"),
        ({"target_modules": "(.*)*x"}, "too intricate"),
        ({"target_modules": "(.|.)*!"}, "too intricate"),
        ({"target_modules": ".*" * 9 + "x"}, "too intricate"),
        ({"target_modules": 5}, "not a name"),
        ({"rank_pattern": {"(a|a)*b": 3}}, "too intricate"),
        ({"exclude_modules": "(.*)*x"}, "too intricate"),
        ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "megatron_config is not supported"),
        ({"monteclora_config": {"x": 1}}, "not a whole PEFT adapter"),
        ({"base_model_name_or_path": "a\0b"}, "cannot get"),
        ({"base_model_name_or_path": "/" + "x" * 5000}, "File name too long"),
    ],
)
def test_adapters_are_read_or_refused_in_one_line(adapter, change, message):
    said = outcome_of(lambda: load(with_json(adapter, "adapter_config.json", **change)))
    assert message in said
    assert bool(message) == bool(said)


def test_adapters_with_other_tensors_are_refused(adapter):
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
    for change, message in (
        (lambda t: t * math.nan, "lora_A.weight holds NaN"),
        (lambda t: t.int(), "holds torch.int32"),
        (lambda t: t[:2].contiguous(), "size mismatch"),
        (lambda t: t[:0].contiguous(), "size mismatch"),
    ):
        folder = with_tensors(adapter, "adapter_model.safetensors", lambda t, c=change: t.update({name: c(t[name])}))
        assert message in outcome_of(lambda folder=folder: load(folder))


def test_a_run_does_not_replace_what_it_starts_from(model, tmp_path):
    best = shutil.copytree(model, tmp_path / "run" / "best")
    settings = classifier.parse_flags(["--model_path", str(best), "--precision", "fp32", "--device", "cpu"])
    task = mock.Mock()
    with pytest.raises(InputError, match="would be replaced"):
        fine_tune(tmp_path / "run", task, {}, settings, StopRequest())
    assert load(best)


# What other runs left behind


def finished(folder: Path, task: str) -> Outcome:
    """A run's files, as small as they can be."""
    run = folder / "run"
    run.mkdir(parents=True)
    facts = {"settings": {"epochs": 1, "model_path": None, "model_size": "mini"}, "parameters": {"trained": 1}}
    facts |= {"hardware": {"device": "x", "threads": 1}, "precision": "fp32", "versions": {"torch": "2"}}
    (run / "config.json").write_text(json.dumps(facts))
    line = dict(epoch=1, train_loss=1.0, train_acc=0.5, dev_acc=0.5, val_loss=1.0, train_seconds=1.0, eval_seconds=1.0)
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (run / "scores.json").write_text(json.dumps({"dev": {"it": {"chrf": 1.0, "chrf_within": 0.1}}}))
    (folder / "predictions").mkdir()
    (folder / "predictions" / "full-model-sst-dev-out.csv").write_text("id \t Predicted_Sentiment \na,b, 3 \nc, 0 \n")
    dataset = {"sonnet": "sonnets", "sentiment": "sst"}[task]
    return Outcome(Experiment(task, dataset, "gpt2", "full", "", ()), 1, folder)


@pytest.mark.parametrize("task", ["sonnet", "sentiment"])
def test_a_run_with_all_its_files_has_no_damage(tmp_path, task):
    outcome = finished(tmp_path / "it", task)
    assert outcome.damage() == ""
    assert outcome.predictions == [("a,b", 3), ("c", 0)]


@anywhere
@given(
    task=st.sampled_from(["sonnet", "sentiment"]),
    file=st.sampled_from(
        ["run/config.json", "run/metrics.jsonl", "run/scores.json", "predictions/full-model-sst-dev-out.csv"]
    ),
    data=st.one_of(st.binary(max_size=40), json_values.map(json.dumps).map(str.encode)),
)
@example("sonnet", "run/metrics.jsonl", b"")
@example("sentiment", "run/metrics.jsonl", b"[1]")
@example("sentiment", "run/metrics.jsonl", b"[" * 100_000)
@example("sentiment", "run/config.json", b'{"settings": []}')
@example("sentiment", "predictions/full-model-sst-dev-out.csv", b'id\n"a, 1')
def test_files_of_other_runs_are_whole_or_named(tmp_path_factory, task, file, data):
    folder = tmp_path_factory.mktemp("runs") / "it"
    outcome = finished(folder, task)
    (folder / file).write_bytes(data)
    said = outcome.damage()
    assert "\n" not in said
    if file.endswith(("config.json", "metrics.jsonl")):
        assert said.startswith("its files are incomplete")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e400", "-1", '"0.5"', "true", "null", "[0.5]", "1" + "0" * 400])
def test_metrics_that_are_no_measured_numbers_are_damage(tmp_path, value):
    outcome = finished(tmp_path / "it", "sentiment")
    path = tmp_path / "it" / "run" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"dev_acc": 0.5', f'"dev_acc": {value}'))
    assert "measured" in outcome.damage() or "not supported between" in outcome.damage()


def test_predictions_count_row_by_row_and_only_of_devs_rows(tmp_path):
    """Also where ids are not all different."""
    rows = "".join(f"{id_}\t{text}\t{label}\n" for id_, text, label in (("a", "x", 3), ("a", "y", 0), ("b", "z", 1)))
    for split in ("train", "dev"):
        (tmp_path / f"ids-sst-{split}.csv").write_text("id\tsentence\tsentiment\n" + rows)
    outcome = finished(tmp_path / "it", "sentiment")
    path = tmp_path / "it" / "predictions" / "full-model-sst-dev-out.csv"
    path.write_text("id \t x \na, 3 \na, 1 \nb, 1 \n")
    assert Results([outcome], str(tmp_path)).right(outcome).tolist() == [True, False, True]
    other = Outcome(outcome.experiment, 1, outcome.folder)
    path.write_text("id \t x \na, 3 \nb, 1 \n")
    with pytest.raises(InputError, match="not of the rows of dev"):
        Results([other], str(tmp_path)).right(other)


@anywhere
@given(data=st.one_of(st.binary(max_size=30), json_values.map(json.dumps).map(str.encode)))
@example(b'{"attempts": "x"}')
@example(b'{"attempts": 1, "settings": []}')
@example(b"[" * 100_000)
def test_what_a_run_was_begun_with_is_a_table_or_nothing(tmp_path, data):
    (tmp_path / "begun.json").write_bytes(data)
    begun = _begun(tmp_path)
    assert isinstance(begun.pop("attempts"), int)
    assert all(isinstance(kind, dict) for kind in begun.values())


def test_a_folder_that_is_no_runs_is_not_deleted(tmp_path):
    experiment = Experiment("sonnet", "sonnets", "gpt2", "full", "", ())
    study = Study(tmp_path, [experiment], [1], "data")
    pending = [Outcome(experiment, 1, tmp_path / "sonnets-gpt2-full-seed1", "not run")]
    (pending[0].folder / "poems").mkdir(parents=True)
    for damaged in (None, b"", b"{}"):
        if damaged is not None:
            (pending[0].folder / "begun.json").write_bytes(damaged)
        with pytest.raises(InputError, match="move it out of the way"):
            study.execute(pending, {experiment: 1.0}, StopRequest())
        assert (pending[0].folder / "poems").is_dir()


# Flags


def numeric_flags(script) -> list[str]:
    found: list[str] = []

    def collect(self, *_):
        found.extend(action.option_strings[0] for action in self._actions if action.type)
        raise InterruptedError

    with mock.patch.object(Parser, "parse_args", collect), contextlib.suppress(InterruptedError):
        script.parse_flags([])
    return found


FLAGS = [(script, flag) for script in SCRIPTS for flag in numeric_flags(script)]
SHARES = {"train_size", "held_out", "dropout", "hidden_dropout_prob", "lora_dropout"}
NEEDED = {pretrain: ["--corpus", "x", "--eval_every_steps", "1"]}
edges = [
    "0", "-1", "1.5", "nan", "inf", "-inf", "1e400", "-1e400", "1e-400", "1e308", "", " ", "\0", "1\0", "10" * 15,
    "1" + "0" * 5000, "0x10", "1_0", "٣", "+1", "--1", "1e5", "1,2", "true", "\x1b[2J", "9223372036854775808",
]  # fmt: skip


def parsed(script, arguments: list[str]) -> dict | None:
    """The settings; None where the script ends with 2 and one line."""
    error, code, found = io.StringIO(), 0, None
    try:
        with contextlib.redirect_stderr(error):
            found = script.parse_flags(arguments)
    except SystemExit as ended:
        code = ended.code
    assert code == (2 if found is None else 0)
    assert error.getvalue().count("\n") == (found is None)
    return found


# A line break within a number is not looked at here.
texts = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=6)


@settings(max_examples=250, deadline=None)
@given(
    which=st.sampled_from(FLAGS),
    text=st.one_of(st.sampled_from(edges), st.integers().map(str), st.floats().map(str), texts),
)
def test_a_number_is_in_range_or_refused_in_one_line(which, text):
    script, flag = which
    needed = [] if flag in ("--minutes", "--tokens") or script not in NEEDED else ["--tokens", "5"]
    found = parsed(script, [*NEEDED.get(script, []), *needed, f"{flag}={text}"])
    if found is not None:
        name = flag.removeprefix("--")
        values = found[name] if isinstance(found[name], list) else [found[name]]
        assert all(math.isfinite(value) and value >= 0 for value in values)
        assert name not in SHARES or all(value < 1 for value in values)


@pytest.mark.parametrize(
    ("script", "flag", "refused"),
    [
        (classifier, "--epochs", ["0", "-1", "1.5", "", "nan"]),
        (classifier, "--lr", ["0", "nan", "inf", "1e400", "1e-400", ""]),
        (classifier, "--batch_size", ["-1", "0", "1e3"]),
        (classifier, "--seed", ["-1", str(2**63)]),
        (sonnet_generation, "--patience", ["0"]),
        (sonnet_generation, "--train_size", ["1.5", "0", "1", "nan"]),
        (sonnet_generation, "--temperature", ["-1", "1e-320", "1e-4", "inf"]),
        (sonnet_generation, "--num_candidates", ["0", str(10**30)]),
        (sonnet_generation, "--max_new_tokens", [str(10**30)]),
        (reproduce, "--model_path", [""]),
        (reproduce, "--runs_dir", [""]),
        (reproduce, "--storage", [""]),
        (reproduce, "--seeds", ["", ",", "1,", "1,-1", str(10**30)]),
        (pretrain, "--n_layer", [str(10**30)]),
        (pretrain, "--vocab_size", [str(10**30), "256"]),
        (pretrain, "--minutes", ["1e308", "0"]),
        (pretrain, "--tokens", ["1" + "0" * 400]),
    ],
)
def test_numbers_that_no_run_can_use_are_refused(script, flag, refused):
    for text in refused:
        assert parsed(script, [*NEEDED.get(script, []), f"{flag}={text}"]) is None


def test_more_rows_than_there_are_is_all_of_them():
    assert sample(5, 10**30) == [0, 1, 2, 3, 4]


def test_names_that_lead_nowhere_are_refused(tmp_path):
    for text in ("a\0b", "x" * 5000, str(tmp_path / "none" / "\ud800")):
        assert outcome_of(lambda text=text: load(text))
        assert outcome_of(lambda text=text: read_dev(Path(text)))
        assert outcome_of(lambda text=text: find_texts([text]))
    for text in ("", "a\0b", "x" * 5000, "/dev/null/x", str(tmp_path / "\udcff")):
        assert outcome_of(lambda text=text: make_folder({"output_dir": text}, "output_dir"))
    assert "--model_path is empty" in outcome_of(lambda: load(""))
    assert "no such file" in outcome_of(lambda: find_texts([""]))


def test_a_network_larger_than_the_machine_is_refused_before_it_is_built(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("a\n\nb\n")
    flags = ["--corpus", str(tmp_path / "text.txt"), "--output_dir", str(tmp_path / "run"), "--tokens", "9"]
    large = ["--n_embd", "65536", "--n_head", "1", "--n_layer", "64", "--device", "cpu"]
    assert pretrain.main([*flags, *large]) == 2
    assert "GiB to train" in capsys.readouterr().err


def test_the_message_is_one_printable_line_however_long():
    message = str(InputError("a\n\nb\t\x1b[2J\u2028\ud800" + "x" * 10_000 + " leave out --resume"))
    assert message.startswith(r"a b \x1b[2J \ud800x")
    assert message.endswith("x leave out --resume")
    assert len(message) < 1300


def test_poems_that_a_model_of_bytes_writes_can_be_read_again():
    assert lines_with_words("a\0b\n\0\n12\0\nc") == ["ab", "c"]


# Pickles


class Bomb:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture(params=["pickle", "torch"])
def bomb(request, tmp_path):
    """The bytes of a pickle that makes a file if it is read; at the end there is none."""
    mark = tmp_path / "exploded"
    buffer = io.BytesIO()
    if request.param == "pickle":
        pickle.dump(Bomb(mark), buffer)
    else:
        torch.save(Bomb(mark), buffer)
    yield buffer.getvalue()
    assert not mark.exists()


def test_the_bomb_is_one(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "exploded")))
    assert (tmp_path / "exploded").exists()


PICKLES = ("pytorch_model.bin", "model.pt", "training_args.bin", "optimizer.pt", "rng_state.pth", "adapter_model.bin")


def test_no_file_of_a_model_is_unpickled(bomb, model, adapter):
    beside = fresh(model)
    for name in PICKLES:
        (beside / name).write_bytes(bomb)
    assert load(beside)
    (beside / "model.safetensors").unlink()
    assert "pickled weights only" in outcome_of(lambda: load(beside))
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert outcome_of(lambda name=name: load(with_bytes(model, name, bomb)))
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", "vocab.pkl"):
        outcome_of(lambda name=name: load(with_bytes(model, name, bomb)))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert outcome_of(lambda name=name: load(with_bytes(adapter, name, bomb)))
    beside = fresh(adapter)
    for name in PICKLES:
        (beside / name).write_bytes(bomb)
    assert load(beside)
    (beside / "adapter_model.safetensors").unlink()
    assert "adapter_model.bin is a pickle" in outcome_of(lambda: load(beside))


def test_no_file_of_data_or_of_a_run_is_unpickled(bomb, model, tmp_path, monkeypatch):
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("x-dev.csv", "poems.txt", "state-0.safetensors", "begun.json", "search.db"):
        (folder / name).write_bytes(bomb)
    assert outcome_of(lambda: read_dev(folder))
    assert outcome_of(lambda: read_sonnets(folder / "poems.txt"))
    outcome_of(lambda: read_documents([folder / "poems.txt"]))
    parameters = {"a": torch.nn.Parameter(torch.zeros(2))}
    assert outcome_of(lambda: load_state(folder, parameters, AdamW(parameters.values())))
    assert _begun(folder) == {"attempts": 0}
    for task in ("sonnet", "sentiment"):
        names = ["run/config.json", "run/metrics.jsonl"]
        names.append("run/scores.json" if task == "sonnet" else "predictions/full-model-sst-dev-out.csv")
        for name in names:
            outcome = finished(tmp_path / task / name, task)
            (outcome.folder / name).write_bytes(bomb)
            assert outcome.damage()
    monkeypatch.setattr(search, "OPENINGS", 1)
    monkeypatch.setattr(search, "PAUSE", 0)
    assert outcome_of(lambda: search._open(f"sqlite:///{folder / 'search.db'}", "sonnets"))


def test_no_cache_of_tokens_is_unpickled(bomb, model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tokenizer = load(model).tokenizer
    call = ("x", ["text"], tokenizer, [1], lambda: [[1, 2], [3]])
    ids, lengths = tokenized(*call)
    (file,) = (tmp_path / "cache").rglob("*.safetensors")
    for spoil in (lambda: file.write_bytes(bomb), lambda: (file.unlink(), os.mkfifo(file))):
        spoil()
        again = tokenized(*call)
        assert again[0].tolist() == ids.tolist() == [1, 2, 3]
        assert again[1] == lengths == [2, 1]


def test_no_code_beside_a_model_is_run(model, adapter, tmp_path, monkeypatch):
    mark = tmp_path / "exploded"
    code = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass Evil: pass\n"
    folder = with_json(model, "config.json", auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"})
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"})
    )
    (folder / "evil.py").write_text(code)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    outcome_of(lambda: load(folder))
    (folder / "megatron.py").write_text(code)
    changes = {"auto_mapping": {"parent_library": "evil", "base_model_class": "Evil"}}
    changes |= {"megatron_config": {"a": 1}, "megatron_core": "megatron"}
    here = shutil.copytree(adapter, tmp_path / "adapter")
    values = json.loads((here / "adapter_config.json").read_text())
    for name in changes:
        (here / "adapter_config.json").write_text(json.dumps(copy.deepcopy(values) | changes | {name: None}))
        outcome_of(lambda: load(here))
    assert not mark.exists()
