"""Several processes give what one gives."""

from __future__ import annotations

import importlib
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from conftest import ROOT, read_events, scramble, stock_config, write_tokenizer
from safetensors.torch import load_file

TOYS = ROOT / "data" / "mini"
WORKER = Path(__file__).with_name("worker.py")
FEW = "--max_train_samples 17 --max_eval_samples 7 --dropout 0 --precision fp32 --device cpu --skip_bad_rows"
SAME = "--hidden_dropout_prob 0 --lora_dropout 0"  # with the three of the network, all that is random
# Sizes that divide by no number of processes; the batches of two are smaller than three processes.
RUNS = {
    "full": (
        "classifier",
        f"{FEW} {SAME} --dataset sst --fine_tune_mode full-model --batch_size 5 --epochs 5 --patience 1",
    ),
    "tiny": ("classifier", f"{FEW} {SAME} --dataset cfimdb --fine_tune_mode full-model --batch_size 2 --epochs 1"),
    "decay": (
        "classifier",
        f"{FEW} {SAME} --dataset sst --fine_tune_mode full-model --batch_size 7 --epochs 1 --micro_batch_size 2 "
        "--max_grad_norm 0.5 --weight_decay 0.1",
    ),
    "last": ("classifier", f"{FEW} {SAME} --dataset sst --fine_tune_mode last-linear-layer --batch_size 5 --epochs 2"),
    "lora": (
        "paraphrase_detection",
        f"{FEW} {SAME} --use_lora --lora_rank 4 --lora_target all-linear --batch_size 5 --epochs 2 --save_merged "
        "--head_init cloze",
    ),
    "sonnets": (
        "sonnet_generation",
        f"{FEW} --lr 1e-3 --batch_size 3 --epochs 3 --patience 1 --train_size 0.6 --max_new_tokens 5",
    ),
    "pretrain": (
        "pretrain",
        f"--corpus {TOYS / 'sonnets.txt'} --vocab_size 300 --n_layer 1 --n_embd 32 --n_head 2 --n_positions 64 "
        "--tokens 3000 --batch_tokens 500 --eval_every_steps 3 --held_out 0.2 --precision fp32 --device cpu",
    ),
}
BY_TWO = ("full", "decay", "last")
BY_THREE = ("full", "tiny", "lora", "sonnets", "pretrain")
SHARDED = {"full": [], "decay": ["--checkpoint_activations"], "last": [], "lora": [], "sonnets": []}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    scramble(transformers.GPT2LMHeadModel(stock_config(n_positions=300, n_head=2, n_embd=32))).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def job(model, runs):
    """Of a run, to a folder of its own."""

    def build(folder: str, run: str, *more: str, **rest) -> dict:
        script, flags = RUNS[run]
        flags = [*flags.split(), *more, "--output_dir", str(runs / folder)]
        if script != "pretrain":
            flags += ["--model_path", str(model), "--predictions_dir", str(runs / folder / "p")]
            flags += [] if "--data_dir" in more else ["--data_dir", str(TOYS)]
        return {"script": script, "flags": flags} | rest

    return build


