"""Whatever stands in a flag: it is in range, or refused in one line."""

from __future__ import annotations

import contextlib
import io
import math
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from outcomes import load, outcome_of, read_dev

import classifier
import paraphrase_detection
import predict
import pretrain
import reproduce
import sonnet_generation
from config import InputError
from models.generation import Sampling
from tasks.corpus import find_texts
from tasks.report import make_folder
from training.flags import TOY_DATA, Parser

SCRIPTS = (classifier, paraphrase_detection, sonnet_generation, pretrain, predict, reproduce)


def flags_of(script, numeric: bool) -> list[tuple]:
    """Those that take a number, or those that take any text."""
    found: list[tuple] = []

    def collect(self, *_):
        named = [action for action in self._actions if action.option_strings]
        given = [action for action in named if action.nargs != 0 and not action.choices]
        found.extend((script, action.option_strings[0]) for action in given if bool(action.type) == numeric)
        raise InterruptedError

    with mock.patch.object(Parser, "parse_args", collect), contextlib.suppress(InterruptedError):
        script.parse_flags([])
    return found


FLAGS = [flag for script in SCRIPTS for flag in flags_of(script, numeric=True)]
NAMES = [flag for script in SCRIPTS for flag in flags_of(script, numeric=False)]
SHARES = {"train_size", "held_out", "dropout", "hidden_dropout_prob", "lora_dropout"}
NEEDED = {pretrain: ["--corpus", "x", "--eval_every_steps", "1"], predict: ["x"]}
edges = [
    "0", "-1", "1.5", "nan", "inf", "-inf", "1e400", "-1e400", "1e-400", "1e308", "", " ", "\0", "1\0", "10" * 15,
    "1" + "0" * 5000, "0x10", "1_0", "٣", "+1", "--1", "1e5", "1,2", "true", "\x1b[2J", "9223372036854775808",
]  # fmt: skip


def parsed(script, arguments: list[str]) -> dict | None:
    """The settings; None where the script ends with 2 and one line."""
    error, code, found = io.StringIO(), 0, None
    try:
        with contextlib.redirect_stderr(error):
            found = script.parse_flags(arguments)
    except SystemExit as ended:
        code = ended.code
    assert code == (2 if found is None else 0)
    assert error.getvalue().count("\n") == (found is None)
    return found


# A line break within a number is not looked at here.
texts = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=6)


@settings(max_examples=150, deadline=None)
@given(
    which=st.sampled_from(FLAGS),
    text=st.one_of(st.sampled_from(edges), st.integers().map(str), st.floats().map(str), texts),
)
def test_a_number_is_in_range_or_refused_in_one_line(which, text):
    script, flag = which
    needed = [] if flag in ("--minutes", "--tokens") or script is not pretrain else ["--tokens", "5"]
    found = parsed(script, [*NEEDED.get(script, []), *needed, f"{flag}={text}"])
    if found is not None:
        name = flag.removeprefix("--")
        values = found[name] if isinstance(found[name], list) else [found[name]]
        assert all(math.isfinite(value) and value >= 0 for value in values)
        assert name not in SHARES or all(value < 1 for value in values)


@pytest.mark.parametrize(
    ("script", "flag", "refused"),
    [
        (classifier, "--epochs", ["0", "-1", "1.5", "", "nan"]),
        (classifier, "--lr", ["0", "nan", "inf", "1e400", "1e-400", ""]),
        (classifier, "--batch_size", ["-1", "0", "1e3"]),
        (classifier, "--seed", ["-1", str(2**63)]),
        (sonnet_generation, "--patience", ["0"]),
        (sonnet_generation, "--train_size", ["1.5", "0", "1", "nan"]),
        (sonnet_generation, "--temperature", ["-1", "1e-320", "1e-4", "inf"]),
        (sonnet_generation, "--num_candidates", ["0", str(10**30)]),
        (sonnet_generation, "--max_new_tokens", [str(10**30)]),
        (predict, "--temperature", ["-1", "nan", "inf"]),
        (predict, "--num_candidates", ["0", str(10**30)]),
        (predict, "--seed", ["-1", str(2**63)]),
        (predict, "--input", [""]),
        (reproduce, "--model_path", [""]),
        (reproduce, "--runs_dir", [""]),
        (reproduce, "--storage", [""]),
        (reproduce, "--seeds", ["", ",", "1,", "1,-1", str(10**30)]),
        (pretrain, "--n_layer", [str(10**30)]),
        (pretrain, "--vocab_size", [str(10**30), "256"]),
        (pretrain, "--minutes", ["1e308", "0"]),
        (pretrain, "--tokens", ["1" + "0" * 400]),
    ],
)
def test_numbers_that_no_run_can_use_are_refused(script, flag, refused):
    for text in refused:
        assert parsed(script, [*NEEDED.get(script, []), f"{flag}={text}"]) is None


