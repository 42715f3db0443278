"""The loop: same bits from the same seed, stored features, going on after an interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import ROOT, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from config import GPT2Config, InputError
from models.gpt2 import GPT2Model
from models.heads import GPT2ForSequenceClassification
from modules.linear import Linear, lay_out
from tasks.sentiment import Sentiment
from training.batching import EVALUATION_TOKENS, TokenExamples, by_length, shuffled
from training.finetune import fine_tune
from training.hardware import PeakMemory, Precision, make_deterministic, pick_device
from training.interrupt import Interrupted, StopRequest
from training.objectives import predict

CPU = torch.device("cpu")
MODES = ["full-model", "last-linear-layer"]


def flags(model: Path, output: Path, **changes) -> dict:
    defaults = dict(
        dataset="sst", fine_tune_mode="full-model", model_size="gpt2", model_path=str(model), hidden_dropout_prob=0.3,
        dropout=0.1, epochs=3, patience=None, batch_size=8, lr=3e-3, weight_decay=0.0, seed=5, save_every_steps=None,
        resume=False, precision="fp32", device="cpu", output_dir=str(output), predictions_dir=str(output),
        use_lora=False, lora_rank=4, lora_alpha=8.0, lora_dropout=0.1, lora_target="attention", lora_variant="lora",
        save_merged=False, micro_batch_size=None, checkpoint_activations=False, max_grad_norm=None, shard=False,
        track=None,
    )  # fmt: skip
    return defaults | changes


def train(data_dir: Path, model: Path, output: Path, store_features: bool = True, stop=None, **changes):
    settings_ = flags(model, output, **changes)
    task = Sentiment(settings_["dataset"], data_dir)
    splits = {name: task.read(name) for name in ("train", "dev", "test")}
    stop = stop or StopRequest()
    return fine_tune(output / "run", task, splits, settings_, stop, store_features=store_features)


def metrics(run: Path) -> list[dict]:
    """All but the seconds."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith("_seconds")} for line in lines]


def assert_same_run(first, second, but: str = "") -> None:
    for one, other in zip(metrics(first.run), metrics(second.run), strict=True):
        assert {**one, but: 0} == {**other, but: 0}
    files = sorted(path.name for path in (first.run / "best").iterdir())
    assert files == sorted(path.name for path in (second.run / "best").iterdir())
    for name in files:
        assert (first.run / "best" / name).read_bytes() == (second.run / "best" / name).read_bytes(), name
    for split in ("dev", "test"):
        assert np.array_equal(first.predict(split), second.predict(split))


@pytest.mark.parametrize(
    ("mode", "weight_decay"), [("full-model", 0), ("full-model", 0.01), ("last-linear-layer", 0.01)]
)
def test_same_seed_same_bytes(data_dir, save_stock, tmp_path, mode, weight_decay):
    model = save_stock()
    runs = [train(data_dir, model, tmp_path / str(i), fine_tune_mode=mode, weight_decay=weight_decay) for i in range(2)]
    assert_same_run(*runs)
    other = train(data_dir, model, tmp_path / "other", fine_tune_mode=mode, seed=6)
    assert metrics(other.run) != metrics(runs[0].run)


