"""Tasks that end together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable


async def all_or_first_error(works: Iterable[Coroutine[None, None, None]]) -> None:
    """Run the coroutines concurrently. On the first error, or when cancelled, cancel the others and wait for them."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
