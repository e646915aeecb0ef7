"""Seats: who holds one of an account's users, locations or projects, and which accounts are still to pay for theirs.

A holder reserves a seat by an invitation, or has it. Both count, and both are paid: who accepts an invitation finds the
seat paid. The paid quantity at Stripe follows the holders, some seconds after the last of several changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from schemas.clock import SECOND_MS
from schemas.entitlements import EntitlementVersion
from schemas.upgrades import Billed

# Seats that change one after the other are paid together: that long after the last change, and at most so long after
# the first one.
QUIET_MS: Final = 2 * SECOND_MS
QUIET_MS_MAX: Final = 10 * SECOND_MS
# Of one feature of an account. A change of seats counts them.
HOLDERS_MAX: Final = 100_000


class SeatState(StrEnum):
    """`RESERVED`: an invitation holds the seat until it expires. `ACTIVE`: somebody has the seat. `RELEASED`: it is
    free again."""

    RESERVED = "reserved"
    ACTIVE = "active"
    RELEASED = "released"


class Seat(NamedTuple):
    """A seat of a feature and its holder, whose name is the application's. A holder has one seat of a feature at most
    that is not released. `expires_ms`: of a reservation. `key` names the request that made the seat; "" if none does.
    """

    id: str
    account: str
    feature: str
    holder: str
    state: SeatState
    made_ms: int
    changed_ms: int
    expires_ms: int | None = None
    key: str = ""

    def at(self, now_ms: int) -> SeatState:
        """The state at an instant: a reservation that has expired is released, whether or not somebody noted it."""
        is_over = self.state is SeatState.RESERVED and self.expires_ms is not None and self.expires_ms <= now_ms
        return SeatState.RELEASED if is_over else self.state


class Holders(NamedTuple):
    """How many seats of a feature are reserved and active."""

    reserved: int = 0
    active: int = 0

    @property
    def held(self) -> int:
        return self.reserved + self.active


class Taken(NamedTuple):
    """What became of a request for a seat. `seat` None: there is no room, and `held` are as many as may be. `is_new`:
    the request made the seat."""

    seat: Seat | None
    held: int
    is_new: bool = False


class Unpaid(NamedTuple):
    """That an account's holders changed and its paid quantities do not follow yet. `number` rises with each change.
    `since_ms`: the first change that is not followed. `tries`: how often it was tried in vain, and `detail` why.
    `is_fewer`: a seat was released among these changes; without that no quantity falls."""

    account: str
    number: int
    since_ms: int
    due_ms: int
    tries: int = 0
    detail: str = ""
    is_fewer: bool = False


class Waiting(NamedTuple):
    """How many accounts' paid quantities do not follow yet, and since when the oldest of them waits."""

    accounts: int
    oldest_ms: int | None


# How many holders there may be, by the newest entitlements and by what is paid; None: as many as are asked for. The
# store calls it within a transaction.
Room = Callable[[EntitlementVersion | None, Billed], int | None]


class Seats(Protocol):
    """Seats in SQL. Every call may raise `Transient`. Each change is one transaction with its audit row under the lock
    of its account; no call holds a lock when it returns. An expired reservation never counts."""

    async def take(self, seat: Seat, room: Room, actor: str, now_ms: int) -> Taken:
        """Give a holder a seat, reserved or active as `seat` says. A holder who has one keeps it, and a reserved one
        becomes active if `seat` is. The same key gives the same seat, whatever became of it.

        The account is made if it is new. Raises `InvalidInput` for a key that was sent with another seat, and beyond
        `HOLDERS_MAX`.
        """
        ...

    async def activate(self, account: str, seat: str, actor: str, now_ms: int) -> Seat | None:
        """Make a reserved seat active, whether or not there is room; returns the seat as it is then. None: the account
        has no such seat. A released one stays released."""
        ...

    async def release(self, account: str, seat: str, actor: str, now_ms: int) -> Seat | None:
        """Release a seat; the same again changes nothing. None: the account has no such seat."""
        ...

    async def listed(self, account: str, feature: str, now_ms: int, limit: int, after: str = "") -> Sequence[Seat]:
        """Seats that are held, of one feature or with "" of all, in the order of their ids, behind the id `after`."""
        ...

    async def holders(self, account: str, now_ms: int) -> Mapping[str, Holders]:
        """The holders by feature, of each feature of which the account ever had a seat."""
        ...

    async def sweep(self, now_ms: int, limit: int) -> int:
        """Release expired reservations, at most so many; returns their number."""
        ...

    async def unpaid(self, now_ms: int, limit: int) -> Sequence[Unpaid]:
        """Accounts that are due to pay for other quantities, oldest first."""
        ...

    async def followed(self, unpaid: Unpaid) -> None:
        """Note that the paid quantities of an account follow. A seat that changed meanwhile keeps the account due."""
        ...

    async def postpone(self, unpaid: Unpaid, due_ms: int, detail: str) -> None:
        """Note that it was tried in vain, and when it is due again. A seat that changed meanwhile is not postponed."""
        ...

    async def waiting(self) -> Waiting:
        """What is not followed yet."""
        ...
