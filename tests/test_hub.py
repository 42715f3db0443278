"""The Hub's client against a server on loopback that speaks the Hub's file protocol."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import transformers
from conftest import ROOT
from huggingface_hub import constants

from config import InputError
from models.gpt2 import GPT2Model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = "model.safetensors"  # kept in git-lfs on the Hub: named by sha256, the rest by git's blob hash


class Hub(ThreadingHTTPServer):
    """Serves a directory as a repository.

    Attributes:
        repository: its name.
        asked: paths of the files that were sent.
        spoilt: files sent with one bit of their contents turned.
        cut: files of which only half arrives.
    """

    def __init__(self, folder: Path, handler: type[BaseHTTPRequestHandler] | None = None, repository: str = "gpt2"):
        super().__init__(("127.0.0.1", 0), handler or Handler)
        self.folder, self.repository = folder, repository
        self.asked: list[str] = []
        self.spoilt: set[str] = set()
        self.cut: set[str] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        prefix = f"/{self.server.repository}/resolve/main/"
        if not self.path.startswith(prefix):
            return self.refuse("RepoNotFound")
        name = self.path.removeprefix(prefix)
        path = self.server.folder / name
        if not path.is_file():
            return self.refuse("EntryNotFound")
        contents = path.read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        if name == LARGE:
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(contents).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(contents)))
        else:
            self.send_header("ETag", f'"{hashlib.sha1(b"blob %d" % len(contents) + bytes(1) + contents).hexdigest()}"')
        self.send_header("Content-Length", str(len(contents)))
        self.end_headers()
        if body:
            self.server.asked.append(name)
            if name in self.server.spoilt:
                contents = contents[:-1] + bytes([contents[-1] ^ 1])
            if name in self.server.cut:
                contents = contents[: len(contents) // 2]
                self.close_connection = True
            self.wfile.write(contents)

    def refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_) -> None:
        pass


@contextlib.contextmanager
def serving(server: Hub) -> Iterator[Hub]:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def hub(save_stock) -> Iterator[Hub]:
    folder = save_stock()
    (folder / "pytorch_model.bin").write_bytes(b"not wanted")
    with serving(Hub(folder)) as server:
        yield server


def turn_to(monkeypatch: pytest.MonkeyPatch, address: str, cache: Path) -> None:
    """Has the client in this process take the server at an address for the Hub."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template[template.index("/{repo") :])
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its retries
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


@pytest.fixture
def load(monkeypatch, tmp_path: Path):
    """Loads a model by name from a Hub at an address; gives a number that its weights decide."""

    def load(address: str, repository: str = "gpt2", offline: bool = False) -> float:
        turn_to(monkeypatch, address, tmp_path / "cache")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        return fingerprint(GPT2Model.from_pretrained(repository))

    return load


def fingerprint(model: GPT2Model) -> float:
    with torch.no_grad():
        return float(model(torch.arange(9).unsqueeze(0))["last_token"].double().sum())


def assert_refused(load, *parts: str, **how) -> None:
    with pytest.raises(InputError) as error:
        load(**how)
    for part in ("gpt2", "--model_path", "--model_size mini", *parts):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_fetches_only_what_it_needs_and_once(hub, load):
    first = load(hub.address)
    assert first == fingerprint(GPT2Model.from_pretrained(hub.folder))
    assert sorted(hub.asked) == ["config.json", LARGE, "tokenizer.json"]
    assert load(hub.address) == first
    assert load(hub.address, offline=True) == first
    assert load("http://127.0.0.1:9") == first
    assert len(hub.asked) == 3


def test_shards(hub, load, tmp_path):
    expected = load(hub.address)
    whole = transformers.AutoModelForCausalLM.from_pretrained(hub.folder)
    (hub.folder / LARGE).unlink()
    whole.save_pretrained(hub.folder, max_shard_size="50KB")
    shutil.rmtree(tmp_path / "cache")
    assert load(hub.address) == expected
    assert load(hub.address, offline=True) == expected


def test_missing_weights(hub, load):
    (hub.folder / LARGE).unlink()
    assert_refused(load, LARGE, "neither", address=hub.address)


def test_missing_configuration(hub, load):
    (hub.folder / "config.json").unlink()
    assert_refused(load, "no config.json", address=hub.address)


def test_no_such_repository(hub, load):
    assert_refused(load, "no such repository", address=hub.address, repository="gpt2-large")


@pytest.mark.parametrize("name", [LARGE, "config.json"])
def test_wrong_checksum_is_refused_and_not_kept(hub, load, name):
    hub.spoilt = {name}
    assert_refused(load, name, "checksum", address=hub.address)
    hub.spoilt = set()
    assert load(hub.address) == fingerprint(GPT2Model.from_pretrained(hub.folder))


def test_cache_whose_blobs_are_links_into_a_shared_store(hub, load, tmp_path):
    """The client's cache since Xet: a file is a link to a link, and only the first is named by the Hub's hash."""
    first = load(hub.address)
    (path,) = (tmp_path / "cache").rglob(LARGE)
    blob = path.parent / os.readlink(path)
    store = tmp_path / "cache" / "store"
    blob.rename(store)
    blob.symlink_to(store)
    assert load(hub.address) == first
    store.write_bytes(b"spoilt")
    assert_refused(load, "checksum", address=hub.address)
    assert load(hub.address) == first


def test_file_spoilt_in_the_cache_is_refused(hub, load, tmp_path):
    load(hub.address)
    (blob,) = [path.resolve() for path in (tmp_path / "cache").rglob(LARGE)]
    contents = blob.read_bytes()
    blob.write_bytes(contents[:-1] + bytes([contents[-1] ^ 1]))
    assert_refused(load, "checksum", address=hub.address, offline=True)


def test_cut_connection_and_going_on(hub, load):
    hub.cut = {LARGE}
    assert_refused(load, "broke off", address=hub.address)
    hub.cut = set()
    assert load(hub.address) == fingerprint(GPT2Model.from_pretrained(hub.folder))


def test_out_of_reach(load):
    assert_refused(load, "cannot be reached", address="http://127.0.0.1:9", offline=True)
    assert_refused(load, "cannot be reached", address="http://127.0.0.1:9")


def test_the_environment_names_the_hub(hub, tmp_path):
    program = "from models.gpt2 import GPT2Model; print(GPT2Model.from_pretrained('gpt2').config.n_embd)"
    settings = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.stdout == "64\n", ended.stderr
