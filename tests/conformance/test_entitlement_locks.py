"""A renewal and what changes its inputs at the same time. Only a real server lets one transaction in between another's
read and write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import pytest_asyncio
from sqlalchemy import Connection
from sqlalchemy.util import await_only

from aggregators.catalog_plan import catalog_hash
from schemas.catalog_changes import CatalogPlan
from schemas.entitlements import Computed, Grant, Operation, SourceKind
from schemas.side_tables import Link, Row
from sinks.sql.entitlements import SqlEntitlements
from sinks.sql.store import PostgresSideTables
from tests.conformance.postgres_faults import until_waits_for_a_lock
from tests.services.postgres import LOG_ID, SCOPE, last_link_pays
from tests.unit.catalog.files import SMALL, catalog_of

NOW_MS = 1_795_257_000_000
CATALOG = catalog_of(SMALL)
SHA256 = catalog_hash(CATALOG)
GIFT = Grant(
    "tokens", SourceKind.OVERRIDE, "ticket", Operation.ADD, Decimal(5), 0, None, cause="ann", reason="the gift"
)


class Pause:
    """A place in a transaction at which the transaction waits, once, until it may go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    def __call__(self) -> None:
        self.reached.set()
        await_only(self.go_on.wait())


def resolving(pause: Callable[[], None] = lambda: None) -> Any:
    """A resolver that names the grants of people, and pauses before it does."""

    def resolve(
        _links: Sequence[Link], _mirror: Mapping[str, Sequence[Row]], people: Sequence[Grant], _: int
    ) -> Computed:
        said = ", ".join(grant.reason for grant in people)
        pause()
        return Computed(f"people: {said}", said, ())

    return resolve


@pytest_asyncio.fixture
async def tables(postgres_url: str) -> AsyncIterator[PostgresSideTables]:
    """A store with an active catalog and one account that is renewed."""
    opened = PostgresSideTables(postgres_url, last_link_pays)
    await opened.migrate(SCOPE, LOG_ID)
    plan = CatalogPlan(CATALOG, SHA256, "", "", in_place=False, actions=(), refusals=(), drift=(), touched={})
    await opened.catalog.begin_catalog(plan, "ann", "a test", NOW_MS)
    await opened.catalog.activate_catalog(plan, {}, [], NOW_MS)
    await opened.link("acme", "cus_1", 0, "ann", "", NOW_MS)
    yield opened
    await opened.close()


async def newest(tables: PostgresSideTables) -> str:
    """What the newest version says after all accounts that are stale were renewed."""
    store = tables.entitlements
    for account in await store.stale():
        await store.renew(account, SHA256, resolving(), NOW_MS + 1)
    return (await store.latest(["acme"]))["acme"].segments


async def test_an_override_that_comes_between_the_read_and_the_write_of_a_renewal_counts(
    tables: PostgresSideTables, postgres_url: str
) -> None:
    """The override waits for the renewal, and makes the account stale again."""
    store, pause = tables.entitlements, Pause()
    renewing = asyncio.create_task(store.renew("acme", SHA256, resolving(pause), NOW_MS))
    await pause.reached.wait()
    overriding = asyncio.create_task(store.override("acme", GIFT, "ann", NOW_MS))
    waiting = asyncio.create_task(until_waits_for_a_lock(postgres_url))
    await asyncio.wait([overriding, waiting], return_when=asyncio.FIRST_COMPLETED)
    pause.go_on.set()
    await asyncio.gather(renewing, overriding)
    waiting.cancel()

    assert await newest(tables) == "the gift"


async def test_a_renewal_that_begins_before_an_override_is_committed_has_the_override(
    tables: PostgresSideTables, postgres_url: str
) -> None:
    """What the renewal had read before it took the lock would be the old answer, in a fresh version."""
    pause = Pause()

    async def held(body: Callable[[Connection], Any]) -> Any:
        def paused(connection: Connection) -> Any:
            answer = body(connection)
            pause()
            return answer

        return await tables._run(paused)

    overriding = asyncio.create_task(SqlEntitlements(held).override("acme", GIFT, "ann", NOW_MS))
    await pause.reached.wait()
    renewing = asyncio.create_task(tables.entitlements.renew("acme", SHA256, resolving(), NOW_MS))
    await until_waits_for_a_lock(postgres_url)
    pause.go_on.set()
    await asyncio.gather(renewing, overriding)

    assert await newest(tables) == "the gift"
