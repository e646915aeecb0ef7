"""What the role `mirror` shows, and for how long."""

from __future__ import annotations

from pipeline.metrics import Metrics
from pipeline.roles.mirror import OWNER_GAUGES, Counted, show
from pipeline.webhooks.binding_outbox import OutboxStatus
from pipeline.webhooks.processor import ProcessorStatus
from pipeline.webhooks.recovery import Recovery
from pipeline.webhooks.set_aside import append_set_aside
from pipeline.webhooks.walker import Canary, Walker
from schemas.log import BILLING_EVENTS_TOPIC
from tests.worlds.billing import BillingWorld
from tests.worlds.reconciler import START_MS


def shown(metrics: Metrics) -> dict[str, float]:
    """The values without labels, and those with labels by their text."""
    lines = metrics.render()[0].decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


async def test_a_process_that_lost_partition_0_shows_nothing_old() -> None:
    """A canary that was silent then would page for ever."""
    world, owns = BillingWorld(START_MS), [True]
    await world.open()
    customer = world.stripe.customer()
    await world.deliver(world.stripe.happened())
    await world.process()
    world.clock.advance(60_000)
    recovery = Recovery(
        Walker(world.log, world.stripe, world.tables, world.clock),
        Canary(customer, world.stripe, world.tables, world.clock),
        world.clock,
        lambda: owns[0],
        lambda: append_set_aside(world.log, world.tables),
    )
    await recovery.turn()
    counted, metrics, due = (
        Counted(world.tables, world.tables.plan_changes, world.tables.seats, world.clock),
        Metrics(),
        OutboxStatus(1, START_MS, 0),
    )
    await counted.count()
    status = ProcessorStatus({}, {}, None, START_MS, 0)
    show(metrics, world.clock, status, due, counted, [recovery])
    owned = shown(metrics)
    assert owned["tidemark_mirror_canary_silent"] == 1
    assert owned["tidemark_mirror_held_events"] > 0
    assert owned["tidemark_mirror_oldest_event_age_seconds"] > 100
    assert {str(name) for name in OWNER_GAUGES} - owned.keys() == {"tidemark_mirror_canary_heard_seconds"}

    owns[0] = False
    show(metrics, world.clock, status._replace(waiting_ms=None), due, counted, [recovery])
    lost = shown(metrics)
    assert lost["tidemark_mirror_oldest_event_age_seconds"] == 0
    assert not {str(name) for name in OWNER_GAUGES} & lost.keys()


async def test_a_gap_of_the_log_is_a_gauge() -> None:
    """The log's message is seen by nobody who does not look for it."""
    world = BillingWorld(START_MS)
    await world.open()
    world.stripe.customer()
    await world.deliver(world.stripe.happened()[:1])
    await world.process()
    await world.deliver(world.stripe.happened())
    del world.log._partitions[BILLING_EVENTS_TOPIC, 0].records[:3]
    processor, metrics = world.processor(), Metrics()
    await world.process(processor)
    show(
        metrics,
        world.clock,
        processor.status(),
        OutboxStatus(0, None, 0),
        Counted(world.tables, world.tables.plan_changes, world.tables.seats, world.clock),
        [],
    )
    assert shown(metrics)['tidemark_mirror_gaps{of="log"}'] == 1
