"""Corrections through the gateway on the real archive: what the live view and ClickHouse hold afterwards (S15, S16)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, cast

from pipeline.logs.control_records import append_everywhere
from pipeline.rollup.measurer import Measurer
from schemas.clock import HOUR_MS, MINUTE_MS
from schemas.control import MeterSetRecord
from schemas.meters import MeterSet
from sinks.clickhouse.client import ClickHouse
from sinks.clickhouse.corrections import ClickHouseCorrections
from sinks.clickhouse.fake import FakeClickHouse
from sinks.clickhouse.measures import ClickHouseMeasures
from sinks.clickhouse.reader import ClickHouseReader
from sinks.clickhouse.writer import ClickHouseStore
from tests.worlds.deployment import SECRET
from tests.worlds.gateway import Gateway, running
from tests.worlds.reconciler import Deployment

DISK: Final[dict[str, Any]] = {
    "version": 2,
    "meters": [
        {"slug": "disk", "event_type": "disk", "aggregation": "time_weighted", "value_path": "$.gb", "scale": 1,
         "dimensions": {"site": "$.site"}},
    ],
}  # fmt: skip


async def test_a_sample_is_voided_through_the_door(clickhouse: ClickHouse, tmp_path: Path) -> None:
    """3 GB from 10:00, 50 GB by mistake from 12:00, 4 GB from 13:00. By 14:00 the disk held 2 × 3 + 50 + 4 GB-hours;
    without the mistake 3 GB stand an hour longer."""
    world, store = Deployment(), ClickHouseStore(clickhouse)
    world.clickhouse = cast("FakeClickHouse", store)
    reader, archive = ClickHouseReader(clickhouse), ClickHouseCorrections(clickhouse)
    meter_set = MeterSet.model_validate(DISK)

    async def in_force() -> MeterSet:
        return meter_set

    stores: dict[str, Any] = {"meter_set": in_force, "usage": reader, "hourly": store, "corrections": archive}
    async with running(tmp_path, world.world, **stores) as door:
        await append_everywhere(world.log, SECRET, MeterSetRecord(meter_set=meter_set))
        samples = ClickHouseMeasures(clickhouse)
        measurer = Measurer(
            world.log, world.store.accounts, store, samples, world.store.measured, 2 * MINUTE_MS
        )  # fmt: skip

        async def measure() -> None:
            for partition in range(world.world.partitions):
                await world.catch_up()
                await measurer.measure(partition)
            await world.catch_up()
            await world.relay()

        for name, gb, hours in (("right", 3, 2), ("wrong", 50, 1), ("last", 4, 1)):
            await world.emit("ada", type_="disk", id=name, gb=gb, site="eu")
            await world.advance(hours * HOUR_MS)
        await world.advance(3 * MINUTE_MS)
        await measure()
        assert await held(door, clickhouse) == ("60", "60", [(10, 30), (11, 30), (12, 500), (13, 40)])

        body = {"correction": "c-1", "account": "ada", "void": "wrong", "by": "ann", "reason": "a wrong unit"}
        answer = await door.client.post("/v1/corrections", json=body, headers=door.bearer("operator"))
        await world.advance(5 * MINUTE_MS)
        await measure()

        assert (answer.status_code, answer.json()["measured_again"]) == (202, ["disk"])
        assert await held(door, clickhouse) == ("13", "13", [(10, 30), (11, 30), (12, 30), (13, 40)])


async def held(door: Gateway, clickhouse: ClickHouse) -> tuple[str, str, list[tuple[int, int]]]:
    """The total in the live view, the total that ClickHouse answers, and the hours of its rows in minor units."""
    live = (await door.get("/v1/usage/current", account="ada")).json()
    (total,) = [each["value"] for each in live["meters"] if each["meter"] == "disk"]
    span = {"from_": "2026-11-01T00:00:00Z", "to": "2026-12-01T00:00:00Z"}
    (month,) = (await door.get("/v1/usage", account="ada", meter="disk", **span)).json()["rows"]
    rows = await clickhouse.rows(
        "SELECT intDiv(hour_ms, 3600000) % 24, sum(value_minor), any(dimensions) FROM usage_hourly FINAL "
        "WHERE account = 'ada' AND meter = 'disk' GROUP BY hour_ms ORDER BY hour_ms"
    )
    assert {json.loads(row[2])["site"] for row in rows} == {"eu"}
    return str(total), str(month["value"]), [(int(row[0]), int(row[1])) for row in rows]
