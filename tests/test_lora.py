"""LoRA: adapters that stock PEFT loads and that load from stock PEFT, several over one network, and the flags."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from unittest import mock

import peft
import pytest
import torch
import transformers
from conftest import scramble, stock_config, write_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft.tuners.lora import Linear as PeftLinear

import classifier
from config import InputError
from models.gpt2 import GPT2Model
from models.heads import GPT2ForSequenceClassification
from models.lora import TARGETS, VARIANTS, Adapters, Lora, read_adapter
from models.lora_linear import LoraLinear
from models.pretrained import EMBEDDED, save_pretrained
from modules.attention import attend, attend_with_last
from modules.dropout import Dropout
from modules.linear import Linear
from modules.ragged import Rows, pack
from training.hardware import Precision
from training.interrupt import Interrupted
from training.methods import LowRank
from training.network import load_network


def save_base(folder: Path, seed: int = 0, **shape) -> Path:
    torch.manual_seed(seed)
    scramble(transformers.GPT2LMHeadModel(stock_config(**shape)), seed).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def some_texts(lengths: list[int], seed: int = 0) -> list[torch.Tensor]:
    """None of them with the padding's id 0, after which stock classifiers do not look."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 400, (1, length), generator=generator) for length in lengths]


def flat(texts: list[torch.Tensor]) -> tuple[torch.Tensor, Rows]:
    return torch.cat([ids[0] for ids in texts]), Rows([ids.size(1) for ids in texts])


def stock_logits(base: Path, adapter: Path, texts: list[torch.Tensor], classes: int) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=classes)
        model.config.pad_token_id = 0
        model = peft.PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        return torch.cat([model(ids).logits for ids in texts])


def our_logits(base: Path, adapter: Path, texts: list[torch.Tensor]) -> torch.Tensor:
    adapters = Adapters(GPT2Model.from_pretrained(base))
    adapters.load("it", adapter)
    return adapters.logits(*flat(texts))


def trained(base: Path, adapter: Path, classes: int = 2, seed: int = 0, **settings) -> torch.nn.Module:
    """A classifier whose adapter and head hold anything but what they started with, saved to `adapter`."""
    torch.manual_seed(seed)
    model = GPT2ForSequenceClassification(GPT2Model.from_pretrained(base), [str(i) for i in range(classes)])
    lora = Lora(model, str(base), **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    lora.save(adapter)
    return model.eval()


shapes = st.fixed_dictionaries(
    {"n_layer": st.integers(1, 3), "n_head": st.sampled_from([1, 2, 4]), "n_embd": st.sampled_from([16, 48])}
)
lengths = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    shape=shapes, lengths=lengths, rank=st.integers(1, 16), alpha=st.floats(0.5, 40), classes=st.integers(2, 5),
    target=st.sampled_from(sorted(TARGETS)), variant=st.sampled_from(sorted(VARIANTS)), seed=st.integers(0, 99),
)  # fmt: skip
def test_stock_peft_loads_ours(tmp_path_factory, shape, lengths, rank, alpha, classes, target, variant, seed):
    folder = tmp_path_factory.mktemp("lora")
    base, adapter = save_base(folder / "base", seed, **shape), folder / "adapter"
    model = trained(base, adapter, classes, seed, rank=rank, alpha=alpha, target=target, variant=variant)
    texts = some_texts(lengths, seed)
    expected = stock_logits(base, adapter, texts, classes)
    scale = expected.abs().max().item()
    torch.testing.assert_close(model(*flat(texts)), expected, rtol=0, atol=1e-4 * scale)
    torch.testing.assert_close(our_logits(base, adapter, texts), expected, rtol=0, atol=1e-4 * scale)
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert config["task_type"] == "SEQ_CLS"


@pytest.mark.parametrize("variant", sorted(set(VARIANTS) - {"pissa"}))  # which is saved as another sum
def test_an_adapter_that_was_saved_gives_the_bits_it_gave_in_training(tmp_path, variant):
    """So that the best epoch, read again, scores what it scored."""
    base = save_base(tmp_path / "base")
    model = trained(base, tmp_path / "adapter", variant=variant)
    texts = some_texts([3, 40, 11])
    for precision in ("fp32", "bf16"):
        with torch.no_grad(), Precision(precision, torch.device("cpu")).autocast():
            assert torch.equal(our_logits(base, tmp_path / "adapter", texts), model(*flat(texts)))


