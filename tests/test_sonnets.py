"""Sonnets: reading and writing them, continuing them, judging them, and the script."""

from __future__ import annotations

import json
import re
from pathlib import Path
from unittest import mock

import numpy as np
import peft
import pytest
import torch
import transformers
from conftest import ROOT, SHARED, needs_shared_data
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import CHRF

import sonnet_generation
from config import GPT2Config, InputError
from models.generation import Sampling
from models.gpt2 import GPT2Model
from models.heads import GPT2LMHeadModel
from models.pretrained import EMBEDDED, load_tokenizer
from tasks.sonnet_report import read_prompts
from tasks.sonnet_scores import Judge
from tasks.sonnets import (
    Sonnets,
    SonnetTask,
    complete,
    most_like_the_others,
    read_sonnets,
    recite,
    split,
    write_sonnets,
)
from tasks.verse import four_grams, letters, rhyme, rhymes, syllables
from training.early_stopping import EarlyStopping
from training.finished import load_finished
from training.interrupt import Interrupted, StopRequest

TOYS = ROOT / "data" / "mini"


@settings(max_examples=100, deadline=None)
@given(scores=st.lists(st.integers(-5, 5), min_size=1, max_size=12), patience=st.none() | st.integers(1, 4))
def test_early_stopping_counts_epochs_without_a_better_one(scores, patience):
    stopping, seen = EarlyStopping(patience), []
    for score in scores:
        assert stopping.improves(score) == (not seen or score > max(seen))
        seen.append(score)
        waited = len(seen) - 1 - seen.index(max(seen))
        assert stopping.over == (patience is not None and waited >= patience)
        stopping = EarlyStopping(patience, stopping.best, stopping.waited)  # as after an interruption


def poems_of(text: str, tmp_path: Path, **how) -> Sonnets:
    path = tmp_path / "sonnets.txt"
    path.write_bytes(text.encode())
    return read_sonnets(path, **how)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_reads_what_stands_below_numbers(tmp_path, end, mark):
    text = f"{mark}Sonnets\n\nby 4 poets\n\n 1 \n\nFirst line\n\n  Second, \n\n\n22\nThird".replace("\n", end)
    sonnets = poems_of(text, tmp_path)
    assert sonnets.numbers == ["1", "22"]
    assert sonnets.poems == [["First line", "", "  Second, "], ["Third"]]


def test_numbers_without_lines_are_listed_or_refused(tmp_path):
    text = "1\n\n2\n" + "".join(f"{n}\na line\n" for n in range(3, 300))
    sonnets = poems_of(text, tmp_path)
    assert len(sonnets.poems) == 297
    assert [(row.line, row.id) for row in sonnets.bad] == [(1, "1"), (3, "2")]
    assert poems_of("1\n\n2\na line", tmp_path, keep_empty=True).poems == [[], ["a line"]]
    with pytest.raises(InputError, match=r"1 of 2 rows.*line 1 "):
        poems_of("1\n\n2\na line", tmp_path)
    assert poems_of("1\n\n2\na line", tmp_path, skip_bad_rows=True).numbers == ["2"]


