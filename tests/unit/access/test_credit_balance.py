"""What is left of credits: less what counted usage and holds will draw."""

from __future__ import annotations

from decimal import Decimal

from pipeline.access.checks import Counted
from pipeline.access.credits import CreditParts, PoolBalance, balance_of
from pipeline.billing.drawing import Drawing
from schemas.holds import Hold
from tests.worlds.clock import ManualClock
from tests.worlds.credits import CATALOG, OTHER, Purse
from tests.worlds.sender import NOW_MS, PERIOD_END_MS, PERIOD_START_MS, make_intent

FEATURES = CATALOG + "features:\n  tokens: {type: limit, merge: max, meter: tokens}\n"


class Used:
    """The live usage of every meter."""

    def __init__(self, used: str) -> None:
        self.used = Decimal(used)

    async def __call__(self, account: str, meter: str, *, fresh: bool = False) -> Counted:
        assert meter == "tokens", account
        return Counted(self.used, PERIOD_END_MS, NOW_MS, None, is_cached=not fresh, period_start_ms=PERIOD_START_MS)


async def opened(used: str, text: str = FEATURES) -> tuple[Purse, CreditParts]:
    """An account `a` with 8 credits in the first pool and 5 in the second, of which 3 were drawn."""
    purse = await Purse(ManualClock(NOW_MS)).open(text)
    tables = purse.tables
    await purse.give("a", 8)
    await purse.give("a", 5, key="more", pool="second")
    drawing: Drawing = purse.drawing()
    await drawing.allocation(make_intent("one", delta=3), PERIOD_END_MS)
    return purse, CreditParts(tables.credits, tables.catalog, tables.holds, Used(used), purse.clock)


def numbers(pools: tuple[PoolBalance, ...]) -> list[tuple[int, int, int, int]]:
    return [(pool.left, pool.remaining, pool.undrawn, pool.held) for pool in pools]


async def test_usage_that_was_drawn_is_not_subtracted_twice() -> None:
    _, parts = await opened("0.03")
    balance = await balance_of(parts, "a")

    assert (balance.complete_up_to_ms, numbers(balance.pools)) == (NOW_MS, [(5, 5, 0, 0), (5, 5, 0, 0)])
    assert [[grant.remaining for grant in pool.grants] for pool in balance.pools] == [[5], [5]]


async def test_counted_usage_will_be_drawn_from_the_pools_in_order() -> None:
    _, parts = await opened("0.10")
    assert numbers((await balance_of(parts, "a")).pools) == [(0, 5, 5, 0), (3, 5, 2, 0)]


async def test_holds_are_promised_already() -> None:
    purse, parts = await opened("0.04")
    hold = Hold("hold_1", "a", "tokens", Decimal("0.06"), NOW_MS, NOW_MS + 60_000, is_metered=True)
    await purse.tables.holds.take(hold, frozenset({"tokens"}), lambda _held: True, NOW_MS, NOW_MS)
    assert numbers((await balance_of(parts, "a")).pools) == [(0, 5, 1, 4), (3, 5, 0, 2)]


async def test_what_is_owed_is_shown() -> None:
    purse, parts = await opened("0.03")
    first = next(each for each in (await purse.tables.credits.of_account("a")).grants if each.pool == "first")
    await purse.tables.credits.void("a", first.id, "ann", "refunded", NOW_MS, owes=True)
    balance = await balance_of(parts, "a")

    assert [(pool.left, pool.owed) for pool in balance.pools] == [(0, 3), (5, 0)]


async def test_without_pools_nobody_asks_for_usage() -> None:
    _, parts = await opened("0.03", OTHER.replace("version: 2", "version: 1"))
    balance = await balance_of(parts, "a")
    assert (balance.complete_up_to_ms, balance.pools) == (None, ())


async def test_an_account_that_nobody_made_stays_unmade() -> None:
    purse, parts = await opened("0")
    balance = await balance_of(parts, "typo")

    assert [pool.left for pool in balance.pools] == [0, 0]
    assert not await purse.tables.entitlements.knows("typo")
