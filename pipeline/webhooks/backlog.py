"""Waits until the role `mirror` has processed what `billing.events` had at an instant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from schemas.clock import Clock
from schemas.log import BILLING_EVENTS_TOPIC, Log
from schemas.side_tables import SideTables

LOOK_S: Final = 0.2


async def log_ends(log: Log) -> dict[int, int]:
    """The offset behind the last record of each partition. Raises the log's errors."""
    partitions = range(await log.partition_count(BILLING_EVENTS_TOPIC))
    return {at: (await log.bounds(BILLING_EVENTS_TOPIC, at)).next for at in partitions}


async def unprocessed(tables: SideTables, ends: Mapping[int, int], clock: Clock, stalled_ms: int) -> int:
    """Wait until the positions have reached `ends`, and return 0; or the number of records that are left when none was
    processed for `stalled_ms`. `clock` measures the wait. Raises `Transient`."""
    last, since_ms = -1, clock.now_ms()
    while left := sum([max(0, end - (await tables.position(at) or 0)) for at, end in ends.items()]):
        if left != last:
            last, since_ms = left, clock.now_ms()
        elif clock.now_ms() - since_ms > stalled_ms:
            return left
        await clock.sleep(LOOK_S)
    return 0
