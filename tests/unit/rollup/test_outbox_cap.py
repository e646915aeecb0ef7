"""ClickHouse is down for longer than the outbox has room: live totals continue; the gap is reported and repaired."""

from __future__ import annotations

from aggregators.instants import format_instant_ms
from pipeline.metrics import Metrics
from pipeline.rebuild.hourly import HourlyRebuild
from pipeline.rebuild.live_view import LiveViewRebuild
from pipeline.rebuild.recount import HourlyRecount
from pipeline.rollup.outbox_cap import OutboxCap
from pipeline.rollup.processor import RollupProcessor
from reconciler.causes import Cause, Pair, Verdict
from schemas.clock import HOUR_MS
from schemas.rollup import Dropped
from sinks.clickhouse.fake_staging import FakeStaging
from sinks.redis.fake import FakeLiveView
from tests.worlds.deployment import SECRET, hourly_relay
from tests.worlds.reconciler import START_MS, Deployment, rows_of


async def overflown() -> Deployment:
    """Five hours of usage: the relays wrote the first hour, then the outbox dropped all but a few cells."""
    deployment = await Deployment().start()
    await deployment.traffic(hours=1)
    await deployment.settle()
    await deployment.traffic(hours=4)
    await deployment.fold()
    for partition in range(deployment.world.partitions):
        assert await deployment.store.drops.drop_excess(partition, 5) > 0
    await deployment.settle()
    return deployment


async def test_hours_with_dropped_cells_are_never_called_complete() -> None:
    """The relay's position in usage answers stays before the first dropped cell, however much usage follows."""
    deployment = await overflown()
    await deployment.traffic(hours=2)
    await deployment.settle()

    for partition in range(deployment.world.partitions):
        lost = await deployment.store.drops.dropped(partition)
        assert lost.cells
        assert (await deployment.clickhouse.load_relayed())[partition].stream_time_ms == min(lost.cells)
        assert min(lost.cells) >= START_MS // HOUR_MS * HOUR_MS + HOUR_MS


async def test_partial_relays_call_no_hour_with_dropped_or_waiting_cells_complete() -> None:
    """A backlog is relayed in parts: the oldest cell of a part says nothing about dropped cells."""
    deployment = await overflown()
    await deployment.traffic(hours=2)
    await deployment.emit("ada", at_ms=deployment.clock.now_ms() - 100 * HOUR_MS, gb="1", user="u", region="eu")
    await deployment.traffic(hours=3)
    await deployment.fold()
    for partition in range(deployment.world.partitions):
        relay, complete = (
            hourly_relay(deployment.store, deployment.clickhouse, cells_max=2),
            False,
        )
        parts = 0
        while not complete:
            complete = (await relay.relay(partition)).complete
            parts += 1
            reached_ms = (await deployment.clickhouse.load_relayed())[partition].stream_time_ms
            assert reached_ms <= min((await deployment.store.drops.dropped(partition)).cells)
        assert parts > 2


async def test_reconciler_reports_the_remedy_and_nothing_else_differs() -> None:
    """Totals, intents and Stripe are unchanged; what ClickHouse lacks is unchecked from a stated instant on."""
    deployment = await overflown()
    report = await deployment.reconcile()

    assert report.verdict is Verdict.INCOMPLETE
    assert report.differences == 0
    rows = rows_of(report, Cause.UNCHECKED)
    assert {row.pair for row in rows} == {Pair.HOURLY, Pair.DUPLICATES}
    assert all("tidemark rebuild usage_hourly" in row.detail for row in rows)
    assert any("from 20" in row.detail for row in rows if row.pair is Pair.HOURLY)


async def test_worker_reports_how_much_was_dropped_and_the_start_for_the_rebuild() -> None:
    """At `/readyz` and as a gauge, for the worker's own partitions, until a rebuild."""
    deployment, metrics = await overflown(), Metrics()
    cap = OutboxCap(deployment.store.drops, 1_000, metrics)
    for partition in range(deployment.world.partitions):
        await cap.keep(partition)

    assert list(cap.details({1})["dropped"]) == ["1"]
    lost = await deployment.store.drops.dropped(0)
    since = format_instant_ms(min(lost.cells))
    detail = cap.details({0})["dropped"]["0"]
    assert detail == f"usage_hourly from {since} on: run `tidemark rebuild usage_hourly` once ClickHouse is back"
    gauge = 'tidemark_outbox_dropped_entries{kind="cells",partition="0"} ' + f"{sum(lost.cells.values()):.1f}"
    assert gauge in metrics.render()[0].decode()
    await LiveViewRebuild(deployment.log, deployment.store, deployment.clickhouse, deployment.clock, SECRET).run()
    await cap.keep(0)
    await cap.keep(1)
    assert cap.details({0, 1}) == {}


async def test_rebuild_of_the_live_view_repairs_the_gap() -> None:
    """Every cell and duplicate is relayed again; nothing is reported to Stripe again."""
    deployment = await overflown()
    sent = len(deployment.stripe.events)
    await LiveViewRebuild(deployment.log, deployment.store, deployment.clickhouse, deployment.clock, SECRET).run()
    await deployment.settle()

    report = await deployment.reconcile()
    assert (report.verdict, report.rows) == (Verdict.EQUAL, ())
    assert [await deployment.store.drops.dropped(partition) for partition in range(deployment.world.partitions)] == [
        Dropped(),
        Dropped(),
    ]
    assert len(deployment.stripe.events) == sent
    assert len(deployment.clickhouse.duplicates) == 4 * 5


async def test_rebuild_of_usage_hourly_from_the_log_repairs_the_gap() -> None:
    """The live view is unchanged, and its record of the drop is removed once both tables are whole."""
    deployment, shadow_copy = await overflown(), FakeLiveView()
    staging = FakeStaging(deployment.clickhouse)
    await HourlyRebuild(
        deployment.log,
        deployment.store,
        lambda _: shadow_copy,
        deployment.clickhouse,
        staging,
        deployment.clock,
        SECRET,
    ).run()
    await deployment.settle()

    report = await deployment.reconcile()
    assert (report.verdict, report.rows) == (Verdict.EQUAL, ())
    assert [await deployment.store.drops.dropped(partition) for partition in range(deployment.world.partitions)] == [
        Dropped(),
        Dropped(),
    ]
    assert len(deployment.clickhouse.duplicates) == 4 * 5


async def test_recount_from_usage_events_repairs_the_hours_and_reports_missing_duplicates() -> None:
    """The archive has no later arrivals to make duplicates from."""
    deployment = await overflown()
    staging = FakeStaging(deployment.clickhouse)
    store = deployment.clickhouse
    await HourlyRecount(deployment.log, deployment.store, store, store, staging, deployment.clock, SECRET).run()
    await deployment.settle()

    report = await deployment.reconcile()
    assert report.differences == 0
    assert {row.pair for row in rows_of(report, Cause.UNCHECKED)} == {Pair.DUPLICATES}
    lost = [await deployment.store.drops.dropped(partition) for partition in range(deployment.world.partitions)]
    assert [each.cells for each in lost] == [{}, {}]


async def test_restarted_worker_counts_right_after_cells_were_dropped() -> None:
    """The worker reads the open hour's cells from the store, and no cells of a closed hour."""
    deployment = await overflown()
    worker = RollupProcessor(deployment.log, deployment.store.state, deployment.clock, SECRET)
    before = dict(deployment.totals("ada"))
    await deployment.traffic(hours=1)
    await deployment.world.fold_all(worker)
    await deployment.settle()

    assert int(deployment.totals("ada")["requests"]) == int(before["requests"]) + 4
    assert (await deployment.reconcile()).differences == 0
