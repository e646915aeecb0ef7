"""`POST /v1/events?verify=1`: which events of a request have arrived before, as far as the worker has counted.

The answer is a help for the sender and decides nothing: the events are appended all the same, and the worker finds
every duplicate when it counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from pipeline.http.dependencies import GatewayDependencies
from pipeline.logs.marked import Identity, marked
from schemas.errors import TidemarkError

VERIFY_TIMEOUT_S: Final = 0.25
VERIFIED_EVENTS_MAX: Final = 1_000

_log: Final = logging.getLogger(__name__)


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
            secret, partitions = dependencies.settings.secret_bytes(), dependencies.genesis.partitions
            arrived = await marked(marks, secret, partitions, set(identities))
    except (TidemarkError, TimeoutError) as error:
        _log.warning("events could not be verified: %s", str(error) or "Redis did not answer in time")
        return None
    answer = []
    for identity in identities:
        answer.append(identity in arrived)
        arrived.add(identity)
    return answer
