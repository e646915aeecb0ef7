"""Migrations to a price for usage in SQL: the fake and PostgreSQL."""

from __future__ import annotations

from typing import cast

import pytest

from schemas.catalog import PlanId
from schemas.catalog_changes import NO_ACCOUNT
from schemas.errors import InvalidInput
from schemas.flat_to_metered import Figures, Item, ItemState, Migration, Rated, WaveRule, Who
from schemas.plan_moves import SubscribedItem
from schemas.side_tables import SideTables
from sinks.sql.side_tables import SqlSideTables

ANN = Who("ann", "a test")
USAGE = Migration(
    "usage", PlanId("flat", 1), PlanId("shadow", 1), PlanId("metered", 2), 30, WaveRule.SETTLED, 1_000, "ann", "a test"
)
FIGURES = Figures("usd", 2, 9_900, (SubscribedItem("price_1", 1), SubscribedItem("price_2", None)))


def item(number: int) -> Item:
    """A subscription that is planned."""
    return Item("usage", f"sub_{number}", f"account {number}", f"cus_{number}", 1, ItemState.PLANNED, FIGURES, 1_000)


@pytest.fixture
def tables(side_tables: SideTables) -> SqlSideTables:
    return cast("SqlSideTables", side_tables)


async def test_a_migration_is_kept_once_and_takes_new_subscriptions(tables: SqlSideTables) -> None:
    store = tables.migrations
    assert await store.add(USAGE, [item(1)]) == USAGE
    assert await store.add(USAGE._replace(made_ms=9_000, reason="again"), [item(1), item(2)]) == USAGE

    assert list(await store.items("usage")) == [item(1), item(2)]
    assert list(await store.listed()) == [USAGE]
    assert await store.migration("others") is None
    with pytest.raises(InvalidInput, match="has notice days 30: choose another name"):
        await store.add(USAGE._replace(notice_days=10), [])
    assert [row.after for row in await tables.audit("account 1")] == ['{"state":"planned","wave":1}']


async def test_a_subscription_is_changed_by_who_knows_it(tables: SqlSideTables) -> None:
    """Figures alone are in no audit; a state, a wish and a problem are."""
    store = tables.migrations
    await store.add(USAGE, [item(1)])
    first = await store.change(item(1), item(1)._replace(wish=ItemState.SHADOW), ANN, 2_000)
    assert (first.wish, first.touched_ms) == (ItemState.SHADOW, 2_000)
    assert await store.change(item(1), item(1)._replace(state=ItemState.LEFT), ANN, 3_000) == first

    figures = FIGURES._replace(rated=Rated("1.5", 3, 4, 5), promoted_ms=6)
    second = await store.change(first, first._replace(figures=figures, renews_ms=7), ANN, 4_000)
    third = await store.change(second, second._replace(problem="differs"), ANN, 5_000)
    assert await store.change(third, third, ANN, 6_000) == third
    assert list(await store.items("usage")) == [third]
    rows = await tables.audit("account 1")
    assert [(row.actor, row.entity_id, row.after) for row in rows[1:]] == [
        ("ann", "usage/sub_1", '{"wish":"shadow"}'),
        ("ann", "usage/sub_1", '{"problem":"differs"}'),
    ]


async def test_a_halt_keeps_its_first_reason_until_somebody_lets_go(tables: SqlSideTables) -> None:
    store = tables.migrations
    await store.add(USAGE, [])
    assert (await store.halt("usage", "one", ANN, 2_000)).halted == "one"
    assert (await store.halt("usage", "two", ANN, 3_000)).halted == "one"
    assert (await store.halt("usage", "", ANN, 4_000)).halted == ""
    assert (await store.halt("usage", "", ANN, 5_000)).halted == ""

    assert [row.after for row in await tables.audit(NO_ACCOUNT)] == ['{"halted":"one"}', '{"halted":""}']
    with pytest.raises(InvalidInput, match="there is no migration other"):
        await store.halt("other", "why", ANN, 1)
    with pytest.raises(InvalidInput, match="--reason"):
        await store.halt("usage", "why", Who("ann", " "), 1)
