"""Computes entitlements again for each account to which something happened.

Each event, link, override and command writes an audit row of its account, and a new catalog marks all accounts. So what
is stale is in SQL: a process that ends loses nothing, and two processes do the same twice at worst.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from aggregators.account_grants import Commerce, resolver_of
from schemas.catalog import Dunning
from schemas.catalog_changes import CatalogStore
from schemas.clock import MINUTE_MS, Clock
from schemas.entitlements import Entitlements, Resolver
from schemas.errors import Fenced, TidemarkError

AT_ONCE: Final = 500
ASIDE_MS: Final = 15 * MINUTE_MS
# How many accounts a process remembers. Of more that are set aside, the oldest are tried again at once.
NAMES_MAX: Final = 10_000

_log: Final = logging.getLogger(__name__)


async def commerce_of(catalog: CatalogStore) -> tuple[str, Commerce] | None:
    """The active catalog with its hash, or None before the first one. Raises `Transient`."""
    standing = await catalog.standing()
    if standing.catalog is None:
        return None
    return standing.sha256, Commerce(standing.catalog, standing.sold(), standing.pins())


class Renewal:
    """Renews stale accounts.

    `renewed` counts the new versions since the start. `unreadable` has the accounts that this process found to have a
    subscription with a price that the catalog never made, and none of a plan; at most `NAMES_MAX`.
    """

    def __init__(self, catalog: CatalogStore, entitlements: Entitlements, clock: Clock) -> None:
        self._catalog = catalog
        self._entitlements = entitlements
        self._clock = clock
        self._known: tuple[str, Resolver, Dunning] | None = None
        self._after = ""
        self._aside: OrderedDict[str, int] = OrderedDict()
        self.renewed = 0
        self.unreadable: dict[str, Sequence[str]] = {}

    @property
    def set_aside(self) -> int:
        """How many accounts could not be renewed and are not tried at present."""
        return len(self._aside)

    async def turn(self) -> int:
        """Renew up to `AT_ONCE` stale accounts, and as many whose dunning case is due. Returns how many were looked at;
        0 if all are fresh or set aside.

        An account with an unexpected fault is logged and set aside for `ASIDE_MS`; the others go on. Raises
        `Transient`; repeatable, and then it goes on behind the account that failed.
        """
        accounts = await self._entitlements.stale(AT_ONCE, self._after)
        if not accounts and self._after:
            self._after = ""
            accounts = await self._entitlements.stale(AT_ONCE)
        due = await self._entitlements.due(self._clock.now_ms(), AT_ONCE)
        stale, looked = set(accounts), 0
        for account in dict.fromkeys([*accounts, *due]):
            if account in stale:
                self._after = account
            if self._aside.get(account, 0) > self._clock.now_ms():
                continue
            if self._known is None:
                found = await commerce_of(self._catalog)
                if found is None:
                    return 0
                self._known = found[0], resolver_of(found[1]), found[1].catalog.dunning
            looked += 1
            try:
                await self._renew(account, *self._known)
            except Fenced:
                # Another catalog became active: the next turn begins with it.
                self._known = None
                break
        return looked

    async def _renew(self, account: str, sha256: str, resolver: Resolver, policy: Dunning) -> None:
        try:
            made = await self._entitlements.renew(account, sha256, resolver, self._clock.now_ms(), policy)
        except TidemarkError:
            raise
        # Such as a row that an older program cannot read. The role has other accounts, and webhooks, to go on with.
        except Exception:  # noqa: BLE001
            _log.exception("account %r cannot be renewed and keeps what it has; it is tried again later", account)
            self._aside[account] = self._clock.now_ms() + ASIDE_MS
            self._aside.move_to_end(account)
            if len(self._aside) > NAMES_MAX:
                self._aside.popitem(last=False)
            return
        self._aside.pop(account, None)
        self.renewed += made.is_new
        self._note_unreadable(account, made.unreadable)

    def _note_unreadable(self, account: str, subscriptions: Sequence[str]) -> None:
        if not subscriptions:
            self.unreadable.pop(account, None)
        elif self.unreadable.get(account) != subscriptions and len(self.unreadable) < NAMES_MAX:
            self.unreadable[account] = subscriptions
            _log.warning(
                "account %r: no catalog made the prices of %s, so they give nothing new and take nothing away; see "
                "`tidemark catalog drift`",
                account,
                ", ".join(subscriptions),
            )
