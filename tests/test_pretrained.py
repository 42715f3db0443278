"""Checkpoints in, checkpoints out: against stock `transformers` both ways."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from conftest import scramble, stock_config
from safetensors.torch import load_file, save_file

from config import GPT2Config, InputError
from models.gpt2 import GPT2Model
from models.heads import GPT2ForSequenceClassification
from models.pretrained import load_tokenizer, locate, save_pretrained, save_tokenizer
from modules.ragged import Rows

IDS = torch.tensor([[5, 9, 3, 300], [7, 1, 2, 399]])


def stock_hidden(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return transformers.AutoModel.from_pretrained(folder).eval()(IDS).last_hidden_state


def our_hidden(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return GPT2Model.from_pretrained(folder)(IDS)["last_hidden_state"]


def rewrite(folder: Path, change) -> None:
    """Applies `change` to the checkpoint's dictionary of tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def rewrite_config(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize("architecture", ["GPT2Model", "GPT2LMHeadModel", "GPT2ForSequenceClassification"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_loads_what_stock_saves(tmp_path, architecture, dtype):
    model = scramble(getattr(transformers, architecture)(stock_config(n_layer=3)))
    model.to(dtype).save_pretrained(tmp_path)
    stock = transformers.AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = stock(IDS).last_hidden_state
    torch.testing.assert_close(our_hidden(tmp_path), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_loads_shards(save_stock, tmp_path):
    folder = save_stock()
    transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(
        tmp_path / "shards", max_shard_size="50KB"
    )
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    torch.testing.assert_close(our_hidden(tmp_path / "shards"), our_hidden(folder), rtol=0, atol=0)


def test_loads_the_published_layout(save_stock):
    """The files on the Hub have no prefix and carry causal masks along."""
    folder = save_stock("GPT2Model")
    expected = stock_hidden(folder)

    def as_published(tensors):
        for layer in range(2):
            tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 1024, 1024).tril()
            tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)

    rewrite(folder, as_published)
    torch.testing.assert_close(our_hidden(folder), expected, rtol=0, atol=1e-5)


def test_loads_without_building_a_second_model(save_stock, monkeypatch):
    folder = save_stock()

    def refuse(*args, **kwargs):
        raise AssertionError("a transformers model was built")

    monkeypatch.setattr(transformers.PreTrainedModel, "__init__", refuse)
    our_hidden(folder)


def test_names_every_tensor_that_does_not_fit(save_stock):
    folder = save_stock()

    def spoil(tensors):
        del tensors["transformer.h.1.ln_2.bias"]
        tensors["transformer.h.0.attn.extra"] = torch.zeros(3)
        tensors["transformer.wpe.weight"] = torch.zeros(10, 64)
        tensors["transformer.h.0.mlp.c_fc.weight"] = tensors["transformer.h.0.mlp.c_fc.weight"].t().contiguous()

    rewrite(folder, spoil)
    with pytest.raises(InputError) as error:
        GPT2Model.from_pretrained(folder)
    message = str(error.value)
    assert "missing h.1.ln_2.bias" in message
    assert "unknown h.0.attn.extra" in message
    assert "wpe.weight has shape (10, 64), not (1024, 64)" in message
    assert "h.0.mlp.c_fc.weight has shape (256, 64), not (64, 256)" in message
    assert "\n" not in message


def test_refuses_a_tensor_under_two_names(save_stock):
    folder = save_stock()
    rewrite(folder, lambda t: t.update({"wte.weight": t["transformer.wte.weight"] + 1}))
    with pytest.raises(InputError, match=r"wte\.weight twice"):
        GPT2Model.from_pretrained(folder)


def test_refuses_untied_logits_and_takes_tied_ones(save_stock):
    folder = save_stock()
    expected = our_hidden(folder)
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"].clone()}))
    assert torch.equal(our_hidden(folder), expected)
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"] + 1}))
    with pytest.raises(InputError, match="tied"):
        GPT2Model.from_pretrained(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "bert"}, "not the configuration of a GPT-2"),
        ({"n_head": 5}, "n_embd 64 does not divide into n_head 5"),
        ({"n_layer": 0}, "n_layer must be a whole number above 0"),
        ({"n_embd": "64"}, "n_embd must be a whole number above 0"),
        ({"activation_function": "relu"}, "activation_function = 'relu' is not supported"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True is not supported"),
        ({"attn_pdrop": 1.5}, "attn_pdrop must lie in"),
        ({"attn_pdrop": None}, "attn_pdrop must lie in"),
        ({"layer_norm_epsilon": "x"}, "layer_norm_epsilon must be"),
        ({"id2label": ["a"]}, "id2label"),
    ],
)
def test_refuses_configurations_it_does_not_compute(save_stock, settings, message):
    folder = save_stock()
    rewrite_config(folder, **settings)
    with pytest.raises(InputError, match=message):
        GPT2Model.from_pretrained(folder)


