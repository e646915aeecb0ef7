"""A real Valkey server for the session, and a store of its own for each test."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from pipeline.local.valkey import LocalValkey
from schemas.live_view import LiveView
from sinks.redis.fake import FakeLiveView
from sinks.redis.view import RedisLiveView


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalValkey]:
    """The session's server, with the append-only file on."""
    with LocalValkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[LocalValkey]:
    """A server that a test may spoil."""
    with LocalValkey(tmp_path / "valkey") as server:
        yield server


@pytest_asyncio.fixture(params=["fake", "service"])
async def rollup_store(request: pytest.FixtureRequest, valkey: LocalValkey) -> AsyncIterator[LiveView]:
    """An empty rollup store: the in-memory fake, then Redis in a namespace of its own."""
    if request.param == "fake":
        yield FakeLiveView()
        return
    store = RedisLiveView(valkey.url, namespace=f"test-{uuid.uuid4().hex[:12]}")
    yield store
    await store.close()
