"""How much of what was due a run has read."""

from __future__ import annotations

from typing import Final, NamedTuple


class Coverage(NamedTuple):
    """How much of what was due a run has read. `confirmed`: values of earlier runs that are not due. `oldest_unread_ms`
    is the end of the oldest period that was due and not read; None if all was read."""

    due: int = 0
    read: int = 0
    confirmed: int = 0
    oldest_unread_ms: int | None = None


NOTHING_DUE: Final = Coverage()
