"""From single events to records: one partition's events together, never over the record limits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

BATCH_EVENTS_MAX: Final = 1_000
BATCH_BYTES_MAX: Final = 900_000


def has_room(events: int, size: int, raw: bytes) -> bool:
    """Whether a batch of that many events and bytes takes one more event; an empty batch takes any."""
    return not events or (events < BATCH_EVENTS_MAX and size + len(raw) <= BATCH_BYTES_MAX)


def batch_value(raws: Iterable[bytes]) -> bytes:
    """The value of a record: a JSON list of events."""
    return b"[" + b",".join(raws) + b"]"


def batches(events: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Group (partition, JSON bytes of one event) into (partition, record value), in order within each partition."""
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
