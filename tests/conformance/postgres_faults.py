"""What tests do to a real PostgreSQL, and see in it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg

from pipeline.local.postgres import LocalPostgres


async def until_waits_for_a_lock(url: str) -> None:
    """Return once a session of the database waits for a lock."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as watcher:
        wanted = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        async with asyncio.timeout(20):
            while (await (await watcher.execute(wanted)).fetchone()) == (0,):  # noqa: ASYNC110  another process
                await asyncio.sleep(0.01)


@contextlib.contextmanager
def stopped(server: LocalPostgres) -> Iterator[None]:
    """The server with all its processes stopped."""
    assert server.pid is not None
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    processes = [server.pid, *map(int, children)]
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGSTOP)
    yield
    for process in processes:
        with contextlib.suppress(ProcessLookupError):  # a process that was ending already when it was stopped
            os.kill(process, signal.SIGCONT)
