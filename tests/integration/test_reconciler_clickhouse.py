"""The reconciler over ClickHouse's own SQL instead of the fake: the same deployment, equal, and a lost row found."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from pipeline.rollup.measurer import Measurer
from reconciler.causes import Cause, Pair, Verdict
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from sinks.clickhouse.client import ClickHouse
from sinks.clickhouse.fake import FakeClickHouse
from sinks.clickhouse.measured_recount import ClickHouseMeasuredRecount
from sinks.clickhouse.measures import ClickHouseMeasures
from sinks.clickhouse.reader import ClickHouseReader
from sinks.clickhouse.writer import ClickHouseStore
from tests.worlds.measured_faults import measured_rows
from tests.worlds.reconciler import ACCOUNTS, NOVEMBER_MS, Deployment, rows_of


async def on_service(clickhouse: ClickHouse) -> Deployment:
    """A settled deployment that archives and relays into the service, with a period cut while it runs."""
    deployment = Deployment()
    store = ClickHouseStore(clickhouse)
    deployment.clickhouse = cast("FakeClickHouse", store)
    deployment.views = replace(deployment.views, reader=ClickHouseReader(clickhouse), hourly=store)
    await deployment.start()
    await deployment.traffic()
    await deployment.settle()
    anchor_ms = NOVEMBER_MS + 14 * DAY_MS
    await deployment.bind("bob", effective_from_ms=NOVEMBER_MS, anchor_ms=anchor_ms, stripe_customer="cus_bob")
    await deployment.advance(HOUR_MS)
    await deployment.emit("bob", gb="1.5", user="someone new", region="eu")
    await deployment.close_period("ada", deployment.clock.ms)
    await deployment.emit("ada", gb="1.5", user="someone new", region="eu")
    await late_events(deployment)
    return deployment


async def late_events(deployment: Deployment) -> None:
    """Events older than the dedup window of open and closed periods, of accounts with bindings and without, one of
    them twice; and one without a decision."""
    for account in ("ada", "bob", "cyd"):
        for at_ms in (NOVEMBER_MS + DAY_MS, NOVEMBER_MS - 400 * DAY_MS, DAY_MS):
            await deployment.emit(account, at_ms=at_ms, gb="2.25", user="late", region="eu")
    first = await deployment.emit("ada", gb="1", user="late", region="eu")
    await deployment.settle()
    await deployment.resolve()
    await deployment.advance(6 * DAY_MS)
    await deployment.settle()
    await deployment.emit("ada", id=first, at_ms=NOVEMBER_MS + DAY_MS, gb="1", user="late", region="eu")
    await deployment.settle()
    await deployment.resolve()
    await deployment.settle()
    await deployment.emit("bob", at_ms=NOVEMBER_MS + DAY_MS, gb="3", user="unjudged", region="eu")
    await deployment.settle()


async def test_a_deployment_on_clickhouse_is_equal_and_a_lost_row_is_named(clickhouse: ClickHouse) -> None:
    """The requests that the reconciler makes (spans, boundaries, closings) must mean the same to the SQL."""
    deployment = await on_service(clickhouse)

    equal = await deployment.reconcile()
    first = "SELECT min(position) FROM usage_events WHERE account = 'dora' AND type = 'request'"
    await clickhouse.command(f"DELETE FROM usage_events WHERE account = 'dora' AND position = ({first})")
    lost = await deployment.reconcile()

    counters = (await deployment.checkpoint("ada")).counters
    assert (counters.deferred, (await deployment.checkpoint("bob")).counters.deferred) == (0, 1)
    assert [row for row in equal.rows if row.pair is not Pair.STRIPE and row.cause is not Cause.IN_FLIGHT] == []
    assert not equal.differences
    assert lost.verdict is Verdict.DRIFT
    assert {row.account for row in rows_of(lost, Cause.MISSING) if row.pair is not Pair.COUNTERS} == {"dora"}
    assert len(rows_of(lost, Cause.MISSING, Pair.COUNTERS)) == 1
    assert rows_of(lost, Cause.EXTRA) == []


GAUGE = {"slug": "disk", "event_type": "gauge", "aggregation": "time_weighted", "value_path": "$.gb", "scale": 1,
         "dimensions": {"site": "$.site"}, "series_path": "$.box"}  # fmt: skip


async def test_measured_meters_on_clickhouse_are_equal_and_a_lost_adjustment_is_named(clickhouse: ClickHouse) -> None:
    deployment, store = Deployment(), ClickHouseStore(clickhouse)
    deployment.clickhouse = cast("FakeClickHouse", store)
    deployment.views = replace(
        deployment.views,
        reader=ClickHouseReader(clickhouse),
        hourly=store,
        measured=ClickHouseMeasuredRecount(clickhouse),
    )
    await deployment.start({"version": 1, "meters": [GAUGE]})
    measurer = Measurer(
        deployment.log, deployment.store.accounts, store, ClickHouseMeasures(clickhouse), deployment.store.measured, 0
    )
    for hour in range(2):
        for account in ACCOUNTS:
            await deployment.emit(account, type_="gauge", gb=hour + 0.5, site="eu", box=account)
        await deployment.advance(HOUR_MS + 10 * MINUTE_MS)
        await deployment.fold()
        await deployment.archive()
        told = [(await measurer.measure(partition)).told for partition in range(deployment.world.partitions)]
        await deployment.fold()
        await deployment.archive()
        await deployment.relay()

    assert min(told) > 0
    assert await measured_rows(deployment) == []

    first = "SELECT min(position) FROM usage_events WHERE account = 'ada' AND id LIKE 'm:%'"
    await clickhouse.command(f"DELETE FROM usage_events WHERE account = 'ada' AND position = ({first})")
    row, *_ = [row for row in await measured_rows(deployment) if "samples say" in row.detail]

    assert (row.cause, row.account, row.meter, row.dimensions) == (Cause.MISSING, "ada", "disk", '{"site":"eu"}')
