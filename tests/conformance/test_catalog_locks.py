"""An activation of a catalog and the steps of the mirror lock the same accounts. Only a real server can show it."""

from __future__ import annotations

import asyncio

import psycopg

from aggregators.catalog_plan import catalog_hash
from schemas.catalog_changes import CatalogPlan
from sinks.sql.store import PostgresSideTables
from tests.conformance.postgres_faults import until_waits_for_a_lock
from tests.services.postgres import LOG_ID, SCOPE, last_link_pays
from tests.unit.catalog.files import SMALL, catalog_of

NOW_MS = 1_795_257_000_000
CATALOG = catalog_of(SMALL)
SHA256 = catalog_hash(CATALOG)


async def test_an_activation_and_a_step_of_two_accounts_do_not_deadlock(postgres_url: str) -> None:
    tables = PostgresSideTables(postgres_url, last_link_pays)
    await tables.migrate(SCOPE, LOG_ID)
    # The table has its rows in the order of their creation.
    for account in ("globex", "acme"):
        await tables.link(account, f"cus_{account}", 0, "ann", "", NOW_MS)
    plan = CatalogPlan(CATALOG, SHA256, "", "", in_place=False, actions=(), refusals=(), drift=(), touched={})
    await tables.catalog.begin_catalog(plan, "ann", "a test", NOW_MS)
    async with await psycopg.AsyncConnection.connect(postgres_url) as step:
        lock = "SELECT account FROM accounts WHERE account = %s FOR UPDATE"
        await step.execute(lock, ["acme"])
        activating = asyncio.create_task(tables.catalog.activate_catalog(plan, {}, [], NOW_MS))
        await until_waits_for_a_lock(postgres_url)
        await step.execute(lock, ["globex"])
        await step.commit()
        await activating
    standing = await tables.catalog.standing()
    await tables.close()

    assert standing.sha256 == SHA256
