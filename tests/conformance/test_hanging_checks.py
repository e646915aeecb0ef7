"""A PostgreSQL that hangs delays a gateway's check no longer than somebody waits for it."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from aggregators.catalog_plan import catalog_hash
from pipeline import open as opening
from pipeline.clock import SystemClock
from pipeline.local.postgres import LocalPostgres
from pipeline.open import Base
from pipeline.roles.opened_access import OpenedAccess
from schemas.catalog_changes import CatalogPlan, KnownPlan, PlanState
from tests.conformance.postgres_faults import stopped
from tests.services.postgres import SCOPE
from tests.unit.catalog.files import SMALL, catalog_of

# One second for the store, and the rest for this machine.
CHECK_S_MAX = 5.0
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
    base = SimpleNamespace(
        settings=SimpleNamespace(sql_url=own_postgres.url, store_timeout_s=STORE_TIMEOUT_S),
        genesis=SimpleNamespace(log_id="log-1", partitions=1),
        clock=SystemClock(),
    )
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
