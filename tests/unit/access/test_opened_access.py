"""The gateway's reads of PostgreSQL go on after any failure, because the gateway takes events too."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from pipeline.roles import opened_access
from pipeline.roles.opened_access import OpenedAccess
from schemas.errors import Transient


@pytest.mark.parametrize("failure", [Transient("away"), ValueError("a column is missing")], ids=["away", "a fault"])
async def test_a_failure_is_tried_again(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened_access, "RETRY_INTERVAL_S", 0)
    access, again, calls = OpenedAccess(cast("Any", None), cast("Any", None)), asyncio.Event(), 0

    async def turn() -> None:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise failure
        again.set()

    monkeypatch.setattr(access, "turn", turn)
    running = asyncio.create_task(access.run())
    await asyncio.wait({running, asyncio.ensure_future(again.wait())}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
    is_running = not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert is_running
    assert again.is_set()
