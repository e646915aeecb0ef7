"""Writes adjustments, events of Tidemark's own, straight to `usage.events` (S14).

The doors for events of applications reject these types, so there is no other way into the log for them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.logs.batching import batches
from schemas.log import EVENTS_TOPIC, Log


async def append_adjustments(log: Log, partition: int, events: Sequence[Mapping[str, Any]]) -> None:
    """Append events to one partition of `usage.events`, in order, in as few records as they fit into. All must be of
    accounts of the partition. Returns after all are durable.

    Raises the log's errors: then some of the records may be in the log, and the caller repeats the call with the same
    events, because an event with a known id is a duplicate.
    """
    raws = ((partition, json.dumps(event, ensure_ascii=False).encode()) for event in events)
    for home, value in batches(raws):
        await log.append(EVENTS_TOPIC, home, value)
