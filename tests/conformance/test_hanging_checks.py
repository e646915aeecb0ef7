"""A PostgreSQL or a Stripe that hangs delays a gateway's answers no longer than somebody waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from aggregators.catalog_plan import catalog_hash
from pipeline import open as opening
from pipeline.clock import SystemClock
from pipeline.local.postgres import LocalPostgres
from pipeline.open import Base
from pipeline.roles import account_links
from pipeline.roles.account_links import OpenedAccountLinks
from pipeline.roles.opened_access import OpenedAccess
from schemas.catalog_changes import CatalogPlan, KnownPlan, PlanState
from schemas.errors import Transient
from schemas.intent_ledger import IntentState
from schemas.side_tables import Link
from schemas.stripe_changes import StripeChanges
from sinks.redis.view import RedisLiveView
from tests.conformance.postgres_faults import stopped
from tests.services.postgres import SCOPE
from tests.unit.catalog.files import SMALL, catalog_of

# One second for the store, and the rest for this machine.
CHECK_S_MAX = 20.0
STORE_TIMEOUT_S = 60.0

NOW_MS = 1_795_257_000_000
CATALOG = catalog_of(SMALL)
SHA256 = catalog_hash(CATALOG)


async def apply(base: Base) -> None:
    """Make the small catalog the active one."""
    tables = await opening.open_side_tables(base)
    plan = CatalogPlan(CATALOG, SHA256, "", "", False, (), (), (), {})
    states = {name: KnownPlan(sold, PlanState.OPEN) for name, sold in CATALOG.sold().items()}
    await tables.catalog.begin_catalog(plan, "ann", "a test", NOW_MS)
    await tables.catalog.activate_catalog(plan, states, [], NOW_MS)
    await tables.close()


async def test_a_store_that_hangs_delays_a_check_by_a_second(
    own_postgres: LocalPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_on(own_postgres)
    monkeypatch.setattr(opening, "scope_of", lambda _base: SCOPE)
    access = OpenedAccess(cast("Base", base), cast("Any", SimpleNamespace(accounts=None, totals=None)))
    try:
        await apply(cast("Base", base))
        await access.turn()
        opened = access()
        assert opened is not None
        checking = asyncio.create_task(opened[0].check("acme", "sso", Decimal(1)))
        with stopped(own_postgres):
            done, _ = await asyncio.wait({checking}, timeout=CHECK_S_MAX)
        answer = await checking
    finally:
        await access.close()

    assert done
    assert answer.decision.reason == "fallback_deny"


async def test_a_store_that_hangs_delays_no_answer_about_accounts(
    own_postgres: LocalPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Customers, reports and plans: asked of a gateway that knows PostgreSQL, and of one that was started meanwhile."""
    base = base_on(own_postgres)
    monkeypatch.setattr(opening, "scope_of", lambda _base: SCOPE)
    known, late = (OpenedAccountLinks(cast("Base", base), cast("RedisLiveView", None)) for _ in range(2))
    try:
        await until_opened(known)
        await (await known.catalog()).standing()
        asked = [
            *(each.links("acme") for each in (known, late) for _ in range(20)),
            *(each.intents(IntentState.PENDING, "", 10, "") for each in (known, late)),
        ]
        with stopped(own_postgres):
            asking = [asyncio.ensure_future(each) for each in asked]
            done, _ = await asyncio.wait(asking, timeout=CHECK_S_MAX)
        answers = await asyncio.gather(*asking, return_exceptions=True)
        after = await until_opened(late)
    finally:
        await known.close()
        await late.close()

    assert len(done) == len(asked)
    assert {type(answer) for answer in answers} == {Transient}
    assert after == []


async def test_a_stripe_that_hangs_delays_no_answer_from_postgresql(
    own_postgres: LocalPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, asked = base_on(own_postgres), asyncio.Event()
    monkeypatch.setattr(opening, "scope_of", lambda _base: SCOPE)

    async def hangs(_base: Base) -> StripeChanges:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(account_links, "open_stripe_changes", hangs)
    opened = OpenedAccountLinks(cast("Base", base), cast("RedisLiveView", None))
    try:
        await until_opened(opened)
        quoting = asyncio.create_task(opened.changes())
        await asked.wait()
        async with asyncio.timeout(CHECK_S_MAX):
            found = (await opened.links("acme"), (await (await opened.catalog()).standing()).catalog)
    finally:
        quoting.cancel()
        await opened.close()

    assert found == ([], None)


async def until_opened(opened: OpenedAccountLinks) -> Sequence[Link]:
    """The links of an account, once PostgreSQL answers again."""
    while True:
        try:
            return await opened.links("acme")
        except Transient:
            continue


def base_on(postgres: LocalPostgres) -> SimpleNamespace:
    """What is opened first, with a store that may hang for a minute."""
    return SimpleNamespace(
        settings=SimpleNamespace(sql_url=postgres.url, store_timeout_s=STORE_TIMEOUT_S),
        genesis=SimpleNamespace(log_id="log-1", partitions=1),
        clock=SystemClock(),
    )
