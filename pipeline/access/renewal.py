"""Computes entitlements again for each account to which something happened.

Each event, link, override and command writes an audit row of its account, and a new catalog marks all accounts. So what
is stale is in SQL: a process that ends loses nothing, and two processes do the same twice at worst.
"""

from __future__ import annotations

import logging
from typing import Final

from aggregators.account_grants import Commerce, resolver_of
from schemas.catalog_changes import CatalogStore
from schemas.clock import Clock
from schemas.entitlements import Entitlements, Resolver
from schemas.errors import Fenced

AT_ONCE: Final = 500

_log: Final = logging.getLogger(__name__)


async def commerce_of(catalog: CatalogStore) -> tuple[str, Commerce] | None:
    """The active catalog with its hash, or None before the first one. Raises `Transient`."""
    standing = await catalog.standing()
    if standing.catalog is None:
        return None
    return standing.sha256, Commerce(standing.catalog, standing.sold(), standing.pins())


class Renewal:
    """Renews stale accounts. `renewed` counts the new versions since the start."""

    def __init__(self, catalog: CatalogStore, entitlements: Entitlements, clock: Clock) -> None:
        self._catalog = catalog
        self._entitlements = entitlements
        self._clock = clock
        self._known: tuple[str, Resolver] | None = None
        self.renewed = 0

    async def turn(self) -> int:
        """Renew up to `AT_ONCE` stale accounts. Returns how many were looked at; 0 if all are fresh. Raises
        `Transient`; repeatable."""
        accounts = await self._entitlements.stale(AT_ONCE)
        for number, account in enumerate(accounts):
            if self._known is None:
                found = await commerce_of(self._catalog)
                if found is None:
                    return 0
                self._known = found[0], resolver_of(found[1])
            try:
                is_new = await self._entitlements.renew(account, *self._known, self._clock.now_ms())
            except Fenced:
                # Another catalog became active: the next turn begins with it.
                self._known = None
                return number + 1
            self.renewed += is_new
        return len(accounts)
