"""Brings the course's data files from its public repository and checks each against the hash it must have."""

from __future__ import annotations

import os
import sys
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from config import InputError, refuse_special
from models.files import git_blob_hash
from training.flags import Parser

SOURCE = "https://raw.githubusercontent.com/cfifty/public_cs224n_gpt/main/data"
CHUNK = 1 << 16

# What `git hash-object FILE` prints.
BLOBS = {
    "TRUE_sonnets_held_out_dev.txt": "a68bd172ce56e3afdda72008dcf07a47b8e87e70",
    "ids-cfimdb-dev.csv": "8a0f5dcf3d40189b96c801a12cd79bf8003e61de",
    "ids-cfimdb-test-student.csv": "1e789c709b3ca0511f027a309b6d8bd21cde41b2",
    "ids-cfimdb-train.csv": "cd57bcbd2f7214ea6dd1783d3e885d324b1f478d",
    "ids-sst-dev.csv": "3171aa629a340809d2db4a50df8f6e5ec9420ab0",
    "ids-sst-test-student.csv": "bbd2313758825f86e24416d6aad64cd93370cf7a",
    "ids-sst-train.csv": "9cb7333cb1dae49c2bd2a4b56a24882a6e8704b5",
    "quora-dev.csv": "97f9430a53b7f5544f857ff27a236c40bb42b5c7",
    "quora-test-student.csv": "a1b1e5ba3ef282ba1e9b169c509eb80dbbc68666",
    "quora-train.csv": "1f2e73b884113e629e2786001fb9cc8ae4a696c1",
    "sonnets.txt": "66bffc291ace4660043b9aaeb21ddd5af6638f13",
    "sonnets_held_out.txt": "802fcca369fbce749e1a9d0d8f61c3e2fa8a9118",
    "sonnets_held_out_dev.txt": "be351ef6b0ea29a0095010809cf3f0ac4fafbd0d",
}


class DownloadFailed(Exception):
    """A file could not be had, or is not what it must be."""


def download(name: str, blob: str, folder: Path, source: str) -> bool:
    """Puts a verified file into the folder, going on with what an earlier call left in `NAME.part`.

    Args:
        name: of the file, in the source and in the folder.
        blob: its git blob hash.
        source: address of the folder it is in.

    Returns:
        False if the file was there already, and whole.

    Raises:
        InputError: something else than a file is in the way.
        DownloadFailed: out of reach, cut off (call again to go on), or not the file it must be; then nothing of it
            is left.
    """
    path, part = folder / name, folder / f"{name}.part"
    for place in (path, part):
        if os.path.lexists(place):
            refuse_special(place)
    if path.is_file():
        if git_blob_hash(path) == blob:
            return False
        path.replace(part)  # most likely a file cut short: what it lacks is fetched
    have = part.stat().st_size if part.is_file() else 0
    try:
        _fetch(f"{source}/{name}", part, have)
    except HTTPError as error:
        if error.code != 416:  # nothing beyond what we have: it was whole, but for the check below
            raise DownloadFailed(f"{source}/{name}: the server says {error.code} {error.reason}") from error
    except PermissionError as error:
        raise InputError(f"{part}: cannot be written to: {error.strerror}") from error
    except (URLError, OSError, EOFError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise DownloadFailed(f"{source}/{name}: {reason}; call again to go on from there") from error
    found = git_blob_hash(part)
    if found != blob:
        part.unlink()
        raise DownloadFailed(f"{name}: has the git blob hash {found}, not {blob}; deleted, call again")
    part.replace(path)
    return True


def _fetch(address: str, part: Path, have: int) -> None:
    request = Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    with urlopen(request, timeout=30) as response:
        if response.status != 206:  # the server sends the file from its start
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        bar = tqdm(total=total, initial=have, desc=part.stem, unit="B", unit_scale=True, disable=None)
        with part.open("ab" if have else "wb") as file, bar:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and part.stat().st_size != total:
        raise EOFError(f"cut off after {part.stat().st_size} of {total} bytes")


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        named = (parts.hostname or "").encode("idna") and parts.port != 0
    except ValueError:
        return False
    return text.isprintable() and (parts.scheme == "file" or (parts.scheme in ("http", "https") and bool(named)))


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(None, prog="data/download.py", description=__doc__)
    parser.add_argument("--data_dir", default=str(Path(__file__).parent), metavar="DIR", help="where to put them")
    parser.add_argument("--source", default=SOURCE, metavar="URL", help="a mirror of the course's data folder")
    flags = parser.parse_args(arguments)
    folder = Path(flags.data_dir)
    if not _is_address(flags.source):
        parser.error(f"--source {flags.source} is not an address such as {SOURCE}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, blob in BLOBS.items():
            new = download(name, blob, folder, flags.source.rstrip("/"))
            print(f"{folder / name}: {'downloaded' if new else 'already there'}, verified")
    except (InputError, OSError, ValueError) as error:  # of the folder; what goes wrong on the way is DownloadFailed
        print(f"{parser.prog}: error: {InputError(f'--data_dir {folder}: {error}')}", file=sys.stderr)
        return 2
    except DownloadFailed as error:
        print(f"{parser.prog}: {InputError(str(error))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