@pytest.mark.parametrize(
    ("text", "message"), [("a\nb\n", "no line holds a number"), ("", "no line holds"), ("1\n\n2\n \n", "2 of 2")]
)
def test_refuses_files_that_hold_no_sonnets(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        poems_of(text, tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_sonnets(tmp_path / "nowhere.txt")
    (tmp_path / "latin.txt").write_bytes(b"1\n\xe9\n")
    with pytest.raises(InputError, match="not UTF-8"):
        read_sonnets(tmp_path / "latin.txt")


line_of_text = st.text(
    st.characters(codec="utf-8", exclude_characters="\r\n", exclude_categories=["Cc", "Cs"]), min_size=1
)
poem_lines = st.lists(line_of_text.filter(lambda x: x.strip() and not x.strip().isdecimal()), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(poems=st.lists(poem_lines, min_size=1, max_size=4))
def test_what_is_written_is_read_back(tmp_path_factory, poems):
    path = tmp_path_factory.mktemp("out") / "generated.txt"
    write_sonnets(path, Sonnets(path, [str(i) for i in range(len(poems))], poems))
    assert read_sonnets(path).poems == poems
    course = [part.strip() for part in re.split(r"\n\s*\d+\s*\n", path.read_text(encoding="utf-8"))[1:]]
    assert course == ["\n".join(poem).strip() for poem in poems]


@settings(max_examples=50, deadline=None)
@given(count=st.integers(2, 40), share=st.floats(0.01, 0.99), seed=st.integers(0, 5))
def test_split_uses_every_sonnet_once(count, share, seed):
    sonnets = Sonnets(Path("x"), [str(i) for i in range(count)], [[f"line {i}"] for i in range(count)])
    train, validation = split(sonnets, share, seed)
    assert sorted(train.numbers + validation.numbers, key=int) == sonnets.numbers
    assert abs(len(train.poems) - share * count) <= 1
    assert validation.poems
    assert split(sonnets, share, seed)[0].numbers == train.numbers


def test_examples_end_with_end_of_text_and_know_nothing_of_one_another(save_stock):
    """The loss is the stock model's over each sonnet alone."""
    directory = save_stock(n_positions=128)
    stock = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    model = GPT2LMHeadModel(GPT2Model.from_pretrained(directory))
    tokenizer = load_tokenizer(directory, model.config)
    poems = [["the film a story", "with its cast"], ["warm"], ["in town", "", "  at night"]]
    examples = SonnetTask().encode(tokenizer, Sonnets(Path("x"), list("123"), poems))
    batch = examples.batch([0, 1, 2], torch.device("cpu"))
    expected, tokens = 0.0, 0
    for poem in poems:
        ids = torch.tensor([[0, *tokenizer("\n".join(poem))["input_ids"], 0]])
        expected += stock(ids, labels=ids).loss.item() * (ids.size(1) - 1)
        tokens += ids.size(1) - 1
    assert batch.tokens == tokens
    assert model.loss(*batch.inputs).item() == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def writer(save_stock):
    """A model that writes nonsense, and its tokenizer."""
    directory = save_stock(n_positions=96)
    model = GPT2LMHeadModel(GPT2Model.from_pretrained(directory))
    return model, load_tokenizer(directory, model.config)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_sonnets_begin_with_their_given_lines_and_stop_at_fourteen(writer, end, capsys):
    """Whatever the model writes: blank lines, numbers alone, carriage returns."""
    model, tokenizer = writer
    given = [["a film", "  in town "], [], ["one"] * 14, ["x"] * 16, ["so many words in the town " * 20]]
    prompts = Sonnets(Path("x"), list("12345"), given)
    script = tokenizer(f"\n\n7{end} 8 {end}" + f"warm\n\n{end}" * 40)["input_ids"]

    def scripted(model, ids, max_new_tokens, sampling, seeds, num_candidates, is_done):
        assert len(ids) == len(seeds) == 2  # those that are open
        written = []
        for number in range(2):
            new = script[:1]
            while not is_done(number, new):
                new = script[: len(new) + 1]
            written.append([new])
        return written

    with mock.patch("tasks.sonnets.generate", scripted):
        poems = complete(model, tokenizer, prompts, Sampling(), 1, 500, 1, StopRequest())
    (first,), (second,), *whole = poems
    assert first == ["a film", "  in town ", *["warm"] * 12]
    assert second == ["warm"] * 14
    assert [poem for (poem,) in whole] == given[2:]
    assert "sonnet 5 fills the context of 96 tokens" in capsys.readouterr().out


def test_says_which_continuations_are_cut_off(writer, capsys):
    model, tokenizer = writer
    prompts = Sonnets(Path("x"), ["1"], [["a film"]])
    with mock.patch.object(model.config, "eos_token_id", None):
        complete(model, tokenizer, prompts, Sampling(), 1, 5, 3, StopRequest())
    assert "3 of 3 continuations are cut off" in capsys.readouterr().out


def test_writing_can_be_interrupted(writer):
    model, tokenizer = writer
    stop = StopRequest()
    stop.signum = 15
    with pytest.raises(Interrupted):
        complete(model, tokenizer, Sonnets(Path("x"), ["1"], [["a film"]]), Sampling(), 1, 500, 1, stop)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 99), candidates=st.integers(1, 3))
def test_a_sonnet_is_the_same_whatever_the_others_are(tmp_path_factory, seed, candidates):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Model(GPT2Config(vocab_size=8192, n_positions=64, n_embd=32, n_layer=2, n_head=2)))
    model.transformer.init_weights()
    tokenizer = transformers.AutoTokenizer.from_pretrained(ROOT / "models" / "mini")
    model.config.eos_token_id = tokenizer.eos_token_id
    given = [["From fairest"], ["When forty winters shall", "And dig"], ["Look"]]
    prompts = Sonnets(Path("x"), list("123"), given)
    how = dict(sampling=Sampling(0.7, top_p=0.9), seed=seed, max_new_tokens=20, stop=StopRequest())
    together = complete(model, tokenizer, prompts, num_candidates=candidates, **how)
    with mock.patch("tasks.sonnets.CACHE_BYTES", 1):  # one prompt at a time
        assert complete(model, tokenizer, prompts, num_candidates=candidates, **how) == together
    assert complete(model, tokenizer, prompts.pick([2]), num_candidates=1, **how) == [together[2][:1]]
    for poem, versions in zip(given, together, strict=True):
        assert len(versions) == candidates
        assert all(version[: len(poem)] == poem and len(version) <= 14 for version in versions)


