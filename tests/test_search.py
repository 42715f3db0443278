"""The search: what a setting is judged by, and workers that share a study, die, or are asked to stop."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import optuna
import pytest
from conftest import ROOT
from optuna.trial import FixedTrial, TrialState

import reproduce
from config import InputError
from reproduction import search as module
from reproduction.runner import script_of
from reproduction.search import Search, suggest
from tasks.sonnets import read_sonnets
from training.interrupt import Interrupted, StopRequest
from training.objectives import TrainingFailed
from training.trainer import Trainer

TOYS = ROOT / "data" / "mini"


@pytest.fixture
def model(save_stock) -> Path:
    return save_stock(n_positions=300, n_layer=1)


@pytest.fixture
def make(model, tmp_path):
    """A search on the toy sonnets."""

    def build(task: str = "sonnet", dataset: str = "sonnets", *more: str, stop: StopRequest | None = None) -> Search:
        flags = ["--model_path", str(model), "--epochs", "3", *more]
        storage = f"sqlite:///{tmp_path / 'search.db'}"
        return Search(task, dataset, flags, str(TOYS), tmp_path / "search", storage, stop or StopRequest())

    return build


@pytest.mark.parametrize("task", ["sentiment", "paraphrase", "sonnet"])
def test_suggestions_are_flags_of_the_script_and_follow_from_the_trial(task):
    study = optuna.create_study()
    seen = set()
    for _ in range(30):
        trial = study.ask()
        flags = suggest(task, trial)
        settings = script_of(task).parse_flags(flags)
        for name in ("batch_size", "dropout", "patience"):
            assert settings[name] == trial.params[name]
        assert settings["use_lora"] == (trial.params["method"] == "lora")
        assert suggest(task, FixedTrial(trial.params)) == flags
        seen |= trial.params.keys()
    assert {"lr", "lora_lr", "lora_rank", "lora_alpha", "lora_target", "lora_dropout"} <= seen
    assert ("train_size" in seen) == (task == "sonnet")


@pytest.mark.parametrize("share", [0.8, 0.9])
def test_all_trials_are_judged_by_the_same_part_of_the_training_file(make, share):
    one = make()
    settings = {"max_train_samples": None, "seed": 1}
    splits = one._splits(settings | {"train_size": share})
    learned, held_out = (set(splits[name].numbers) for name in ("train", "dev"))
    poems = read_sonnets(TOYS / "sonnets.txt")
    assert not learned & held_out
    assert learned | held_out <= set(poems.numbers)
    assert len(learned) == pytest.approx(share * len(poems.numbers), abs=1)
    assert held_out == set(one._splits(settings | {"train_size": 0.9})["dev"].numbers)
    study = make("paraphrase", "quora")
    pairs = study._splits(settings | {"max_train_samples": 50})
    assert (len(pairs["train"].ids), len(pairs["dev"].ids)) == (45, 5)
    assert {row for split in pairs.values() for row in split.ids} == set(study.rows.sample(50).ids)


def test_a_trials_value_is_its_lowest_validation_loss(make, capsys):
    one = make()
    best = one.run(2)
    trials = one.study.trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    for trial in trials:
        run = one.folder / f"trial-{trial.number}" / "run"
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses = {line["epoch"]: line["val_loss"] for line in lines if line["epoch"]}
        assert trial.value == min(losses.values())
        assert trial.intermediate_values == losses
        assert not (run / "best").exists()
        settings = json.loads((run / "config.json").read_text())["settings"]
        assert settings["batch_size"] == trial.params["batch_size"]
    assert best.value == min(trial.value for trial in trials)
    assert "trial 1: loss" in capsys.readouterr().out
    assert one.run(2) == best


def test_unpromising_trials_are_pruned_and_failures_cost_nothing_else(make, capsys):
    one = make()
    for trials, error in enumerate((TrainingFailed("not finite"), RuntimeError("out of memory")), 1):
        fails = mock.patch("reproduction.search.fine_tune", side_effect=error)
        with fails, pytest.raises(TrainingFailed, match="no trial was trained to its end"):
            one.run(trials)
    with mock.patch.object(optuna.Trial, "should_prune", lambda trial: trial.number == 2):
        assert one.run(4).number == 3
    states = [trial.state for trial in one.study.trials]
    assert states == [TrialState.PRUNED, TrialState.FAIL, TrialState.PRUNED, TrialState.COMPLETE]
    assert len(one.study.trials[2].intermediate_values) == 1
    assert "out of memory" in (one.folder / "trial-1" / "log.txt").read_text()
    output = capsys.readouterr().out
    assert "trial 1: fail" in output
    assert "trial 2: pruned" in output


def test_a_trial_that_was_broken_off_is_gone_on_with(make):
    stop = StopRequest()
    one = make(stop=stop)
    whole = module.fine_tune

    def breaks_off(*arguments, watch, **rest):
        def watched(metrics):
            watch(metrics)
            if metrics["epoch"] == 2:
                stop.signum = signal.SIGTERM
                stop.check()

        return whole(*arguments, watch=watched, **rest)

    with mock.patch("reproduction.search.fine_tune", breaks_off), pytest.raises(Interrupted):
        one.run(1)
    stop.signum = None
    with mock.patch.object(Trainer, "_train_epoch", autospec=True, side_effect=Trainer._train_epoch) as epochs:
        best = one.run(1)
    assert epochs.call_count == 1
    assert sorted(best.intermediate_values) == [1, 2, 3]
    assert [trial.state for trial in one.study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert one.study.trials[0].params == best.params


def test_two_workers_share_a_study_and_one_takes_up_what_the_other_left(make, model, tmp_path):
    """They begin at the same moment, with no storage there yet; one is killed in the middle of a trial."""
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from transformers import AutoTokenizer\n"
        "import models.lora\n"
        "from reproduction import search as module\n"
        "from training.interrupt import StopRequest\n"
        "from training.run import Run\n"
        "module.SILENCE, module.HEARTBEAT, module.PAUSE = 3, 1, 0.5\n"
        "flags = ['--model_path', sys.argv[1], '--epochs', '3']\n"
        "where = [sys.argv[2], Path(sys.argv[3]) / 'search', 'sqlite:///' + sys.argv[3] + '/search.db']\n"
        "log = Run.log\n"
        "def log_and_die(run, metrics):\n"
        "    log(run, metrics)\n"
        "    if metrics['epoch'] == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "workers = []\n"
        "for own in (log_and_die, log):\n"
        "    workers.append(os.fork())\n"
        "    if workers[-1] == 0:\n"
        "        Run.log = own\n"
        "        module.Search('sonnet', 'sonnets', flags, *where, StopRequest()).run(5)\n"
        "        os._exit(0)\n"
        "print(*(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) for worker in workers), file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", program, str(model), str(TOYS), str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.stderr.split() == [str(-signal.SIGKILL), "0"], ended.stderr
    trials = make().study.trials
    ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    lost = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert len(ended) == 5
    assert len(lost) == 1
    assert sum(trial.params == lost[0].params for trial in ended) == 1
    assert len({tuple(trial.params.items()) for trial in ended}) == 5


def test_bad_input_ends_the_search_and_spoils_nothing(make, model):
    one = make()
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:100])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        one.run(1)
    (model / "model.safetensors").write_bytes(weights)
    assert one.run(1).state == TrialState.COMPLETE


def test_a_study_of_other_data_or_flags_is_refused(make, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0)
    make()
    with pytest.raises(InputError, match="other settings"):
        make("sonnet", "sonnets", "--max_new_tokens", "9")
    for url in ("nonsense", f"sqlite:///{tmp_path}/no/folder.db", "postgresql://u:p@h:abc/x"):
        with pytest.raises(InputError, match="--storage"):
            Search("sonnet", "sonnets", ["--model_size", "mini"], str(TOYS), tmp_path, url, StopRequest())


def test_the_command_says_what_was_best(model, tmp_path, capsys):
    where = ["--runs_dir", str(tmp_path / "runs"), "--data_dir", str(TOYS), "--model_path", str(model)]
    assert reproduce.main(["--preset", "quick", "--search", "paraphrase", "--trials", "1", *where]) == 0
    output = capsys.readouterr().out
    command = output[output.index("paraphrase_detection.py") :].split()[1:]
    assert script_of("paraphrase").parse_flags(command)["model_path"] == str(model)
    assert (tmp_path / "runs" / "search" / "search.db").is_file()
    assert (
        reproduce.main(["--search", "sonnet", "--trials", "1", *where[:4], "--model_path", str(tmp_path / "no")]) == 2
    )
