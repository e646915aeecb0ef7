"""Counts intents that wait for Stripe."""

from __future__ import annotations

import json

from schemas.log import REPORTS_TOPIC, Log


async def unsettled_intents(log: Log, partitions: int) -> int:
    """The number of intents without outcome, over all partitions."""
    pending = 0
    for partition in range(partitions):
        names: dict[str, set[str]] = {"intent": set(), "attempt": set(), "outcome": set()}
        bounds = await log.bounds(REPORTS_TOPIC, partition)
        offset = bounds.first
        while offset < bounds.next and (records := await log.read(REPORTS_TOPIC, partition, offset, 1000)):
            offset = records[-1].next_offset
            for record in records:
                entry = json.loads(record.value or b"{}")
                names[entry["kind"]].add(entry["identifier"])
        pending += len(names["intent"] - names["outcome"])
    return pending
