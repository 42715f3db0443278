"""Question pairs: one prompt, shortened question by question, tokenized once, and the script around it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import transformers
from conftest import BAD, FILLER, GOOD, ROOT, SHARED, needs_shared_data, write_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import paraphrase_detection
from config import GPT2Config, InputError
from models.pretrained import load_tokenizer
from tasks.baselines import PairFeatures, fit_pair_baselines
from tasks.paraphrase import PROMPT, Paraphrase
from tasks.tokens import shortened

START, MIDDLE, END = PROMPT.split("{}")
HEADER = ["", "id", "sentence1", "sentence2", "is_duplicate"]


def question(seed: int) -> str:
    words = GOOD + BAD + FILLER
    return " ".join(words[(seed * i) % len(words)] for i in range(1, 4 + seed % 5)) + "?"


@pytest.fixture
def quora(tmp_path: Path) -> Path:
    """Pairs that mean the same where they are the same: 60 to train on, 20 of dev, 15 of test."""
    folder = tmp_path / "pairs"
    for split, count, first in (("train", 60, 0), ("dev", 20, 100), ("test-student", 15, 200)):
        rows = [
            [i, f"q{i}", question(i), question(i if i % 2 else i + 7), float(i % 2)]
            for i in range(first, first + count)
        ]
        width = 4 if split == "test-student" else 5
        write_rows(folder / f"quora-{split}.csv", HEADER[:width], [row[:width] for row in rows])
    return folder


@pytest.fixture
def tokenizer(save_stock):
    folder = save_stock(n_positions=1024)
    return load_tokenizer(folder, GPT2Config.from_file(folder / "config.json"))


def tokens_of(examples, row: int) -> list[int]:
    return examples.ids[examples.starts[row] : examples.starts[row] + examples.lengths[row]].tolist()


def test_prompts_are_tokenized_as_stock_code_would(quora, tokenizer):
    task = Paraphrase(quora)
    split = task.read("dev")
    examples = task.encode(tokenizer, split)
    for row, pair in enumerate(split.texts):
        assert tokens_of(examples, row) == tokenizer(PROMPT.format(*pair))["input_ids"]
    assert examples.labels.tolist() == split.labels


anything = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=80)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(first=anything, second=anything, room=st.integers(0, 120))
def test_long_pairs_lose_the_ends_of_their_questions_only(tokenizer, first, second, room):
    least = len(tokenizer(PROMPT.format("", ""))["input_ids"])
    ids = shortened(tokenizer, PROMPT, (first, second), least + room)
    assert len(ids) <= least + room
    text = tokenizer.decode(ids)
    assert text.startswith(START)
    assert text.endswith(END)
    whole = tokenizer(PROMPT.format(first, second))["input_ids"]
    if len(whole) <= least + room:
        assert ids == whole


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(counts=st.tuples(st.integers(1, 60), st.integers(1, 60)), room=st.integers(2, 100))
def test_the_longer_question_is_cut_first(tokenizer, counts, room):
    least = len(tokenizer(PROMPT.format("", ""))["input_ids"])
    first, second = ("@ " * count for count in counts)
    text = tokenizer.decode(shortened(tokenizer, PROMPT, (first, second), least + room))
    kept = [part.count("@") for part in text.removeprefix(START).removesuffix(END).split(MIDDLE)]
    assert len(kept) == 2
    for own, whole, other in zip(kept, counts, reversed(kept), strict=True):
        assert own == whole or own >= other - 1
        assert own == whole or own >= (room - 6) // 4  # a mark takes two tokens, and the room is for both questions


def test_a_context_too_short_for_the_prompt_is_refused(tokenizer):
    with pytest.raises(InputError, match="too short for the prompt"):
        shortened(tokenizer, PROMPT, ("one", "two"), 5)


def test_tokenizes_once_and_again_when_anything_changes(quora, tokenizer, save_stock):
    task = Paraphrase(quora)
    first = task.encode(tokenizer, task.read("train"))
    with mock.patch("tasks.tokens.rows_of_ids", side_effect=AssertionError("tokenized again")) as again:
        cached = task.encode(tokenizer, task.read("train"))
        assert cached.ids.tolist() == first.ids.tolist()
        assert cached.lengths == first.lengths
        assert cached.labels.tolist() == first.labels.tolist()

        def tokenizes(tokenizer, rows=None) -> bool:
            again.reset_mock()
            try:
                task.encode(tokenizer, task.read("train").first(rows))
            except AssertionError:
                assert again.called
                return True
            return False

        assert not tokenizes(tokenizer)
        assert tokenizes(tokenizer, rows=10)
        with mock.patch.object(Paraphrase, "prompt", PROMPT + " "):
            assert tokenizes(tokenizer)
        longer = load_tokenizer(save_stock(n_positions=600), GPT2Config(vocab_size=400, n_positions=600))
        assert tokenizes(longer)
        longer.model_max_length = 1024
        assert not tokenizes(longer)
        longer.add_tokens(["warm funny"])
        assert tokenizes(longer)
        with (quora / "quora-train.csv").open("a") as file:
            file.write("99\tq99\tone?\ttwo?\t0.0\n")
        assert tokenizes(tokenizer)


@pytest.mark.parametrize("damage", ["torn", "flipped", "swapped", "empty"])
def test_a_cache_that_does_not_match_is_never_trusted(quora, tokenizer, damage):
    task = Paraphrase(quora)
    expected = {name: task.encode(tokenizer, task.read(name)).ids.tolist() for name in ("train", "dev")}
    files = sorted(Path(os.environ["XDG_CACHE_HOME"]).rglob("*.safetensors"))
    assert len(files) == 2
    contents = [file.read_bytes() for file in files]
    for file, own, other in zip(files, contents, reversed(contents), strict=True):
        changed = {"torn": own[:-40], "flipped": own[:-9] + bytes([own[-9] ^ 1]) + own[-8:], "swapped": other}
        file.unlink()
        file.write_bytes(changed.get(damage, b""))
    for name, ids in expected.items():
        assert task.encode(tokenizer, task.read(name)).ids.tolist() == ids
    with mock.patch("tasks.tokens.rows_of_ids", side_effect=AssertionError("tokenized again")):
        for name, ids in expected.items():
            assert task.encode(tokenizer, task.read(name)).ids.tolist() == ids


def test_where_nothing_can_be_kept_it_works_all_the_same(quora, tokenizer, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    task = Paraphrase(quora)
    assert len(task.encode(tokenizer, task.read("train"))) == 60
    assert "are not kept" in capsys.readouterr().out


def test_two_runs_may_make_the_cache_at_once(quora, save_stock):
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from config import GPT2Config; from models.pretrained import load_tokenizer\n"
        "from tasks.paraphrase import Paraphrase\n"
        "folder = Path(sys.argv[1]); task = Paraphrase(sys.argv[2])\n"
        "tokenizer = load_tokenizer(folder, GPT2Config.from_file(folder / 'config.json'))\n"
        "other = os.fork()\n"
        "for _ in range(20):\n"
        "    for file in Path(sys.argv[3]).rglob('*.safetensors'): file.unlink(missing_ok=True)\n"
        "    total = sum(task.encode(tokenizer, task.read('train')).ids.tolist())\n"
        "    os.write(1, f'{total}\\n'.encode())\n"  # a line at once, whatever the other writes
        "if other:\n"
        "    sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))\n"
    )
    arguments = [sys.executable, "-c", program, str(save_stock()), str(quora), os.environ["XDG_CACHE_HOME"]]
    quiet = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    ended = subprocess.run(arguments, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    sums = ended.stdout.split()
    assert len(sums) == 40
    assert len(set(sums)) == 1


def test_pair_features_see_what_questions_share():
    pairs = [("warm film", "warm film"), ("warm film", "dull town"), ("dull town", "warm town"), ("a b", "c d")]
    features = PairFeatures().fit(pairs).transform(pairs).toarray()
    assert features[0, -1] == pytest.approx(1)
    assert features[1, -1] == 0
    assert 0 < features[2, -1] < 1
    baselines = fit_pair_baselines(pairs * 5, [1, 0, 0, 0] * 5)
    assert baselines["TF-IDF pair features + logistic regression"].predict(pairs).tolist() == [1, 0, 0, 0]
    assert baselines["majority class"].predict(pairs).tolist() == [0] * 4


def call(*arguments: object) -> int:
    return paraphrase_detection.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("labels", ["01", "tokens"])
def test_script_trains_predicts_and_reports(quora, save_stock, tmp_path, monkeypatch, capsys, labels):
    monkeypatch.chdir(tmp_path)
    model = save_stock()
    arguments = [
        "--model_path",
        model,
        "--data_dir",
        quora,
        "--epochs",
        3,
        "--lr",
        "3e-3",
        "--prediction_labels",
        labels,
    ]
    assert call(*arguments) == 0
    output = capsys.readouterr().out
    assert "TF-IDF pair features" in output
    run = tmp_path / "runs" / f"quora-{model.name}-full-model"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert set(lines[0]) == {"epoch", "dev_loss", "dev_acc", "dev_f1", "eval_seconds"}
    assert lines[3]["train_loss"] < lines[1]["train_loss"]
    best = max(lines[1:], key=lambda line: line["dev_acc"])
    assert f"epoch {best['epoch']} of 3" in output

    values = {"01": ["0", "1"], "tokens": ["3919", "8505"]}[labels]
    for split, first, count in (("dev", 100, 20), ("test", 200, 15)):
        rows = (tmp_path / "predictions" / f"para-{split}-output.csv").read_text().split("\n")
        assert rows[0] == "id \t Predicted_Is_Paraphrase "
        found = [re.fullmatch(r"(\w+), (\d+) ", row).groups() for row in rows[1:-1]]
        assert [id_ for id_, _ in found] == [f"q{first + i}" for i in range(count)]
        assert {label for _, label in found} <= set(values)
        if split == "dev":
            pipeline = transformers.pipeline("text-classification", str(run / "best"))
            prompts = [PROMPT.format(*pair) for pair in Paraphrase(quora).read("dev").texts]
            names = [result["label"] for result in pipeline(prompts)]
            assert [values[["no", "yes"].index(name)] for name in names] == [label for _, label in found]


def test_cloze_head_asks_the_language_model(quora, save_stock, tmp_path, monkeypatch):
    """Before training, its dev accuracy is that of comparing the next-token logits of the two words."""
    monkeypatch.chdir(tmp_path)
    model = save_stock()
    stock = transformers.AutoModelForCausalLM.from_pretrained(model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    words = [tokenizer(word)["input_ids"][0] for word in ("no", "yes")]
    dev = Paraphrase(quora).read("dev")
    said = []
    for pair in dev.texts:
        logits = stock(**tokenizer(PROMPT.format(*pair), return_tensors="pt")).logits[0, -1]
        said.append(int(logits[words[1]] > logits[words[0]]))
    common = ["--model_path", model, "--data_dir", quora, "--epochs", 1, "--lr", "1e-9"]
    losses = {}
    for init in ("cloze", "random"):
        assert call(*common, "--head_init", init, "--output_dir", init) == 0
        line = json.loads((tmp_path / init / "metrics.jsonl").read_text().splitlines()[0])
        assert line["epoch"] == 0
        losses[init] = line["dev_loss"]
        if init == "cloze":
            assert line["dev_acc"] == np.mean(np.array(said) == np.array(dev.labels))
    assert losses["cloze"] != losses["random"]
    head = load_file(tmp_path / "cloze" / "best" / "model.safetensors")["score.weight"]
    embeddings = load_file(model / "model.safetensors")["transformer.wte.weight"]
    np.testing.assert_allclose(head, embeddings[words], atol=1e-6)


def test_resumed_metrics_keep_epoch_0(quora, save_stock, tmp_path, monkeypatch):
    from training.interrupt import Interrupted

    monkeypatch.chdir(tmp_path)
    common = ["--model_path", save_stock(), "--data_dir", quora, "--epochs", 2, "--lr", "3e-3", "--save_every_steps", 1]
    assert call(*common, "--output_dir", "whole") == 0
    steps = iter(range(12))

    def check(request):
        if next(steps, None) is None:
            raise Interrupted(15)

    with mock.patch("training.interrupt.StopRequest.check", check):
        assert call(*common, "--output_dir", "parts") == 143
    assert call(*common, "--output_dir", "parts", "--resume") == 0
    whole, parts = (
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "parts")
    )
    assert [line["epoch"] for line in parts] == [0, 1, 2]
    for first, second in zip(whole, parts, strict=True):
        assert {k: v for k, v in first.items() if "seconds" not in k} == {
            k: v for k, v in second.items() if "seconds" not in k
        }


@needs_shared_data
def test_the_real_files():
    task = Paraphrase(SHARED / "data")
    splits = {name: task.read(name) for name in ("train", "dev", "test")}
    assert {name: len(split.ids) for name, split in splits.items()} == {"train": 14148, "dev": 2021, "test": 4043}
    assert [row.reason for row in splits["train"].bad] == ["no label"] * 2
    assert set(splits["train"].labels) == {0, 1}
