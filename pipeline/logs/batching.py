"""Packs the events of one partition into records within the limits of a record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

BATCH_EVENTS_MAX: Final = 1_000
BATCH_BYTES_MAX: Final = 900_000


def has_room(events: int, size: int, raw: bytes) -> bool:
    """Whether a batch of `events` events and `size` bytes has room for one more event. An empty batch always has."""
    return not events or (events < BATCH_EVENTS_MAX and size + len(raw) <= BATCH_BYTES_MAX)


def batch_value(raws: Iterable[bytes]) -> bytes:
    """A record's value: the JSON list of the events."""
    return b"[" + b",".join(raws) + b"]"


def batches(events: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Turn pairs (partition, JSON of one event) into pairs (partition, record value), in order within a partition."""
    open_batches: dict[int, list[bytes]] = {}
    sizes: dict[int, int] = {}
    for partition, raw in events:
        batch = open_batches.setdefault(partition, [])
        if not has_room(len(batch), sizes.get(partition, 0), raw):
            yield partition, batch_value(batch)
            batch.clear()
            sizes[partition] = 0
        batch.append(raw)
        sizes[partition] = sizes.get(partition, 0) + len(raw) + 1
    for partition, batch in open_batches.items():
        yield partition, batch_value(batch)
