"""What the accounts of denied checks pay now, kept in memory for a while."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

from schemas.clock import SECOND_MS, Clock
from schemas.entitlements import Entitlements
from schemas.upgrades import Billed

# A renewal and a change of the interval make no new version of the entitlements.
AGE_MS_MAX: Final = 30 * SECOND_MS


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

    async def get(self, account: str, version: int) -> Billed:
        """What the account pays. Raises `Transient` if that is not in memory and SQL does not answer."""
        now_ms, found = self._clock.now_ms(), self._reads.get(account)
        if found is None or found.version != version or not 0 <= now_ms - found.read_ms <= AGE_MS_MAX:
            found = _Read(version, now_ms, await self._entitlements.billed(account, now_ms))
            self._reads[account] = found
            if len(self._reads) > self._accounts_max:
                self._reads.popitem(last=False)
        self._reads.move_to_end(account)
        return found.billed