def test_who_reads_along_reads_what_is_written_at_once():
    finished = load_finished(str(EMBEDDED / "adapters" / "sonnets"), torch.device("cpu"))
    poem = ["When forty winters shall besiege thy brow,"]
    for seed, most in ((1, 256), (2, 256), (3, 40)):
        how = (Sampling(1.0, top_p=0.9), seed, most)
        ((whole,),) = complete(
            finished.model, finished.tokenizer, Sonnets(Path("x"), ["1"], [poem]), *how, 1, StopRequest()
        )
        versions = list(recite(finished.model, finished.tokenizer, poem, *how, StopRequest()))
        assert versions[0] == poem
        assert versions[-1] == whole
        assert [len(version) for version in versions[:-1]] == list(range(1, len(versions)))
        assert all(version == whole[: len(version)] for version in versions)
    full = ["a line"] * 14
    assert list(recite(finished.model, finished.tokenizer, full, *how, StopRequest())) == [full]
    stop = StopRequest()
    stop.signum = 2
    with pytest.raises(Interrupted):
        list(recite(finished.model, finished.tokenizer, poem, *how, stop))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.text("abc ", min_size=1, max_size=8), min_size=1, max_size=3), min_size=1, max_size=5))
def test_minimum_bayes_risk_takes_what_is_most_like_the_others(candidates):
    texts = ["\n".join(lines) for lines in candidates]
    chosen = most_like_the_others(candidates)
    if len(texts) > 1:
        utility = [
            np.mean([CHRF().sentence_score(text, [other]).score for j, other in enumerate(texts) if j != i])
            for i, text in enumerate(texts)
        ]
        assert utility[candidates.index(chosen)] == pytest.approx(max(utility))


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("When forty winters shall besiege thy brow", 10),
        ("That thereby beauty's rose might never die,", 10),
        ("", 0),
        ("Snorblex", 2),
        ("--", 0),
    ],
)
def test_syllables(line, count):
    assert syllables(line) == count


@pytest.mark.parametrize(
    ("first", "second", "does"),
    [
        ("to the day", "we went away.", True),
        ("in the night", "a sudden light!", True),
        ("my own day", "another day", False),
        ("the stone", "the tree", False),
        ("it glorbeth", "it zorbeth", True),
        ("", "a day", False),
    ],
)
def test_rhyme(first, second, does):
    assert rhyme(first, second) == rhyme(second, first) == does