def test_stock_peft_loads_ours_over_a_base_in_half_precision(tmp_path):
    """And computes in float32, as we do."""
    base = tmp_path / "base"
    network = GPT2Model.from_pretrained("mini")
    save_pretrained(network, network.config, base, torch.float16)
    texts = some_texts([3, 40, 11])
    for folder in (base, EMBEDDED):
        model = trained(folder, tmp_path / "adapter", rank=16)
        expected = stock_logits(folder, tmp_path / "adapter", texts, 2)
        torch.testing.assert_close(model(*flat(texts)), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@settings(max_examples=16, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    shape=shapes, lengths=lengths, rank=st.integers(1, 16), seed=st.integers(0, 99),
    target=st.sampled_from([["c_attn"], ["c_attn", "c_proj", "c_fc"], "all-linear", r".*mlp\.c_.*"]),
    extra=st.sampled_from(
        [
            {}, {"use_dora": True}, {"use_rslora": True}, {"lora_bias": True}, {"rank_pattern": {"c_attn": 3}},
            {"init_lora_weights": "pissa"},
            {"init_lora_weights": "pissa", "use_rslora": True, "alpha_pattern": {"c_attn": 5}},
            {"init_lora_weights": "pissa", "rank_pattern": {"c_attn": 3}}, {"init_lora_weights": "gaussian"},
        ]
    ),
)  # fmt: skip
def test_ours_loads_stock_pefts(tmp_path_factory, shape, lengths, rank, seed, target, extra):
    folder = tmp_path_factory.mktemp("lora")
    base, adapter = save_base(folder / "base", seed, **shape), folder / "adapter"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
        config = peft.LoraConfig(task_type="SEQ_CLS", r=rank, target_modules=target, fan_in_fan_out=True, **extra)
        model = peft.get_peft_model(model, config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(adapter)
    texts = some_texts(lengths, seed)
    expected = stock_logits(base, adapter, texts, 3)
    atol = 1e-4 * expected.abs().max().item()
    torch.testing.assert_close(our_logits(base, adapter, texts), expected, rtol=0, atol=atol)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=8), heads=st.sampled_from([1, 3]))
def test_last_tokens_attend_as_among_all(lengths, heads):
    rows = Rows(lengths)
    qkv = torch.randn(sum(lengths), 36, dtype=torch.float64, requires_grad=True)
    whole, last = attend(qkv, rows, heads)[rows.last], attend_with_last(qkv, rows, heads)
    torch.testing.assert_close(last, whole)
    weights = torch.randn_like(last)
    gradients = [torch.autograd.grad((y * weights).sum(), qkv)[0] for y in (last, whole)]
    torch.testing.assert_close(*gradients)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 70), shape=st.sampled_from([(6, 18), (16, 5)]), rank=st.integers(1, 4), p=st.sampled_from([0, 0.3])
)
def test_a_layer_in_training_computes_what_pefts_does(n, shape, rank, p):
    """Its two ways to compute, and their gradients, where dropout keeps the same."""
    config = peft.LoraConfig(r=rank, lora_alpha=3, lora_dropout=p)
    theirs = PeftLinear(torch.nn.Linear(*shape), "default", config, r=rank, lora_alpha=3, lora_dropout=p).double()
    torch.nn.init.normal_(theirs.lora_B["default"].weight)
    ours = LoraLinear(Linear(*shape), "default", config, r=rank, lora_alpha=3, lora_dropout=p).double()
    ours.load_state_dict(theirs.state_dict())
    for layer in (theirs, ours):
        layer.get_base_layer().requires_grad_(False)
        layer.lora_dropout["default"] = Dropout(p)
    x, dy = torch.randn(n, shape[0]).double().requires_grad_(), torch.randn(n, shape[1]).double()

    def outcome(layer, call):
        torch.manual_seed(0)
        y = call(x)
        return y, *torch.autograd.grad(y, [x, layer.lora_A["default"].weight, layer.lora_B["default"].weight], dy)

    def widened_sum(x):
        x, weights, bias = ours.widened(x)
        return torch.nn.functional.linear(x, torch.cat(weights, dim=1), bias)

    expected = outcome(theirs, theirs)
    for call in (ours, widened_sum):
        torch.testing.assert_close(outcome(ours, call), expected)
    torch.manual_seed(0)
    first = ours(x.detach())  # as in the first block, whose input needs no gradient
    torch.testing.assert_close(torch.autograd.grad(first, ours.lora_A["default"].weight, dy)[0], expected[2])

    for change in (lambda layer: layer.enable_adapters(False), lambda layer: layer.merge(), lambda layer: layer.eval()):
        for layer in (theirs, ours):
            change(layer)
        for y in (ours(x), widened_sum(x)):
            torch.testing.assert_close(y, theirs(x))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 70), rank=st.integers(1, 4), p=st.sampled_from([0, 0.3]), learning=st.booleans())
