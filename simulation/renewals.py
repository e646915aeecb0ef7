"""The store of entitlements, watched: a price that nobody knows takes nothing away, and no renewal misses a grant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from oracle.entitlements import GIVING, Shop
from schemas.catalog import Dunning
from schemas.entitlements import Computed, Grant, Resolver
from schemas.side_tables import Link, Row
from simulation.commerce import CATALOGS, Commerce
from simulation.services import SharedTables

_Mirror = Mapping[str, Sequence[Row]]


class WatchedRenewals:
    """Like the store's own entitlements. What is checked is read in the same instant: the fake never waits."""

    def __init__(self, tables: SharedTables, commerce: Commerce, fail: Callable[[str, str], None]) -> None:
        self._tables = tables
        self._commerce = commerce
        self._fail = fail

    async def stale(self, *arguments: Any, **named: Any) -> Any:
        """Like the store."""
        return await self._tables.entitlements.stale(*arguments, **named)

    async def due(self, *arguments: Any, **named: Any) -> Any:
        """Like the store."""
        return await self._tables.entitlements.due(*arguments, **named)

    async def renew(self, account: str, sha256: str, resolver: Resolver, now_ms: int, policy: Dunning) -> Any:
        """Like the store. An account whose subscription became a riddle keeps the version that it had. A renewal knows
        all that people grant when it ends: the next renewal would hide that it missed something."""
        store, known = self._tables.entitlements, set[str]()

        def watched(links: Sequence[Link], mirror: _Mirror, people: Sequence[Grant], since_ms: int, /) -> Computed:
            known.clear()
            known.update(grant.source for grant in people)
            return resolver(links, mirror, people, since_ms)

        before = (await store.latest([account])).get(account)
        renewed = await store.renew(account, sha256, watched, now_ms, policy)
        rows = self._tables.rows("overrides")
        held = {row["source"] for row in rows if row["account"] == account and row["revoked_ms"] is None}
        if known != held:
            self._fail("entitlements", f"{account} was renewed with {sorted(known)}, and people grant {sorted(held)}")
        if before is None:
            return renewed
        after = (await store.latest([account]))[account]
        if after.version != before.version and (riddle := self._riddle(account, before.segments)):
            self._fail("entitlements", f"{account}: version {after.version} takes away what {riddle} gave")
        return renewed

    def _riddle(self, account: str, segments: str) -> str:
        """A subscription of the account's customer that gave something by the segments, has not ended, and has a price
        that no active catalog made and none of a plan; "" if there is none."""
        rows = self._tables.rows
        active = [row["version"] for row in rows("catalog_versions") if row["state"] == "active"]
        shop = Shop(CATALOGS[: active[0]], self._commerce.prices)
        links = sorted((row for row in rows("account_customers") if row["account"] == account), key=_start)
        customer = links[-1]["customer_id"] if links else ""
        items = rows("subscription_items")
        for row in rows("subscriptions"):
            is_in_force = row["ended_ms"] is None and row["status"] in (*GIVING, "unpaid")
            if row["customer_id"] != customer or not is_in_force or f'"{row["id"]}"' not in segments:
                continue
            prices = [item["price_id"] for item in items if item["subscription_id"] == row["id"]]
            known = [
                terms for price in prices if (of := shop.prices.get(price)) and (terms := shop.terms(of[0], of[1]))
            ]
            if len(known) < len(prices) and all(terms["is_addon"] for terms in known):
                return str(row["id"])
        return ""


def _start(row: dict[str, Any]) -> int:
    return int(row["starts_ms"])
