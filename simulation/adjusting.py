"""Adjustments of nobody the run knows, straight in `usage.events`, some of them twice or days late."""

from __future__ import annotations

import asyncio
import random
from typing import Final

from aggregators.partitioning import partition_of
from pipeline.logs.adjustments import append_adjustments
from schemas.adjustments import adjustment
from schemas.clock import DAY_MS, HOUR_MS, Clock
from schemas.log import Log
from schemas.meters import Meter
from simulation.traffic import ACCOUNTS, METERS, PARTITIONS, WINDOW_MS, time_text

ADJUSTED: Final = ("requests", "gigabytes")
LATE_MS: Final = (0, 0, HOUR_MS, WINDOW_MS + DAY_MS)


async def adjust(log: Log, clock: Clock, chance: random.Random, every_s: float) -> None:
    """Append adjustments until the task is cancelled, on average one every `every_s` seconds."""
    meters = [Meter.model_validate(meter) for meter in METERS if meter["slug"] in ADJUSTED]
    number = 0
    while True:
        await asyncio.sleep(chance.expovariate(1 / every_s))
        number += 1
        account, meter = chance.choice(ACCOUNTS), chance.choice(meters)
        time = time_text(clock.now_ms() - chance.choice(LATE_MS), chance.randrange(1000))
        dimensions = {name: chance.choice(("eu", "us")) for name in meter.dimensions}
        event = adjustment(meter, account, f"adjustment-{number}", time, chance.randrange(-2_000, 2_000), dimensions)
        for _ in range(chance.choice((1, 1, 2))):
            await append_adjustments(log, partition_of(account, PARTITIONS), [event])
