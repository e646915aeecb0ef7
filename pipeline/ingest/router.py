"""The router: forwards the events of `usage.inbox` in batches to the account's partition of `usage.events`.

The inbox accepts CloudEvents' Kafka binding: structured (`content-type: application/cloudevents+json`, or a batch) and
binary (`ce_…` headers). After a crash the router may forward events again; these are duplicates by identity. So an
event without a time gets the time of its arrival in the inbox, which the second forwarding repeats. An unreadable event
is forwarded unchanged, and the rollup rejects the event. An event with a reserved type is quarantined here (S14).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Final

from aggregators.binary_mode import structured
from aggregators.decode import decode, is_batch, timed
from aggregators.partitioning import partition_of
from pipeline.logs.batching import batches
from pipeline.logs.quarantine import RAW_BYTES_KEPT, append_all, append_entry, event_place
from schemas.adjustments import reserved
from schemas.errors import InvalidInput
from schemas.log import EVENTS_TOPIC, INBOX_TOPIC, Log, Record, position
from schemas.reasons import Reason

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
        refused: list[Coroutine[None, None, None]] = []
        for record in records:
            value = structured_value(record)
            # The router needs no limit: the rollup checks the sizes. A record that cannot be split is forwarded whole.
            decoded = decode(value, len(value) + 1)
            if decoded.rejected and len(decoded.rejected) == decoded.received:
                unreadable += [_alone(rejected.raw, value) for rejected in decoded.rejected]
                continue
            parts = decoded.raws.parts
            for place, event in decoded.events:
                if why := reserved(event.type, event.id):
                    refused.append(self._refuse(partition, record, place, parts[place], why))
                    continue
                home = partition_of(event.subject, self._partitions)
                readable.append((home, timed(parts[place], event, record.timestamp_ms)))
            unreadable += [_alone(rejected.raw, value) for rejected in decoded.rejected]
        appends = [self._forward(home, value) for home, value in batches(readable)]
        appends += [self._forward(partition % self._partitions, raw) for raw in unreadable]
        await asyncio.gather(*appends)
        await append_all(refused)

    async def _forward(self, partition: int, value: bytes) -> None:
        try:
            await self._log.append(EVENTS_TOPIC, partition, value)
        except InvalidInput:
            # The value became too large when it was built from headers. The rollup rejects the start of the value; an
            # error here would repeat for ever.
            await self._log.append(EVENTS_TOPIC, partition, value[:RAW_BYTES_KEPT])

    async def _refuse(self, partition: int, record: Record, place: int, raw: bytes, why: str) -> None:
        """Quarantine an event that only Tidemark itself may write."""
        origin = event_place(partition, position(record.offset, place), record.timestamp_ms)
        reason = Reason.RESERVED_TYPE
        home = partition % self._partitions
        await append_entry(self._log, home, reason, why, INBOX_TOPIC, raw, origin)

    async def revoked(self, partition: int) -> None:
        """Does nothing."""

    async def idle(self, partition: int) -> None:
        """Does nothing."""


def _alone(raw: bytes, value: bytes) -> bytes:
    """A rejected event of a record as a record of its own. An event that is a list stays within a list: alone it would
    be read as a batch, and an empty one would be lost."""
    return b"[%b]" % raw if raw != value and is_batch(raw) else raw


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
