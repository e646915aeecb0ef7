"""What commands share: settings that know a running `tidemark dev`, and running a coroutine to its end."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.local import DEV_FILE

if TYPE_CHECKING:
    from pipeline.settings import Settings

T = TypeVar("T")


def data_dir() -> Path:
    """Where `dev` keeps its data: TIDEMARK_DATA_DIR, or .tidemark in this folder."""
    return Path(os.environ.get("TIDEMARK_DATA_DIR", ".tidemark"))


def running() -> dict[str, Any] | None:
    """What a running `tidemark dev` wrote down for us, or None."""
    path = data_dir() / DEV_FILE
    if not path.exists():
        return None
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def settings() -> Settings:
    """The settings of this command: the environment's, and where it says nothing, the running `dev`'s."""
    from pipeline.settings import load_settings

    found = running()
    if found is not None:
        for name, value in found["environment"].items():
            os.environ.setdefault(name, value)
    return load_settings()


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end."""
    return asyncio.run(main)
