"""A real PostgreSQL server for the session, and a database of its own for each test."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import psycopg
import pytest
import pytest_asyncio
from sqlalchemy import Connection, delete

from pipeline.local.postgres import LocalPostgres
from schemas.periods import Billing, Binding
from schemas.side_tables import Link, Row, SideTables
from sinks.sql.fake import FakeSideTables
from sinks.sql.store import PostgresSideTables
from sinks.sql.tables import metadata

SCOPE: Final = "test:acct_1"
LOG_ID: Final = "log-1"


def last_link_pays(
    links: Sequence[Link], mirror: Mapping[str, Sequence[Row]], sent: Sequence[Binding], now_ms: int
) -> Sequence[Binding]:
    """A timeline for tests of the store: one binding, at the anchor of the last active subscription."""
    active = [row for row in mirror.get("subscriptions", ()) if row["status"] == "active"]
    if not active:
        return ()
    anchor_ms, customer = active[-1]["anchor_ms"], active[-1]["customer_id"]
    assert customer in {link.customer for link in links}
    wanted = Binding(effective_from_ms=anchor_ms, anchor_ms=anchor_ms, billing=Billing.MAPPED, stripe_customer=customer)
    return () if wanted in sent else (wanted,)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPostgres]:
    """The session's server."""
    with LocalPostgres(tmp_path_factory.mktemp("postgres"), durable=False) as server:
        yield server


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[LocalPostgres]:
    """A server that a test may spoil."""
    with LocalPostgres(tmp_path / "postgres", durable=False) as server:
        yield server


@pytest.fixture
def postgres_url(postgres: LocalPostgres) -> Iterator[str]:
    """The URL of an empty database that no other test knows."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} STRATEGY file_copy".encode())
        yield postgres.url.removesuffix("/postgres") + f"/{name}"
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest_asyncio.fixture(params=["fake", "service"])
async def side_tables(request: pytest.FixtureRequest) -> AsyncIterator[SideTables]:
    """Migrated, empty side tables: the fake, then PostgreSQL in the server's own database, which each test empties.

    A database for each of the many tests takes three times as long.
    """
    async with opened_tables(request, is_fake=request.param == "fake") as tables:
        yield tables


@asynccontextmanager
async def opened_tables(
    request: pytest.FixtureRequest, *, is_fake: bool
) -> AsyncIterator[FakeSideTables | PostgresSideTables]:
    """As `side_tables`."""
    if is_fake:
        fake = FakeSideTables(last_link_pays)
        await fake.migrate(SCOPE, LOG_ID)
        yield fake
        return
    server: LocalPostgres = request.getfixturevalue("postgres")
    store = PostgresSideTables(server.url, last_link_pays)
    await store.migrate(SCOPE, LOG_ID)

    def empty(connection: Connection) -> None:
        for table in reversed(metadata.sorted_tables):
            connection.execute(delete(table))

    await store._run(empty)
    await store.migrate(SCOPE, LOG_ID)
    yield store
    await store.close()
