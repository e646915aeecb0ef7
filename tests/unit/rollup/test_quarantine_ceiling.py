"""A worker with a ceiling stops before it quarantines what a bad deploy sends, and counts it after the repair."""

from __future__ import annotations

import json

import pytest

from pipeline.rollup.processor import RollupProcessor, RollupSettings
from pipeline.rollup.quarantine_ceiling import EVENTS_MAX, QuarantineCeiling
from schemas.errors import OperatorNeeded
from schemas.log import EVENTS_TOPIC, REJECTED_TOPIC
from tests.traffic.generate import METER_SET
from tests.worlds.deployment import SECRET, World

NOON_MS = 1_795_262_400_000


@pytest.mark.parametrize(
    ("percent_max", "flushes", "stops"),
    [
        pytest.param(100, [(5_000, 5_000)], False, id="100 is no limit"),
        pytest.param(10, [(1_000, 100)], False, id="exactly the limit"),
        pytest.param(10, [(1_000, 101)], True, id="one more"),
        pytest.param(10, [(999, 999)], False, id="too few events to judge"),
        pytest.param(10, [(999, 99), (1, 1)], False, id="small flushes add up to the limit"),
        pytest.param(10, [(999, 100), (1, 1)], True, id="small flushes add up to more"),
        pytest.param(10, [(EVENTS_MAX + 1, 0)] * 50 + [(3_000, 3_000)], True, id="a good month excuses no bad hour"),
        pytest.param(10, [(1_000, 90), (0, 0)], False, id="a flush without events"),
    ],
)
def test_the_share_of_the_last_events_decides(percent_max: int, flushes: list[tuple[int, int]], stops: bool) -> None:
    """Flushes of (received, quarantined) events."""
    ceiling = QuarantineCeiling(percent_max)
    for received, quarantined in flushes[:-1]:
        ceiling.check(0, received, quarantined)
    if stops:
        with pytest.raises(OperatorNeeded, match="TIDEMARK_QUARANTINE_PERCENT_MAX"):
            ceiling.check(0, *flushes[-1])
    else:
        ceiling.check(0, *flushes[-1])
    ceiling.check(1, 1_000, 0)


async def test_a_bad_deploy_stops_the_worker_and_leaves_no_trace() -> None:
    """Nothing is quarantined and nothing is committed; without the ceiling all of it is, as ever."""
    world = World(NOON_MS, 1)
    await world.start(METER_SET)
    bad = [
        {
            "specversion": "1.0", "id": f"{number}", "source": "s", "type": "completion.finished", "subject": "acme",
            "data": {"model": "small", "usage": {"tokens": "many"}},
        }
        for number in range(1_500)
    ]  # fmt: skip
    await world.log.append(EVENTS_TOPIC, 0, json.dumps(bad).encode())
    worker = RollupProcessor(
        world.log, world.store.state, world.clock, SECRET, RollupSettings(quarantine_percent_max=25)
    )

    with pytest.raises(OperatorNeeded, match="1500 of the last 1500 events of partition 0"):
        await world.fold_all(worker)

    stored = await world.store.state.load_checkpoint(0)
    assert stored is None or stored.counters.received == 0
    assert await world.records(0, REJECTED_TOPIC) == []

    open_worker = RollupProcessor(world.log, world.store.state, world.clock, SECRET)
    await world.fold_all(open_worker)

    assert open_worker.checkpoints[0].counters.rejected == len(bad)
    assert len(await world.records(0, REJECTED_TOPIC)) == len(bad)