def test_letters_of_a_scheme():
    ends = "day night may light stone hand alone land fire rose desire those see thee".split()
    assert "".join(letters([f"the {end}" for end in ends])) == "ABABCDCDEFEFGG"
    assert letters(["the cat", "a dog", "that cat,", "it sat", ""]) == ["A", "B", "A", "A", "C"]


def test_scores_of_known_poems():
    training = read_sonnets(TOYS / "sonnets.txt").poems
    dev = read_prompts(TOYS, "dev", None)
    judge = Judge(dev.given.poems, dev.truth, training)
    truth = judge.score(dev.truth)
    assert truth.chrf == truth.new_chrf == pytest.approx(100)
    assert truth.lines == 14
    assert truth.syllables == pytest.approx(10, abs=0.3)
    assert truth.rhymes > 6
    assert truth.copied < 0.01
    copied = judge.score([[*poem, *training[0][3:]] for poem in dev.given.poems])
    assert copied.copied > 0.9  # but for runs across the place where it was sewn
    rows = judge.baselines()
    assert rows["the sonnets themselves"] == truth
    alone = rows["the given lines alone"]
    assert (alone.new_chrf, alone.lines, alone.copied) == (0, 3, 0)
    unknown = Judge(dev.given.poems, None, training).baselines()
    assert all(row.chrf is None for row in unknown.values())


@needs_shared_data
def test_baselines_on_the_real_files():
    dev = read_prompts(SHARED / "data", "dev", None)
    sonnets = read_sonnets(SHARED / "data" / "sonnets.txt").poems
    assert (len(sonnets), len(dev.given.poems)) == (131, 12)
    rows = Judge(dev.given.poems, dev.truth, sonnets).baselines()
    assert rows["the given lines alone"].chrf == pytest.approx(24.77, abs=0.01)
    assert rows["and a training sonnet's last 11"].chrf == pytest.approx(41.5, abs=0.3)
    assert rows["and a training sonnet's last 11"].copied > 0.95
    assert rhymes(dev.truth[0]) >= 5
    assert len(four_grams(dev.truth[0])) > 80


@pytest.mark.parametrize("config", [{"eos_token_id": None}, {"eos_token_id": 77}])
def test_the_end_of_text_is_the_tokenizers(few_sonnets, save_stock, tmp_path, config):
    model = save_stock(n_positions=200)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(model / "tokenizer.json"), eos_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(model)
    values = json.loads((model / "config.json").read_text()) | config
    (model / "config.json").write_text(json.dumps(values))
    where = ["--output_dir", tmp_path / "run", "--predictions_dir", tmp_path, "--data_dir", few_sonnets]
    assert call(*where, "--model_path", model, "--epochs", 1, "--max_new_tokens", 2) == 0
    assert json.loads((tmp_path / "run" / "best" / "config.json").read_text())["eos_token_id"] == 0


def test_a_tokenizer_without_end_of_text_is_refused(few_sonnets, save_stock, tmp_path, capsys):
    model = save_stock(eos_token_id=None, pad_token_id=5)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(model / "tokenizer.json"), pad_token="a")
    tokenizer.save_pretrained(model)
    where = ["--output_dir", tmp_path / "run", "--predictions_dir", tmp_path, "--data_dir", few_sonnets]
    assert call(*where, "--model_path", model) == 2
    assert "no end-of-text token" in capsys.readouterr().err


def test_numbers_that_may_be_missing_are_pointed_out(tmp_path, capsys):
    poem = "a line\n" * 14
    poems_of(f"{poem}2\n{poem}{poem}4\n{poem}", tmp_path)
    output = capsys.readouterr().out
    assert "14 lines before the first number are not read" in output
    assert "sonnet 2 has 28 lines" in output