def test_metrics_hold_what_reports_read(data_dir, save_stock, tmp_path):
    result = train(data_dir, save_stock(), tmp_path)
    lines = [json.loads(line) for line in (result.run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert list(line) == [
            "epoch", "train_loss", "train_acc", "dev_loss", "dev_acc", "dev_f1", "train_seconds", "eval_seconds",
            "train_examples", "train_tokens", "peak_memory_bytes",
        ]  # fmt: skip
        assert line["train_examples"] == 60
        assert line["train_tokens"] == lines[0]["train_tokens"] > 60 * 4
        assert line["peak_memory_bytes"] > 0
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert result.epoch == max(lines, key=lambda line: line["dev_acc"])["epoch"]
    config = json.loads((result.run / "config.json").read_text())
    assert config["settings"]["lr"] == 3e-3
    assert config["versions"]["torch"] == torch.__version__
    assert len(config["data"]) == 3
    assert config["parameters"]["trained"] == config["parameters"]["total"]


def test_best_is_the_epoch_with_the_best_dev_accuracy(data_dir, save_stock, tmp_path):
    """What lies in best/ scores, in evaluation, just what its epoch's line says."""
    result = train(data_dir, save_stock(), tmp_path, epochs=6, lr=1e-2)
    lines = metrics(result.run)
    task = Sentiment("sst", data_dir)
    dev = task.read("dev")
    accuracy = float(np.mean(result.predict("dev").argmax(axis=1) == np.array(dev.labels)))
    assert accuracy == max(line["dev_acc"] for line in lines) == lines[result.epoch - 1]["dev_acc"]
    assert all(line["dev_acc"] < accuracy for line in lines[: result.epoch - 1])
    again = GPT2ForSequenceClassification.from_pretrained(result.run / "best")
    from transformers import AutoTokenizer

    examples = task.encode(AutoTokenizer.from_pretrained(result.run / "best"), dev)
    logits = predict(again, again, examples, Precision("fp32", CPU), StopRequest(), "dev")
    assert np.array_equal(logits.argmax(axis=1), result.predict("dev").argmax(axis=1))


def test_embeddings_no_text_uses_are_left_alone_and_the_rest_learn_the_same(data_dir, save_stock, tmp_path):
    model = save_stock(vocab_size=450)
    ours = train(data_dir, model, tmp_path / "ours")
    with mock.patch("training.methods.RowsInUse", lambda whole, used: whole):
        whole = train(data_dir, model, tmp_path / "whole")
    for few, all_ in zip(metrics(ours.run), metrics(whole.run), strict=True):
        assert few.pop("peak_memory_bytes") < all_.pop("peak_memory_bytes")
        assert few == pytest.approx(all_, rel=1e-5)
    before = load_file(model / "model.safetensors")["transformer.wte.weight"]
    after, expected = (load_file(run.run / "best" / "model.safetensors") for run in (ours, whole))
    for name, tensor in expected.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-4, atol=1e-5)
    moved = (after["transformer.wte.weight"] != before).any(dim=1)
    assert 10 < moved.sum() < 400
    assert not moved[400:].any()


def test_last_linear_layer_trains_nothing_else(data_dir, save_stock, tmp_path):
    model = save_stock()
    result = train(data_dir, model, tmp_path, fine_tune_mode="last-linear-layer")
    before, after = GPT2Model.from_pretrained(model), GPT2Model.from_pretrained(result.run / "best")
    for (name, first), second in zip(before.named_parameters(), after.parameters(), strict=True):
        assert torch.equal(first, second), name


def test_stored_features_change_nothing(data_dir, save_stock, tmp_path):
    """Against running the frozen network anew every epoch, dropout before the head included."""
    model = save_stock()
    runs = [
        train(data_dir, model, tmp_path / str(store), store, fine_tune_mode="last-linear-layer")
        for store in (True, False)
    ]
    for stored, anew in zip(*(metrics(run.run) for run in runs), strict=True):
        assert stored.keys() == anew.keys()
        for key in stored.keys() - {"peak_memory_bytes"}:
            assert stored[key] == pytest.approx(anew[key], rel=1e-4), key
    for split in ("dev", "test"):
        assert np.array_equal(runs[0].predict(split).argmax(axis=1), runs[1].predict(split).argmax(axis=1))


class StopAfter(StopRequest):
    """Asks for an end after so many questions whether one is wanted."""

    def __init__(self, count: int):
        self.count = count
        self._before = {}

    @property
    def signum(self):
        self.count -= 1
        return signal.SIGTERM if self.count < 0 else None

    @signum.setter
    def signum(self, value):
        pass


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stops", [(0,), (5, 9), (13, 7, 1)])
def test_resumed_equals_never_stopped(data_dir, save_stock, tmp_path, mode, stops):
    model = save_stock()
    whole = train(data_dir, model, tmp_path / "whole", fine_tune_mode=mode)
    for stop in stops:
        with pytest.raises(Interrupted) as interrupt:
            train(data_dir, model, tmp_path / "parts", fine_tune_mode=mode, resume=True, stop=StopAfter(stop))
        assert interrupt.value.exit_code == 143
    parts = train(data_dir, model, tmp_path / "parts", fine_tune_mode=mode, resume=True)
    assert_same_run(whole, parts)
    done = train(data_dir, model, tmp_path / "parts", fine_tune_mode=mode, resume=True)
    assert_same_run(whole, done)


def test_killed_run_resumes(data_dir, save_stock, tmp_path):
    """SIGKILL at chosen files' replacement: mid-epoch, within best/, between it and metrics, and these and last/."""
    model = save_stock()
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "sys.path[:0] = ['tests']\n"
        "import test_training\n"
        "data, model, output = map(Path, sys.argv[1:])\n"
        "test_training.train(data, model, output / 'first')\n"  # imports what the children then have
        "replace = os.replace\n"
        "def replace_or_die(source, path):\n"
        "    global left\n"
        "    left -= path.name.startswith(name)\n"
        "    if not left: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    replace(source, path)\n"
        "os.replace = replace_or_die\n"
        "kills = [(None, 'model', 1), (None, 'metrics', 2), (None, 'state', 2)]\n"
        "kills += [(1, 'state', 5), (1, 'model', 1), (1, 'metrics', 2), (1, 'state', 1)]\n"
        "for every, name, left in kills:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        test_training.train(data, model, output / str(every), resume=True, save_every_steps=every)\n"
        "        os._exit(0)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", program, str(data_dir), str(model), str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": "."}, capture_output=True, text=True)
    assert ended.stderr.split() == [str(-signal.SIGKILL)] * 7, ended.stderr
    for every in (None, 1):
        whole = train(data_dir, model, tmp_path / "whole" / str(every), save_every_steps=every)
        parts = train(data_dir, model, tmp_path / str(every), resume=True, save_every_steps=every)
        assert_same_run(whole, parts)


def test_resume_refuses_other_settings_and_data(data_dir, save_stock, tmp_path):
    model = save_stock()
    train(data_dir, model, tmp_path / "run1")
    with pytest.raises(InputError, match=r"trained with --lr 0.003, not 0.001"):
        train(data_dir, model, tmp_path / "run1", resume=True, lr=1e-3)
    path = data_dir / "ids-sst-dev.csv"
    path.write_text(path.read_text() + "77\tnew\tanother row\t1\n")
    with pytest.raises(InputError, match=r"the data of .* was"):
        train(data_dir, model, tmp_path / "run1", resume=True)


def test_resume_refuses_another_network_at_the_same_path(data_dir, save_stock, tmp_path):
    first, second = save_stock(seed=0), save_stock(seed=1)
    with pytest.raises(Interrupted):
        train(data_dir, first, tmp_path, fine_tune_mode="last-linear-layer", stop=StopAfter(9))
    (first / "model.safetensors").write_bytes((second / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match="the model of"):
        train(data_dir, first, tmp_path, fine_tune_mode="last-linear-layer", resume=True)


def test_a_new_run_replaces_the_old_one(data_dir, save_stock, tmp_path):
    model = save_stock()
    train(data_dir, model, tmp_path, epochs=4)
    result = train(data_dir, model, tmp_path, epochs=1)
    assert len(metrics(result.run)) == 1


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 2**63 - 1), st.integers(0, 20))
def test_an_epoch_sees_every_example_once(count, batch_size, seed, epoch):
    batches = shuffled(count, batch_size, seed, epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(count))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert batches == shuffled(count, batch_size, seed, epoch)
    if count > 20:
        assert batches != shuffled(count, batch_size, seed, epoch + 1)


