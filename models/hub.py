"""Putting a model on the Hub."""

from __future__ import annotations

import sys
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import disable_progress_bars, logging, validate_repo_id

from config import InputError


class UploadFailed(OSError):
    """The Hub does not have the model; the run does."""


def refuse_bad_name(repository: str) -> None:
    """Raises InputError if no repository on the Hub can have this name."""
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(f"--push_to_hub {repository}: {error}") from error


def upload(folder: Path, repository: str) -> str:
    """Makes a repository, unless there is one, and puts a model's files into it, in the place of an earlier one's.

    Returns:
        Its address.

    Raises:
        UploadFailed: out of reach, or not allowed; says what to do.
    """
    logging.set_verbosity_error()  # its warnings of every retry would drown the one line that says what happened
    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi()
    try:
        address = api.create_repo(repository, exist_ok=True)
        api.upload_folder(
            repo_id=address.repo_id, folder_path=folder, ignore_patterns=[".*"],
            delete_patterns=["*.safetensors", "*.json"], commit_message="What a run left in best/",
        )  # fmt: skip
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UploadFailed(
            f"--push_to_hub {repository}: {constants.ENDPOINT} did not take {folder} ({reason}); the run is complete: "
            "see to HF_TOKEN or `hf auth login`, and call again with --resume"
        ) from error
    return str(address)
