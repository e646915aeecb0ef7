"""What the accounts of denied checks pay now, kept in memory for a while."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final, NamedTuple

from schemas.clock import SECOND_MS, Clock
from schemas.entitlements import Entitlements
from schemas.errors import Transient
from schemas.upgrades import Billed

# A renewal and a change of the interval make no new version of the entitlements.
AGE_MS_MAX: Final = 30 * SECOND_MS
# For so long nobody asks SQL again after it did not answer, so that denied checks do not wait for it one by one.
PAUSE_MS: Final = 5 * SECOND_MS


class _Read(NamedTuple):
    version: int
    read_ms: int
    billed: Billed


class BilledAccounts:
    """Reads what an account pays for each new version of its entitlements, and again after `AGE_MS_MAX`."""

    def __init__(self, entitlements: Entitlements, clock: Clock, accounts_max: int) -> None:
        """`accounts_max`: accounts that are kept; the one that was asked about longest ago goes first."""
        self._entitlements = entitlements
        self._clock = clock
        self._accounts_max = accounts_max
        self._reads: OrderedDict[str, _Read] = OrderedDict()
        self._reading: dict[tuple[str, int], asyncio.Future[Billed]] = {}
        self._asks_from_ms = 0

    async def get(self, account: str, version: int, *, may_be_old: bool = False) -> Billed:
        """What the account pays; with `may_be_old` what it paid before, if SQL does not answer. Raises `Transient` if
        that is not in memory and SQL does not answer, at once if SQL did not answer a moment ago."""
        now_ms, found = self._clock.now_ms(), self._reads.get(account)
        if found is None or found.version != version or not 0 <= now_ms - found.read_ms <= AGE_MS_MAX:
            try:
                read = await self._read(account, version, now_ms)
            except Transient:
                if found is None or not may_be_old:
                    raise
                return found.billed
            found = _Read(version, now_ms, read)
            self._reads[account] = found
            if len(self._reads) > self._accounts_max:
                self._reads.popitem(last=False)
        self._reads.move_to_end(account)
        return found.billed

    async def _read(self, account: str, version: int, now_ms: int) -> Billed:
        """Read an account once for all checks that ask about it at the same time."""
        if now_ms < self._asks_from_ms:
            raise Transient("SQL did not say what the account pays")
        key = (account, version)
        if key not in self._reading:
            reading = self._reading[key] = asyncio.ensure_future(self._entitlements.billed(account, now_ms))
            reading.add_done_callback(lambda read: self._has_read(key, read))
        return await asyncio.shield(self._reading[key])

    def _has_read(self, key: tuple[str, int], read: asyncio.Future[Billed]) -> None:
        del self._reading[key]
        # Who asked may have gone away. An exception that nobody looks at would be logged as a fault.
        if not read.cancelled() and isinstance(read.exception(), Transient):
            self._asks_from_ms = self._clock.now_ms() + PAUSE_MS
