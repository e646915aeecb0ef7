"""The holds of a gateway: taken in SQL, and read for the checks that take none."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from decimal import Decimal
from typing import Final, NamedTuple

from aggregators.holds import held_by, open_since_ms
from schemas.clock import HOUR_MS, SECOND_MS, Clock
from schemas.errors import InvalidInput, Transient
from schemas.holds import HOLD_S_MAX, Hold, Holds, Taken

# Connections of the gateway that holds may use at one time, so that others are left for the reads of checks.
AT_ONCE: Final = 4
WAITING_MAX: Final = 256
# How old the holds may be that a plain check uses again; the live usage may be as old.
AGE_MS_MAX: Final = 250
# A store that hangs delays a request by this and by the time of one call, not by the calls of all who wait before.
WAIT_S_MAX: Final = 1.0
# Accounts whose holds are looked at. If more have any, each check asks SQL.
HOLDERS_MAX: Final = 10_000
KEY_CHARACTERS_MAX: Final = 200
# How far behind the usage may be without SQL being asked for each account. The first read of who has holds takes the
# holds of this time, not those of a whole day.
BEHIND_MS_MAX: Final = HOUR_MS
# Holds that were taken and ended between two reads of who has any are found by the next one.
OVERLAP_MS: Final = 10 * SECOND_MS
# A read for seats, of which only the last seconds count, must not hide holds whose usage is this much behind.
LOOK_BACK_MS: Final = 30 * SECOND_MS


class HoldRequest(NamedTuple):
    """That a check takes a hold for `seconds`. `key` names the request: the same key gives the same hold."""

    seconds: int
    key: str = ""


class _Read(NamedTuple):
    read_ms: int
    since_ms: int
    holds: Sequence[Hold]


def check_hold(request: HoldRequest, quantity: Decimal) -> None:
    """Raise `InvalidInput` if no such hold can be taken."""
    if not 1 <= request.seconds <= HOLD_S_MAX:
        raise InvalidInput("hold_s", f"must be from 1 to {HOLD_S_MAX}, or 0 for no hold")
    if not quantity:
        raise InvalidInput("quantity", "must be more than 0 to be held")
    check_key(request.key)


def check_key(key: str) -> None:
    """Raise `InvalidInput` if this cannot be the name of a request."""
    if len(key) > KEY_CHARACTERS_MAX or not key.isprintable():
        raise InvalidInput("Idempotency-Key", f"must have at most {KEY_CHARACTERS_MAX} printable characters")


class GatewayHolds:
    """Takes and ends holds, and knows which accounts have any. `refresh` must be called every half a second."""

    def __init__(self, store: Holds, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0
        # Up to when the holds of an account may count, of those that counted at `_known_since_ms` or later. None: not
        # read yet, or too many accounts have holds to know them.
        self._holders: dict[str, int] | None = None
        self._known_since_ms = 0
        self._reads: OrderedDict[str, _Read] = OrderedDict()
        self._read_ms = 0

    async def refresh(self) -> None:
        """Read which accounts have holds. Raises `Transient`; what is known stays then."""
        now_ms = self._clock.now_ms()
        known_since_ms = now_ms - BEHIND_MS_MAX
        since_ms = known_since_ms if self._holders is None else self._read_ms - OVERLAP_MS
        found = await self._store.holders(since_ms, HOLDERS_MAX)
        self._read_ms, self._known_since_ms = now_ms, known_since_ms
        known = dict(self._holders or {})
        for account, until_ms in (found or {}).items():
            known[account] = max(until_ms, known.get(account, 0))
        known = {account: until_ms for account, until_ms in known.items() if until_ms >= known_since_ms}
        self._holders = known if found is not None and len(known) <= HOLDERS_MAX else None

    async def held(
        self, account: str, features: frozenset[str], complete_up_to_ms: int | None, *, is_metered: bool
    ) -> Decimal:
        """What the open holds of features promise beside usage that is complete up to an instant. Raises `Transient`.

        SQL is asked only while a hold of the account may count, and at most once in `AGE_MS_MAX`.
        """
        now_ms = self._clock.now_ms()
        since_ms = open_since_ms(complete_up_to_ms, now_ms)
        if self._holders is not None and since_ms >= self._known_since_ms:
            until_ms = self._holders.get(account)
            if until_ms is None or until_ms < since_ms:
                return Decimal(0)
        since_ms -= 0 if is_metered else LOOK_BACK_MS
        read = self._reads.get(account)
        if read is None or not 0 <= now_ms - read.read_ms <= AGE_MS_MAX or read.since_ms > since_ms:
            read = _Read(now_ms, since_ms, await self._store.open(account, since_ms))
            self._keep(account, read)
        return held_by(read.holds, features, complete_up_to_ms, now_ms)

    def _keep(self, account: str, read: _Read) -> None:
        if not read.holds:
            self._reads.pop(account, None)
            if self._holders is not None:
                self._holders.pop(account, None)
            return
        self._reads[account] = read
        self._reads.move_to_end(account)
        if len(self._reads) > HOLDERS_MAX:
            self._reads.popitem(last=False)

    async def take(
        self,
        wanted: Hold,
        features: frozenset[str],
        allows: Callable[[Decimal], bool],
        complete_up_to_ms: int | None,
    ) -> Taken:
        """Take a hold; see `schemas.holds.Holds.take`."""
        async with self._slot():
            taken = await self._store.take(wanted, features, allows, complete_up_to_ms, self._clock.now_ms())
        self._changed(wanted)
        return taken

    def wanted(self, account: str, feature: str, quantity: Decimal, request: HoldRequest, *, is_metered: bool) -> Hold:
        """The hold that a request asks for, under an id that nobody can guess."""
        now_ms = self._clock.now_ms()
        expires_ms = now_ms + request.seconds * SECOND_MS
        hold_id = f"hold_{secrets.token_hex(16)}"
        return Hold(hold_id, account, feature, quantity, now_ms, expires_ms, is_metered, request.key)

    async def get(self, hold_id: str) -> Hold | None:
        """The hold with an id, or None. Raises `Transient`."""
        return await self._store.get(hold_id)

    async def end(self, hold: Hold, used: Decimal) -> Hold:
        """Say what was used of a hold; 0 releases it. Returns the hold as it is then: one that ended before, or whose
        time is over, stays as it is. Raises `InvalidInput` if more was used than was held, and `Transient`."""
        async with self._slot():
            ended = await self._store.end(hold.id, used, self._clock.now_ms())
        self._changed(hold)
        return ended or hold

    def _changed(self, hold: Hold) -> None:
        self._reads.pop(hold.account, None)
        if self._holders is not None:
            # The end of a used hold is at most its expiry; that of one which ended late is now.
            until_ms = max(hold.expires_ms, self._clock.now_ms())
            self._holders[hold.account] = max(until_ms, self._holders.get(hold.account, 0))

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        if self._waiting >= WAITING_MAX:
            raise Transient("PostgreSQL is busy with the holds of other requests")
        self._waiting += 1
        try:
            try:
                async with asyncio.timeout(WAIT_S_MAX):
                    await self._slots.acquire()
            except TimeoutError:
                raise Transient("PostgreSQL is slow with the holds of other requests") from None
            try:
                yield
            finally:
                self._slots.release()
        finally:
            self._waiting -= 1
