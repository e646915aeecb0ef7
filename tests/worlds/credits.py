"""Accounts with credits: side tables whose active catalog has two pools, one behind the other."""

from __future__ import annotations

from aggregators.binding_timeline import overlaps, timeline
from pipeline.billing.drawing import Drawing
from schemas.credits import Category, Credits, NewGrant
from sinks.sql.fake import FakeSideTables
from tests.worlds.business import make_active
from tests.worlds.clock import ManualClock
from tests.worlds.crashing import Crashing
from tests.worlds.sold import parsed

# A meter's hundredth costs a credit: a report of 5 hundredths costs 5.
CATALOG = """\
version: 1
meters:
  - {slug: tokens, event_type: token, aggregation: sum, value_path: $.tokens, scale: 2, stripe_event_name: tokens}
currencies: {usd: 2}
credit_pools:
  first: {unit: credit, covers: {tokens: "100"}, order: 1, overdraft: next}
  second: {unit: credit, covers: {tokens: "100"}, order: 2, overdraft: bill}
"""
CALLS = """\
version: 1
meters:
  - {slug: calls, event_type: calls, aggregation: sum, value_path: $.calls, scale: 3, stripe_event_name: calls}
currencies: {usd: 2}
credit_pools:
  first: {unit: call, covers: {calls: "1"}, order: 1}
"""
OTHER = """\
version: 2
meters:
  - {slug: tokens, event_type: token, aggregation: sum, value_path: $.tokens, scale: 2, stripe_event_name: tokens}
currencies: {usd: 2}
"""


class Purse:
    """The credits of accounts, beside a sender's bench on the same clock."""

    def __init__(self, clock: ManualClock, tables: FakeSideTables | None = None) -> None:
        self.clock = clock
        self._made = tables is None
        self.tables = tables or FakeSideTables(timeline, overlaps)

    async def open(self, text: str = CATALOG) -> Purse:
        """Make the catalog, and the tables if they are its own."""
        if self._made:
            await self.tables.migrate("test:acct_memory", "log")
        await self.sell(text)
        return self

    async def sell(self, text: str) -> None:
        """Make another catalog active."""
        await make_active(self.tables, parsed(text), (), self.clock.now_ms())

    def drawing(self, countdown: list[int] | None = None, *, after: bool = False) -> Drawing:
        """What a sender draws with; with a countdown, its process may end at a call."""
        credits_: Credits = self.tables.credits
        if countdown is not None:
            credits_ = Crashing(credits_, countdown, after=after)
        return Drawing(credits_, self.tables.catalog, self.clock)

    async def give(self, account: str, amount: int, key: str = "gift", pool: str = "first") -> str:
        """Grant credits for all time; returns the grant's id."""
        new = NewGrant(account, pool, Category.PROMOTIONAL, amount, 0, key)
        return (await self.tables.credits.grant(new, "ann", "a gift", self.clock.now_ms())).grant.id

    async def left(self, account: str = "a") -> int:
        """What is left of all grants of an account. Every grant is the sum of its rows."""
        assert await self.tables.credits.wrong() == []
        return sum(grant.remaining for grant in (await self.tables.credits.of_account(account)).grants)
