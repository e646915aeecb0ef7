"""Bindings and restatements that are folded while the reconciler reads cause no drift."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from reconciler.causes import Cause, Pair, Verdict
from schemas.clock import DAY_MS, HOUR_MS
from tests.worlds.reconciler import DECEMBER_MS, NOVEMBER_MS, Deployment, rows_of, settled

ANCHOR_MS = NOVEMBER_MS + 5 * DAY_MS

Move = Callable[[], Awaitable[None]]


def before_totals(deployment: Deployment, move: Move, account: str = "ada") -> None:
    """Calls `move` once, between the reads of the state and of the totals of the account's partition."""
    read = deployment.store.totals.account_totals
    moved: list[int] = []

    async def read_after(partition: int, keys: Sequence[Any]) -> Any:
        if not moved and partition == deployment.partition(account):
            moved.append(partition)
            await move()
        return await read(partition, keys)

    deployment.store.totals.account_totals = read_after  # type: ignore[method-assign]  # a race, made certain


def before_cells(deployment: Deployment, move: Move, account: str) -> None:
    """Calls `move` once, before the rows of `usage_hourly` of the account's partition are read."""
    read = deployment.clickhouse.hourly_cells
    moved: list[int] = []

    async def read_after(partition: int) -> Any:
        if not moved and partition == deployment.partition(account):
            moved.append(partition)
            await move()
        return await read(partition)

    deployment.clickhouse.hourly_cells = read_after  # type: ignore[method-assign]  # a race, made certain


@pytest.mark.parametrize(
    ("from_ms", "to_ms"),
    [
        pytest.param(None, None, id="everything"),
        pytest.param(NOVEMBER_MS + 20 * DAY_MS, DECEMBER_MS, id="a range that the period no longer reaches"),
    ],
)
async def test_a_binding_that_is_folded_while_totals_are_read_is_no_drift(
    from_ms: int | None, to_ms: int | None
) -> None:
    """The recount uses the new cut, so the Redis side must use it too."""
    deployment = await settled()

    async def bind() -> None:
        anchor_ms = NOVEMBER_MS + 14 * DAY_MS
        await deployment.bind("ada", stripe_customer="cus_ada", effective_from_ms=NOVEMBER_MS, anchor_ms=anchor_ms)
        await deployment.fold()
        await deployment.archive()

    before_totals(deployment, bind)
    report = await deployment.reconcile(from_ms=from_ms, to_ms=to_ms)

    assert report.differences == 0
    assert next(s for s in report.summaries if s.pair is Pair.REDIS).equal == (20 if from_ms is None else 15)
    await deployment.settle()
    assert (await deployment.reconcile()).verdict is Verdict.EQUAL


async def with_unpaid_usage() -> tuple[Deployment, Move]:
    """Three hours of an account without a payer, and the late binding that causes a restatement."""
    deployment = await settled()
    for number in range(3):
        await deployment.emit("eve", gb="1.5", user=f"u{number}", region="eu")
        await deployment.advance(HOUR_MS)
    await deployment.settle()
    deployment.stripe.add_customer("cus_eve")

    async def bind_late() -> None:
        await deployment.bind("eve", stripe_customer="cus_eve", effective_from_ms=ANCHOR_MS, anchor_ms=ANCHOR_MS)
        for _ in range(2):
            await deployment.fold()
            await deployment.archive()
            await deployment.restatement()
        await deployment.fold()
        await deployment.relay()

    return deployment, bind_late


@pytest.mark.parametrize("is_archived", [True, False], ids=["archived", "not archived yet"])
@pytest.mark.parametrize("moment", ["totals", "cells"])
async def test_a_restatement_that_is_relayed_while_cells_are_read_is_no_drift(moment: str, is_archived: bool) -> None:
    """The restatement changes cells of hours that were settled long before."""
    deployment, bind_late = await with_unpaid_usage()

    async def move() -> None:
        await bind_late()
        if is_archived:
            await deployment.archive()

    if moment == "totals":
        before_totals(deployment, move, "eve")
    else:
        before_cells(deployment, move, "eve")
    report = await deployment.reconcile()

    assert report.differences == 0
    (row,) = rows_of(report, Cause.IN_FLIGHT, Pair.HOURLY)
    hourly = next(s for s in report.summaries if s.pair is Pair.HOURLY)
    assert "late binding" in row.detail
    assert row.detail.endswith("while usage_hourly was read: eve") == is_archived
    assert hourly.unchecked >= 24
    # Other accounts are compared as usual once the reconciler knows that they were not restated.
    assert (hourly.equal >= 64) == is_archived
    await deployment.settle()
    again = await deployment.reconcile()
    assert again.verdict is Verdict.EQUAL
    assert [s.unchecked for s in again.summaries if s.pair is Pair.HOURLY] == [0]


async def test_a_wrong_cell_is_reported_while_another_account_is_restated() -> None:
    """A restatement excuses only its own account."""
    deployment, bind_late = await with_unpaid_usage()
    key = next(key for key in deployment.clickhouse.cells if (key.account, key.meter) == ("bob", "requests"))
    del deployment.clickhouse.cells[key]

    async def move() -> None:
        await bind_late()
        await deployment.archive()

    before_cells(deployment, move, "eve")
    report = await deployment.reconcile()

    assert [(row.cause, row.account) for row in report.rows if row.cause.is_drift] == [(Cause.MISSING, "bob")]


async def test_a_redis_that_is_emptied_while_cells_are_read_leaves_them_unchecked() -> None:
    """Then nothing tells which accounts were restated."""
    deployment = await settled()

    async def move() -> None:
        deployment.store.server.empty()

    before_cells(deployment, move, "ada")
    report = await deployment.reconcile()

    assert report.differences == 0
    assert "while it was read; run again" in rows_of(report, Cause.UNCHECKED, Pair.HOURLY)[0].detail
