"""From nothing to the report: the grid, runs that end and runs that do not, and every number in the tables."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT, scramble, stock_config, write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import CHRF
from sklearn.metrics import accuracy_score

import paraphrase_detection
import reproduce
from reproduction.document import Heading, Table, Text, write
from reproduction.figures import _styles
from reproduction.grid import PRESETS, TASKS, grid
from reproduction.results import Outcome
from reproduction.runner import SCRIPTS, script_of
from reproduction.tables import PAPER
from reproduction.uncertainty import holm, interval, mcnemar
from tasks.sonnets import read_sonnets, write_sonnets
from training.interrupt import StopRequest
from training.run import Run

TOYS = ROOT / "data" / "mini"
QUICK = {
    "sentiment": ("--epochs", "2"),
    "paraphrase": ("--epochs", "2", "--max_eval_samples", "9"),
    "sonnet": ("--epochs", "2", "--max_new_tokens", "6"),
}
WHOLE = ("--seeds", "11711,1", "--tasks", *TASKS, "--report_only")
RANKS, STOPS = (16, 32), (("0.9", "2"), ("0.8", "1"))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    config = stock_config(n_positions=300, n_embd=128, n_layer=1)
    scramble(transformers.GPT2LMHeadModel(config)).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The toy data, the first rows of each file."""
    folder = tmp_path_factory.mktemp("data")
    for file in TOYS.glob("*-[tds]*[nvt].csv"):
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / file.name).write_text("".join(lines[:15]), encoding="utf-8")
    for file in TOYS.glob("*sonnets*.txt"):
        write_sonnets(folder / file.name, read_sonnets(file).first(4))
    return folder


def blank(figure, folder: Path, name: str) -> None:
    """In the place of a drawing, which takes longer than the runs that it shows."""
    figure.clear()
    (folder / f"{name}.png").write_bytes(b"")


def call(folder: Path, model: Path, data: Path, *more: object, draws: bool = False) -> int:
    where = [
        "--model_path",
        model,
        "--data_dir",
        data,
        "--runs_dir",
        folder / "runs",
        "--report_dir",
        folder / "report",
    ]
    small = mock.patch.dict(PRESETS, quick=replace(PRESETS["quick"], flags=QUICK, ranks=RANKS, stops=STOPS))
    drawn = contextlib.nullcontext() if draws else mock.patch("reproduction.figures._save", blank)
    with small, drawn, mock.patch.multiple("tasks.sonnet_scores", DRAWS=2, RESAMPLINGS=50):
        return reproduce.main([str(flag) for flag in ("--preset", "quick", *where, *more)])


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory, model, data) -> Path:
    folder = tmp_path_factory.mktemp("all of it")
    with mock.patch.dict(os.environ, XDG_CACHE_HOME=str(folder / "cache")):
        assert call(folder, model, data) == 0
        with mock.patch("reproduction.plan.expected_seconds", return_value=Counter()):  # tried above
            assert call(folder, model, data, "--seeds", "11711,1", "--tasks", "paraphrase", "sentiment") == 0
        assert call(folder, model, data, *WHOLE, draws=True) == 0
    return folder


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cells(report: str) -> dict[tuple[str, str], list[str]]:
    """The lines of each cell of the report's tables, by the names of its row and its column."""
    found = {}
    for table in re.findall(r"(?:^\|.*\|\n)+", report, re.MULTILINE):
        header, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines())
        for row in rows:
            found |= {(row[0], column): cell.split("<br>") for column, cell in zip(header, row, strict=True)}
    return found


def test_the_papers_grid_has_its_settings():
    experiments = grid(PRESETS["paper"], TASKS)
    assert len(experiments) == 6 + 2 * 3 + 2 * 20
    assert len({experiment.name for experiment in experiments}) == len(experiments)
    for experiment in experiments:
        flags = script_of(experiment.task).parse_flags(list(experiment.flags))
        method = "lora" if flags["use_lora"] else flags.get("fine_tune_mode") or "full"
        assert experiment.method.startswith(method.removesuffix("-model"))
        assert flags["model_size"] == experiment.place
        key = experiment.task
        if key == "sentiment":
            key += "_last_linear_layer" if method == "last-linear-layer" else f"_full_{experiment.variant}"
        paper = PAPER["settings"][key]
        for name in {"epochs", "batch_size", "lr", "hidden_dropout_prob"} & paper.keys():
            assert flags[name] == paper[name]
        if method == "lora":
            assert flags["lora_rank"] in paper["lora_rank"]
            assert experiment.method == f"lora-{flags['lora_rank']}"
            assert (flags["lora_alpha"], flags["lora_dropout"]) == (paper["lora_alpha"], paper["lora_dropout"])
        if key == "sonnet":
            assert experiment.variant == f"{flags['train_size']}-{flags['patience']}"


