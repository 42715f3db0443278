"""data/download.py against a server on loopback."""

from __future__ import annotations

import hashlib
import importlib.util
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType

import pytest
from conftest import ROOT, SHARED, needs_shared_data

CONTENTS = {"a.csv": b"id\tsentence\n" + b"x" * 200_000, "b.txt": b"", "c.txt": "sonnet\u00e9\n".encode() * 50}


def blob(contents: bytes) -> str:
    return hashlib.sha1(b"blob " + str(len(contents)).encode() + b"\0" + contents).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        if name not in self.server.files:
            self.send_error(404)
            return
        contents, asked = self.server.files[name], self.headers.get("Range")
        self.server.asked.append((name, asked))
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if start and start >= len(contents):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(contents) - start))
        self.end_headers()
        end = len(contents) // 2 if name in self.server.cut else len(contents)
        self.wfile.write(contents[start:end])

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked, server.cut, server.ranges = dict(CONTENTS), [], set(), True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def script(monkeypatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("download", ROOT / "data" / "download.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "BLOBS", {name: blob(contents) for name, contents in CONTENTS.items()})
    return module


def fetch(script, server, folder) -> int:
    return script.main(["--data-dir", str(folder), "--source", f"http://127.0.0.1:{server.server_port}/data/"])


def found(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_brings_every_file_once(script, server, tmp_path):
    assert fetch(script, server, tmp_path) == 0
    assert found(tmp_path) == CONTENTS
    assert fetch(script, server, tmp_path) == 0
    assert len(server.asked) == len(CONTENTS)


@pytest.mark.parametrize("ranges", [True, False])
def test_goes_on_where_it_was_cut_off(script, server, tmp_path, ranges, capsys):
    server.cut, server.ranges = {"a.csv"}, ranges
    assert fetch(script, server, tmp_path) == 1
    error = capsys.readouterr().err
    assert "call again to go on" in error
    assert error.count("\n") == 1
    assert "a.csv" not in found(tmp_path)
    server.cut = set()
    assert fetch(script, server, tmp_path) == 0
    assert found(tmp_path) == CONTENTS
    assert ("a.csv", f"bytes={len(CONTENTS['a.csv']) // 2}-") in server.asked


def test_part_that_was_whole_already(script, server, tmp_path):
    (tmp_path / "a.csv.part").write_bytes(CONTENTS["a.csv"])
    assert fetch(script, server, tmp_path) == 0
    assert found(tmp_path) == CONTENTS


@pytest.mark.parametrize("part", [None, b"rubbish", b"rubbish" * 100_000])
def test_leaves_nothing_that_does_not_verify(script, server, tmp_path, part, capsys):
    if part is None:
        server.files["a.csv"] = b"something else"
    else:
        (tmp_path / "a.csv.part").write_bytes(part)
    (tmp_path / "a.csv").write_bytes(b"an old version")
    assert fetch(script, server, tmp_path) == 1
    assert "deleted" in capsys.readouterr().err
    assert not found(tmp_path)
    server.files = dict(CONTENTS)
    assert fetch(script, server, tmp_path) == 0
    assert found(tmp_path) == CONTENTS


def test_missing_on_the_server_and_no_server(script, server, tmp_path, capsys):
    del server.files["a.csv"]
    assert fetch(script, server, tmp_path) == 1
    assert "the server says 404" in capsys.readouterr().err
    assert script.main(["--data_dir", str(tmp_path), "--source", "http://127.0.0.1:9"]) == 1
    assert "call again" in capsys.readouterr().err


@needs_shared_data
def test_known_hashes_are_those_of_the_real_files():
    spec = importlib.util.spec_from_file_location("download", ROOT / "data" / "download.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    same = [name for name, expected in module.BLOBS.items() if blob((SHARED / "data" / name).read_bytes()) == expected]
    assert {name for name in module.BLOBS if not name.startswith("quora")} == set(same)
