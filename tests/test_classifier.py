"""The script as a user calls it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from conftest import ROOT, write_rows

import classifier
from training.flags import Parser, add_common_flags

Run = Callable[..., subprocess.CompletedProcess]


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "classifier.py"), *map(str, arguments)]


@pytest.fixture
def run(tmp_path, monkeypatch, capfd) -> Run:
    """Calls the script in this process, for one of its own imports for seconds, and says how it ended."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> subprocess.CompletedProcess:
        capfd.readouterr()
        code = classifier.main([str(argument) for argument in arguments])
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return run


def test_trains_predicts_and_reports_both_data_sets(run, data_dir, save_stock, tmp_path):
    model = save_stock()
    ended = run(
        "--fine-tune-mode", "full-model", "--model_path", model, "--data-dir", data_dir, "--epochs=2",
        "--batch_size", 16,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""  # no progress bar where no one watches
    for dataset, classes in (("sst", 5), ("cfimdb", 2)):
        assert re.search(rf"^{dataset} +dev acc +dev F1$", ended.stdout, re.MULTILINE), ended.stdout
        folder = tmp_path / "runs" / f"{dataset}-{model.name}-full-model"
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
        assert (folder / "bad_rows.jsonl").read_text() == ""
        labels = json.loads((folder / "best" / "config.json").read_text())["id2label"]
        assert len(labels) == classes
        for split, first, count in (("dev", 100, 20), ("test", 200, 15)):
            lines = (tmp_path / "predictions" / f"full-model-{dataset}-{split}-out.csv").read_text().split("\n")
            assert lines[0] == "id \t Predicted_Sentiment "
            assert lines[-1] == ""
            found = [re.fullmatch(r"(\w+), (\d) ", line).groups() for line in lines[1:-1]]
            assert [id_ for id_, _ in found] == [f"{dataset}{first + i}" for i in range(count)]
            assert {int(label) for _, label in found} <= set(range(classes))
            if split == "dev":
                check_against_stock(folder / "best", data_dir / f"ids-{dataset}-dev.csv", [int(x) for _, x in found])
    for method in ("majority class", "TF-IDF + logistic regression", "full-model, epoch"):
        assert len(re.findall(rf"{re.escape(method)}.*  [01]\.\d+", ended.stdout)) == 2


def check_against_stock(best: Path, rows: Path, predictions: list[int]) -> None:
    pipeline = transformers.pipeline("text-classification", str(best))
    texts = [line.split("\t")[2].strip() for line in rows.read_text().splitlines()[1:]]
    names = [score["label"] for score in pipeline(texts)]
    assert [pipeline.model.config.label2id[name] for name in names] == predictions


def test_scores_a_test_file_that_has_labels(run, data_dir, save_stock):
    (data_dir / "ids-cfimdb-test-student.csv").write_bytes((data_dir / "ids-cfimdb-dev.csv").read_bytes())
    ended = run("--dataset", "cfimdb", "--model_path", save_stock(), "--data_dir", data_dir, "--epochs", 2)
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"^cfimdb +dev acc +dev F1 +test acc +test F1$", ended.stdout, re.MULTILINE)
    scores = re.search(
        r"last-linear-layer, epoch . of 2 +(\S+) +(\S+) +(\S+) +(\S+)$", ended.stdout, re.MULTILINE
    ).groups()
    assert scores[:2] == scores[2:]


