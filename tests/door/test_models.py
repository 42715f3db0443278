"""Whatever a model's directory or an adapter holds: it is read, or refused in one line."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from unittest import mock

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from outcomes import HUGE, TINY, anywhere, fresh, json_values, load, outcome_of, with_bytes, with_json, with_tensors

import classifier
from config import InputError
from models.gpt2 import GPT2Model
from models.pretrained import load_weights, save_pretrained
from training.finetune import fine_tune
from training.interrupt import StopRequest


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "adapter_config.json"])
@pytest.mark.parametrize(
    "data", [b"", b"[" * 100_000, HUGE, b"[]", b"null", b'{"a": "\xe9"}', b"\xef\xbb\xbf{}", b"\0"]
)
def test_json_that_is_none_is_refused(model, adapter, name, data):
    folder = with_bytes(adapter if name.startswith("adapter") else model, name, data)
    if "index" in name:
        (folder / "model.safetensors").unlink()
    assert name in outcome_of(lambda: load(folder))


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


@pytest.mark.parametrize("value", [3e38, -1e30, 1e7])
def test_weights_that_lead_to_infinity_are_refused(model, adapter, value):
    name = "transformer.ln_f.weight"
    folder = with_tensors(model, "model.safetensors", lambda tensors: tensors[name].fill_(value))
    assert f"ln_f.weight holds numbers as large as {abs(value):.3g}" in outcome_of(lambda: load(folder))


def test_an_adapter_that_leads_to_infinity_is_refused(adapter):
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"
    folder = with_tensors(adapter, "adapter_model.safetensors", lambda tensors: tensors[name].fill_(1.0))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 1e38}))
    assert "h.0.attn.c_attn.weight, with the adapter folded in, holds" in outcome_of(lambda: load(folder))


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_model.safetensors"])
def test_a_file_larger_than_any_that_fits_is_not_read(model, adapter, name):
    """It has no contents, takes no room on a disk, and claims a checksum, which takes reading all of it."""
    folder = fresh(model if name == "model.safetensors" else adapter)
    size = 200 << 30
    tensors = {"wte.weight": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    start = header(tensors | {"__metadata__": {"sha256": "0" * 64}})
    (folder / name).write_bytes(start)
    os.truncate(folder / name, len(start) + size)
    assert "bytes" in outcome_of(lambda: load(folder))


@pytest.mark.parametrize("name", ["initializer_range", "layer_norm_epsilon"])
def test_a_config_that_leads_to_infinity_is_refused(model, name):
    assert "at most 1" in outcome_of(lambda: load(with_json(model, "config.json", **{name: 1e38})))