def test_a_layer_in_bf16_computes_what_pefts_does_under_autocast(n, rank, p, learning):
    config = peft.LoraConfig(r=rank, lora_alpha=3, lora_dropout=p)
    layers = [kind(Linear(16, 18), "default", config, r=rank, lora_alpha=3) for kind in (PeftLinear, LoraLinear)]
    torch.nn.init.normal_(layers[0].lora_B["default"].weight)
    layers[1].load_state_dict(layers[0].state_dict())
    x, dy = torch.randn(n, 16, requires_grad=True), torch.randn(n, 18).bfloat16()
    outcomes = []
    for layer in layers:
        layer.get_base_layer().requires_grad_(False)
        layer.lora_dropout["default"] = Dropout(p)
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(learning):
            y = layer.train(learning)(x)
        inputs = [x, layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        outcomes.append([y, *(torch.autograd.grad(y, inputs, dy) if learning else ())])
    for theirs, ours in zip(*outcomes, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-2 * theirs.abs().max().item())


CHANGES = {
    "in place": lambda layer: layer.get_base_layer().weight.mul_(2),
    "loaded": lambda layer: layer.load_state_dict({name: 2 * t for name, t in layer.state_dict().items()}),
    "merged": lambda layer: layer.merge(),
    "unmerged": lambda layer: layer.unmerge() if layer.merged else None,
    "moved": lambda layer: layer.double().float(),
    "fp16": lambda layer: layer.half().float(),
    "trained": lambda layer: layer.get_base_layer().weight.requires_grad_(True),
    "frozen": lambda layer: layer.get_base_layer().weight.requires_grad_(False),
    "nothing": lambda layer: None,
}


@settings(max_examples=40, deadline=None)
@given(
    changes=st.lists(st.sampled_from(sorted(CHANGES)), min_size=1, max_size=6),
    n=st.integers(1, 40),
    reads=st.booleans(),
)
def test_a_frozen_layer_in_bf16_computes_with_its_weight_of_now(changes, n, reads):
    """Its copy in 16 bits is made once, and anew after any change; and learns, if one was made to read only."""
    config = peft.LoraConfig(r=2, lora_alpha=3)
    layer = LoraLinear(Linear(6, 18), "default", config, r=2, lora_alpha=3)
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    base = layer.get_base_layer().requires_grad_(False)
    for change in changes:
        with torch.no_grad():
            CHANGES[change](layer)
        x, dy = torch.randn(n, 6).requires_grad_(), torch.randn(n, 18).bfloat16()
        if reads:
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
                layer(x)
        inputs = [x, base.weight] if base.weight.requires_grad else [x]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected = torch.nn.functional.linear(x, base.weight, base.bias)
            y = base(x)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(*(torch.autograd.grad(out, inputs, dy) for out in (y, expected)))


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_training_starts_from_the_published_network_and_touches_nothing_else(tmp_path, variant):
    base = save_base(tmp_path / "base")
    model = GPT2ForSequenceClassification(GPT2Model.from_pretrained(base), ["a", "b"])
    texts = some_texts([3, 9])
    before = model(*flat(texts)).detach()
    frozen = {name: p.clone() for name, p in model.transformer.named_parameters() if "ln_" in name or "wte" in name}
    Lora(model, str(base), rank=4, dropout=0.0, variant=variant)
    torch.testing.assert_close(model(*flat(texts)), before, rtol=1e-4, atol=1e-5)
    model(*flat(texts)).square().sum().backward()
    for name, parameter in model.named_parameters():
        is_new = "lora_" in name or name == "score.weight"
        assert parameter.requires_grad == is_new == (parameter.grad is not None), name
    assert all(torch.equal(dict(model.transformer.named_parameters())[name], p) for name, p in frozen.items())


def test_several_adapters_over_one_network(tmp_path):
    base = save_base(tmp_path / "base")
    stars = trained(base, tmp_path / "stars", classes=5, seed=1, rank=4)
    same = trained(base, tmp_path / "same", classes=2, seed=2, rank=7, target="all-linear", variant="dora")
    network = GPT2Model.from_pretrained(base)
    untouched = {name: p.clone() for name, p in network.named_parameters()}
    adapters = Adapters(network)
    adapters.load("stars", tmp_path / "stars")
    adapters.load("same", tmp_path / "same")
    batch = flat(some_texts([5, 1, 30]))
    without = GPT2Model.from_pretrained(base).encode(*batch)
    for _ in range(2):
        for name, model in (("stars", stars), ("same", same)):
            adapters.use(name)
            torch.testing.assert_close(adapters.logits(*batch), model(*batch), rtol=0, atol=1e-6)
            assert not torch.equal(network.encode(*batch), without)
            adapters.use(None)
            assert torch.equal(network.encode(*batch), without)
    after = dict(adapters.unload().named_parameters())
    assert after.keys() == untouched.keys()
    assert all(torch.equal(after[name], p) for name, p in untouched.items())


def test_names_of_adapters_are_free_and_unloading_restores_what_learns(tmp_path):
    base = save_base(tmp_path / "base")
    trained(base, tmp_path / "adapter", rank=2)
    network = GPT2Model.from_pretrained(base)
    network.wpe.requires_grad_(False)
    learns = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    adapters = Adapters(network)
    for name in ("quora-2", "quora", "x", "c", "v1.0"):
        adapters.load(name, tmp_path / "adapter")
    with pytest.raises(InputError, match="of the name quora already"):
        adapters.load("quora", tmp_path / "adapter")
    assert {name: parameter.requires_grad for name, parameter in adapters.unload().named_parameters()} == learns


@pytest.mark.parametrize("loaded", [[], ["good"], ["good", "better"]])
@pytest.mark.parametrize("change", [{"r": 8}, {"lora_dropout": 2}, {"target_modules": ["attn.c_attn"]}])
def test_an_adapter_that_cannot_be_loaded_leaves_the_others_as_they_were(tmp_path, loaded, change):
    base = save_base(tmp_path / "base")
    for seed, name in enumerate(["good", "better", "bad"]):
        trained(base, tmp_path / name, rank=4, seed=seed)
    adapters, batch = Adapters(GPT2Model.from_pretrained(base)), flat(some_texts([4, 7]))
    for name in loaded:
        adapters.load(name, tmp_path / name)
    before = {name: (adapters.use(name), adapters.logits(*batch))[1] for name in loaded}
    file = tmp_path / "bad" / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | change))
    with pytest.raises(InputError):
        adapters.load("bad", tmp_path / "bad")
    assert adapters.name == (loaded[-1] if loaded else None)
    file.write_text(json.dumps(config))
    adapters.load("bad", tmp_path / "bad")
    torch.testing.assert_close(adapters.logits(*batch), our_logits(base, tmp_path / "bad", some_texts([4, 7])))
    for name in loaded:
        adapters.use(name)
        assert torch.equal(adapters.logits(*batch), before[name])