def test_numbers_are_those_of_the_runs_files(reproduced, data):
    found = cells((reproduced / "report" / "report.md").read_text(encoding="utf-8"))
    for dataset, row, column, folder in (
        ("quora", "LoRA 16", "GPT-2", "quora-gpt2-lora-16"),
        ("ids-sst", "last linear layer", "SST", "sst-gpt2-last-linear-layer"),
        ("ids-cfimdb", "full model, tuned settings", "CFIMDB", "cfimdb-gpt2-full-tuned"),
    ):
        limit = 9 if dataset == "quora" else None
        with (data / f"{dataset}-dev.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))[:limit]
        label = "is_duplicate" if dataset == "quora" else "sentiment"
        truth = {line["id"].strip(): int(float(line[label])) for line in rows}
        accuracies, right = [], []
        for seed in (11711, 1):
            (path,) = (reproduced / "runs" / f"{folder}-seed{seed}" / "predictions").glob("*dev*")
            lines = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
            said = {id_.strip(): int(value) for id_, value in lines}
            assert said.keys() == truth.keys()
            accuracies.append(accuracy_score([truth[id_] for id_ in said], list(said.values())))
            right.append([said[id_] == truth[id_] for id_ in truth])
            (metrics,) = (reproduced / "runs" / f"{folder}-seed{seed}").glob("*/metrics.jsonl")
            best = max(
                json.loads(line)["dev_acc"] for line in metrics.read_text().splitlines() if '"train_acc"' in line
            )
            assert best == pytest.approx(accuracies[-1])
        mean, deviation = statistics.mean(accuracies), statistics.stdev(accuracies)
        ours, within, paper = found[row, column]
        assert ours == f"**{mean:.3f} ± {deviation:.3f}**"
        low, high = map(float, within.split(" to "))
        assert low <= mean <= high
        assert paper.startswith("paper: ")
    assert found["last linear layer", "SST"][2] == "paper: 0.453"
    assert found["LoRA 16", "GPT-2"][2] == "paper: 0.855"

    run = reproduced / "runs" / "sonnets-gpt2-lora-32-0.8-1-seed11711"
    poems = ["\n".join(p) for p in read_sonnets(run / "predictions" / "generated_sonnets_dev.txt").poems]
    truth = ["\n".join(poem) for poem in read_sonnets(data / "TRUE_sonnets_held_out_dev.txt").poems]
    chrf = CHRF().corpus_score(poems, [truth]).score
    assert found["GPT-2, train_size 0.8, patience 1", "LoRA 32"][0] == f"**{chrf:.1f}**"


def test_every_cell_is_filled_and_every_figure_there(reproduced, model):
    text = (reproduced / "report" / "report.md").read_text(encoding="utf-8")
    found = cells(text)
    sentiment = ("last linear layer", "full model, default settings", "full model, tuned settings")
    for row in (*sentiment, "majority class"):
        for column in ("SST", "CFIMDB"):
            assert re.match(r"(\*\*)?\d\.\d", found[row, column][0])
    for size, patience in STOPS:
        for column in ("full model", *(f"LoRA {rank}" for rank in RANKS)):
            assert found[f"GPT-2, train_size {size}, patience {patience}", column][0].startswith("**")
    assert f"In the place of GPT-2 stands {model.name}." in text
    claims = text[text.index("The paper's claims") : text.index("## Sentiment")]
    assert claims.count("| held |") + claims.count("| not held |") >= 6
    page = (reproduced / "report" / "report.html").read_text(encoding="utf-8")
    figures = re.findall(r"!\[.*\]\((.*)\.png\)", text)
    costs = [f"costs-{name}" for name in ("sst", "cfimdb", "paraphrase", "sonnets")]
    assert figures == ["figure-2", "figure-3", *costs[:2], "figure-4", costs[2], "figure-5", costs[3]]
    for figure in figures:
        for kind in ("png", "svg"):
            assert (reproduced / "report" / f"{figure}.{kind}").stat().st_size > 1000
    assert page.count("data:image/png;base64,") == len(figures)
    assert 'src="h' not in page


def test_called_again_it_trains_nothing_and_changes_nothing(reproduced, model, data, tmp_path):
    before = bytes_below(reproduced / "report")
    with mock.patch.multiple("reproduction.runner", call=mock.Mock(side_effect=AssertionError("trains again"))):
        assert call(reproduced, model, data, *WHOLE, draws=True) == 0
        assert bytes_below(reproduced / "report") == before
        assert call(reproduced, model, data, "--report_dir", tmp_path) == 0


def test_other_machines_runs_may_be_copied_in(reproduced, model, data, tmp_path):
    for source in (reproduced / "runs").glob("quora-*"):
        shutil.copytree(source, tmp_path / "runs" / "cluster" / "runs" / source.name)
    assert call(tmp_path, tmp_path / "no weights here", data, "--tasks", "paraphrase", "--report_only") == 0
    found = cells((tmp_path / "report" / "report.md").read_text(encoding="utf-8"))
    assert found["LoRA 16", "GPT-2"][0].startswith("**0.")


def test_runs_with_other_settings_or_data_are_not_taken_for_these(reproduced, model, data, tmp_path, capsys):
    shutil.copytree(reproduced / "runs", tmp_path / "runs")
    refused = "no run of this grid is there; the first: made with another"
    with mock.patch.dict(QUICK, paraphrase=("--epochs", "3", "--max_eval_samples", "9")):
        assert call(tmp_path, model, data, "--tasks", "paraphrase", "--report_only") == 2
    assert f"{refused} epochs" in capsys.readouterr().err
    changed = shutil.copytree(data, tmp_path / "data")
    with (changed / "sonnets.txt").open("a") as file:
        file.write("\n99\n\nOne line more\n")
    assert call(tmp_path, model, changed, "--tasks", "sonnet", "--report_only") == 2
    assert f"{refused} sonnets.txt" in capsys.readouterr().err
    other = shutil.copytree(model, tmp_path / "other")
    scramble(transformers.GPT2LMHeadModel.from_pretrained(other)).save_pretrained(other)
    assert call(tmp_path, other, data, "--tasks", "paraphrase", "--report_only") == 2
    assert f"{refused} model.safetensors" in capsys.readouterr().err
    damaged = next((tmp_path / "runs").glob("quora-gpt2-full-seed11711/predictions/*dev*"))
    damaged.unlink()
    assert call(tmp_path, model, data, "--tasks", "paraphrase", "--report_only") == 0
    assert "quora-gpt2-full-seed11711: its files are incomplete" in capsys.readouterr().out


def test_a_run_that_fails_costs_no_other(model, data, tmp_path, capsys):
    def fails(arguments):
        if "--resume" in arguments and "32" in arguments:
            raise RuntimeError("out of something")
        return main(arguments)

    main = paraphrase_detection.main
    with mock.patch("paraphrase_detection.main", fails):
        assert call(tmp_path, model, data, "--tasks", "paraphrase") == 1
    assert "failed: RuntimeError: out of something" in capsys.readouterr().out
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    found = cells(text)
    assert found["LoRA 32", "GPT-2"][0] == "(failed: RuntimeError: out of something)"
    assert found["LoRA 16", "GPT-2"][0].startswith("**")
    assert call(tmp_path, model, data, "--tasks", "paraphrase") == 0
    assert "3 runs, 2 of them done" in capsys.readouterr().out
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "failed" not in text


def test_killed_and_called_again_it_ends_with_the_same_report(model, data, tmp_path):
    """The quick preset as it is, on one task."""
    flags = ["--preset", "quick", "--tasks", "paraphrase", "--model_path", str(model), "--data_dir", str(data)]

    def where(name: str) -> list[str]:
        return ["--runs_dir", str(tmp_path / name / "runs"), "--report_dir", str(tmp_path / name / "report")]

    program = (
        "import os, runpy, signal, sys\n"
        "from training.run import Run\n"
        "log = Run.log\n"
        "def log_and_die(run, metrics):\n"
        "    log(run, metrics)\n"
        "    if 'quora-gpt2-full-seed' in str(run.path) and metrics['epoch'] == 1:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "Run.log = log_and_die\n"
        "sys.argv.pop(0)\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [sys.executable, "-c", program, str(ROOT / "reproduce.py"), *flags, *where("parts")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr

    def log_and_ask(run, metrics):
        log(run, metrics)
        if "quora-gpt2-lora-16-seed" in str(run.path) and metrics["epoch"] == 1:
            signal.raise_signal(signal.SIGTERM)

    log = Run.log
    with mock.patch.object(Run, "log", log_and_ask):
        assert reproduce.main([*flags, *where("parts")]) == 128 + signal.SIGTERM
    with mock.patch("reproduction.figures._save", blank):
        for name in ("parts", "whole"):
            assert reproduce.main([*flags, *where(name)]) == 0
    texts = [(tmp_path / name / "report" / "report.md").read_text(encoding="utf-8") for name in ("whole", "parts")]
    whole, parts = (re.sub(r"[\d.]+ s\b|\d+ min|: \d+%|(not )?held", "a time", text) for text in texts)
    assert whole == parts
    best = {file.relative_to(tmp_path / "whole") for file in (tmp_path / "whole").rglob("best/*.safetensors")}
    assert len(best) == 3
    for file in best:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "1,x"], "--seeds"),
        (["--seeds", "-1"], "--seeds"),
        (["--tasks", "poetry"], "--tasks"),
        (["--data_dir", "nowhere"], "nowhere"),
        (["--model_path", "nowhere/at/all", "--data_dir", str(TOYS)], "nowhere/at/all"),
        (["--search", "sonnet", "--report_only"], "--search"),
        (["--storage", "sqlite:///x.db"], "--storage"),
        (["--report_only", "--data_dir", str(TOYS)], "no run of this grid"),
    ],
)
def test_bad_input_ends_with_2_and_one_line(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    try:
        code = reproduce.main(["--preset", "quick", *flags])
    except SystemExit as ended:
        code = ended.code
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_sum_of_binomial_terms(pairs):
    from math import comb

    first, second = (np.array(column) for column in zip(*pairs, strict=True))
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    n = b + c
    expected = min(1.0, 2 * sum(comb(n, k) for k in range(min(b, c) + 1)) / 2**n) if b != c else 1.0
    assert mcnemar(first, second) == pytest.approx(expected)
    assert mcnemar(first, second) == mcnemar(second, first)


def test_interval_is_as_wide_as_the_normal_approximation_has_it():
    right = np.arange(1000) % 10 < 7
    low, high = interval([right])
    half = 1.96 * (0.7 * 0.3 / 1000) ** 0.5
    assert low == pytest.approx(0.7 - half, abs=0.005)
    assert high == pytest.approx(0.7 + half, abs=0.005)
    assert interval([right, ~right]) == (0.5, 0.5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_between_bonferroni_and_no_correction(p_values):
    refused, count = holm(p_values), len(p_values)
    for p, is_refused in zip(p_values, refused, strict=True):
        assert is_refused or p > 0.05 / count
        assert p <= 0.05 or not is_refused
    accepted = [p for p, is_refused in zip(p_values, refused, strict=True) if not is_refused]
    assert not accepted or min(accepted) > 0.05 / len(accepted)
    assert sorted(p_values)[: sum(refused)] == sorted(p for p, r in zip(p_values, refused, strict=True) if r)


def test_methods_can_be_told_apart_without_colour_whatever_the_model():
    runs = {}
    for experiment in grid(PRESETS["paper"], ["sonnet"]):
        if experiment.variant == "0.9-2":
            runs[str(experiment)] = [mock.Mock(experiment=experiment)]
    styles = [(s["marker"], s["markerfacecolor"] == "white") for s in _styles(runs)]
    assert len(set(styles)) == len(styles) == 10


def test_a_signal_that_a_run_has_not_looked_at_reaches_who_called_it():
    with StopRequest() as outer:
        with StopRequest():
            signal.raise_signal(signal.SIGTERM)
        assert outer.signum == signal.SIGTERM


def test_what_a_cell_holds_cannot_break_the_document(tmp_path):
    write(tmp_path, "A & B", [Heading("<b>"), Text("`code` and **bold**"), Table(["a", "b"], [["1|2\n3", "<i>"]])])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<title>A &amp; B</title>" in page
    assert "<h2>&lt;b&gt;</h2>" in page
    assert "<code>code</code> and <strong>bold</strong>" in page
    assert "<td>1|2<br>\n3</td><td>&lt;i&gt;</td>" in page
    assert r"| 1\|2<br>3 | <i> |" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_the_best_epoch_is_the_one_that_training_kept(reproduced):
    for metrics in (reproduced / "runs").glob("*/*/metrics.jsonl"):
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        task = next(task for task in SCRIPTS if (task == "sonnet") == ("val_loss" in lines[-1]))
        experiment = mock.Mock(task=task)
        best = Outcome(experiment, 0, metrics.parent.parent).best
        merits = [-line["val_loss"] if task == "sonnet" else line["dev_acc"] for line in lines if line["epoch"]]
        assert best["epoch"] == 1 + int(np.argmax(merits))
