"""What the rebuilds share: their checks of log and live view, and the first checkpoint of a shadow copy."""

from __future__ import annotations

import uuid

from pipeline.logs.control_records import find_genesis
from pipeline.rollup.checkpoint import check_log, check_secret, first_checkpoint
from schemas.errors import OperatorNeeded
from schemas.log import EVENTS_TOPIC, Log
from schemas.rollup import Checkpoint
from schemas.snapshots import CopyableState


async def check_reach(log: Log, partitions: int, remedy: str) -> None:
    """Raise `OperatorNeeded` with the missing range if the log does not begin at offset 0."""
    for partition in range(partitions):
        first = (await log.bounds(EVENTS_TOPIC, partition)).first
        if first > 0:
            raise OperatorNeeded(
                f"{EVENTS_TOPIC}-{partition} begins at offset {first}: offsets 0 to {first - 1} are missing, and "
                f"counts cannot be made without them. Nothing was changed. {remedy}"
            )


async def begin(log: Log, secret: bytes, store: CopyableState, partition: int, generation: int) -> None:
    """Delete what a killed run may have left, and write the checkpoint before a partition's first record.

    Raises `OperatorNeeded` if the log does not begin with its genesis record, `Fenced` if another process began too.
    """
    genesis = await find_genesis(log, secret, partition)
    if genesis is None:
        raise OperatorNeeded(
            f"{EVENTS_TOPIC}-{partition} does not begin with its genesis record: the log was cut, or is another's. "
            "Nothing was changed. Restore the store from its own backup instead."
        )
    owner = uuid.uuid4().hex
    await store.begin_restore(partition, owner)
    await store.end_restore(partition, owner, first_checkpoint(genesis, secret, generation))


def check_live(partition: int, live: Checkpoint | None, secret: bytes, log_id: str | None = None) -> None:
    """Raise `OperatorNeeded` if the live view was made with another secret, or from another log than `log_id`."""
    if live is not None:
        check_secret(partition, live, secret)
        check_log(partition, live, log_id or live.log_id)


def behind_the_view(partition: int, live: Checkpoint, end_offset: int) -> OperatorNeeded:
    """The error for a log that ends before the live checkpoint."""
    return OperatorNeeded(
        f"partition {partition}: the live view is at offset {live.next_offset}, the log ends at "
        f"{end_offset}. Point TIDEMARK_LOG_URL at the log this view was made from."
    )
