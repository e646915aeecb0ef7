"""Devices that were offline: each sends late samples, soon more of the same hours, and then nothing.

Nobody looks at their accounts again for another reason, so that what was told wrongly once stays wrong.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final, Protocol

from aggregators.partitioning import partition_of
from schemas.clock import HOUR_MS, MINUTE_MS, Clock
from schemas.log import EVENTS_TOPIC, Log
from schemas.periods import Billing
from simulation.traffic import PARTITIONS, encoded, time_text

DEVICES: Final = tuple(f"device-{number}" for number in range(12))
# They are not older than the dedup window.
AGE_MS_MAX: Final = 100 * MINUTE_MS
MORE_S_MAX: Final = 900.0


class Deployment(Protocol):
    """What the devices know of the world."""

    @property
    def clock(self) -> Clock: ...

    @property
    def log(self) -> Log: ...

    def chance(self, name: str) -> random.Random: ...

    async def bind(self, account: str, **fields: object) -> None: ...


async def come_back(world: Deployment, span_s: float) -> None:
    """One device after the other comes back, until the task is cancelled."""
    chance = world.chance("devices")
    for device in DEVICES:
        await asyncio.sleep(chance.expovariate(2 * len(DEVICES) / span_s))
        now_ms = world.clock.now_ms()
        first_ms, last_ms = now_ms - AGE_MS_MAX, now_ms // HOUR_MS * HOUR_MS - MINUTE_MS
        is_bound_late = chance.random() < 0.3
        if not is_bound_late:
            await world.bind(device, billing=Billing.FREE, stripe_customer="")
        try:
            await _send(world, device, {first_ms: 5, last_ms: 0})
            for number in range(chance.choice((1, 2))):
                await asyncio.sleep(chance.uniform(0, MORE_S_MAX))
                await _send(world, device, {chance.randrange(first_ms, last_ms): 7 + number})
        finally:
            if is_bound_late:
                # Also at the end of the faults: usage of an account that nobody pays for would wait for ever.
                anchor_ms = chance.randrange(first_ms, last_ms) // MINUTE_MS * MINUTE_MS
                await world.bind(device, billing=Billing.FREE, stripe_customer="", anchor_ms=anchor_ms)


async def _send(world: Deployment, device: str, levels: dict[int, int]) -> None:
    samples = [
        {"specversion": "1.0", "id": f"{device}-{time_ms}", "source": "/device", "type": "sample", "subject": device,
         "time": time_text(time_ms, 0), "data": {"gb": level, "disk": "a"}}
        for time_ms, level in levels.items()
    ]  # fmt: skip
    await world.log.append(EVENTS_TOPIC, partition_of(device, PARTITIONS), encoded(samples))
