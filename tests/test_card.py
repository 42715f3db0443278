"""What a run says of itself when it is over: its card, its last lines, and its place on the Hub."""

from __future__ import annotations

import base64
import json
import re
import shlex
from pathlib import Path
from unittest import mock

import pytest
from huggingface_hub import ModelCard, constants
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from test_hub import COMMIT, Handler, Hub, serving, turn_to
from test_paraphrase import quora  # noqa: F401
from test_sonnets import few_sonnets  # noqa: F401

import classifier
import paraphrase_detection
import predict
import sonnet_generation
from tasks.card import CARD, escaped
from training.interrupt import Interrupted

ON_CPU = ["--device", "cpu", "--precision", "fp32"]


def call(script, *flags: object) -> int:
    return script.main([*map(str, flags), *ON_CPU])


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def sst(save_stock, data_dir):
    """Flags of a short run over 60 reviews."""
    flags = ["--dataset", "sst", "--fine_tune_mode", "full-model", "--data_dir", data_dir, "--lr", "3e-3"]
    return [*flags, "--model_path", save_stock(resid_pdrop=0.1), "--epochs", 2, "--predictions_dir", "."]


def best_of(run: str) -> dict[str, bytes]:
    (best,) = Path(run).rglob("best")
    return {path.name: path.read_bytes() for path in best.iterdir()}


def python_of(markdown: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", markdown, re.DOTALL)
    return code


@pytest.mark.usefixtures("quick_scores")
@pytest.mark.parametrize(
    ("task", "lora"),
    [("sentiment", []), ("pairs", ["--use_lora"]), ("sonnets", []), ("sonnets", ["--use_lora"])],
)
def test_card_is_valid_and_what_it_says_works(save_stock, request, tmp_path, monkeypatch, capsys, task, lora):
    script, data, more = {
        "sentiment": (classifier, "data_dir", ["--dataset", "sst", "--fine_tune_mode", "full-model"]),
        "pairs": (paraphrase_detection, "quora", []),
        "sonnets": (sonnet_generation, "few_sonnets", ["--max_new_tokens", 9]),
    }[task]
    flags = [*more, "--data_dir", request.getfixturevalue(data), "--model_path", save_stock(), "--lr", "3e-3"]
    flags += ["--epochs", 2, "--predictions_dir", "."]
    assert call(script, *flags, *lora, "--output_dir", "a`run|*x") == 0
    said = capsys.readouterr().out
    (run,) = [best.parent for best in Path().rglob("best")]
    text = (run / "best" / CARD).read_text()
    card = ModelCard.load(run / "best" / CARD)
    data, metrics = card.data, [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert data.pipeline_tag == ("text-generation" if task == "sonnets" else "text-classification")
    assert data.library_name == ("peft" if lora else "transformers")
    results = {result.metric_type: result for result in data.eval_results if result.dataset_split == "validation"}
    if task == "sonnets":
        (own,) = [v for k, v in json.loads((run / "scores.json").read_text())["dev"].items() if "epoch" in k]
        assert results["chrf"].metric_value == pytest.approx(own["chrf"], abs=1e-4)
    else:
        best = max(metrics[-2:], key=lambda line: line["dev_acc"])
        assert results["accuracy"].metric_value == pytest.approx(best["dev_acc"], abs=1e-4)
        assert results["f1"].metric_value == pytest.approx(best["dev_f1"], abs=1e-4)
        assert "95 % interval" in text
        assert f"dev accuracy {best['dev_acc']:.3f}" in said
    assert str(tmp_path) not in text
    assert "seconds" not in text
    monkeypatch.chdir(run)
    exec(python_of(text), {})
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"^  \./setup\.sh python predict\.py (.*)$", said, re.MULTILINE)
    assert call(predict, *shlex.split(command)) == 0


def test_a_run_that_was_interrupted_has_the_same_best_to_the_byte(sst):
    """Wherever it lies, and also if it goes on once it is over."""
    assert call(classifier, *sst, "--output_dir", "whole") == 0
    steps = iter(range(12))

    def check(request):
        if next(steps, None) is None:
            raise Interrupted(15)

    with mock.patch("training.interrupt.StopRequest.check", check):
        assert call(classifier, *sst, "--save_every_steps", 1, "--output_dir", "other/parts") == 143
    assert CARD not in best_of("other")
    for _ in range(2):
        assert call(classifier, *sst, "--output_dir", "other/parts", "--resume") == 0
        assert best_of("other") == best_of("whole")
    (card,) = Path("other").rglob(CARD)
    card.write_text("mine")
    assert call(classifier, *sst, "--output_dir", "other/parts", "--resume") == 0
    assert best_of("other") == best_of("whole")


@settings(max_examples=150, deadline=None)
@given(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
    | st.text("`*_[]()<>|~&!#+-.=1 \\a{}$:/\n", max_size=9)
)
@example("<script>alert(1)</script>")
@example("[a](http://b) ![c](d) &amp; **e** `f`")
def test_names_are_shown_as_they_are(text):
    markdown = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    shown = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    for before, after in (("", ""), ("# ", ""), ("| a |\n| --- |\n| ", " |")):
        tokens = markdown.parse(f"{before}{escaped(text)}{after}")
        (inline,) = [token for token in tokens if token.type == "inline" and token.content != "a"] or [None]
        if shown and shown != "a":
            assert {child.type for child in inline.children} == {"text"}
            assert "".join(child.content for child in inline.children) == shown


def test_a_name_made_to_break_the_card_does_not(sst, data_dir):
    evil = Path("a: b\n---\n# `x|*<b>")
    Path(sst[sst.index("--model_path") + 1]).rename(evil)
    sst[sst.index("--model_path") + 1] = evil
    assert call(classifier, *sst, "--output_dir", "run") == 0
    (path,) = Path("run").rglob(CARD)
    card = ModelCard.load(path)
    assert card.data.model_name == f"sst-{evil.name}-full-model"
    assert "<b>" not in card.text.replace("\\<b", "")


class Uploads(Handler):
    """Takes what `HfApi.upload_folder` sends: weights by git-lfs, the rest within the commit."""

    def do_GET(self) -> None:
        if self.path == f"/api/models/{self.server.repository}":
            return self.send({"id": self.server.repository, "sha": COMMIT, "siblings": []})
        if self.path.startswith(f"/api/models/{self.server.repository}/tree/main"):
            files = [{"type": "file", "path": p.name, "size": 1, "oid": "x"} for p in self.server.folder.iterdir()]
            return self.send(files)
        return super().do_GET()

    def do_PUT(self) -> None:
        self.server.large[self.path.removeprefix("/lfs/")] = self.body()
        self.send({})

    def do_POST(self) -> None:
        server, name, body = self.server, self.server.repository, self.body()
        if server.refuses:
            return self.send({"error": "not allowed"}, server.refuses)
        if self.path == "/api/repos/create":
            name = "/".join(filter(None, [json.loads(body)["organization"], json.loads(body)["name"]]))
            server.repository = name
            return self.send({"url": f"{server.address}/{name}"})
        if self.path == "/api/validate-yaml":
            return self.send({"errors": [], "warnings": []})
        if self.path == f"/api/models/{name}/preupload/main":
            modes = {True: "lfs", False: "regular"}
            files = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": p, "uploadMode": modes[p.endswith(".safetensors")], "shouldIgnore": False} for p in files]
            return self.send({"files": files})
        if self.path == f"/{name}.git/info/lfs/objects/batch":
            objects = json.loads(body)["objects"]
            for one in objects:
                one["actions"] = {"upload": {"href": f"{server.address}/lfs/{one['oid']}"}}
            return self.send({"transfer": "basic", "objects": objects})
        assert self.path == f"/api/models/{name}/commit/main"
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "deletedFile":
                (server.folder / value["path"]).unlink()
            elif line["key"] == "lfsFile":
                (server.folder / value["path"]).write_bytes(server.large[value["oid"]])
            elif line["key"] == "file":
                (server.folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
        address = f"{server.address}/{name}/commit/{COMMIT}"
        return self.send({"commitUrl": address, "commitOid": COMMIT, "success": True})

    def body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, answer: object, status: int = 200) -> None:
        contents = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(contents)))
        self.end_headers()
        self.wfile.write(contents)


