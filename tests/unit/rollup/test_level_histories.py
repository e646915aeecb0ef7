"""Random histories of a level, as of seats or of a gauge: every view has what the oracle counts (S13).

Events come late and twice, months pass in silence, and the periods are cut anywhere by bindings and payers.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any, Final

import pytest

from aggregators.codec import parse_value
from aggregators.partitioning import partition_of
from oracle.model import Oracle
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.control import BindingRecord
from schemas.log import EVENTS_TOPIC, REPORTS_TOPIC
from schemas.periods import Billing, Binding, Interval
from schemas.reports import Intent
from tests.traffic.generate import rfc3339
from tests.worlds.reconciler import Deployment

ACCOUNTS: Final = ("eve", "fay", "gil")
METER_SET: Final[dict[str, Any]] = {
    "version": 1,
    "meters": [
        {"slug": "seats", "event_type": "seats", "aggregation": "latest", "value_path": "$.seats", "carry_over": True,
         "dimensions": {"site": "$.site"}, "stripe_event_name": "seats"},
        {"slug": "disk", "event_type": "seats", "aggregation": "latest", "value_path": "$.disk", "scale": 2,
         "carry_over": True, "on_bad": "skip_meter", "allow_negative": True},
        {"slug": "plain", "event_type": "seats", "aggregation": "latest", "value_path": "$.seats",
         "stripe_event_name": "plain"},
    ],
    "policy": {"grace_ms": HOUR_MS, "keep_periods_ms": 36_600 * DAY_MS, "late_max_ms": 60 * HOUR_MS},
}  # fmt: skip
AGES_MS: Final = (0, 0, MINUTE_MS, 50 * MINUTE_MS, 3 * HOUR_MS, 30 * HOUR_MS)
LEAPS_MS: Final = (1, MINUTE_MS, 20 * MINUTE_MS, HOUR_MS, 5 * HOUR_MS, DAY_MS, 6 * DAY_MS, 40 * DAY_MS, 70 * DAY_MS)


class History:
    """Writes one history, for a deployment and for the oracle."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.world = Deployment()
        self.oracle = Oracle(METER_SET, partitions=self.world.world.partitions)
        self.sent: list[dict[str, Any]] = []

    async def write(self, steps: int = 60) -> None:
        world, chance = self.world, self.chance
        await world.world.start(METER_SET)
        for account in ACCOUNTS:
            await self._bind(account)
        for _ in range(steps):
            (leap_ms,) = chance.choices(LEAPS_MS, (4, 4, 4, 4, 3, 3, 2, 1, 1))
            if chance.random() < 0.2:
                # To the end of somebody's period, or close to it.
                end_ms = self.oracle.period(chance.choice(ACCOUNTS), world.clock.ms)[1]
                leap_ms = max(0, end_ms - world.clock.ms + chance.choice([-MINUTE_MS, -1, 0, 1]))
            await world.advance(leap_ms)
            for partition in range(world.world.partitions):
                self.oracle.tick(partition, world.clock.ms)
            if chance.random() < 0.1:
                await self._bind(chance.choice(ACCOUNTS))
            for _ in range(chance.choice([0, 0, 1, 2, 5])):
                await self._emit()

    async def _bind(self, account: str) -> None:
        chance, world = self.chance, self.world
        now_ms = world.clock.ms // MINUTE_MS * MINUTE_MS
        binding = Binding(
            effective_from_ms=now_ms + chance.choice([0, HOUR_MS, 10 * DAY_MS]),
            anchor_ms=now_ms - chance.randrange(60 * DAY_MS),
            interval=chance.choice([Interval.DAY, Interval.WEEK, Interval.MONTH, Interval.MONTH]),
            interval_count=chance.choice([1, 1, 2]),
            billing=Billing.MAPPED,
            stripe_customer=chance.choice(["cus_1", "cus_2"]),
        )
        partition, revision = world.partition(account), world.world.revision(account)
        offset = await world.world.control(
            partition, BindingRecord(account=account, revision=revision, binding=binding)
        )
        self.oracle.bind(partition, account, binding.model_dump(mode="json"), world.clock.ms, offset, revision=revision)

    async def _emit(self) -> None:
        chance, world = self.chance, self.world
        at_ms = world.clock.ms - chance.choice(AGES_MS) - chance.randrange(1_000)
        body = {
            "specversion": "1.0", "id": f"{len(self.sent)}", "source": "s", "type": "seats",
            "subject": chance.choice(ACCOUNTS), "time": rfc3339(at_ms * 1000),
            "data": {"seats": chance.choice([0, 0, 1, 7, 10]), "disk": chance.choice(["0", "-1.5", "2.25", None]),
                     "site": chance.choice(["", "north"])},
        }  # fmt: skip
        if self.sent and chance.random() < 0.1:
            body = self.sent[-1]
        self.sent.append(body)
        value = json.dumps(body).encode()
        partition = partition_of(str(body["subject"]), world.world.partitions)
        offset = await world.log.append(EVENTS_TOPIC, partition, value)
        self.oracle.feed(partition, offset, world.clock.ms, value)


async def intended(world: Deployment) -> dict[tuple[str, str, int], int]:
    """The sums of the published intents by account, meter and period."""
    sums: Counter[tuple[str, str, int]] = Counter()
    for partition in range(world.world.partitions):
        for record in await world.world.records(partition, REPORTS_TOPIC):
            if b'"kind":"intent"' in (record.value or b""):
                intent = Intent.model_validate_json(record.value or b"")
                sums[intent.account, intent.meter, intent.period_start_ms] += intent.delta_minor
    return {key: total for key, total in sums.items() if total}


@pytest.mark.parametrize("seed", range(20))
async def test_every_view_has_the_levels_of_the_oracle(seed: int) -> None:
    """Redis, the intents, and the reconciler, which recounts the archive."""
    history = History(seed)
    await history.write()
    world, oracle = history.world, history.oracle
    for more_ms in (DAY_MS, HOUR_MS):
        await world.advance(more_ms)
        for partition in range(world.world.partitions):
            oracle.tick(partition, world.clock.ms)
    await world.fold()
    await world.archive()
    await world.relay()
    await world.publish()

    totals = {
        (key.account, meter, key.period_start_ms): parse_value(text).minor
        for stored in world.store.server.partitions.values()
        for key, fields in stored.totals.items()
        for meter, text in fields.items()
    }
    counted = {(account, meter, start_ms): value for (account, meter, (start_ms, _)), value in oracle.totals.items()}
    assert totals == counted
    # The last report bucket is open.
    begun = {key: value for key, value in counted.items() if key[2] <= world.clock.ms - HOUR_MS}
    found = {key: value for key, value in (await intended(world)).items() if key in begun}
    assert found == {key: value for key, value in begun.items() if value and key[1] != "disk"}
    report = await world.reconcile()
    assert report.differences == 0, report.rows
