"""A step: in pieces, with blocks computed anew, out of memory, with numbers that are not finite."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import CPU, assert_same_run, metrics, train

from config import GPT2Config
from models.gpt2 import GPT2Model
from models.heads import GPT2ForSequenceClassification
from modules.ragged import Rows
from optimizer import AdamW
from tasks.classification import score
from training.batching import TokenExamples
from training.hardware import Precision
from training.objectives import Classification, TrainingFailed
from training.update import Update

NO_DROPOUT = {"dropout": 0.0, "hidden_dropout_prob": 0.0}


@pytest.mark.parametrize("mode", ["full-model", "last-linear-layer"])
@pytest.mark.parametrize("size", [1, 3, 8, 50])
def test_micro_batches_and_recomputed_blocks_change_nothing_but_memory(data_dir, save_stock, tmp_path, mode, size):
    model = save_stock()
    whole = train(data_dir, model, tmp_path / "whole", fine_tune_mode=mode, **NO_DROPOUT)
    less = {"micro_batch_size": size, "checkpoint_activations": True}
    parts = train(data_dir, model, tmp_path / "parts", fine_tune_mode=mode, **less, **NO_DROPOUT)
    for one, other in zip(metrics(whole.run), metrics(parts.run), strict=True):
        if mode == "full-model" and size < 8:
            assert other["peak_memory_bytes"] < one["peak_memory_bytes"]
        for key in one.keys() - {"peak_memory_bytes"}:
            assert other[key] == pytest.approx(one[key], rel=1e-4), key


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5), st.booleans(), st.floats(0, 0.5), st.integers(0, 2**32 - 1)
)
def test_blocks_computed_anew_give_the_same_gradients(lengths, only_last, p, seed):
    """To the bit, with dropout."""
    torch.manual_seed(seed)
    network = GPT2Model(GPT2Config(50, 64, 16, 3, 2, embd_pdrop=p, attn_pdrop=p, resid_pdrop=p)).train()
    network.init_weights()
    tokens, rows = torch.randint(50, (sum(lengths),)), Rows(lengths)
    found = []
    for network.checkpoint_activations in (False, True):
        network.zero_grad()
        torch.manual_seed(seed)
        network.encode(tokens, rows, only_last).square().sum().backward()
        found.append([parameter.grad for parameter in network.parameters()])
    assert all(map(torch.equal, *found))


def test_a_step_that_does_not_fit_is_done_in_smaller_pieces(data_dir, save_stock, tmp_path, monkeypatch, capsys):
    """With the same result as if the pieces had been asked for."""
    model, loss = save_stock(), Classification.loss

    def loss_of_few(self, batch):
        result = loss(self, batch)
        if batch.examples > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result

    asked = train(data_dir, model, tmp_path / "asked", micro_batch_size=2)
    capsys.readouterr()
    monkeypatch.setattr(Classification, "loss", loss_of_few)
    halved = train(data_dir, model, tmp_path / "halved")
    assert capsys.readouterr().out.count("out of memory") == 2
    for one, other in zip(metrics(asked.run), metrics(halved.run), strict=True):
        del one["peak_memory_bytes"], other["peak_memory_bytes"]  # the first epoch's widest step was another
        assert one == other
    first, second = (run.run / "best" / "model.safetensors" for run in (asked, halved))
    assert first.read_bytes() == second.read_bytes()


def test_recordings_make_room_before_a_step_is_cut():
    texts = TokenExamples(torch.arange(1, 13), [3, 5, 4], [0, 1, 0])
    model = GPT2ForSequenceClassification(GPT2Model(GPT2Config(50, 64, 16, 1, 2)), ["a", "b"])
    objective = Classification(model, model, score)
    update = Update(model, objective, AdamW(model.parameters()), Precision("fp32", CPU), None, None)
    update.recorder = mock.Mock(side_effect=[torch.OutOfMemoryError, None], recordings={"a shape": "a recording"})
    update(texts, [0, 1, 2])
    update.recorder.forget.assert_called_once_with()
    assert update.micro_batch_size is None


def test_one_text_that_does_not_fit_ends_the_run(data_dir, save_stock, tmp_path, monkeypatch):
    def no_memory(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Classification, "loss", no_memory)
    with pytest.raises(TrainingFailed, match=r"out of memory with one text at once; .*--use_lora"):
        train(data_dir, save_stock(), tmp_path)


class NanBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        return dy * torch.nan


@pytest.mark.parametrize("save_every_steps", [None, 1])
def test_a_gradient_that_is_not_finite_ends_the_run(data_dir, save_stock, tmp_path, monkeypatch, save_every_steps):
    loss, steps = Classification.loss, []

    def loss_with_a_trap(self, batch):
        steps.append(batch)
        total, sums = loss(self, batch)
        return (NanBackward.apply(total) if len(steps) == 11 else total), sums

    monkeypatch.setattr(Classification, "loss", loss_with_a_trap)
    with pytest.raises(TrainingFailed) as failed:
        train(data_dir, save_stock(), tmp_path, save_every_steps=save_every_steps)
    message = str(failed.value)
    assert message.startswith(
        "epoch 2/3, step 3 of 8: the loss or its gradient is not a finite number, with --lr 0.003"
    )
    assert message.count("sst") == steps[10].examples == 8
    steps.clear()
    monkeypatch.setattr(Classification, "loss", loss)
    resumed = train(data_dir, save_stock(), tmp_path, save_every_steps=save_every_steps, resume=True)
    whole = train(data_dir, save_stock(), tmp_path / "whole", save_every_steps=save_every_steps)
    assert_same_run(whole, resumed)


@pytest.mark.parametrize(
    ("batch_size", "message"), [(8, "epoch 1/3, step 2 of 8: .*--lr"), (60, "finite numbers.*--lr")]
)
def test_numbers_that_are_not_finite_end_the_run(data_dir, save_stock, tmp_path, batch_size, message):
    """Seen in the loss; or, after the epoch's only step, in what the model says of dev."""
    with pytest.raises(TrainingFailed, match=message):
        train(data_dir, save_stock(), tmp_path, lr=1e30, batch_size=batch_size)


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-3, 1e3), st.integers(0, 2**32 - 1))
def test_a_cut_gradient_is_torchs(max_norm, seed):
    torch.manual_seed(seed)
    ours, theirs = (GPT2ForSequenceClassification(GPT2Model(GPT2Config(50, 64, 16, 1, 2)), ["a", "b"]) for _ in "12")
    theirs.load_state_dict(ours.state_dict())
    for model in (ours, theirs):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
    norm = Precision("fp32", CPU).step(AdamW(ours.parameters(), lr=0.1), max_norm)
    expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
    AdamW(theirs.parameters(), lr=0.1).step()
    assert norm == pytest.approx(expected.item())
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert one.grad is None
        torch.testing.assert_close(one, other)
