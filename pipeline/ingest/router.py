"""The router: forwards the events of `usage.inbox` in batches to the account's partition of `usage.events`.

The inbox accepts CloudEvents' Kafka binding: structured (`content-type: application/cloudevents+json`, or a batch) and
binary (`ce_…` headers). After a crash the router may forward events again; these are duplicates by identity. So an
event without a time gets the time of its arrival in the inbox, which the second forwarding repeats. An unreadable event
is forwarded unchanged, and the rollup rejects the event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from aggregators.binary_mode import structured
from aggregators.decode import decode, timed
from aggregators.partitioning import partition_of
from pipeline.logs.batching import batches
from pipeline.logs.quarantine import RAW_BYTES_KEPT
from schemas.errors import InvalidInput
from schemas.log import EVENTS_TOPIC, INBOX_TOPIC, Log, Record

ROUTER_GROUP: Final = "tidemark-router"
_BINARY_PREFIX: Final = "ce_"
_STRUCTURED: Final = b"application/cloudevents"


class RouterProcessor:
    """The processor of the router. The router stores no position, because repeated events are duplicates."""

    topic: Final = INBOX_TOPIC

    def __init__(self, log: Log) -> None:
        self._log = log
        self._partitions = 0

    async def start_offset(self, partition: int) -> None:  # noqa: ARG002 - the protocol's
        """Load the number of partitions. Returns None, so the runner uses the group's committed offset."""
        self._partitions = await self._log.partition_count(EVENTS_TOPIC)

    async def step(self, partition: int, records: Sequence[Record]) -> None:
        """Forward all events of the records and return after all are durable."""
        readable: list[tuple[int, bytes]] = []
        unreadable: list[bytes] = []
        for record in records:
            value = structured_value(record)
            # The router needs no limit: the rollup checks the sizes. A record that cannot be split is forwarded whole.
            decoded = decode(value, len(value) + 1)
            if decoded.rejected and len(decoded.rejected) == decoded.received:
                unreadable += [rejected.raw for rejected in decoded.rejected]
                continue
            parts = decoded.raws.parts
            readable += [
                (partition_of(event.subject, self._partitions), timed(parts[place], event, record.timestamp_ms))
                for place, event in decoded.events
            ]
            unreadable += [rejected.raw for rejected in decoded.rejected]
        appends = [self._forward(home, value) for home, value in batches(readable)]
        appends += [self._forward(partition % self._partitions, raw) for raw in unreadable]
        await asyncio.gather(*appends)

    async def _forward(self, partition: int, value: bytes) -> None:
        try:
            await self._log.append(EVENTS_TOPIC, partition, value)
        except InvalidInput:
            # The value became too large when it was built from headers. The rollup rejects the start of the value; an
            # error here would repeat for ever.
            await self._log.append(EVENTS_TOPIC, partition, value[:RAW_BYTES_KEPT])

    async def revoked(self, partition: int) -> None:
        """Does nothing."""

    async def idle(self, partition: int) -> None:
        """Does nothing."""


def structured_value(record: Record) -> bytes:
    """The record's value as structured CloudEvents JSON. A binary-mode event is built from headers and value."""
    value = record.value or b""
    headers = [(name.lower(), text) for name, text in record.headers]
    names = {name for name, _ in headers}
    is_structured = any(name == "content-type" and text.startswith(_STRUCTURED) for name, text in headers)
    if _BINARY_PREFIX + "specversion" not in names or is_structured:
        return value
    prefixed = ((name, text) for name, text in headers if name.startswith(_BINARY_PREFIX))
    return structured(((name.removeprefix(_BINARY_PREFIX), text) for name, text in prefixed), value)
