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
from tests.worlds.reconciler import START_MS, Deployment, named


async def overflown() -> Deployment:
    """Five hours of usage: the relays wrote the first hour, then the outbox dropped all but a few cells."""
    made = await Deployment().start()
    await made.traffic(hours=1)
    await made.settle()
    await made.traffic(hours=4)
    await made.fold()
    for partition in range(made.world.partitions):
        assert await made.store.drops.drop_excess(partition, 5) > 0
    await made.settle()
    return made


async def test_hours_with_dropped_cells_are_never_called_complete() -> None:
    """The relay's position in usage answers stays before the first dropped cell, however much usage follows."""
    made = await overflown()
    await made.traffic(hours=2)
    await made.settle()

    for partition in range(made.world.partitions):
        lost = await made.store.drops.dropped(partition)
        assert lost.cells
        assert (await made.clickhouse.load_relayed())[partition].stream_time_ms == min(lost.cells)
        assert min(lost.cells) >= START_MS // HOUR_MS * HOUR_MS + HOUR_MS


async def test_partial_relays_call_no_hour_with_dropped_or_waiting_cells_complete() -> None:
    """A backlog is relayed in parts: the oldest cell of a part says nothing about dropped cells."""
    made = await overflown()
    await made.traffic(hours=2)
    await made.emit("ada", at_ms=made.clock.now_ms() - 100 * HOUR_MS, gb="1", user="u", region="eu")
    await made.traffic(hours=3)
    await made.fold()
    for partition in range(made.world.partitions):
        relay, complete = (
            hourly_relay(made.store, made.clickhouse, cells_max=2),
            False,
        )
        parts = 0
        while not complete:
            complete = (await relay.relay(partition)).complete
            parts += 1
            reached_ms = (await made.clickhouse.load_relayed())[partition].stream_time_ms
            assert reached_ms <= min((await made.store.drops.dropped(partition)).cells)
        assert parts > 2


async def test_reconciler_reports_the_remedy_and_nothing_else_differs() -> None:
    """Totals, intents and Stripe are unchanged; what ClickHouse lacks is unchecked from a stated instant on."""
    made = await overflown()
    report = await made.reconcile()

    assert report.verdict is Verdict.INCOMPLETE
    assert report.differences == 0
    rows = named(report, Cause.UNCHECKED)
    assert {row.pair for row in rows} == {Pair.HOURLY, Pair.DUPLICATES}
    assert all("tidemark rebuild usage_hourly" in row.detail for row in rows)
    assert any("from 20" in row.detail for row in rows if row.pair is Pair.HOURLY)


async def test_worker_reports_how_much_was_dropped_and_the_start_for_the_rebuild() -> None:
    """At `/readyz` and as a gauge, for the worker's own partitions, until a rebuild."""
    made, metrics = await overflown(), Metrics()
    cap = OutboxCap(made.store.drops, 1_000, metrics)
    for partition in range(made.world.partitions):
        await cap.keep(partition)

    assert list(cap.details({1})["dropped"]) == ["1"]
    lost = await made.store.drops.dropped(0)
    since = format_instant_ms(min(lost.cells))
    told = cap.details({0})["dropped"]["0"]
    assert told == f"usage_hourly from {since} on: run `tidemark rebuild usage_hourly` once ClickHouse is back"
    gauge = 'tidemark_outbox_dropped_entries{kind="cells",partition="0"} ' + f"{sum(lost.cells.values()):.1f}"
    assert gauge in metrics.render()[0].decode()
    await LiveViewRebuild(made.log, made.store, made.clickhouse, made.clock, SECRET).run()
    await cap.keep(0)
    await cap.keep(1)
    assert cap.details({0, 1}) == {}


async def test_rebuild_of_the_live_view_repairs_the_gap() -> None:
    """Every cell and duplicate is relayed again; nothing is reported to Stripe again."""
    made = await overflown()
    told = len(made.stripe.events)
    await LiveViewRebuild(made.log, made.store, made.clickhouse, made.clock, SECRET).run()
    await made.settle()

    report = await made.reconcile()
    assert (report.verdict, report.rows) == (Verdict.EQUAL, ())
    assert [await made.store.drops.dropped(partition) for partition in range(made.world.partitions)] == [
        Dropped(),
        Dropped(),
    ]
    assert len(made.stripe.events) == told
    assert len(made.clickhouse.duplicates) == 4 * 5


async def test_rebuild_of_usage_hourly_from_the_log_repairs_the_gap() -> None:
    """The live view is unchanged, and its record of the drop is removed once both tables are whole."""
    made, shadow_copy = await overflown(), FakeLiveView()
    staging = FakeStaging(made.clickhouse)
    await HourlyRebuild(made.log, made.store, lambda _: shadow_copy, made.clickhouse, staging, made.clock, SECRET).run()
    await made.settle()

    report = await made.reconcile()
    assert (report.verdict, report.rows) == (Verdict.EQUAL, ())
    assert [await made.store.drops.dropped(partition) for partition in range(made.world.partitions)] == [
        Dropped(),
        Dropped(),
    ]
    assert len(made.clickhouse.duplicates) == 4 * 5


async def test_recount_from_usage_events_repairs_the_hours_and_reports_missing_duplicates() -> None:
    """The archive has no later arrivals to make duplicates from."""
    made = await overflown()
    staging = FakeStaging(made.clickhouse)
    store = made.clickhouse
    await HourlyRecount(made.log, made.store, store, store, staging, made.clock, SECRET).run()
    await made.settle()

    report = await made.reconcile()
    assert report.differences == 0
    assert {row.pair for row in named(report, Cause.UNCHECKED)} == {Pair.DUPLICATES}
    lost = [await made.store.drops.dropped(partition) for partition in range(made.world.partitions)]
    assert [each.cells for each in lost] == [{}, {}]


async def test_restarted_worker_counts_right_after_cells_were_dropped() -> None:
    """The worker reads the open hour's cells from the store, and no cells of a closed hour."""
    made = await overflown()
    worker = RollupProcessor(made.log, made.store.state, made.clock, SECRET)
    before = dict(made.totals("ada"))
    await made.traffic(hours=1)
    await made.world.fold_all(worker)
    await made.settle()

    assert int(made.totals("ada")["requests"]) == int(before["requests"]) + 4
    assert (await made.reconcile()).differences == 0