def test_limits_rows(run, data_dir, save_stock, tmp_path):
    ended = run(
        "--dataset", "sst", "--model_path", save_stock(), "--data_dir", data_dir, "--epochs", 1,
        "--max_train_samples", 10, "--max_eval_samples", 7, "--predictions_dir", tmp_path / "p",
    )  # fmt: skip
    assert "sst: 10 train, 7 dev, 7 test rows" in ended.stdout, ended.stderr
    assert len((tmp_path / "p" / "last-linear-layer-sst-test-out.csv").read_text().splitlines()) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs: 0 is not at least 1"),
        (["--epochs", "x"], "--epochs"),
        (["--lr", "nan"], "--lr: nan is not a number above 0"),
        (["--lr", "-1"], "--lr: -1 is not a number above 0"),
        (["--batch-size", "-1"], "--batch_size: -1 is not at least 1"),
        (["--hidden_dropout_prob", "1"], "1 is not a number at least 0 and below 1"),
        (["--weight_decay", "inf"], "--weight_decay"),
        (["--seed", "-1"], "--seed"),
        (["--model_size", "gpt3"], "--model_size"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_wrong_flags_get_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        classifier.main(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.count("\n") == 1
    assert message in error
    assert error.startswith("classifier.py: error: ")


def test_flags_take_dashes_and_underscores():
    dashes = classifier.parse_flags(["--fine-tune-mode=full-model", "--max-train-samples", "3", "--use-gpu"])
    underscores = classifier.parse_flags(["--fine_tune_mode=full-model", "--max_train_samples", "3", "--use_gpu"])
    assert dashes == underscores
    assert dashes["fine_tune_mode"] == "full-model"
    assert dashes["device"] == "cuda"
    defaults = classifier.parse_flags([])
    assert (defaults["epochs"], defaults["batch_size"], defaults["lr"], defaults["seed"]) == (10, 8, 1e-3, 11711)
    assert (defaults["hidden_dropout_prob"], defaults["device"], defaults["dataset"]) == (0.3, "auto", "both")


def test_help_imports_nothing_slow():
    program = (
        "import sys, classifier\n"
        "try:\n"
        "    classifier.main(['--help'])\n"
        "finally:\n"
        "    assert not {'torch', 'numpy', 'transformers'} & sys.modules.keys()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "--fine_tune_mode" in ended.stdout


def test_help_lists_every_flag_once(capsys):
    parser = Parser({}, prog="any.py")
    add_common_flags(parser, epochs=1, batch_size=2, lr=3.0, hidden_dropout_prob=0.5)
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert "--data_dir DIR" in capsys.readouterr().out


@pytest.mark.parametrize("case", ["no data", "bad rows", "missing column", "no model", "not a model", "no GPU"])
def test_bad_input_gets_one_line_and_2(run, data_dir, save_stock, tmp_path, case):
    model = save_stock()
    arguments = {"--model_path": model, "--data_dir": data_dir, "--epochs": 1, "--dataset": "sst"}
    if case == "no data":
        arguments["--data_dir"] = tmp_path / "nowhere"
        expected = "python data/download.py"
    elif case == "bad rows":
        rows = [[i, i, "text", "" if i < 3 else 1] for i in range(100)]
        write_rows(data_dir / "ids-sst-train.csv", ["", "id", "sentence", "sentiment"], rows)
        expected = "3 of 100 rows cannot be used"
    elif case == "missing column":
        write_rows(data_dir / "ids-sst-dev.csv", ["id", "text"], [[1, "a"]])
        expected = "no column sentence, sentiment"
    elif case == "no model":
        arguments["--model_path"] = tmp_path / "nowhere"
        expected = "no such directory"
    elif case == "not a model":
        (model / "config.json").write_text('{"model_type": "bert"}')
        expected = "not the configuration of a GPT-2"
    else:
        if __import__("torch").cuda.is_available():
            pytest.skip("this machine has a GPU")
        arguments["--device"] = "cuda"
        expected = "--device cuda"
    ended = run(*(part for pair in arguments.items() for part in pair))
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert expected in ended.stderr


def test_without_a_network_a_model_of_the_hub_gets_one_line_and_2(data_dir, tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    ended = subprocess.run(
        command("--data_dir", data_dir), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert "--model_path DIR takes a local copy, --model_size mini" in ended.stderr


def test_interrupted_run_says_so_saves_and_resumes(run, data_dir, save_stock, tmp_path):
    arguments = ["--dataset", "sst", "--fine_tune_mode", "full-model", "--model_path", save_stock()]
    arguments += ["--data_dir", data_dir, "--lr", "1e-3", "--resume"]
    whole = run(*arguments, "--epochs", 12, "--output_dir", "whole")
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        command(*arguments, "--epochs", 12, "--output_dir", "parts"), cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            process.send_signal(signal.SIGINT)
            break
    output, error = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, output + error
    assert error.count("\n") == 1
    assert "--resume" in error
    ended = run(*arguments, "--epochs", 12, "--output_dir", "parts")
    assert ended.returncode == 0, ended.stderr
    (first,), (second,) = (tmp_path.glob(f"{name}/*/best/model.safetensors") for name in ("whole", "parts"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("flag", ["--output_dir", "--predictions_dir"])
def test_nowhere_to_write_is_said_before_training(run, data_dir, save_stock, tmp_path, flag):
    (tmp_path / "file").write_text("in the way")
    ended = run("--model_path", save_stock(), "--data_dir", data_dir, flag, tmp_path / "file" / "x")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert flag in ended.stderr


def test_bad_rows_are_said_and_listed(run, data_dir, save_stock, tmp_path):
    with (data_dir / "ids-sst-train.csv").open("a", encoding="utf-8") as file:
        file.write("60\tx\ttext\t9\n")
    arguments = ["--dataset", "sst", "--model_path", save_stock(), "--data_dir", data_dir, "--epochs", 1]
    assert run(*arguments).returncode == 2
    ended = run(*arguments, "--skip-bad-rows")
    assert ended.returncode == 0, ended.stderr
    assert "sst: 60 train" in ended.stdout
    assert "1 rows that cannot be used are left out" in ended.stdout
    (listed,) = tmp_path.glob("runs/*/bad_rows.jsonl")
    assert json.loads(listed.read_text()) == {
        "file": str(data_dir / "ids-sst-train.csv"), "line": 62, "id": "x",
        "reason": "label 9 is outside the classes 0 to 4",
    }  # fmt: skip
