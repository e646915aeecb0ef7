"""What the commands share: settings, with the defaults of a running `tidemark dev`, and questions."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.local import DEV_FILE
from schemas.errors import InvalidInput

if TYPE_CHECKING:
    from pipeline.settings import Settings

# A person waits for a command; a role has longer limits and a supervisor.
STORE_TIMEOUT_S = 10
EXIT_FAILURE = 1
EXIT_INPUT = 2
EXIT_OPERATOR = 3
EXIT_INTERRUPTED = 130


def data_dir() -> Path:
    """The data directory of `tidemark dev`: TIDEMARK_DATA_DIR, or .tidemark in this folder."""
    return Path(os.environ.get("TIDEMARK_DATA_DIR", ".tidemark"))


def running() -> dict[str, Any] | None:
    """The `dev.json` of a running `tidemark dev`, or None. Raises `InvalidInput` if the file is unreadable."""
    path = data_dir() / DEV_FILE
    try:
        document: Any = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InvalidInput("TIDEMARK_DATA_DIR", f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or not isinstance(document.get("environment"), dict):
        raise InvalidInput("TIDEMARK_DATA_DIR", f"{path} is not a file of `tidemark dev`: remove it")
    return document


def settings() -> Settings:
    """The settings of a command, which waits for a store for `STORE_TIMEOUT_S` if the environment does not say."""
    is_set = "TIDEMARK_STORE_TIMEOUT_S" in os.environ
    return role_settings() if is_set else role_settings(store_timeout_s=STORE_TIMEOUT_S)


def role_settings(**overrides: object) -> Settings:
    """The settings from the environment; a running `tidemark dev` gives the variables that are not set."""
    from pipeline.settings import load_settings

    if document := running():
        for name, value in document["environment"].items():
            os.environ.setdefault(name, str(value))
    return load_settings(**overrides)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before what cannot be undone. Raises `click.Abort` if the answer is no, and `InvalidInput` without `--yes` if
    nobody can answer."""
    if yes:
        return
    try:
        agreed = click.confirm(question)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        raise InvalidInput("--yes", "nobody answered the question: add --yes to do it") from None
    if not agreed:
        raise click.Abort
