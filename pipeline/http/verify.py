"""`POST /v1/events?verify=1`: which events of a request have arrived before, as far as the worker has counted.

The answer is a help for the sender and decides nothing: the events are appended all the same, and the worker finds
every duplicate when it counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from aggregators.partitioning import partition_of
from aggregators.signing import hash_key, mark
from pipeline.http.dependencies import GatewayDependencies
from schemas.errors import TidemarkError
from schemas.live_view import DedupMarks

VERIFY_TIMEOUT_S: Final = 0.25
VERIFIED_EVENTS_MAX: Final = 1_000

_log: Final = logging.getLogger(__name__)

Identity = tuple[str, str]


async def arrived_before(dependencies: GatewayDependencies, identities: Sequence[Identity]) -> list[bool] | None:
    """For each (account, id), whether it has a mark in Redis or stands earlier in the sequence.

    None if that is not known: Redis did not answer within `VERIFY_TIMEOUT_S`, or there are more than
    `VERIFIED_EVENTS_MAX` identities, or the gateway has no live view.
    """
    marks = dependencies.live.marks if dependencies.live else None
    if marks is None or len(identities) > VERIFIED_EVENTS_MAX:
        return None
    try:
        async with asyncio.timeout(VERIFY_TIMEOUT_S):
            marked = await _marked(marks, dependencies, set(identities))
    except (TidemarkError, TimeoutError) as error:
        _log.warning("events could not be verified: %s", str(error) or "Redis did not answer in time")
        return None
    answer = []
    for identity in identities:
        answer.append(identity in marked)
        marked.add(identity)
    return answer


async def _marked(marks: DedupMarks, dependencies: GatewayDependencies, identities: set[Identity]) -> set[Identity]:
    key = hash_key(dependencies.settings.secret_bytes())
    by_partition: dict[int, dict[tuple[int, int], Identity]] = {}
    for account, event_id in identities:
        partition = partition_of(account, dependencies.genesis.partitions)
        by_partition.setdefault(partition, {})[mark(key, account, event_id)] = (account, event_id)
    found = await asyncio.gather(*(marks.marked(partition, list(wanted)) for partition, wanted in by_partition.items()))
    return {wanted[pair] for wanted, present in zip(by_partition.values(), found, strict=True) for pair in present}