def test_an_adapter_of_a_network_without_a_head(tmp_path):
    base, texts = save_base(tmp_path / "base"), some_texts([6])
    stock = transformers.GPT2Model.from_pretrained(base)
    config = peft.LoraConfig(task_type="FEATURE_EXTRACTION", target_modules=["c_attn"], fan_in_fan_out=True)
    stock = scramble(peft.get_peft_model(stock, config)).eval()
    stock.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = peft.PeftModel.from_pretrained(transformers.GPT2Model.from_pretrained(base), tmp_path / "adapter")(
            texts[0]
        ).last_hidden_state[0]
    adapters = Adapters(GPT2Model.from_pretrained(base))
    adapters.load("it", tmp_path / "adapter")
    torch.testing.assert_close(adapters.holder.transformer.encode(*flat(texts)), expected, rtol=1e-4, atol=1e-4)


def test_adapters_that_do_not_fit_are_refused(tmp_path):
    base = save_base(tmp_path / "base")
    adapter = tmp_path / "adapter"
    trained(base, adapter, rank=4)
    for shape in ({"n_embd": 32}, {"n_layer": 1}):
        other = GPT2Model.from_pretrained(save_base(tmp_path / str(shape), **shape))
        with pytest.raises(InputError, match=r"another base model|has no layer"):
            Adapters(other).load("it", adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    for change, message in (
        ({"peft_type": "IA3"}, "not the configuration of a LoRA"),
        ({"target_modules": ["attn.c_attn"]}, "do not fit its configuration"),
        ({"target_modules": ["attn.c_attn", "attn.c_proj", "mlp.c_fc"]}, "do not fit its configuration"),
        ({"r": 8}, "not an adapter for this network"),
        ({"r": 0}, "r=0"),
        ({"r": "4"}, "r='4'"),
        ({"lora_alpha": 0}, "lora_alpha=0"),
        ({"lora_alpha": None}, "lora_alpha=None"),
        ({"lora_dropout": 2}, "not an adapter for this network"),
        ({"target_modules": None}, "not an adapter for this network"),
        ({"target_modules": "(("}, "not an adapter for this network"),
        ({"target_modules": ["attn.c_attn"], "layers_to_transform": [7]}, "not an adapter for this network"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4'"),
        ({"target_parameters": ["attn.c_proj.weight"]}, "target_parameters"),
        ({"bias": "all"}, "bias='all'"),
    ):
        (adapter / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError, match=message):
            Adapters(GPT2Model.from_pretrained(base)).load("it", adapter)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"adapter_model\.bin is a pickle"):
        read_adapter(pickled)
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match="not a whole PEFT adapter"):
        read_adapter(adapter)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(InputError, match="not a whole PEFT adapter"):
        read_adapter(adapter)


