"""The entitlements of the accounts that a gateway was asked about, kept in memory."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from aggregators.entitlement_codec import decode
from pipeline.access.changes import Changes
from schemas.clock import Clock
from schemas.entitlements import Entitlements, EntitlementVersion, Segment

ACCOUNTS_MAX: Final = 100_000
# How many entitlements one read takes.
READ_AT_ONCE: Final = 100


class Known(NamedTuple):
    """The segments of an account. `version` 0: the account has none, so the default plan holds."""

    version: int
    computed_ms: int
    segments: Sequence[Segment]


class KnownAccounts:
    """Reads an account when somebody first asks, and its newer versions by `refresh`."""

    def __init__(self, entitlements: Entitlements, clock: Clock, accounts_max: int = ACCOUNTS_MAX) -> None:
        """`accounts_max`: accounts that are kept; the one that was asked about longest ago goes first."""
        self._entitlements = entitlements
        self._changes = Changes(entitlements, clock)
        self._accounts_max = accounts_max
        self._accounts: OrderedDict[str, Known] = OrderedDict()
        self._reading: dict[str, asyncio.Future[Mapping[str, EntitlementVersion]]] = {}

    def __len__(self) -> int:
        return len(self._accounts)

    async def refresh(self) -> None:
        """Read the newer versions of the accounts in memory, of which another catalog may make many at once. Raises
        `Transient`; what is known stays then."""
        async for found in self._changes.pages():
            newer = sorted({each.account for each in found if self._is_older(each.account, each.version)})
            for start in range(0, len(newer), READ_AT_ONCE):
                latest = await self._entitlements.latest(newer[start : start + READ_AT_ONCE])
                for account, version in latest.items():
                    self._take(account, _known(version))

    def _is_older(self, account: str, version: int) -> bool:
        """Whether the account is in memory in an older version, or is being read, perhaps in an older version."""
        known = self._accounts.get(account)
        return known.version < version if known else account in self._reading

    def _take(self, account: str, read: Known) -> Known:
        """Keep what was read, unless a newer version is in memory: a late answer of SQL brings no older one back."""
        known = self._accounts.get(account)
        if known is None or known.version < read.version:
            known = self._accounts[account] = read
        return known

    async def get(self, account: str) -> Known:
        """The entitlements of an account. Raises `Transient` if they are not in memory and SQL does not answer."""
        known = self._accounts.get(account)
        if known is None:
            found = await self._read(account)
            known = self._take(account, _known(found[account]) if account in found else Known(0, 0, ()))
            while len(self._accounts) > self._accounts_max:
                self._accounts.popitem(last=False)
        if account in self._accounts:
            self._accounts.move_to_end(account)
        return known

    async def _read(self, account: str) -> Mapping[str, EntitlementVersion]:
        """Read an account once for all checks that ask about it at the same time."""
        reading = self._reading.get(account)
        if reading is None:
            reading = self._reading[account] = asyncio.ensure_future(self._entitlements.latest([account]))
            reading.add_done_callback(lambda read: self._has_read(account, read))
        return await asyncio.shield(reading)

    def _has_read(self, account: str, read: asyncio.Future[Mapping[str, EntitlementVersion]]) -> None:
        del self._reading[account]
        # Who asked may have gone away. An exception that nobody looks at would be logged as a fault.
        if not read.cancelled() and read.exception() is None and account in read.result():
            self._take(account, _known(read.result()[account]))


def _known(version: EntitlementVersion) -> Known:
    return Known(version.version, version.computed_ms, decode(version.segments))