def test_upload_and_use_from_the_hub(sst, tmp_path, monkeypatch, capsys):
    store = tmp_path / "store"
    store.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    server = Hub(store, Uploads, "none")
    server.large, server.refuses = {}, 403
    with serving(server):
        for number, lora in enumerate(([], ["--use_lora"])):
            turn_to(monkeypatch, server.address, tmp_path / f"cache{number}")
            flags = [*sst, *lora, "--output_dir", f"run{number}", "--push_to_hub", "someone/reviews"]
            server.refuses = 403
            assert call(classifier, *flags) == 1
            error = capsys.readouterr().err
            assert error.count("\n") == 1
            assert "--resume" in error
            assert "403" in error
            server.refuses = 0
            assert call(classifier, *flags, "--resume") == 0
            said = capsys.readouterr()
            assert f"{server.address}/someone/reviews" in said.out
            assert said.err == ""
            assert {path.name: path.read_bytes() for path in store.iterdir()} == best_of(f"run{number}")
            (run,) = Path(f"run{number}").iterdir()
            texts = ["warm film", "a dull story"]
            outputs = []
            for model in (run, "someone/reviews"):
                assert call(predict, model, *texts, "--format", "csv") == 0
                outputs.append(capsys.readouterr().out)
            assert outputs[0] == outputs[1]
            assert "somewhat negative" in outputs[0]


def test_names_the_hub_does_not_take_and_a_hub_out_of_reach(sst, tmp_path, monkeypatch, capsys):
    turn_to(monkeypatch, "http://127.0.0.1:9", tmp_path)
    for name in ("a/b/c", "x y"):
        assert call(classifier, *sst, "--push_to_hub", name) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not Path("runs").exists() or not list(Path("runs").rglob("best"))
    assert call(classifier, *sst, "--push_to_hub", "someone/reviews") == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "127.0.0.1:9 did not take" in said.err
    assert "predict.py" in said.out
    with pytest.raises(SystemExit) as ended:
        call(classifier, "--push_to_hub", "x")
    assert ended.value.code == 2