def call(*arguments: object) -> int:
    return classifier.main([str(argument) for argument in arguments])


def metrics(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith("_seconds")} for line in lines]


@pytest.mark.parametrize("variant", ["lora", "pissa"])
def test_classifier_trains_one_resumes_and_merges(data_dir, save_stock, tmp_path, monkeypatch, capsys, variant):
    monkeypatch.chdir(tmp_path)
    model = save_stock()
    common = [
        "--use_lora",
        "--lora_rank",
        4,
        "--lora_variant",
        variant,
        "--lr",
        "1e-2",
        "--epochs",
        3,
        "--dropout",
        0.1,
    ]
    common += [
        "--dataset",
        "sst",
        "--model_path",
        model,
        "--data_dir",
        data_dir,
        "--save_merged",
        "--precision",
        "fp32",
    ]
    assert call(*common, "--output_dir", "whole") == 0
    output = capsys.readouterr().out
    name = f"sst-{model.name}-lora-4" + ("" if variant == "lora" else f"-{variant}")
    run = tmp_path / "whole" / name
    lines = metrics(run)
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    facts = json.loads((run / "config.json").read_text())
    assert facts["parameters"]["trained"] < 0.2 * facts["parameters"]["total"]
    assert facts["memory_bytes"]["gradients"] == 4 * facts["parameters"]["trained"]
    assert f"trains {facts['parameters']['trained']:,} of" in output

    texts = [row.split("\t")[2].strip() for row in (data_dir / "ids-sst-dev.csv").read_text().splitlines()[1:]]
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "best")
    ids = [tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]
    expected = stock_logits(model, run / "best", ids, 5)
    written = (tmp_path / "predictions" / f"{name.removeprefix(f'sst-{model.name}-')}-sst-dev-out.csv").read_text()
    assert [int(line.split(",")[1]) for line in written.splitlines()[1:]] == expected.argmax(dim=1).tolist()
    merged = transformers.AutoModelForSequenceClassification.from_pretrained(run / "merged")
    with torch.no_grad():
        logits = torch.cat([merged(one).logits for one in ids])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * expected.abs().max().item())

    steps = iter(range(13))

    def check(request):
        if next(steps, None) is None:
            raise Interrupted(15)

    with mock.patch("training.interrupt.StopRequest.check", check):
        assert call(*common, "--output_dir", "parts", "--save_every_steps", 1) == 143
    assert call(*common, "--output_dir", "parts", "--resume") == 0
    assert metrics(tmp_path / "parts" / name) == lines
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "parts" / name / "best" / file).read_bytes() == (run / "best" / file).read_bytes()

    common[common.index("--model_path") + 1] = run / "best"
    full = [c for c in common if c not in ("--use_lora", "--save_merged")]
    assert call(*full, "--fine_tune_mode", "full-model", "--output_dir", "further", "--epochs", 1, "--lr", "1e-3") == 0
    (further,) = (tmp_path / "further").iterdir()
    assert metrics(further)[0]["train_loss"] < lines[0]["train_loss"]
    counts = json.loads((further / "config.json").read_text())["parameters"]
    assert counts["total"] - 64 * 400 < counts["trained"]  # all but rows of the embedding that no text uses


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora_rank", "0"], "0 is not at least 1"),
        (["--lora_rank", "65"], "--lora_rank 65: a rank lies between 1 and the network's width, 64"),
        (["--lora_alpha", "0"], "0 is not a number above 0"),
        (["--lora_target", "mlp"], "invalid choice"),
        (["--fine-tune-mode", "last-linear-layer"], "--use_lora goes with --fine_tune_mode full-model"),
        (["--model_path", "ADAPTER"], "is an adapter already"),
    ],
)
def test_wrong_flags_get_one_line_and_2(data_dir, save_stock, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    model = save_stock()
    trained(model, tmp_path / "adapter", rank=2)
    flags = [str(tmp_path / "adapter") if flag == "ADAPTER" else flag for flag in flags]
    try:
        code = call("--use_lora", "--dataset", "sst", "--model_path", model, "--data_dir", data_dir, *flags)
    except SystemExit as ended:
        code = ended.code
    error = capsys.readouterr().err
    assert code == 2, error
    assert error.count("\n") == 1, error
    assert message in error


def test_an_adapter_of_another_base_gets_one_line_and_2(data_dir, tmp_path, capsys):
    base, other = save_base(tmp_path / "base"), save_base(tmp_path / "other", n_embd=32)
    adapter = tmp_path / "adapter"
    trained(base, adapter, rank=2)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(other)}))
    where = ["--output_dir", tmp_path / "runs", "--predictions_dir", tmp_path / "predictions"]
    assert call("--dataset", "sst", "--model_path", adapter, "--data_dir", data_dir, *where) == 2
    assert "fits another base model" in capsys.readouterr().err


def test_padded_batches_give_the_same(tmp_path):
    base = save_base(tmp_path / "base")
    model = trained(base, tmp_path / "adapter", rank=4, target="all-linear")
    ids = torch.randint(400, (3, 12))
    mask = torch.tensor([[1] * 12, [0] * 5 + [1] * 7, [1] * 3 + [0] * 9])
    alone = torch.cat([model(*pack(row[None, keep.bool()])) for row, keep in zip(ids, mask, strict=True)])
    torch.testing.assert_close(model(*pack(ids, mask)), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shard", [False, True])
def test_frozen_weights_are_laid_out_unless_the_network_is_sharded(shard):
    """Whose copies would be of whole weights, in every process."""
    settings = classifier.parse_flags(["--use_lora", "--model_size", "mini"]) | {"shard": shard}
    loaded = load_network(settings)
    model = GPT2ForSequenceClassification(loaded.network, ["no", "yes"])
    LowRank(model, settings, loaded).start({}, None)
    layers = [module for module in model.modules() if isinstance(module, Linear) and not module.weight.requires_grad]
    assert layers
    assert all(layer.lays_out != shard for layer in layers)