def call(*arguments) -> int:
    return sonnet_generation.main([str(a) for a in (*arguments, "--device", "cpu", "--precision", "fp32")])


@pytest.fixture
def few_sonnets(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir(exist_ok=True)
    lines = ["the film a story", "with its cast and", "one scene after another", "in town at night"]
    for name, first, count, length in (("sonnets", 1, 12, 14), ("TRUE_sonnets_held_out_dev", 20, 3, 14)):
        poems = [[lines[(i * j) % 4] + " warm dull"[: 5 * (i % 3)] for j in range(length)] for i in range(count)]
        write_sonnets(folder / f"{name}.txt", Sonnets(folder, [str(first + i) for i in range(count)], poems))
    dev = read_sonnets(folder / "TRUE_sonnets_held_out_dev.txt")
    for name in ("sonnets_held_out_dev", "sonnets_held_out"):
        write_sonnets(folder / f"{name}.txt", Sonnets(folder, dev.numbers, [poem[:3] for poem in dev.poems]))
    return folder


@pytest.mark.parametrize("method", ["full-model", "lora-4"])
def test_script_trains_writes_and_scores(few_sonnets, save_stock, tmp_path, monkeypatch, capsys, method):
    monkeypatch.chdir(tmp_path)
    model = save_stock(n_positions=200)
    lora = ["--use_lora", "--lora_rank", 4, "--save_merged"] if method == "lora-4" else []
    arguments = [
        "--model_path",
        model,
        "--data_dir",
        few_sonnets,
        "--lr",
        "1e-2",
        "--epochs",
        4,
        "--patience",
        1,
        *lora,
    ]
    assert call(*arguments, "--num_candidates", 2, "--max_new_tokens", 40) == 0
    output = capsys.readouterr().out
    assert "the given lines alone" in output
    run = tmp_path / "runs" / f"sonnets-{model.name}-{method}"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["val_loss"] for line in lines]
    assert lines[1]["train_loss"] < losses[0]
    scores = json.loads((run / "scores.json").read_text())
    assert scores["dev"]["the given lines alone"]["chrf"] > 0
    assert scores["test"]["the given lines alone"]["chrf"] is None
    for name in ("generated_sonnets", "generated_sonnets_dev"):
        poems = read_sonnets(tmp_path / "predictions" / f"{name}.txt").poems
        assert [poem[:3] for poem in poems] == read_sonnets(few_sonnets / "sonnets_held_out.txt").poems
        assert all(len(poem) <= 14 for poem in poems)

    ids = torch.randint(1, 400, (2, 20))
    expected = losses[1 + int(np.argmin(losses[1:]))]
    stock = transformers.AutoModelForCausalLM.from_pretrained(model if lora else run / "best")
    if lora:
        stock = peft.PeftModel.from_pretrained(stock, run / "best")
        merged = transformers.AutoModelForCausalLM.from_pretrained(run / "merged").eval()
        torch.testing.assert_close(stock.eval()(ids).logits, merged(ids).logits, rtol=0, atol=1e-4)
    validation = split(read_sonnets(few_sonnets / "sonnets.txt"), 0.9, 11711)[1]
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "best")
    total = count = 0
    for poem in validation.poems:
        ids = torch.tensor([[0, *tokenizer("\n".join(poem))["input_ids"], 0]])
        total += stock.eval()(ids, labels=ids).loss.item() * (ids.size(1) - 1)
        count += ids.size(1) - 1
    assert total / count == pytest.approx(expected, abs=1e-4)


