"""What differs after a random history of measured meters, whether the reconciler names faults of the archive (an
adjustment that is deleted, changed or doubled), and whether it raises an alarm while the history goes on."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, Final
from unittest.mock import patch

from reconciler.causes import Pair
from reconciler.compare import Range
from reconciler.measured import MeasuredComparison
from reconciler.report import Findings, Row
from reconciler.views import PartitionStates
from schemas.analytics import EventRow
from schemas.clock import MINUTE_MS
from tests.worlds.measured import MeasuredHistory, history_of
from tests.worlds.reconciler import Deployment

ANY_TIME: Final = Range()
Events = dict[tuple[str, str], EventRow]


def delete(events: Events, row: EventRow) -> None:
    del events[row.account, row.id]


def change(events: Events, row: EventRow) -> None:
    data = json.loads(row.data)
    digits = str(data["quantity"])
    other = digits.removeprefix("-") if digits.startswith("-") else f"-{digits}"
    events[row.account, row.id] = row._replace(data=json.dumps({**data, "quantity": other}))


def double(events: Events, row: EventRow) -> None:
    events[row.account, "again"] = row._replace(id="again")


FAULTS: Final[dict[str, Callable[[Events, EventRow], None]]] = {"delete": delete, "change": change, "double": double}


async def measured_rows(world: Deployment, limits: Range = ANY_TIME) -> list[Row]:
    """What the check of measured meters alone says."""
    findings = Findings()
    states = PartitionStates(world.views.reader, world.clock, 1.0)
    comparison = MeasuredComparison(world.views, world.policy, states, world.clock, findings, limits)
    await comparison.run(range(world.world.partitions))
    return [row for row in findings.report(0, None, None).rows if row.pair is Pair.MEASURED]


async def unnamed_faults(history: MeasuredHistory, seed: int) -> list[str]:
    """The faults after which the check does not say `missing` or `extra` of the account and the meter. Each fault is
    undone."""
    chance, events, unnamed = random.Random(seed), history.world.clickhouse.events, []
    as_of_ms = {
        partition: note.as_of_ms
        for partition in range(history.world.world.partitions)
        if (note := await history.world.store.measured.measured_to(partition))
    }
    # What the last pass told may be completed by the next one.
    told = sorted(
        row for row in events.values() if row.id.startswith("m:") and row.stream_time_ms < as_of_ms[row.partition]
    )
    for name, fault in FAULTS.items() if told else ():
        row, before = chance.choice(told), dict(events)
        fault(events, row)
        found = await measured_rows(history.world)
        events.clear()
        events.update(before)
        # What is named by `usage_hourly` alone is no recount of samples.
        drift = {(each.account, each.meter) for each in found if each.cause.is_drift and "samples say" in each.detail}
        if (row.account, row.id.split(":")[1]) not in drift:
            unnamed.append(f"the reconciler does not see: {name} {row.id} of {row.account}")
    return unnamed


async def differences_of(seed: int) -> list[str]:
    """What differs after the history of a seed, and the faults that the reconciler does not see."""
    history = history_of(seed)
    await history.write()
    return await history.differences() or await unnamed_faults(history, seed)


class Watched(MeasuredHistory):
    """A history in which the reconciler looks at any moment: before the fold, the archive or the resolver, and between
    a pass and its adjustments. `seen` counts what it says. Nothing is wrong, so drift is a false alarm."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.alarms: list[Row] = []
        self.seen: Counter[str] = Counter()

    async def look(self) -> None:
        rows = await measured_rows(self.world)
        self.alarms += (row for row in rows if row.cause.is_drift)
        self.seen.update({row.detail.split()[0] for row in rows} or {"equal"})

    async def _something(self) -> None:
        await super()._something()
        if self.chance.random() < 0.5:
            await self.look()
            await self.world.fold()
            await self.world.archive()
            await self.look()

    async def measure(self) -> int:
        told = await super().measure()
        await self.look()
        await self.world.fold()
        await self.world.archive()
        await self.look()
        await self.world.relay()
        await self.look()
        return told


class Running(Watched):
    """A history in which the measurer makes a pass every five minutes. Its meters quarantine late usage, and the payers
    of accounts change: closed periods keep out what is late."""

    async def write(self, steps: int = 25) -> None:
        leap = self.world.advance

        async def advance(duration_ms: int) -> None:
            for start_ms in range(0, duration_ms, 5 * MINUTE_MS):
                await leap(min(5 * MINUTE_MS, duration_ms - start_ms))
                await MeasuredHistory.measure(self)

        self.world.stripe.add_customer("cus_2")
        # All that a history does goes through the world.
        with patch.object(self.world, "advance", advance):
            await super().write(steps)

    def _meter_set(self) -> dict[str, Any]:
        meter_set = super()._meter_set()
        return {**meter_set, "meters": [{**meter, "late": "quarantine"} for meter in meter_set["meters"]]}

    def _payer(self) -> str:
        return self.chance.choice(["cus_1", "cus_2"])
