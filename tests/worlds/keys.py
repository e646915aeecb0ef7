"""A gateway that reads the API keys of a database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from pipeline.http.known_keys import KnownKeys


@asynccontextmanager
async def reading(known: KnownKeys) -> AsyncIterator[None]:
    """While the keys are read again and again."""
    task = asyncio.create_task(known.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
