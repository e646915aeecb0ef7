"""Links of accounts for tests of the gateway: the side tables' fake, without Stripe."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aggregators.binding_timeline import timeline
from pipeline.http.accounts import LINKS_AT_ONCE_MAX
from schemas.billing_events import CUSTOMER_ID
from schemas.errors import InvalidInput
from schemas.intent_ledger import IntentState, LedgerIntent
from schemas.side_tables import Link
from sinks.sql.fake import FakeSideTables
from tests.worlds.billing import SCOPE
from tests.worlds.gateway import NOW_MS


class Links:
    """Links as the role does, without Stripe."""

    def __init__(self) -> None:
        self.tables = FakeSideTables(timeline)
        self.error: Exception | None = None
        self.waits = asyncio.Event()
        self.waits.set()
        self.full = asyncio.Event()
        self.asked: list[tuple[str, str, int | None, str]] = []

    async def link(self, account: str, customer: str, from_ms: int | None, actor: str) -> Link:
        """See `AccountLinks`."""
        self.asked.append((account, customer, from_ms, actor))
        if len(self.asked) == LINKS_AT_ONCE_MAX:
            self.full.set()
        await self.waits.wait()
        if self.error is not None:
            raise self.error
        if not CUSTOMER_ID.fullmatch(customer):
            raise InvalidInput("customer", "is no Stripe customer")
        if from_ms is None:
            from_ms = NOW_MS if await self.tables.links(account) else 0
        return await self.tables.link(account, customer, from_ms, actor, "", NOW_MS)

    async def links(self, account: str) -> Sequence[Link]:
        """See `AccountLinks`."""
        return await self.tables.links(account)

    async def intents(self, state: IntentState, account: str, limit: int, after: str) -> Sequence[LedgerIntent]:
        """See `AccountLinks`."""
        if self.error is not None:
            raise self.error
        return await self.tables.intents.listed([state], account, limit, after=after)


async def opened_links() -> Links:
    """Links without an account."""
    links = Links()
    await links.tables.migrate(SCOPE, "log-1")
    return links
