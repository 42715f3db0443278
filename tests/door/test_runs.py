"""Whatever other runs left behind: it is read, or named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import optuna
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from outcomes import anywhere, finished, json_values, outcome_of

from config import InputError
from reproduction import search
from reproduction.grid import Experiment
from reproduction.results import Outcome, Results
from reproduction.runner import Study, _begun, output_to
from tasks.sonnet_scores import Scores
from training.flags import TOY_DATA
from training.interrupt import StopRequest


@pytest.mark.parametrize("task", ["sonnet", "sentiment"])
def test_a_run_with_all_its_files_has_no_damage(tmp_path, task):
    outcome = finished(tmp_path / "it", task)
    assert outcome.damage() == ""
    assert outcome.predictions == [("a,b", 3), ("c", 0)]


@anywhere
@given(
    task=st.sampled_from(["sonnet", "sentiment"]),
    file=st.sampled_from(
        ["run/config.json", "run/metrics.jsonl", "run/scores.json", "predictions/full-model-sst-dev-out.csv"]
    ),
    data=st.one_of(st.binary(max_size=40), json_values.map(json.dumps).map(str.encode)),
)
@example("sonnet", "run/metrics.jsonl", b"")
@example("sentiment", "run/metrics.jsonl", b"[1]")
@example("sentiment", "run/metrics.jsonl", b"[" * 100_000)
@example("sentiment", "run/config.json", b'{"settings": []}')
@example("sentiment", "predictions/full-model-sst-dev-out.csv", b'id\n"a, 1')
def test_files_of_other_runs_are_whole_or_named(tmp_path_factory, task, file, data):
    folder = tmp_path_factory.mktemp("runs") / "it"
    outcome = finished(folder, task)
    (folder / file).write_bytes(data)
    said = outcome.damage()
    assert "\n" not in said
    if file.endswith(("config.json", "metrics.jsonl")):
        assert said.startswith("its files are incomplete")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e400", "-1", '"0.5"', "true", "null", "[0.5]", "1" + "0" * 400])
def test_metrics_that_are_no_measured_numbers_are_damage(tmp_path, value):
    outcome = finished(tmp_path / "it", "sentiment")
    path = tmp_path / "it" / "run" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"dev_acc": 0.5', f'"dev_acc": {value}'))
    assert "measured" in outcome.damage() or "not supported between" in outcome.damage()


def test_predictions_count_row_by_row_and_only_of_devs_rows(tmp_path):
    """Also where ids are not all different."""
    rows = "".join(f"{id_}\t{text}\t{label}\n" for id_, text, label in (("a", "x", 3), ("a", "y", 0), ("b", "z", 1)))
    for split in ("train", "dev"):
        (tmp_path / f"ids-sst-{split}.csv").write_text("id\tsentence\tsentiment\n" + rows)
    outcome = finished(tmp_path / "it", "sentiment")
    path = tmp_path / "it" / "predictions" / "full-model-sst-dev-out.csv"
    path.write_text("id \t x \na, 3 \na, 1 \nb, 1 \n")
    assert Results([outcome], str(tmp_path)).right(outcome).tolist() == [True, False, True]
    other = Outcome(outcome.experiment, 1, outcome.folder)
    path.write_text("id \t x \na, 3 \nb, 1 \n")
    with pytest.raises(InputError, match="not of the rows of dev"):
        Results([other], str(tmp_path)).right(other)


@anywhere
@given(data=st.one_of(st.binary(max_size=30), json_values.map(json.dumps).map(str.encode)))
@example(b'{"attempts": "x"}')
@example(b'{"attempts": 1, "settings": []}')
@example(b"[" * 100_000)
def test_what_a_run_was_begun_with_is_a_table_or_nothing(tmp_path, data):
    (tmp_path / "begun.json").write_bytes(data)
    begun = _begun(tmp_path)
    assert isinstance(begun.pop("attempts"), int)
    assert all(isinstance(kind, dict) for kind in begun.values())


def test_a_folder_that_is_no_runs_is_not_deleted(tmp_path):
    experiment = Experiment("sonnet", "sonnets", "gpt2", "full", "", ())
    study = Study(tmp_path, [experiment], [1], "data")
    pending = [Outcome(experiment, 1, tmp_path / "sonnets-gpt2-full-seed1", "not run")]
    (pending[0].folder / "poems").mkdir(parents=True)
    for damaged in (None, b"", b"{}"):
        if damaged is not None:
            (pending[0].folder / "begun.json").write_bytes(damaged)
        with pytest.raises(InputError, match="move it out of the way"):
            study.execute(pending, {experiment: 1.0}, StopRequest())
        assert (pending[0].folder / "poems").is_dir()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("settings model_path", True),
        ("settings model_path", "\ud800"),
        ("settings model_size", ["mini"]),
        ("settings max_train_samples", "5"),
        ("settings max_train_samples", 0),
        ("settings max_train_samples", True),
        ("settings max_eval_samples", 5.0),
        ("settings max_eval_samples", []),
        ("hardware device", "a\nb"),
        ("hardware device", None),
        ("versions torch", 2.1),
        ("precision", {}),
        ("parameters trained", 0),
    ],
)
def test_settings_that_no_table_can_show_are_damage(tmp_path, path, value):
    outcome = finished(tmp_path / "it", "sentiment")
    config = tmp_path / "it" / "run" / "config.json"
    values = json.loads(config.read_text())
    *tables, name = path.split()
    (values[tables[0]] if tables else values)[name] = value
    config.write_text(json.dumps(values))
    assert outcome.damage().startswith("its files are incomplete")


def test_scores_of_no_method_are_damage(tmp_path):
    outcome = finished(tmp_path / "it", "sonnet")
    (tmp_path / "it" / "run" / "scores.json").write_text('{"dev": {}}')
    assert outcome.damage().startswith("its files are incomplete")


@pytest.mark.parametrize("name", [field.name for field in fields(Scores)])
def test_scores_of_sonnets_are_all_there(tmp_path, name):
    outcome = finished(tmp_path / "it", "sonnet")
    path = tmp_path / "it" / "run" / "scores.json"
    scores = json.loads(path.read_text())
    del scores["dev"]["it"][name]
    path.write_text(json.dumps(scores))
    assert outcome.damage().startswith("its files are incomplete")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_log_that_is_no_file_is_named(tmp_path, make):
    make(tmp_path / "log.txt")
    with pytest.raises(InputError, match=r"log.txt: is a"), output_to(tmp_path):
        pass


@pytest.fixture
def searching(model, tmp_path) -> Callable[[], str]:
    """What a search says of the storage beside it, which is another's."""
    storage = f"sqlite:///{tmp_path / 'search.db'}"
    flags = ["--model_path", str(model)]
    return lambda: outcome_of(
        lambda: search.search("sonnet", 1, flags, str(TOY_DATA), tmp_path, storage, StopRequest())
    )


def test_a_storage_does_not_lead_out_of_its_folder(searching, tmp_path):
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'search.db'}", study_name="sonnets")
    for name in (5, "../up", ""):
        study.set_user_attr("folder", name)
        assert "is another program's" in searching()


def test_a_storage_with_trials_of_another_program_is_named(searching, tmp_path):
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'search.db'}", study_name="sonnets")
    study.add_trial(optuna.trial.create_trial(params={}, distributions={}, value=1.0))
    assert "trial 0 of sonnets has settings of no search" in searching()
