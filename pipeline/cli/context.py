"""Settings of the commands, with the defaults of a running `tidemark dev`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.local import DEV_FILE
from schemas.errors import InvalidInput

if TYPE_CHECKING:
    from pipeline.settings import Settings

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
    """The settings from the environment; a running `tidemark dev` gives the variables that are not set."""
    from pipeline.settings import load_settings

    if document := running():
        for name, value in document["environment"].items():
            os.environ.setdefault(name, str(value))
    return load_settings()