def launch(runs: Path, processes: int, jobs: list[dict], restarts: int = 0) -> tuple[list[list[int]], str]:
    """Exit codes of the jobs in each process, and what all said."""
    file = runs / f"{len(list(runs.glob('*.jobs')))}.jobs"
    file.write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["--max_restarts", str(restarts), str(WORKER), str(file)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    return [json.loads(file.with_suffix(f".codes-{rank}").read_text()) for rank in range(processes)], done.stdout


def alone(job: dict) -> None:
    assert importlib.import_module(job["script"]).main(job["flags"]) == 0


@pytest.fixture(scope="module")
def of_one(runs, job) -> None:
    for name in RUNS:
        alone(job(f"{name}-1", name))


@pytest.fixture(scope="module")
def of_two(runs, job, model, of_one) -> str:
    """Among them, one run that is stopped for three processes to go on with, and one for one."""
    stop = {"signal": signal.SIGTERM, "rank": 1}
    random = ("--dropout", "0.2", "--lora_dropout", "0.1")
    jobs = [job(f"{name}-2", name) for name in BY_TWO]
    jobs += [job(f"{name}-2-sharded", name, "--shard", *more) for name, more in SHARDED.items()]
    jobs += [job("full-2-then-3", "full", after=5, **stop), job("lora-2-then-1", "lora", after=5, **stop)]
    jobs += [job("pretrain-2-then-3", "pretrain", after=4, **stop)]
    jobs += [job("random", "lora", *random), job("random-stopped", "lora", *random, after=3, **stop)]
    jobs += [job("random-stopped", "lora", *random, "--resume")]
    jobs += [job("no such data", "full", "--data_dir", str(runs / "nowhere"))]
    flags = f"--preset demo --tasks paraphrase --data_dir {TOYS} --model_path {model} --runs_dir {runs / 'reproduce'}"
    jobs += [{"script": "reproduce", "flags": [*flags.split(), "--report_dir", str(runs / "report")]}]
    jobs += [job("killed", "full", "--save_every_steps", "2", signal=signal.SIGKILL, after=4, rank=1)]
    codes, said = launch(runs, 2, jobs, restarts=1)
    expected = [0] * (len(BY_TWO) + len(SHARDED)) + [143] * 3 + [0, 143, 0, 2, 0, 0]
    assert codes == [expected] * 2, said
    return said


@pytest.fixture(scope="module")
def of_three(runs, job, of_two) -> None:
    jobs = [job(f"{name}-3", name) for name in BY_THREE]
    jobs += [job("full-2-then-3", "full", "--resume"), job("pretrain-2-then-3", "pretrain", "--resume")]
    jobs += [job("tiny-3-sharded", "tiny", "--shard")]
    codes, said = launch(runs, 3, jobs)
    assert codes == [[0] * len(jobs)] * 3, said


def assert_same(first: Path, second: Path) -> None:
    """Losses and weights to 1e-5, and the same predictions."""
    (one,), (other,) = ([*folder.rglob("metrics.jsonl")] for folder in (first, second))
    lines = [[json.loads(line) for line in file.read_text().splitlines()] for file in (one, other)]
    assert len(lines[0]) == len(lines[1])
    for line, same in zip(*lines, strict=True):
        assert line.keys() == same.keys()
        for name in line.keys() - {"train_seconds", "eval_seconds", "peak_memory_bytes"}:
            assert line[name] == pytest.approx(same[name], abs=1e-5, rel=0), name
    events = [read_events(file.parent) for file in (one, other)]
    assert [event[:2] for event in events[0]] == [event[:2] for event in events[1]]
    for file in (*one.parent.glob("best/*"), *one.parent.glob("merged/*")):
        twin = other.parent / file.relative_to(one.parent)
        if file.suffix == ".safetensors":
            weights, same = load_file(file), load_file(twin)
            assert weights.keys() == same.keys()
            for name in weights:
                torch.testing.assert_close(weights[name], same[name], atol=1e-5, rtol=0, msg=f"{file} {name}")
        else:
            assert file.read_bytes() == twin.read_bytes(), file
    for file in (first / "p").glob("*"):
        assert file.read_bytes() == (second / "p" / file.name).read_bytes(), file


@pytest.mark.usefixtures("of_three")
@pytest.mark.parametrize("name", [*(f"{name}-2" for name in BY_TWO), *(f"{name}-3" for name in BY_THREE)])
def test_several_processes_give_what_one_gives(runs, name):
    assert_same(runs / f"{name.partition('-')[0]}-1", runs / name)


@pytest.mark.usefixtures("of_three")
@pytest.mark.parametrize("name", [*(f"{name}-2" for name in SHARDED), "tiny-3"])
def test_a_network_in_parts_gives_what_a_whole_one_gives(runs, name):
    assert_same(runs / f"{name.partition('-')[0]}-1", runs / f"{name}-sharded")


@pytest.mark.usefixtures("of_three")
def test_other_numbers_of_processes_go_on(runs, job):
    alone(job("lora-2-then-1", "lora", "--resume"))
    assert_same(runs / "lora-1", runs / "lora-2-then-1")
    assert_same(runs / "full-1", runs / "full-2-then-3")
    assert_same(runs / "pretrain-1", runs / "pretrain-2-then-3")


@pytest.mark.usefixtures("of_two")
def test_resumed_processes_draw_the_numbers_they_would_have_drawn(runs):
    assert_same(runs / "random", runs / "random-stopped")
    drawn, same = (load_file(runs / run / "best" / "adapter_model.safetensors") for run in ("random", "lora-1"))
    assert any(not torch.equal(drawn[name], same[name]) for name in drawn)


@pytest.mark.usefixtures("of_two")
def test_the_whole_grid_is_trained_by_all(runs):
    assert (runs / "report" / "report.md").is_file()
    for run in (runs / "reproduce").glob("quora*"):
        assert (run / "done").is_file()
        assert json.loads((run / "run" / "config.json").read_text())["hardware"]["processes"] == 2


def test_one_process_speaks_for_all(of_two):
    assert len(re.findall(r"nowhere.*ids-sst-train.csv", of_two)) == 1
    assert of_two.count("SIGTERM: stopped") == 4
    assert of_two.count("the model and its card are in") == of_two.count("ended after epoch")


@pytest.mark.usefixtures("of_two")
def test_no_thread_of_the_group_outlives_it(runs):
    """Of those that were started last, and trained in data-parallel: a thread might break off the interpreter's end."""
    for rank in range(2):
        assert "gloo" not in (runs / f"0.threads-{rank}").read_text()


def test_a_process_that_dies_ends_the_others_and_torchrun_goes_on(runs, of_two):
    assert re.search(r"exitcode: -9\) local_rank: 1", of_two)
    assert "another process has died" in of_two
    assert "nothing to resume" not in of_two
    assert_same(runs / "full-1", runs / "killed")