@given(st.lists(st.integers(1, 1024), max_size=60), st.sampled_from([1, 500, EVALUATION_TOKENS]))
def test_evaluation_sees_every_example_once(lengths, most_tokens):
    batches = list(by_length(lengths, most_tokens))
    assert Counter(index for batch in batches for index in batch) == Counter(range(len(lengths)))
    assert all(len(batch) == 1 or sum(lengths[i] for i in batch) <= most_tokens for batch in batches)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(0, 99))
def test_predictions_come_in_the_order_of_the_examples(lengths, seed):
    torch.manual_seed(seed)
    rows = [torch.randint(50, (length,)).tolist() for length in lengths]
    model = GPT2ForSequenceClassification(GPT2Model(GPT2Config(50, 64, 16, 1, 2)), ["a", "b"])
    model.transformer.init_weights()
    torch.nn.init.normal_(model.score.weight)

    def logits_of(*rows):
        examples = TokenExamples(torch.cat([torch.tensor(ids) for ids in rows]), [len(ids) for ids in rows])
        return predict(model, model, examples, Precision("fp32", CPU), StopRequest(), "rows")

    for row, ids in zip(logits_of(*rows), rows, strict=True):
        alone = logits_of(ids)
        np.testing.assert_allclose(row, alone[0], atol=1e-5)


