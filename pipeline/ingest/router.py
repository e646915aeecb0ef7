"""The router: `usage.inbox` (any producer, any partitioner) → `usage.events`, keyed by account and batched.

Takes CloudEvents' Kafka binding, structured (`content-type: application/cloudevents+json`, or a batch) and binary
(`ce_…` headers). A crash after the append and before the commit forwards the same events again: they are duplicates
by identity. What cannot be read is forwarded as it came and rejected, with its reason, by the rollup: one place
decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from aggregators.decode import decode
from aggregators.partitioning import partition_of
from pipeline.logs.batching import batches
from pipeline.logs.quarantine import RAW_BYTES_KEPT
from schemas.errors import InvalidInput
from schemas.log import EVENTS_TOPIC, INBOX_TOPIC, Log, Record

ROUTER_GROUP: Final = "tidemark-router"
_BINARY_PREFIX: Final = "ce_"

_any_json: Final = msgspec.json.Decoder(msgspec.Raw)


class RouterProcessor:
    """See `schemas.processing.Processor`. Keeps no position of its own: repeating is harmless."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._partitions = 0

    @property
    def topic(self) -> str:
        """`usage.inbox`."""
        return INBOX_TOPIC

    async def start_offset(self, partition: int) -> None:  # noqa: ARG002 - the protocol's
        """The group's committed offset will do."""
        self._partitions = await self._log.partition_count(EVENTS_TOPIC)

    async def step(self, partition: int, records: Sequence[Record]) -> None:
        """Forward all events of the records and return once they are durable."""
        readable: list[tuple[int, bytes]] = []
        unreadable: list[bytes] = []
        for record in records:
            value = structured_value(record)
            # The rollup applies the meter set's own size limit; a record that cannot be split goes on whole.
            decoded = decode(value, len(value) + 1)
            if decoded.rejected and len(decoded.rejected) == decoded.received:
                unreadable += [rejected.raw for rejected in decoded.rejected]
                continue
            parts = decoded.raws.parts
            readable += [
                (partition_of(event.subject, self._partitions), parts[place]) for place, event in decoded.events
            ]
            unreadable += [rejected.raw for rejected in decoded.rejected]
        appends = [self._forward(home, value) for home, value in batches(readable)]
        appends += [self._forward(partition % self._partitions, raw) for raw in unreadable]
        await asyncio.gather(*appends)

    async def _forward(self, partition: int, value: bytes) -> None:
        try:
            await self._log.append(EVENTS_TOPIC, partition, value)
        except InvalidInput:
            # Larger than what was read: put together from headers, or less compressible. Its start is rejected by the
            # rollup like anything broken; to fail would be to fail for ever.
            await self._log.append(EVENTS_TOPIC, partition, value[:RAW_BYTES_KEPT])

    async def revoked(self, partition: int) -> None:
        """Nothing is kept."""

    async def idle(self, partition: int) -> None:
        """Nothing to do."""


def structured_value(record: Record) -> bytes:
    """The record as structured CloudEvents JSON; a binary-mode record is put together from its headers."""
    value = record.value or b""
    attributes = {name.lower(): text for name, text in record.headers}
    if _BINARY_PREFIX + "specversion" not in attributes:
        return value
    event: dict[str, object] = {
        name.removeprefix(_BINARY_PREFIX): text.decode("utf-8", "replace")
        for name, text in attributes.items()
        if name.startswith(_BINARY_PREFIX)
    }
    if value:
        try:
            event["data"] = _any_json.decode(value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            event["data"] = value.decode("utf-8", "replace")
    return msgspec.json.encode(event)
