"""A bulk redrive: which events of the quarantine are sent again, how far that is, and what it counted."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

# The entity of a redrive's rows in the audit of no account.
REDRIVE_ENTITY: Final = "quarantine_redrive"


class RedriveState(StrEnum):
    """How far a redrive is."""

    RUNNING = "running"
    DONE = "done"


class Selection(NamedTuple):
    """Which entries of the quarantine are meant. "" and 0 stand for all.

    `cause` is the reason of the entry. `meter` names a meter that reads the event's type. `since_ms` is when the event
    was rejected, as stream time in ms UTC.
    """

    cause: str = ""
    meter: str = ""
    since_ms: int = 0


class RedriveCounts(NamedTuple):
    """Numbers of entries. `looked`: all that were read. Of the selected ones, `sent` were sent again, `failing` would
    be rejected again and stay where they are, `cut` were kept only in part, and `repeated` are of an event that was
    sent a moment before."""

    looked: int = 0
    sent: int = 0
    failing: int = 0
    cut: int = 0
    repeated: int = 0


class Redrive(NamedTuple):
    """A redrive. It ends where each partition of `usage.rejected` ended when it began (`ends`), and goes on at
    `positions`, both by partition. `steps` counts the writes of the positions."""

    id: str
    selection: Selection
    by: str
    reason: str
    ends: Sequence[int]
    positions: Sequence[int]
    steps: int = 0
    counts: RedriveCounts = RedriveCounts()
    state: RedriveState = RedriveState.RUNNING
    begun_ms: int = 0
    touched_ms: int = 0


class Redrives(Protocol):
    """The redrives in SQL. Beginning and end are audited. Every call may raise `Transient`."""

    async def running(self, selection: Selection) -> Redrive | None:
        """The redrive of a selection that is not done."""
        ...

    async def begin(self, redrive: Redrive) -> Redrive:
        """Note a new redrive; if one of the same selection runs, return that one. Raises `InvalidInput` without who and
        why."""
        ...

    async def move(self, believed: Redrive, moved: Redrive) -> None:
        """Note how far a redrive is. Raises `Fenced` if another process moved it since `believed`."""
        ...

    async def listed(self, limit: int) -> Sequence[Redrive]:
        """The newest redrives, newest first."""
        ...
