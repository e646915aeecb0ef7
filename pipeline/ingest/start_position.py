"""Where a processor that keeps its own position may start: at that position, or at the very beginning, or nowhere."""

from __future__ import annotations

from schemas.errors import OperatorNeeded
from schemas.log import Log


async def check_position(log: Log, topic: str, partition: int, next_offset: int, remedy: str) -> None:
    """Raise `OperatorNeeded` where the log does not reach back to the position, or not up to it."""
    bounds = await log.bounds(topic, partition)
    if next_offset < bounds.first:
        raise OperatorNeeded(
            f"{topic}-{partition}: the state needs offset {next_offset}, the log starts at {bounds.first}; "
            f"records in between are gone from the log. {remedy}"
        )
    if next_offset > bounds.next:
        raise OperatorNeeded(
            f"{topic}-{partition}: the state is at offset {next_offset}, the log ends at {bounds.next}; "
            f"the log lost records, or belongs to another deployment. {remedy}"
        )


async def check_fresh(log: Log, group: str, topic: str, partition: int, committed: int | None, remedy: str) -> None:
    """Raise `OperatorNeeded` unless this partition has never been processed: its log starts at 0 and the group has
    committed nothing. `committed` was asked for before the state was: another process may begin in between."""
    bounds = await log.bounds(topic, partition)
    if bounds.first > 0:
        raise OperatorNeeded(
            f"{topic}-{partition}: there is no state and the log starts at {bounds.first}, not at 0. {remedy}"
        )
    if committed:
        raise OperatorNeeded(
            f"{topic}-{partition}: there is no state, but {group} has processed the log up to offset {committed}: "
            f"the store was emptied. Nothing is counted from zero silently. {remedy}"
        )
