"""Holds: quantities of a limit or of seats that are promised to one caller for a while, and their store.

With holds a hard limit is never overspent: the store grants one hold of an account after the other, and a hold counts
against the limit until the usage that it was for is certainly in the live usage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from schemas.clock import DAY_MS, SECOND_MS

# A forgotten hold takes room from others until its end: long enough for a job, short enough to wait for.
HOLD_S_MAX: Final = 3_600
# The holds of an account that count at one time. One more is refused.
OPEN_MAX: Final = 1_000
# How far the clocks of the log and of a gateway may differ, and how old the caller's own count of seats may be.
SETTLE_MS: Final = 2 * SECOND_MS
# How long an ended hold is kept, so that a repeated request finds it.
KEPT_MS: Final = DAY_MS


class HoldState(StrEnum):
    """`USED`: the caller said how much it used. `EXPIRED`: nobody said anything in time."""

    HELD = "held"
    USED = "used"
    RELEASED = "released"
    EXPIRED = "expired"


class Hold(NamedTuple):
    """A quantity of a feature that an account's caller may use until `expires_ms`.

    `is_metered`: Tidemark counts the usage; the caller counts seats. `key`: the caller's name of the request, or "".
    `used`: what the caller used until `ended_ms`, 0 after a release; None while it is held.
    """

    id: str
    account: str
    feature: str
    quantity: Decimal
    taken_ms: int
    expires_ms: int
    is_metered: bool
    key: str = ""
    used: Decimal | None = None
    ended_ms: int | None = None

    def state(self, now_ms: int) -> HoldState:
        """What became of the hold."""
        if self.used is None:
            return HoldState.HELD if now_ms <= self.expires_ms else HoldState.EXPIRED
        return HoldState.USED if self.used else HoldState.RELEASED


class Taken(NamedTuple):
    """The hold that was taken, or that an earlier request with the same key took; None: the limit has no room.

    `held`: what other open holds promise, in units.
    """

    hold: Hold | None
    held: Decimal
    is_repeated: bool = False


class Holds(Protocol):
    """The store of holds. Every call may raise `Transient`; a hold whose answer was lost ends by itself."""

    async def take(
        self,
        hold: Hold,
        features: frozenset[str],
        allows: Callable[[Decimal], bool],
        complete_up_to_ms: int | None,
        now_ms: int,
    ) -> Taken:
        """Take a hold if `allows`, a pure function, says so of what the open holds of `features` promise.

        `features` count the same usage. It is read before, and complete up to `complete_up_to_ms`; None: not known. The
        calls for an account come one after the other, in one transaction each. The same key gives the same hold.
        Raises `InvalidInput` if the key was another request's, or if the account has `OPEN_MAX` open holds.
        """
        ...

    async def get(self, hold_id: str) -> Hold | None:
        """The hold with an id, or None."""
        ...

    async def end(self, hold_id: str, used: Decimal, now_ms: int) -> Hold | None:
        """Say what of a hold was used; 0 releases it. Returns the hold as it is then, None if there is none.

        A hold that ended before, or whose time is over, stays as it is; only a release comes never too late. Raises
        `InvalidInput` if more was used than was held.
        """
        ...

    async def open(self, account: str, since_ms: int) -> Sequence[Hold]:
        """The holds of an account whose usage may have arrived at `since_ms` or later."""
        ...

    async def holders(self, since_ms: int, limit: int) -> Mapping[str, int] | None:
        """The accounts that have such holds, with the latest instant at which their usage may arrive; None if they are
        more than `limit`."""
        ...

    async def sweep(self, now_ms: int, limit: int) -> int:
        """Delete up to `limit` holds that ended, or expired, `KEPT_MS` ago. Returns how many."""
        ...
