"""Where a processor may start: at its position if the log holds it, or at offset 0 if nothing was processed yet."""

from __future__ import annotations

from schemas.errors import OperatorNeeded
from schemas.log import Bounds


def check_position(
    topic: str, partition: int, offset: int, bounds: Bounds, remedy: str, whose: str = "the stored position"
) -> None:
    """Raise `OperatorNeeded` if the log does not reach back to the offset, or not up to it."""
    if bounds.first <= offset <= bounds.next:
        return
    reason = "Records in between are gone from the log"
    if offset > bounds.next:
        reason = "The log lost records, or belongs to another deployment"
    raise OperatorNeeded(
        f"{topic}-{partition}: {whose} is {offset}, the log holds [{bounds.first}, {bounds.next}). {reason}. {remedy}"
    )


def check_fresh(topic: str, partition: int, group: str, committed: int | None, bounds: Bounds, remedy: str) -> None:
    """Raise `OperatorNeeded` unless the partition was never processed: its log starts at 0 and the group has committed
    nothing. The caller must ask for `committed` before the state: another process may begin in between."""
    if bounds.first > 0:
        raise OperatorNeeded(
            f"{topic}-{partition}: there is no state and the log starts at {bounds.first}, not at 0. {remedy}"
        )
    if committed:
        raise OperatorNeeded(
            f"{topic}-{partition}: there is no state, but {group} has processed the log up to offset {committed}: "
            f"the store was emptied. Nothing is counted from zero silently. {remedy}"
        )
