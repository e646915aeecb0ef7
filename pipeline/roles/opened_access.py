"""What the gateway needs to answer checks: PostgreSQL, read again and again, and the live view."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from pipeline.access.checks import AccessChecks
from pipeline.access.credits import CreditParts
from pipeline.access.credits_left import CreditsLeft
from pipeline.access.known import ACCOUNTS_MAX
from pipeline.access.usage import LiveUsageSource
from pipeline.http.dependencies import LiveUsage
from pipeline.open import Base, open_side_tables
from schemas.dunning import DunningStore
from schemas.entitlements import Entitlements
from schemas.errors import TidemarkError
from schemas.keys import KeyStore
from schemas.notices import NoticeOutbox

REFRESH_INTERVAL_S: Final = 0.25
RETRY_INTERVAL_S: Final = 2.0
# Somebody waits for a check: a store that hangs delays it no longer than this.
READ_TIMEOUT_S: Final = 1.0

_log: Final = logging.getLogger(__name__)


class OpenedAccess:
    """The checks of a gateway that starts, and takes events, without PostgreSQL too."""

    def __init__(self, base: Base, live: LiveUsage, on_fallback: Callable[[], None] = lambda: None) -> None:
        """`on_fallback` is called for each answer without a store."""
        self._base = base
        self._live = live
        self._on_fallback = on_fallback
        self._opened: tuple[AccessChecks, Entitlements] | None = None
        self._notices: NoticeOutbox | None = None
        self._dunning: DunningStore | None = None
        self._keys: KeyStore | None = None
        self._stack = contextlib.AsyncExitStack()
        self._failure = ""

    def __call__(self) -> tuple[AccessChecks, Entitlements] | None:
        """The checks and the store; None while PostgreSQL has not answered yet."""
        return self._opened

    def notices(self) -> NoticeOutbox | None:
        """The outbox of notices; None while PostgreSQL has not answered yet."""
        return self._notices

    def dunning(self) -> DunningStore | None:
        """The dunning cases; None while PostgreSQL has not answered yet."""
        return self._dunning

    def keys(self) -> KeyStore | None:
        """The API keys; None while PostgreSQL has not answered yet."""
        return self._keys

    async def run(self) -> None:
        """Open PostgreSQL, and read what changed, for ever. A failure is logged once, and tried again."""
        while True:
            try:
                await self.turn()
                self._failure = ""
            # Any error, such as a table that a newer version changed: the gateway must go on to take events.
            except Exception as error:  # noqa: BLE001
                if str(error) != self._failure:
                    level = logging.WARNING if isinstance(error, TidemarkError) else logging.ERROR
                    _log.log(level, "entitlements cannot be read, checks go on with what is known: %s", error)
                self._failure = str(error) or type(error).__name__
            await asyncio.sleep(RETRY_INTERVAL_S if self._failure else REFRESH_INTERVAL_S)

    async def turn(self) -> None:
        """Open PostgreSQL unless it is open, and read what changed. Raises `TidemarkError`; repeatable."""
        if self._opened is None:
            tables = await open_side_tables(self._base, timeout_s=READ_TIMEOUT_S)
            self._stack.push_async_callback(tables.close)
            usage = LiveUsageSource(self._live.totals, self._base.genesis.partitions, self._base.clock)
            checks = AccessChecks(
                tables.catalog,
                tables.entitlements,
                usage,
                self._base.clock,
                holds=tables.holds,
                credits_left=CreditsLeft(
                    CreditParts(tables.credits, tables.catalog, tables.holds, usage, self._base.clock), ACCOUNTS_MAX
                ),
                on_fallback=self._on_fallback,
            )
            self._opened, self._notices = (checks, tables.entitlements), tables.notices
            self._dunning, self._keys = tables.dunning, tables.keys
        await self._opened[0].refresh()

    async def close(self) -> None:
        """Close what was opened. Safe to call twice."""
        await self._stack.aclose()
