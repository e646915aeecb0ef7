"""From single events to records: grouped by their accounts' partitions, never over the record limits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from aggregators.partitioning import partition_of

BATCH_EVENTS_MAX: Final = 1_000
BATCH_BYTES_MAX: Final = 900_000


class Batch(NamedTuple):
    """One record to be: its partition, its value and which of the given events it holds, by number."""

    partition: int
    value: bytes
    numbers: tuple[int, ...]


def batches(events: Iterable[tuple[int, str, bytes]], partitions: int) -> Iterator[Batch]:
    """Group (number, account, JSON bytes of one event) into records, keeping the order within each partition."""
    open_batches: dict[int, list[tuple[int, bytes]]] = {}
    sizes: dict[int, int] = {}
    for number, account, raw in events:
        partition = partition_of(account, partitions)
        held = open_batches.setdefault(partition, [])
        if held and (len(held) >= BATCH_EVENTS_MAX or sizes[partition] + len(raw) > BATCH_BYTES_MAX):
            yield _batch(partition, held)
            held.clear()
            sizes[partition] = 0
        held.append((number, raw))
        sizes[partition] = sizes.get(partition, 0) + len(raw) + 1
    for partition, held in open_batches.items():
        if held:
            yield _batch(partition, held)


def _batch(partition: int, held: list[tuple[int, bytes]]) -> Batch:
    value = b"[" + b",".join(raw for _, raw in held) + b"]"
    return Batch(partition, value, tuple(number for number, _ in held))
