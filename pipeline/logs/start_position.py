"""Checks a processor's start offset: the stored position must be in the log, or the partition must be new."""

from __future__ import annotations

from schemas.errors import OperatorNeeded
from schemas.log import Bounds


def check_position(
    topic: str, partition: int, offset: int, bounds: Bounds, remedy: str, whose: str = "the stored position"
) -> None:
    """Raise `OperatorNeeded` if the offset is before the log's start or after the log's end."""
    if bounds.first <= offset <= bounds.next:
        return
    reason = "Records in between are gone from the log"
    if offset > bounds.next:
        reason = "The log lost records, or belongs to another deployment"
    raise OperatorNeeded(
        f"{topic}-{partition}: {whose} is {offset}, the log holds [{bounds.first}, {bounds.next}). {reason}. {remedy}"
    )


def check_fresh(topic: str, partition: int, group: str, committed: int | None, bounds: Bounds, remedy: str) -> None:
    """Raise `OperatorNeeded` if the log does not start at 0 or the group has a committed offset.

    The caller must read `committed` before the state, because another process may start in between.
    """
    if bounds.first > 0:
        raise OperatorNeeded(
            f"{topic}-{partition}: there is no state and the log starts at {bounds.first}, not at 0. {remedy}"
        )
    if committed:
        raise OperatorNeeded(
            f"{topic}-{partition}: there is no state, but {group} has processed the log up to offset {committed}: "
            f"the store was emptied. Nothing is counted from zero silently. {remedy}"
        )
