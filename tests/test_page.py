"""The page, clicked through in a headless browser, and what it says against what `predict.py` says."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import peft
import pytest
import torch
import transformers
from conftest import ROOT
from test_paraphrase import quora  # noqa: F401
from test_sonnets import few_sonnets  # noqa: F401

import app
import classifier
import paraphrase_detection
import predict
import sonnet_generation
from config import InputError
from page.layout import MOST_CHARACTERS, MOST_WAITING
from page.models import TOY, distinct, load_models
from tasks.sonnets import recite
from tasks.verse import letters
from training.hardware import Precision
from training.interrupt import StopRequest

ON_CPU = ["--device", "cpu", "--precision", "fp32"]
HOSTILE = "\"'`<img src=x onerror=alert(1)> <script>alert(2)</script> ${alert(1)} {{7*7}} العربية \u202ertl 🦉👩🏽‍🚀"
LABELS = ["<img src=x onerror=alert(3)>", "<b>{{7*7}}</b>"]
SST, QUORA, SONNETS = TOY


def start(*flags: object) -> subprocess.Popen:
    command = [sys.executable, "app.py", *map(str, flags), *ON_CPU]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


class Server(NamedTuple):
    address: str
    own: str  # a classifier whose classes' names are HTML


@pytest.fixture(scope="module")
def server(adapter, tmp_path_factory):
    own = tmp_path_factory.mktemp("own") / "own"
    shutil.copytree(adapter, own)
    (own / "task.json").write_text(json.dumps({"name": "own", "labels": LABELS, "prompt": None}))
    process = start(*TOY, own, "--port", free_port())
    for line in process.stdout:
        if line.startswith("http"):
            break
    yield Server(line.split()[0], str(own))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert (process.returncode, said) == (130, "app.py: SIGINT: stopped\n"), said  # no traceback of any test


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("there is no Chromium to look at the page with")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"] * (os.geteuid() == 0))
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    """Open; in the end, nothing was asked of other machines, and the browser had nothing to complain of."""
    problems, hosts = [], set()
    with contextlib.closing(browser.new_page(viewport={"width": 1000, "height": 900})) as page:
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: hosts.add(request.url.split("/")[2]) if "://" in request.url else None)
        page.goto(server.address)
        page.get_by_role("button", name="Ask").wait_for()
        yield page
        assert problems == []
        assert hosts == {server.address.split("/")[2]}


def shown(page, role: str, name: str):
    return page.get_by_role(role, name=name, exact=True).locator("visible=true")


def fill(page, texts: dict[str, str]) -> None:
    """Until the boxes keep them: a tab that was just opened may yet set its own examples."""
    boxes = [(shown(page, "textbox", name), text) for name, text in texts.items()]
    while any(box.input_value() != text for box, text in boxes):
        for box, text in boxes:
            box.fill(text)
        page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def press(page, name: str, what: str = "button") -> None:
    """And waits for the last answer to what was pressed."""
    with page.expect_response(lambda response: "/queue/join" in response.url):
        shown(page, what, name).click()
    page.wait_for_function("!document.querySelector('[data-testid=status-tracker]:not(.hide)')")


def probabilities(page) -> dict[str, float]:
    rows = page.locator("meter >> visible=true").all()
    return {row.get_attribute("aria-label"): float(row.get_attribute("value")) for row in rows}


def words(page) -> list[str]:
    found = page.locator(".textfield >> visible=true").locator(".text").all_inner_texts()
    return [word.strip() for word in found]


def poem(page) -> tuple[list[str], list[str]]:
    field = page.locator(".textfield >> visible=true")
    lines = [text.strip("\n") for text in field.locator(".text").all_text_contents()]
    return lines, [text.strip() for text in field.locator(".label").all_text_contents()]


@pytest.fixture
def say(capsys):
    def say(*flags: object) -> str:
        capsys.readouterr()
        assert predict.main([*map(str, flags), *ON_CPU]) == 0
        return capsys.readouterr().out

    return say


@pytest.fixture
def said(say):
    def said(*flags: object) -> dict[str, float]:
        return json.loads(say(*flags, "--format", "jsonl"))["probabilities"]

    return said


def test_classes_words_and_models_to_choose_from(page, said):
    text = "A dull film that nobody needs."
    shown(page, "textbox", "Text").fill(f" {text}\n")
    press(page, "sst (LoRA)", "radio")
    ours = probabilities(page)
    assert ours == pytest.approx(said(SST, text), abs=2e-6)
    assert words(page) == text.split()
    assert "likeliest class" in page.content()
    press(page, "mini (base)", "radio")
    assert shown(page, "textbox", "Text").input_value() == f" {text}\n"
    assert probabilities(page) != ours
    press(page, "sst (LoRA)", "radio")
    assert probabilities(page) == ours
    for empty in ("", " \n"):
        shown(page, "textbox", "Text").fill(empty)
        press(page, "Ask")
        assert probabilities(page) == pytest.approx(said(SST, ""), abs=2e-6)
        assert words(page) == []

    page.get_by_role("tab", name="Two questions").click()
    pair = ["How old are you?", "What is your age?"]
    fill(page, dict(zip(("First question", "Second question"), pair, strict=True)))
    press(page, "Ask")
    assert probabilities(page) == pytest.approx(said(QUORA, *pair), abs=2e-6)
    assert words(page) == " ".join(pair).split()
    trained = probabilities(page)
    press(page, "mini (base)", "radio")
    assert probabilities(page) != trained
    assert sum(probabilities(page).values()) == pytest.approx(1)


GROWTH = """() => {
    window.counts = []
    new MutationObserver(() => {
        const now = [...document.querySelectorAll(".textfield .label")].length
        if (now && now !== window.counts.at(-1)) window.counts.push(now)
    }).observe(document.body, {childList: true, subtree: true, characterData: true})
}"""


def test_a_sonnet_grows_line_by_line_and_another_model_may_be_chosen_meanwhile(page, browser, say):
    page.get_by_role("tab", name="Sonnet").click()
    page.evaluate(GROWTH)
    first = ["When I do count the clock that tells the time,", "And see the brave day sunk in hideous night,"]
    press(page, "Write")
    drawn = ["--seed", 1, "--num_candidates", 1, "--temperature", 1.0]
    expected = say(SONNETS, *first, *drawn).splitlines()
    assert poem(page) == (expected, letters(expected))
    assert len(expected) <= 14
    counts = page.evaluate("window.counts")
    assert counts == sorted(counts)
    assert len(counts) > 3

    page.get_by_label("Seed").fill("2")
    shown(page, "button", "Write").click()
    page.wait_for_function(f"window.counts.length > {len(counts) + 2}")  # in the midst of it
    press(page, "mini (base)", "radio")
    other = say("mini", *first, *drawn[2:], "--seed", 2).splitlines()
    page.wait_for_function("n => document.querySelectorAll('.textfield .label').length == n", arg=len(other))
    assert poem(page) == (other, letters(other))

    with contextlib.closing(browser.new_page()) as another:
        for _ in range(2):  # the second time it is loaded anew while the poem is being written
            another.goto(page.url)
            another.get_by_role("tab", name="Sonnet").click()
            shown(another, "button", "Write").click()
            another.locator(".textfield .label").first.wait_for()
        press(page, "sonnets (LoRA)", "radio")
        another.wait_for_function("n => document.querySelectorAll('.textfield .label').length == n", arg=len(expected))
        assert poem(another)[0] == expected
    assert poem(page)[0] == say(SONNETS, *first, *drawn[2:], "--seed", 2).splitlines()
    shown(page, "textbox", "First lines").fill("a line\n" * 14)
    shown(page, "button", "Write").click()
    page.get_by_text("A sonnet has 14 lines").wait_for()


def test_what_visitors_and_runs_write_is_shown_as_it_is(page):
    boxes = {"Text": ["Text"], "Two questions": ["First question", "Second question"], "Sonnet": ["First lines"]}
    for tab, (box, *others) in boxes.items():
        page.get_by_role("tab", name=tab).click()
        for name in (box, *others):
            shown(page, "textbox", name).fill(HOSTILE)
        press(page, "Write" if tab == "Sonnet" else "Ask")
        if tab == "Text":
            assert probabilities(page).keys() == set(LABELS)
            assert page.locator(".output-class >> visible=true").inner_text() in LABELS
        if tab == "Sonnet":
            assert poem(page)[0][0] == HOSTILE
        else:
            assert words(page) == HOSTILE.split() * len(boxes[tab])
        assert page.locator("img[src=x]").count() == 0
        assert page.evaluate("[...document.scripts].filter(s => s.textContent == 'alert(2)').length") == 0


def test_on_a_telephone_nothing_is_wider_than_the_screen(page):
    page.set_viewport_size({"width": 390, "height": 844})
    for tab in ("Text", "Two questions", "Sonnet"):
        page.get_by_role("tab", name=tab).click()
        box = shown(page, "textbox", {"Text": "Text", "Sonnet": "First lines"}.get(tab, "First question"))
        box.fill("w" * (MOST_CHARACTERS - 2))
        box.press_sequentially("wide")
        assert box.input_value() == "w" * (MOST_CHARACTERS - 2) + "wi"
        press(page, "Write" if tab == "Sonnet" else "Ask")  # which scrolls to it
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert all(
            x + width <= 391
            for x, width in page.evaluate(
                "[...document.querySelectorAll('.textfield .text')].map(e => e.getBoundingClientRect())"
                ".map(r => [r.x, r.width])"
            )
        )


def test_what_comes_past_the_page_is_refused_too_and_it_goes_on(server):
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    client = Client(server.address, verbose=False)
    fine = ("sst (LoRA)", "a film")
    before = client.predict(*fine, api_name="/answer")
    asked = [("/answer", "sst (LoRA)", "x" * 1001), ("/answer", "nobody", "x"), ("/answer", ["sst (LoRA)"], "x")]
    asked += [("/write", "mini (base)", "x", *drawn) for drawn in ((3, 1), (1, -1), (1, "x"), (1, None), ("x", 1))]
    for name, *values in asked:
        with pytest.raises(AppError, match=r"^(?!.*show_error)"):
            client.predict(*values, api_name=name)
    assert client.predict("sst (LoRA)", "a\0 film", api_name="/answer") == before
    client.predict("sst (LoRA)", "🦉" * 1000, api_name="/answer")
    jobs = [client.submit("sst (LoRA)", f"word {i} " * 100, api_name="/answer") for i in range(2 * MOST_WAITING)]
    failures = [str(job.exception()) for job in jobs if job.exception()]
    assert any("full" in failure for failure in failures)
    assert len(failures) < len(jobs)
    assert client.predict(*fine, api_name="/answer") == before


def test_no_other_machine_reaches_it_and_bad_flags_are_one_line(server, tmp_path, capsys):
    port = int(server.address.strip("/").rsplit(":")[-1])
    for family, other in ((socket.AF_INET, "127.0.0.2"), (socket.AF_INET6, "::1")):
        with contextlib.suppress(OSError), socket.socket(family) as outside:  # a machine may lack IPv6
            assert outside.connect_ex((other, port))
    for flags, what in (([SST, "--port", port], str(port)), ([tmp_path], "neither a run")):
        capsys.readouterr()
        assert app.main([*map(str, flags), *ON_CPU]) == 2
        out, error = capsys.readouterr()
        assert what in error
        assert error.count("\n") == 1
        assert "http" not in out


def load(*names: object):
    return load_models([str(name) for name in names], Precision("fp32", torch.device("cpu")), StopRequest())


def train(script, out: str, *flags: object) -> Path:
    flags = [*map(str, flags), *ON_CPU, "--epochs", "1", "--lr", "3e-3", "--predictions_dir", "p", "--output_dir", out]
    assert script.main(flags) == 0
    return next((path for path in sorted(Path(out).iterdir()) if (path / "best").is_dir()), Path(out))


@pytest.fixture
def here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("here", "quick_scores")
def test_every_kind_of_run_says_what_predict_says_in_any_order(save_stock, data_dir, quora, few_sonnets, said, say):  # noqa: F811
    base = save_stock(n_positions=200)
    sst = ["--dataset", "sst", "--data_dir", data_dir, "--model_path", base, "--fine_tune_mode"]
    full = train(classifier, "full", *sst, "full-model")
    lora = train(classifier, "lora", *sst, "full-model", "--use_lora", "--save_merged")
    last = train(classifier, "last", *sst, "last-linear-layer")
    pairs = train(paraphrase_detection, "pairs", "--data_dir", quora, "--model_path", base, "--use_lora")
    poems = train(
        sonnet_generation,
        "poems",
        "--data_dir",
        few_sonnets,
        "--model_path",
        base,
        "--max_new_tokens",
        20,
        "--use_lora",
    )
    peft_adapter(base, "stock")
    custom = Path("custom")
    shutil.copytree("stock", custom)
    (custom / "task.json").write_text(json.dumps({"name": "mail", "labels": ["a", "", "a"], "prompt": "It says: {}"}))
    names = [full, lora, last, pairs, poems, lora / "merged", "stock", custom]
    models = load(*names)
    one, two = models.classifiers[1], models.classifiers[2]
    assert len(one) == 6 + 3
    assert list(two) == [f"{base.name} (base)", "pairs (LoRA)"]
    assert list(models.poets) == [f"{base.name} (base)", "poems (LoRA)"]

    text, pair = "warm film", ("one town?", "a town?")
    runs = [name for name in names if name not in (pairs, poems)]
    trained = [name for name in one if "(base)" not in name]
    asked = [(one[name], (text,)) for name in one] + [(two[name], pair) for name in two]
    before = [ask([texts])[0] for ask, texts in asked]
    for i in random.Random(0).choices(range(len(asked)), k=40):
        ask, texts = asked[i]
        np.testing.assert_array_equal(ask([texts])[0], before[i])
    for name, run in zip(trained, runs, strict=True):
        ours = before[list(one).index(name)]
        if run == custom:
            assert one[name].labels == ["a (class 0)", "(class 1)", "a (class 2)"]
            continue
        assert dict(zip(one[name].labels, ours, strict=True)) == pytest.approx(said(run, text), abs=2e-6)
    assert dict(zip(two["pairs (LoRA)"].labels, before[-1], strict=True)) == pytest.approx(said(pairs, *pair), abs=2e-6)
    for name, run in (("poems (LoRA)", poems), (f"{base.name} (base)", base)):
        poet = models.poets[name]
        poet.finished.use()
        *_, lines = recite(poet.finished.model, poet.finished.tokenizer, ["a film"], sampling(), 4, 20, StopRequest())
        drawn = ["--temperature", 1.0, "--top_p", 1.0, "--num_candidates", 1, "--seed", 4, "--max_new_tokens", 20]
        assert lines == say(run, "a film", *drawn).splitlines()


def sampling():
    from models.generation import Sampling

    return Sampling(1.0)


def peft_adapter(base: Path, where: str) -> None:
    torch.manual_seed(3)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, pad_token_id=0)
    model = peft.get_peft_model(model, peft.LoraConfig("SEQ_CLS", r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(where)


@pytest.mark.usefixtures("here")
def test_runs_that_lack_something_are_shown_without_it_or_refused(save_stock, capsys):
    for folder, positions in (("one/base", 200), ("two/base", 32), ("three/base", 200)):
        shutil.move(save_stock(n_positions=positions), folder)
    for name in ("one", "two", "three"):
        peft_adapter(Path(f"{name}/base").resolve(), f"{name}/run")
    found = load("one/run", "two/run")
    assert list(found.poets) == ["one/base (base)", "two/base (base)"]  # two of one name
    assert "is too short for the prompt" in capsys.readouterr().out  # of pairs, which two/base is not asked
    assert list(found.classifiers[2]) == ["one/base (base)"]

    (silent := Path("three/base/config.json")).write_text(
        json.dumps(json.loads(silent.read_text()) | {"eos_token_id": None, "pad_token_id": 5})
    )
    transformers.PreTrainedTokenizerFast(tokenizer_file="three/base/tokenizer.json", pad_token="a").save_pretrained(
        "three/base"
    )
    found = load("three/run")
    assert not found.poets
    assert found.classifiers[1]["run (LoRA)"]([("warm",)]).shape == (1, 3)
    with pytest.raises(InputError, match="none of the models"):
        load("three/base")
    Path("one/run/task.json").write_text(json.dumps({"name": "x", "labels": ["a", "b", "c"], "prompt": "{} {} {}"}))
    with pytest.raises(InputError, match="reads 3 texts"):
        load("one/run")
    with pytest.raises(InputError, match="given twice"):
        load("two/run", "two/run")
    shutil.rmtree("two/base")
    with pytest.raises(InputError, match="two/base"):
        load("two/run")


@pytest.mark.usefixtures("here")
def test_a_run_whose_base_is_gone_or_damaged_is_shown_without_it(save_stock, data_dir, said, capsys):
    base = save_stock(n_positions=100)
    flags = ["--dataset", "sst", "--data_dir", data_dir, "--model_path", base, "--fine_tune_mode", "full-model"]
    run = train(classifier, "run", *flags)
    name = f"{run.name} (full-model)"
    models = load(run)
    assert list(models.classifiers[1]) == [f"{base.name} (base)", name]
    expected = said(run, "warm film")
    for spoil in (lambda: (base / "model.safetensors").write_bytes(b"no"), lambda: shutil.rmtree(base)):
        spoil()
        assert list(load(run).classifiers[1]) == [name]
        assert "shown without its base" in capsys.readouterr().out
    shutil.rmtree(run)  # while the page is open
    (row,) = models.classifiers[1][name]([("warm film",)])
    assert list(row) == pytest.approx(list(expected.values()), abs=2e-6)


def test_classes_have_names_of_their_own():
    assert distinct(["no", "yes"]) == ["no", "yes"]
    assert distinct(["a", "", "a"]) == ["a (class 0)", "(class 1)", "a (class 2)"]
