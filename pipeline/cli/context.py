"""What the commands share: settings, with the defaults of a running `tidemark dev`, and questions."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from pipeline.local import DEV_FILE
from schemas.errors import InvalidInput

if TYPE_CHECKING:
    from pipeline.settings import Settings

# A person waits for a command; a role has longer limits and a supervisor.
STORE_TIMEOUT_S = 10
# A process that has one of these is meant for a deployment of its own.
DEPLOYMENT: Final = (
    "TIDEMARK_LOG_URL", "TIDEMARK_REDIS_URL", "TIDEMARK_CLICKHOUSE_URL", "TIDEMARK_SECRET", "TIDEMARK_API_KEYS",
)  # fmt: skip
NO_DEV: Final = "is not set and no `tidemark dev` runs here"
EXIT_FAILURE = 1
EXIT_INPUT = 2
EXIT_OPERATOR = 3
EXIT_NO = 4
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
    """The settings from the environment; a running `tidemark dev` gives the variables that are not set.

    Raises `InvalidInput` if neither names a deployment: the defaults are the files of a `dev`, which needs its servers.
    """
    from pipeline.settings import load_settings

    if document := running():
        for name, value in document["environment"].items():
            os.environ.setdefault(name, str(value))
    elif not any(name in os.environ for name in DEPLOYMENT):
        raise InvalidInput(
            DEPLOYMENT[0], f"{NO_DEV}; start it, or set the addresses and the secret of a deployment (docs/settings.md)"
        )
    return load_settings(**overrides)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before what cannot be undone. Raises `click.Abort` if the answer is no, and `InvalidInput` without `--yes` if
    nobody can answer."""
    if yes:
        return
    try:
        agreed = click.confirm(question)
    except click.Abort:
        if not sys.stdin.isatty():
            message = "nobody answered the question, so nothing was done: add --yes to do it"
            raise InvalidInput("--yes", message) from None
        agreed = False
        click.echo(err=True)
    if not agreed:
        click.echo("tidemark: nothing was done", err=True)
        raise click.Abort
