"""Subscriptions whose period is over by the mirror, on PostgreSQL and on the simulation's fake."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.billing_events import ObjectKind, ObjectName
from schemas.clock import DAY_MS
from schemas.side_tables import Fetched, Row
from sinks.sql.side_tables import SqlSideTables
from tests.conformance.side_table_steps import NOW_MS, event, step


async def billed(tables: SqlSideTables, number: int, *ends_ms: int, **columns: Any) -> ObjectName:
    """A subscription whose items' periods end then."""
    name = ObjectName(ObjectKind.SUBSCRIPTION, f"sub_{number}")
    row: Row = {"id": name.id, "customer_id": "cus_1", "status": "active", "anchor_ms": 0, "deleted": 0, **columns}
    items: list[Row] = [
        {"id": f"si_{number}_{each}", "subscription_id": name.id, "period_end_ms": end_ms}
        for each, end_ms in enumerate(ends_ms)
    ]
    fetched = Fetched(name, 0, {"subscriptions": [row], "subscription_items": items})
    offset = await tables.position(0) or 0
    await tables.commit(step(offset, [event(number, name)], [fetched]))
    return name


@pytest.mark.parametrize(
    ("ends_ms", "columns", "is_overdue"),
    [
        pytest.param((NOW_MS - 1,), {}, True, id="its period is over"),
        pytest.param((NOW_MS,), {}, False, id="its period runs until now"),
        pytest.param((NOW_MS - DAY_MS, NOW_MS + DAY_MS), {}, False, id="another item is billed by the year"),
        pytest.param((NOW_MS - 1,), {"status": "past_due"}, True, id="it owes something"),
        pytest.param((NOW_MS - 1,), {"status": "trialing"}, True, id="its trial is over"),
        pytest.param((NOW_MS - 1,), {"status": "paused"}, False, id="nothing is billed in a pause"),
        pytest.param((NOW_MS - 1,), {"status": "canceled", "ended_ms": NOW_MS - 9}, False, id="it has ended"),
        pytest.param((NOW_MS - 1,), {"deleted": 1}, False, id="it is gone"),
    ],
)
async def test_a_subscription_is_overdue_whose_period_is_over(
    side_tables: SqlSideTables, ends_ms: tuple[int, ...], columns: dict[str, Any], is_overdue: bool
) -> None:
    name = await billed(side_tables, 1, *ends_ms, **columns)
    assert await side_tables.overdue(NOW_MS) == ([(name, "cus_1")] if is_overdue else [])


async def test_of_many_those_come_first_whose_period_ended_last(side_tables: SqlSideTables) -> None:
    """So a few that never move, such as those of a test clock, hold up nobody."""
    for number, days in enumerate((3, 1, 2), 1):
        await billed(side_tables, number, NOW_MS - days * DAY_MS)
    assert [name.id for name, _ in await side_tables.overdue(NOW_MS, 2)] == ["sub_2", "sub_3"]