@pytest.mark.parametrize("damage", ["no config", "config is no JSON", "no weights", "torn weights", "empty weights"])
def test_refuses_broken_directories(save_stock, damage):
    folder = save_stock()
    weights = folder / "model.safetensors"
    if damage == "no config":
        (folder / "config.json").unlink()
    elif damage == "config is no JSON":
        (folder / "config.json").write_text("{")
    elif damage == "no weights":
        weights.unlink()
    elif damage == "torn weights":
        weights.write_bytes(weights.read_bytes()[:-1000])
    else:
        weights.write_bytes(b"")
    with pytest.raises(InputError) as error:
        GPT2Model.from_pretrained(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_refuses_an_index_that_leaves_its_folder(save_stock):
    folder = save_stock()
    shutil.move(folder / "model.safetensors", folder.parent / "outside.safetensors")
    index = {"weight_map": {"transformer.wte.weight": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="not the name of a safetensors file beside it"):
        GPT2Model.from_pretrained(folder)


class Bomb:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_pickled_weights_are_not_opened(save_stock, tmp_path):
    folder = save_stock()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(InputError, match="pickled weights only"):
        GPT2Model.from_pretrained(folder)
    assert not (tmp_path / "exploded").exists()


def test_no_such_directory(tmp_path):
    with pytest.raises(InputError, match="no such directory"):
        locate(tmp_path / "nowhere")


def saved_classifier(folder: Path, source: Path, labels: list[str]) -> GPT2ForSequenceClassification:
    """One of ours, of random weights, saved as a run saves it."""
    config = GPT2Config.from_file(source / "config.json")
    tokenizer = load_tokenizer(source, config)
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(1)
    model = GPT2ForSequenceClassification(GPT2Model.from_pretrained(source, config), labels, dropout=0.3).eval()
    torch.nn.init.normal_(model.score.weight)
    save_tokenizer(tokenizer, folder)
    save_pretrained(model, model.config, folder)
    return model


@pytest.mark.parametrize("labels", [["bad", "good"], ["a", "b", "c", "d", "e"]])
def test_stock_classifier_and_pipeline_give_our_logits(save_stock, tmp_path, labels):
    source = save_stock(embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1)
    ours = saved_classifier(tmp_path / "best", source, labels)
    texts = ["the film", "a warm story with its cast and one scene after another", "night", "dull dull town"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "best")
    ids = tokenizer(texts)["input_ids"]
    with torch.no_grad():
        expected = ours(torch.tensor([token for row in ids for token in row]), Rows([len(row) for row in ids]))

        stock, report = transformers.AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "best", output_loading_info=True
        )
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        torch.testing.assert_close(stock.eval()(**batch).logits, expected, rtol=0, atol=1e-4)

    pipeline = transformers.pipeline(
        "text-classification", str(tmp_path / "best"), top_k=None, function_to_apply="none"
    )
    for batch_size in (1, 4):
        for scores, row in zip(pipeline(texts, batch_size=batch_size), expected, strict=True):
            by_label = {score["label"]: score["score"] for score in scores}
            assert sorted(by_label) == sorted(labels)
            assert [by_label[label] for label in labels] == pytest.approx(row.tolist(), abs=1e-4)


def test_our_classifier_and_stocks_load_into_each_other(save_stock, tmp_path):
    ours = saved_classifier(tmp_path / "best", save_stock(), ["x", "y", "z"])
    again = GPT2ForSequenceClassification.from_pretrained(tmp_path / "best")
    assert again.config == ours.config
    for (name, first), second in zip(ours.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(first, second), name

    folder = save_stock("GPT2ForSequenceClassification", num_labels=3, pad_token_id=0)
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        mine = GPT2ForSequenceClassification.from_pretrained(folder)(IDS.flatten(), Rows([4, 4]))
        torch.testing.assert_close(mine, stock(IDS).logits, rtol=0, atol=1e-5)


def test_a_classifier_needs_its_head(save_stock):
    with pytest.raises(InputError, match=r"missing score.weight"):
        GPT2ForSequenceClassification.from_pretrained(save_stock())


def test_a_failed_save_leaves_the_last_one(save_stock, tmp_path, monkeypatch):
    model = saved_classifier(tmp_path / "best", save_stock(), ["x", "y"])
    before = {path.name: path.read_bytes() for path in (tmp_path / "best").iterdir()}

    def fail_half_way(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("models.tensors.save_file", fail_half_way)
    with pytest.raises(OSError, match="disk full"):
        save_pretrained(model, model.config, tmp_path / "best")
    assert {path.name: path.read_bytes() for path in (tmp_path / "best").iterdir()} == before


def test_tokenizer_from_either_form(save_stock, tmp_path):
    folder = save_stock()
    config = GPT2Config.from_file(folder / "config.json")
    whole = load_tokenizer(folder, config)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (tmp_path / "two" / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    shutil.copy(folder / "config.json", tmp_path / "two")
    parts = load_tokenizer(tmp_path / "two", config)
    text = "a warm story, told twice"
    assert parts(text)["input_ids"] == whole(text)["input_ids"]
    assert whole.pad_token_id == parts.pad_token_id == 0
    assert whole.model_max_length == parts.model_max_length == 1024


def test_tokenizer_that_is_missing_or_too_large(save_stock):
    folder = save_stock()
    config = GPT2Config.from_file(folder / "config.json")
    (folder / "config.json").unlink()  # without it the library knows no end-of-text token either
    config.eos_token_id = 50256
    with pytest.raises(InputError, match=r"50256 of config.json is not in the tokenizer"):
        load_tokenizer(folder, config)
    config.vocab_size = 280
    with pytest.raises(InputError, match=r"\d+ tokens in the tokenizer, 280 in the model"):
        load_tokenizer(folder, config)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        load_tokenizer(folder, config)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="has no tokenizer"):
        load_tokenizer(folder, config)
