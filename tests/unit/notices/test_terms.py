"""What the notifier keeps in memory of accounts: bounded, and never older than what SQL says at a refresh."""

from __future__ import annotations

import pytest
import pytest_asyncio

from pipeline.access import changes as module
from pipeline.notices.terms import Terms
from schemas.clock import DAY_MS
from schemas.entitlements import Grant, Operation, SourceKind
from tests.worlds.notices import NoticeWorld, limit

NAMES = ("acme", "globex", "initech")


@pytest_asyncio.fixture
async def world() -> NoticeWorld:
    """Three accounts with limits of their own."""
    world = NoticeWorld()
    await world.begin()
    for number, name in enumerate(NAMES, start=1):
        await world.allow(name, limit(number * 100))
    return world


def terms_of(world: NoticeWorld, accounts_max: int = 100) -> Terms:
    return Terms(world.sql.catalog, world.sql.entitlements, world.clock, accounts_max)


async def limits(terms: Terms, world: NoticeWorld) -> list[int]:
    found = await terms.bounds(NAMES, world.clock.now_ms())
    return [int(bound.quantity) for name in NAMES for bound in found[name]]


async def test_accounts_beyond_the_memory_are_read_each_time(world: NoticeWorld) -> None:
    terms = terms_of(world, accounts_max=1)
    for _ in range(2):
        await terms.refresh()
        assert await limits(terms, world) == [100, 200, 300]
        assert terms.accounts == 1
    await world.allow("initech", limit(7))
    await terms.refresh()
    assert await limits(terms, world) == [100, 200, 7]


async def test_accounts_on_equal_terms_share_them(world: NoticeWorld) -> None:
    terms = terms_of(world)
    await terms.refresh()
    found = await terms.bounds(["nobody", "neither"], world.clock.now_ms())
    assert found["nobody"] is found["neither"]


@pytest.mark.parametrize("page", [1, 2, 3, 100])
async def test_what_changed_is_read_again_however_much_it_is(
    world: NoticeWorld, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """All three versions are of one instant, so a page may not have all of them."""
    monkeypatch.setattr(module, "CHANGED_AT_ONCE", page)
    terms = terms_of(world)
    world.clock.advance(DAY_MS)
    await terms.refresh()
    assert await limits(terms, world) == [100, 200, 300]
    now_ms = world.clock.now_ms()
    for name in NAMES:
        grant = Grant("tokens", SourceKind.OVERRIDE, "n", Operation.SET, limit(9), now_ms, cause="ann", reason="a test")
        await world.sql.entitlements.override(name, grant, "ann", now_ms)
    while await world.renewal.turn():
        pass
    await terms.refresh()
    assert await limits(terms, world) == [9, 9, 9]


async def test_a_grant_that_begins_later_counts_from_its_instant(world: NoticeWorld) -> None:
    now_ms = world.clock.now_ms()
    grant = Grant(
        "tokens", SourceKind.OVERRIDE, "later", Operation.SET, limit(500), now_ms + DAY_MS, cause="ann", reason="a test"
    )
    await world.sql.entitlements.override("acme", grant, "ann", now_ms)
    while await world.renewal.turn():
        pass
    terms = terms_of(world)
    await terms.refresh()
    before = await limits(terms, world)
    world.clock.advance(DAY_MS)
    after = await limits(terms, world)

    assert (before[0], after[0]) == (100, 500)
    assert [int(bound.quantity) for bound in await terms.newest("acme")] == [500]