def test_texts_longer_than_the_context_are_cut_and_empty_ones_are_not_empty(save_stock, tmp_path, capsys):
    from models.pretrained import load_tokenizer

    folder = save_stock(n_positions=16)
    tokenizer = load_tokenizer(folder, GPT2Config.from_file(folder / "config.json"))

    path = tmp_path / "ids-sst-test-student.csv"
    write_rows(path, ["id", "sentence"], [["a", "dull " * 40], ["b", ""], ["c", "warm"]])
    task = Sentiment("sst", tmp_path)
    examples = task.encode(tokenizer, task.read("test"))
    assert examples.lengths[:2] == [16, 1]
    tokens = examples.batch([0], CPU).inputs[0].tolist()
    assert tokens == tokenizer("dull " * 40)["input_ids"][:16]
    assert examples.batch([1], CPU).inputs[0].tolist() == [tokenizer.eos_token_id or 0]
    assert "1 of 3 texts are longer than 16 tokens" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_learns_in_every_precision(data_dir, save_stock, tmp_path, precision):
    result = train(data_dir, save_stock(), tmp_path, dataset="cfimdb", epochs=12, precision=precision)
    assert metrics(result.run)[result.epoch - 1]["dev_acc"] >= 0.8


def test_devices_and_precisions_that_are_not_there():
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="--device cuda"):
            pick_device("cuda")
    assert pick_device("cpu") == CPU
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        Precision("fp16", CPU)
    assert Precision("auto", CPU).name in ("fp32", "bf16")


def test_peak_memory_counts_weights_gradients_moments_and_what_backward_needs():
    from optimizer import AdamW

    linear = torch.nn.Linear(100, 50, bias=False)
    frozen = torch.nn.Linear(50, 10, bias=False).requires_grad_(False)
    model = torch.nn.Sequential(linear, torch.nn.GELU(), frozen)
    adamw = AdamW(linear.parameters())
    memory = PeakMemory(model, adamw, CPU)
    x = torch.randn(7, 100)
    with memory.watch():
        loss = model(x).sum()
    loss.backward()
    adamw.step()
    weights, rest = 100 * 50 * 4, 50 * 10 * 4
    activations = x.nbytes + 7 * 50 * 4  # the inputs of the first layer and of GELU
    assert memory.bytes() == 4 * weights + rest + activations + 4  # and the step's counter


@pytest.mark.parametrize("bf16", [False, True])
def test_peak_memory_counts_copies_of_frozen_weights(bf16):
    """A frozen layer between two that are trained, whose copies are for the way back, too."""
    layers = [Linear(128, 128, bias=False) for _ in range(3)]
    layers[1].requires_grad_(False)
    model = torch.nn.Sequential(*layers)
    x, peaks = torch.randn(7, 128), []
    for most in (0, 1 << 20):
        lay_out(model, most)
        memory = PeakMemory(model, torch.optim.SGD(layers[0].parameters()), CPU)
        with memory.watch(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            model(x)
        peaks.append(memory.bytes())
    copies = layers[1].laid_out_bytes()
    in_16_bits = 2 * 128 * 128 if bf16 else 0  # what is kept without them, once for both ways
    assert copies in (0, 4 * 128 * 128)
    assert peaks[1] - peaks[0] == (copies - in_16_bits if copies else 0)


def test_first_signal_is_noted_and_second_ends():
    program = (
        "import os, signal\n"
        "from training.interrupt import StopRequest\n"
        "with StopRequest() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    assert stop.signum == signal.SIGINT\n"
        "    print('noted', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here', flush=True)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGINT
    assert ended.stdout == "noted\n"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_learns_the_same_thing_twice(data_dir, save_stock, tmp_path, precision):
    model = save_stock()
    runs = [
        train(data_dir, model, tmp_path / str(i), dataset="cfimdb", epochs=12, device="cuda", precision=precision)
        for i in range(2)
    ]
    assert_same_run(*runs, but="peak_memory_bytes")  # while the second trains, the first's model is still there
    assert metrics(runs[0].run)[runs[0].epoch - 1]["dev_acc"] >= 0.8


def test_seed_decides_the_fresh_head():
    heads = []
    for seed in (3, 3, 4):
        make_deterministic(seed, CPU)
        heads.append(GPT2ForSequenceClassification(GPT2Model(GPT2Config(50, 64, 16, 1, 2)), ["a", "b"]).score.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