def test_stops_at_the_first_epoch_without_a_better_loss_and_says_so(few_sonnets, save_stock, tmp_path, capsys):
    where = ["--output_dir", tmp_path / "run", "--predictions_dir", tmp_path, "--data_dir", few_sonnets]
    arguments = [*where, "--model_path", save_stock(n_positions=200), "--lr", "0.2", "--max_new_tokens", 2]
    assert call(*arguments, "--patience", 1, "--epochs", 30) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][1:]
    losses = [line["val_loss"] for line in lines]
    assert losses[:-1] == sorted(losses[:-1], reverse=True)
    assert losses[-1] > losses[-2]
    output = capsys.readouterr().out
    assert f"ended after epoch {len(losses)}: 1 in a row without a better one" in output
    assert f"the best is epoch {len(losses) - 1}" in output
    assert f"epoch {len(losses) - 1} of {len(losses)}" in output
    assert call(*arguments, "--patience", 1, "--epochs", 30, "--resume", "--num_candidates", 2) == 0
    assert f"epoch {len(losses) - 1} of {len(losses)}" in capsys.readouterr().out


def test_interrupted_half_way_through_its_patience_it_ends_the_same(few_sonnets, save_stock, tmp_path):
    model = save_stock(n_positions=200, resid_pdrop=0.1)
    common = ["--data_dir", few_sonnets, "--model_path", model, "--lr", "2e-2", "--batch_size", 3, "--epochs", 9]
    common += ["--save_every_steps", 1, "--max_new_tokens", 8]

    def run(name, *flags):
        return call(*common, "--output_dir", tmp_path / name, "--predictions_dir", tmp_path / name, *flags)

    def outcome(name):
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        files = [tmp_path / name / file for file in ("best/model.safetensors", "generated_sonnets.txt")]
        metrics = [{k: v for k, v in line.items() if "seconds" not in k} for line in lines]
        return metrics, [file.read_bytes() for file in files]

    assert run("whole") == 0
    code, stops = 143, 0
    while code == 143:
        steps = iter(range(6 + 14 * stops))  # more each time, for nothing of what is written is kept

        def check(request, steps=steps):
            if next(steps, None) is None:
                raise Interrupted(15)

        with mock.patch("training.interrupt.StopRequest.check", check):
            code = run("parts", "--resume")
        stops += 1
    assert code == 0
    assert stops > 1
    assert outcome("parts") == outcome("whole")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("sonnets.txt", "no numbers here\n", "no line holds a number"),
        ("sonnets.txt", "1\nonly one\n", "one sonnet cannot be split"),
        ("sonnets_held_out_dev.txt", "1\na\n\n2\nb\n", "3 sonnets have other numbers than the 2"),
        ("sonnets_held_out.txt", None, "no such file"),
    ],
)
def test_bad_files_end_with_2_and_one_line(few_sonnets, save_stock, tmp_path, capsys, file, text, message):
    if text is None:
        (few_sonnets / file).unlink()
    else:
        (few_sonnets / file).write_text(text)
    where = ["--output_dir", tmp_path / "run", "--predictions_dir", tmp_path, "--data_dir", few_sonnets]
    assert call(*where, "--model_path", save_stock()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_prompts_that_are_empty_or_fill_the_context(few_sonnets, save_stock, tmp_path, capsys):
    long = "the film a story with its cast " * 30
    (few_sonnets / "sonnets_held_out.txt").write_text(f"1\n\n2\n{long}\n")
    where = ["--output_dir", tmp_path / "run", "--predictions_dir", tmp_path, "--data_dir", few_sonnets]
    assert call(*where, "--model_path", save_stock(n_positions=100), "--epochs", 1) == 0
    assert "sonnet 2 fills the context" in capsys.readouterr().out
    poems = read_sonnets(tmp_path / "generated_sonnets.txt", keep_empty=True)
    assert poems.numbers == ["1", "2"]
    assert poems.poems[1] == [long.rstrip("\n")]


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--top_p", "1.01", "at most 1"),
        ("--top_p", "0", "above 0"),
        ("--temperature", "-1", "at least 0"),
        ("--train_size", "1", "below 1"),
        ("--patience", "0", "at least 1"),
        ("--num_candidates", "0", "between 1 and"),
        ("--top_k", "x", "whole number"),
    ],
)
def test_flags_out_of_range(capsys, flag, value, message):
    with pytest.raises(SystemExit) as ended:
        call(flag, value)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert flag in error
    assert message in error
    assert error.count("\n") == 1