def test_names_that_lead_nowhere_are_refused(tmp_path):
    for text in ("a\0b", "x" * 5000, str(tmp_path / "none" / "\ud800")):
        assert outcome_of(lambda text=text: load(text))
        assert outcome_of(lambda text=text: read_dev(Path(text)))
        assert outcome_of(lambda text=text: find_texts([text]))
    for text in ("", "a\0b", "x" * 5000, "/dev/null/x", str(tmp_path / "\udcff")):
        assert outcome_of(lambda text=text: make_folder({"output_dir": text}, "output_dir"))
    assert "--model_path is empty" in outcome_of(lambda: load(""))
    assert "no such file" in outcome_of(lambda: find_texts([""]))


def test_a_network_larger_than_the_machine_is_refused_before_it_is_built(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("a\n\nb\n")
    flags = ["--corpus", str(tmp_path / "text.txt"), "--output_dir", str(tmp_path / "run"), "--tokens", "9"]
    large = ["--n_embd", "65536", "--n_head", "1", "--n_layer", "64", "--device", "cpu"]
    assert pretrain.main([*flags, *large]) == 2
    assert "GiB to train" in capsys.readouterr().err


def test_the_message_is_one_printable_line_however_long():
    message = str(InputError("a\n\nb\t\x1b[2J\u2028\ud800" + "x" * 10_000 + " leave out --resume"))
    assert message.startswith(r"a b \x1b[2J \ud800x")
    assert message.endswith("x leave out --resume")
    assert len(message) < 1300


@pytest.mark.parametrize("text", ["٣", "\uff11", "1_0", "1_000.5", "½"])
def test_digits_are_those_of_ascii(text):
    assert parsed(classifier, [f"--epochs={text}"]) is None
    assert parsed(classifier, [f"--lr={text}"]) is None


@pytest.mark.parametrize(("script", "flag"), NAMES)
def test_no_name_is_empty(script, flag, capsys):
    with pytest.raises(SystemExit, match="2"):
        script.parse_flags([*NEEDED.get(script, []), flag, ""])
    assert f"{flag} is empty" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--epochs", "9" * 5000], ["--device", "\x1b[2J" * 999], ["\x1b[31m\n\u2028x"]])
def test_what_is_said_of_a_flag_is_one_printable_line_of_bounded_length(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        classifier.parse_flags(arguments)
    said = capsys.readouterr().err
    assert said.endswith("(see classifier.py --help)\n")
    assert said[:-1].isprintable()
    assert len(said) < 1300


@pytest.mark.parametrize("flag", ["--lr", "--weight_decay", "--lora_alpha"])
def test_rates_that_lead_out_of_float32_are_refused(flag):
    assert parsed(classifier, [flag, "1e30"]) is None
    assert flag != "--lora_alpha" or parsed(classifier, [flag, "1e-30"]) is None
    assert parsed(classifier, [flag, "3.5"])[flag[2:]] == 3.5


def test_a_share_below_the_least_float32_still_admits_the_likeliest_token():
    drawn = Sampling(top_p=1e-308).draw(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([7]), 0)
    assert drawn.tolist() == [1]


def test_what_is_in_the_place_of_predictions_is_seen_before_training(model, tmp_path, capsys):
    """A folder; files, pipes and links are replaced."""
    flags = ["--model_path", str(model), "--data_dir", str(TOY_DATA), "--output_dir", str(tmp_path / "run")]
    for script, name in (
        (classifier, "last-linear-layer-sst-dev-out.csv"),
        (paraphrase_detection, "para-test-output.csv"),
        (sonnet_generation, "generated_sonnets_dev.txt"),
    ):
        (tmp_path / name).mkdir()
        assert script.main([*flags, "--predictions_dir", str(tmp_path)]) == 2
        assert f"{name}: is a directory" in capsys.readouterr().err
