"""Folding the log from its start into a shadow copy of a partition's state: the fold without its effects."""

from __future__ import annotations

import uuid

from aggregators.signing import fingerprint
from pipeline.logs.control_records import find_genesis
from schemas.errors import OperatorNeeded
from schemas.log import EVENTS_TOPIC, Log
from schemas.rollup import Checkpoint, Counters
from schemas.snapshots import CopyableState


async def check_reach(log: Log, partitions: int, remedy: str) -> None:
    """Raise `OperatorNeeded` with the range that is missing where the log does not begin at offset 0."""
    for partition in range(partitions):
        first = (await log.bounds(EVENTS_TOPIC, partition)).first
        if first > 0:
            raise OperatorNeeded(
                f"{EVENTS_TOPIC}-{partition} begins at offset {first}: offsets 0 to {first - 1} are missing, and "
                f"counts cannot be made without them. Nothing was changed. {remedy}"
            )


async def first_checkpoint(log: Log, secret: bytes, partition: int, generation: int) -> Checkpoint:
    """The checkpoint before a partition's first record. Raises `OperatorNeeded` where its genesis record is missing."""
    genesis = await find_genesis(log, secret, partition)
    if genesis is None:
        raise OperatorNeeded(
            f"{EVENTS_TOPIC}-{partition} does not begin with its genesis record: the log was cut, or is another's. "
            "Nothing was changed. Restore the store from its own backup instead."
        )
    return Checkpoint(
        log_id=genesis.log_id,
        partitions=genesis.partitions,
        livemode=genesis.livemode,
        stripe_account=genesis.stripe_account,
        generation=generation,
        next_offset=0,
        stream_time_ms=0,
        secret_fingerprint=fingerprint(secret),
        meter_set=None,
        counters=Counters(),
        slices=(),
    )


async def start_empty(copies: CopyableState, partition: int, first: Checkpoint) -> None:
    """Remove what a killed run may have left of a partition without its checkpoint, and write its first one.

    Raises `Fenced` where another process has done so meanwhile.
    """
    owner = uuid.uuid4().hex
    await copies.begin_restore(partition, owner)
    await copies.end_restore(partition, owner, first)


def check_live(partition: int, live: Checkpoint | None, secret: bytes, log_id: str | None = None) -> None:
    """Raise `OperatorNeeded` where the live view was made with another secret, or from another log than `log_id`."""
    if live is not None and live.secret_fingerprint != fingerprint(secret):
        raise OperatorNeeded(
            f"partition {partition}: the live view was made with another TIDEMARK_SECRET; set that one, or "
            "control records would be refused and duplicates counted"
        )
    if live is not None and log_id is not None and live.log_id != log_id:
        raise OperatorNeeded(
            f"partition {partition}: the live view is of log {live.log_id}, this log is {log_id}. Point "
            "TIDEMARK_REDIS_URL or TIDEMARK_LOG_URL at the pair that belongs together."
        )


def behind_the_view(partition: int, live: Checkpoint, end_offset: int) -> OperatorNeeded:
    """The log ends before what was folded from it."""
    return OperatorNeeded(
        f"partition {partition}: the live view is at offset {live.next_offset}, the log ends at "
        f"{end_offset}. Point TIDEMARK_LOG_URL at the log this view was made from."
    )
