"""The embedded model: as small as promised, stock code reads it, and it knows English that it has not seen."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
import transformers
from conftest import ROOT
from safetensors.torch import load_file

from config import GPT2Config
from models.gpt2 import GPT2Model
from models.heads import GPT2LMHeadModel
from models.pretrained import EMBEDDED, WEIGHTS, load_tokenizer
from tasks.sentiment import Sentiment
from training.batching import Pieces
from training.hardware import Precision
from training.objectives import total_loss

TEXT = "The film is far too long, but its last scene made up for all of it."


def test_is_small():
    assert sum(file.stat().st_size for file in EMBEDDED.iterdir()) <= 16_000_000
    assert {tensor.dtype for tensor in load_file(EMBEDDED / WEIGHTS).values()} == {torch.float16}
    assert sum(p.numel() for p in GPT2Model.from_pretrained("mini").parameters()) <= 8_000_000


def test_stock_code_gives_our_logits():
    tokenizer = transformers.AutoTokenizer.from_pretrained(EMBEDDED)
    stock = transformers.AutoModelForCausalLM.from_pretrained(EMBEDDED).eval()
    ours = GPT2Model.from_pretrained("mini").eval()
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[0]) == TEXT
    logits = ours.hidden_state_to_token(ours(ids)["last_hidden_state"])
    torch.testing.assert_close(logits, stock(ids).logits, rtol=1e-4, atol=1e-4)


def test_knows_english_it_has_not_seen():
    config = GPT2Config.from_file(EMBEDDED / "config.json")
    tokenizer = load_tokenizer(EMBEDDED, config)
    texts = Sentiment("cfimdb", ROOT / "data" / "mini").read("train").texts
    ids = tokenizer(texts, verbose=False)["input_ids"]
    size = sum(len(text.encode()) for text in texts)
    pieces = Pieces(ids, tokenizer.eos_token_id, config.n_positions, size)
    model = GPT2LMHeadModel(GPT2Model.from_pretrained("mini"))
    nats = total_loss(model, pieces, Precision("fp32", torch.device("cpu")))
    assert nats / size < 1.35


@pytest.mark.parametrize("script", ["classifier.py", "paraphrase_detection.py", "sonnet_generation.py", "pretrain.py"])
def test_demo_runs_offline_and_says_that_it_is_one(script, tmp_path):
    shorter = ["--tokens", "3000"] if script == "pretrain.py" else ["--epochs", "1"]
    if script == "sonnet_generation.py":
        shorter += ["--max_eval_samples", "1", "--max_new_tokens", "40"]
    ended = subprocess.run(
        [sys.executable, str(ROOT / script), "--demo", *shorter],
        cwd=tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert "These are toy data" in ended.stdout
    assert f"./setup.sh python {script}" in ended.stdout
    assert list((tmp_path / "runs" / "demo").iterdir())
    if script == "classifier.py":
        for dataset in ("sst", "cfimdb"):
            assert re.search(rf"^{dataset} +dev acc +dev F1 +test acc +test F1$", ended.stdout, re.MULTILINE)
        assert ended.stdout.count("full-model, epoch 1 of 1") == 2
