"""Which identities of events have a mark: they arrived within the dedup window, as far as the worker has counted."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from aggregators.partitioning import partition_of
from aggregators.signing import hash_key, mark
from schemas.live_view import DedupMarks

Identity = tuple[str, str]


async def marked(marks: DedupMarks, secret: bytes, partitions: int, identities: Collection[Identity]) -> set[Identity]:
    """Those of the identities, (account, id), that have a mark. `partitions` are those of `usage.events`. Raises
    `Transient`."""
    key = hash_key(secret)
    by_partition: dict[int, dict[tuple[int, int], Identity]] = {}
    for account, event_id in identities:
        wanted = by_partition.setdefault(partition_of(account, partitions), {})
        wanted[mark(key, account, event_id)] = (account, event_id)
    found = await asyncio.gather(*(marks.marked(partition, list(wanted)) for partition, wanted in by_partition.items()))
    return {wanted[pair] for wanted, present in zip(by_partition.values(), found, strict=True) for pair in present}
