"""What a user does after training: predictions are the run's own, whatever comes in and wherever the model lies."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import peft
import pytest
import torch
import transformers
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from test_paraphrase import quora  # noqa: F401
from test_sonnets import few_sonnets  # noqa: F401

import classifier
import paraphrase_detection
import predict
import sonnet_generation
from config import InputError
from models.trained import TASK, read_task
from tasks.lines import LONGEST, in_chunks
from tasks.paraphrase import PROMPT, Paraphrase
from tasks.sentiment import Sentiment
from training.interrupt import Interrupted, StopRequest

ON_CPU = ["--device", "cpu", "--precision", "fp32"]


def train(script, *flags: object) -> None:
    assert script.main([*map(str, flags), *ON_CPU, "--output_dir", "run", "--predictions_dir", "."]) == 0


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def say(capsys):
    """Calls the script; gives what it says, and what it has to remark."""

    def say(*flags: object, code: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        assert predict.main([*map(str, flags), *ON_CPU]) == code
        said = capsys.readouterr()
        return said.out, said.err

    return say


@pytest.fixture
def sentiment(save_stock, data_dir, here) -> Path:
    """A trained classifier of five classes, with a context of 40 tokens."""
    flags = ["--dataset", "sst", "--fine_tune_mode", "full-model", "--data_dir", data_dir, "--epochs", 1]
    train(classifier, *flags, "--lr", "3e-3", "--model_path", save_stock(n_positions=40))
    (run,) = Path("run").iterdir()
    return run


def predicted(path: str) -> list[int]:
    return [int(line.split(", ")[1]) for line in Path(path).read_text().splitlines()[1:]]


def classes(said: str, labels: list[str]) -> list[int]:
    return [labels.index(row["label"]) for row in csv.DictReader(io.StringIO(said))]


@pytest.mark.parametrize("flags", ["full-model", "last-linear-layer", "full-model --use_lora --save_merged"])
def test_labels_are_those_of_the_run(save_stock, data_dir, say, flags):
    """Also where the context is too short for some texts."""
    model = save_stock(n_positions=10)
    train(
        classifier, "--dataset", "sst", "--fine_tune_mode", *flags.split(), "--model_path", model, "--epochs", 1,
        "--lr", "5e-3", "--data_dir", data_dir,
    )  # fmt: skip
    (run,) = Path("run").iterdir()
    task = Sentiment("sst", data_dir)
    for split in ("dev", "test"):
        (file,) = Path().glob(f"*-sst-{split}-out.csv")
        Path("texts").write_text("\n".join(task.read(split).texts))
        said, remarks = say(run, "--input", "texts", "--format", "csv")
        assert classes(said, task.labels) == predicted(file)
        assert "does not fit the context of 10 tokens" in remarks
    if "lora" in flags:
        assert say(run / "merged", "--input", "texts", "--format", "csv")[0].count("\n") == said.count("\n")
        assert (run / "merged" / TASK).read_bytes() == (run / "best" / TASK).read_bytes()


@pytest.mark.parametrize("flags", ["", "--use_lora"])
def test_pairs_are_put_into_the_runs_prompt_and_shortened_as_there(quora, save_stock, say, flags):  # noqa: F811
    model = save_stock(n_positions=82)
    train(
        paraphrase_detection, "--model_path", model, "--data_dir", quora, "--epochs", 1, "--lr", "3e-3", *flags.split()
    )
    task = Paraphrase(quora)
    for split in ("dev", "test"):
        pairs = task.read(split).texts
        Path("texts").write_text("".join(f"{first}\t {second}\n" for first, second in pairs))
        said, remarks = say("run", "--input", "texts", "--format", "csv")
        assert classes(said, ["no", "yes"]) == predicted(f"para-{split}-output.csv")
        assert "does not fit the context of 82 tokens and is shortened" in remarks
        rows = [(row["text1"], row["text2"]) for row in csv.DictReader(io.StringIO(said))]
        assert rows == pairs
    two = say("run", *pairs[0], *pairs[1])[0].splitlines()
    assert two == say("run", *("\t".join(pair) for pair in pairs[:2]))[0].splitlines()
    assert [line.split("\t")[0] for line in two] == [row["label"] for row in csv.DictReader(io.StringIO(said))][:2]


@pytest.mark.usefixtures("quick_scores")
@pytest.mark.parametrize("flags", ["", "--use_lora --lora_rank 4"])
def test_sonnets_go_on_as_in_the_run(few_sonnets, save_stock, say, flags):  # noqa: F811
    train(
        sonnet_generation, "--model_path", save_stock(n_positions=200), "--data_dir", few_sonnets, "--lr", "1e-2",
        "--epochs", 2, "--num_candidates", 2, "--max_new_tokens", 30, "--temperature", 0.9, "--seed", 5, *flags.split(),
    )  # fmt: skip
    for name, file in (("generated_sonnets", "sonnets_held_out"), ("generated_sonnets_dev", "sonnets_held_out_dev")):
        assert say("run", "--input", few_sonnets / f"{file}.txt")[0].encode() == Path(f"{name}.txt").read_bytes()
    whole = Path("generated_sonnets.txt").read_text().split("\n20\n")[1].split("\n21\n")[0].strip("\n")
    lines = whole.split("\n")
    assert say("run", *lines[:3])[0] == f"{whole}\n"
    assert json.loads(say("run/best", *lines[:3], "--format", "jsonl")[0]) == {"number": "", "lines": lines}
    (row,) = csv.DictReader(io.StringIO(say("run", *lines[:3], "--format", "csv")[0]))
    assert row == {"number": "", "text": whole}
    assert say("run", *lines[:3], "--max_new_tokens", 2)[0] != f"{whole}\n"
    assert "classes" in say("run", "x", "--task", "sentiment", code=2)[1]
    assert "--num_candidates" in say("run", "x", "--temperature", 0, code=2)[1]


def test_stock_pipeline_says_the_same(sentiment, data_dir, say):
    texts = Sentiment("sst", data_dir).read("dev").texts
    stock = transformers.pipeline("text-classification", str(sentiment / "best"), top_k=None)
    lines = [json.loads(line) for line in say(sentiment, *texts, "--format", "jsonl")[0].splitlines()]
    assert [line["text"] for line in lines] == texts
    assert [line["line"] for line in lines] == list(range(1, len(texts) + 1))
    for line, scores in zip(lines, stock(texts, truncation=True), strict=True):
        expected = {score["label"]: score["score"] for score in scores}
        assert line["probabilities"] == pytest.approx(expected, abs=2e-5)
        assert line["label"] == max(expected, key=expected.get)
    short = [line.split("\t") for line in say(sentiment, *texts)[0].splitlines()]
    assert short == [[line["label"], f"{line['probability']:.3f}"] for line in lines]


def test_stock_adapter_and_models_that_no_task_is_known_of(save_stock, say):
    base = save_stock()
    torch.manual_seed(3)
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, pad_token_id=0)
    stock = peft.get_peft_model(stock, peft.LoraConfig("SEQ_CLS", r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    for name, parameter in stock.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    stock.save_pretrained("adapter")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    for flags, text in (([], "warm town"), (["--task", "paraphrase"], PROMPT.format("warm town", "film"))):
        logits = stock.eval()(**tokenizer(text, return_tensors="pt")).logits[0]
        line = json.loads(say("adapter", "warm town\tfilm" if flags else text, "--format", "jsonl", *flags)[0])
        expected = {f"LABEL_{i}": p for i, p in enumerate(logits.softmax(0).tolist())}
        assert line["probabilities"] == pytest.approx(expected, abs=1e-5)
    assert say(base, "the film", "--max_new_tokens", 3)[0].startswith("the film\n")
    assert "is a classifier" in say("adapter", "x", "--task", "sonnet", code=2)[1]
    assert "--seed" in say("adapter", "x", "--seed", 1, code=2)[1]


def test_lines_that_hold_no_text_are_named_and_those_before_are_answered(sentiment, say):
    for bad, what in ((b"\xff", "is not UTF-8"), (b"a\0", "holds a NUL"), (b"x" * (LONGEST + 1), "is longer than")):
        Path("texts").write_bytes(b"\xef\xbb\xbfwarm film\r\ndull\n" + bad + b"\nbright")
        said, error = say(sentiment, "--input", "texts", code=2)
        assert said == say(sentiment, "warm film", "dull")[0]
        assert error.count("\n") == 1
        assert f"texts: line 3 {what}" in error
    Path("texts").write_text("warm\n\n" + "film " * 60 + "\n \n" + "town " * 60)
    said, remarks = say(sentiment, "--input", "texts")
    assert said.count("\n") == 5
    assert remarks == (
        "texts: line 2 and 1 more: is empty or lacks a text\n"
        "texts: line 3 and 1 more: does not fit the context of 40 tokens and is cut there\n"
    )
    said, error = say(sentiment, "--task", "paraphrase", "one\ttwo", "one", "a\tb", code=2)
    assert said == ""
    assert "too short for the prompt" in error
    for name in ("nowhere", ".", "a\udcff"):
        assert say(sentiment, "--input", name, code=2)[1].count("\n") == 1


def test_models_that_are_none(say, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    Path("empty").mkdir()
    Path("begun/last").mkdir(parents=True)
    Path("begun/config.json").write_text('{"settings": {}}')
    for name in ("empty", "begun", "", "a/b/c", "no/where", "x" * 5000, "a\udcff"):
        error = say(name, "x", code=2)[1]
        assert error.count("\n") == 1
        assert "--model_path" not in error


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "labels", "prompt", "x"]), inner)
    ),
    max_leaves=5,
)


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=20) | json_values.map(json.dumps).map(str.encode))
def test_what_a_file_says_of_the_task_is_right_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("task")
    (folder / TASK).write_bytes(data)
    with contextlib.suppress(InputError):
        task = read_task(folder)
        assert task.prompt is None or "{}" in task.prompt


@pytest.mark.parametrize("prompt", ["{0.__class__}", "{:9999999999}", "{", "none", "{}{x}", "{!r}"])
def test_a_prompt_with_more_than_places_is_refused(tmp_path, prompt):
    (tmp_path / TASK).write_text(json.dumps({"name": "x", "labels": ["a"], "prompt": prompt}))
    with pytest.raises(InputError, match=TASK):
        read_task(tmp_path)


# Lines as they come


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\0\ufeff"), max_size=9), max_size=12),
    at_once=st.integers(1, 5),
    most=st.integers(1, 30),
)
def test_lines_come_whole_and_in_order_and_few_at_once(tmp_path_factory, lines, at_once, most):
    path = tmp_path_factory.mktemp("lines") / "it"
    path.write_bytes("\n".join(lines).encode())
    limits = {"LINES_AT_ONCE": at_once, "BYTES_AT_ONCE": most, "BLOCK": 3}
    with mock.patch.multiple("tasks.lines", **limits), path.open("rb", buffering=0) as file:
        chunks = list(in_chunks(file, "it", StopRequest()))
    found = [line for chunk in chunks for line in chunk]
    while lines and not lines[-1]:  # the last one has no end
        del lines[-1:]
        found = found[: len(lines)]
    assert found == [(i, line.rstrip()) for i, line in enumerate(lines, 1)]
    for chunk in chunks:
        assert len(chunk) <= at_once
        assert sum(len(line.encode()) for _, line in chunk[:-1]) < most


def test_a_slow_writer_is_answered_before_it_ends():
    read, write = os.pipe()
    with open(read, "rb", buffering=0) as file:
        stop = StopRequest()
        chunks = in_chunks(file, "it", stop)
        os.write(write, b"one\ntwo\nthr")
        assert next(chunks) == [(1, "one"), (2, "two")]
        os.write(write, b"ee\n")
        assert next(chunks) == [(3, "three")]
        stop.signum = 2
        with pytest.raises(Interrupted):
            next(chunks)
        os.close(write)


def test_where_nobody_reads_any_more_it_ends_quietly(sentiment, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert predict.main([str(sentiment), "x", *ON_CPU]) == 0


def test_help_imports_nothing_slow_and_texts_may_stand_anywhere():
    program = (
        "import sys, predict\n"
        "assert predict.parse_flags(['RUN', '--format', 'csv', 'a', '--', '--b-c'])['texts'] == ['a', '--b-c']\n"
        "try:\n"
        "    predict.main(['--help'])\n"
        "finally:\n"
        "    assert not {'torch', 'numpy', 'transformers'} & sys.modules.keys()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
