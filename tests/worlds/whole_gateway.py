"""A gateway with every store that a gateway may have, for requests of every kind to every route."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pipeline.explaining.stores import ExplainStores
from pipeline.http.api_keys import Role, create_key
from schemas.control import Genesis
from schemas.journal import JournalStore
from schemas.meters import Meter, MeterSet
from schemas.periods import Period
from schemas.revenue import RevenueStores
from schemas.usage_evidence import ArchivedEvent, Arrivals, EventUsage, Repeat
from sinks.clickhouse.fake import FakeClickHouse
from sinks.clickhouse.fake_corrections import FakeCorrections
from tests.traffic.generate import METER_SET
from tests.worlds.account_links import Links, opened_links
from tests.worlds.gateway import event
from tests.worlds.paged import Archive, Paged

WEBHOOK_SECRET: Final = "whsec_ours"
KEY_NAMES: Final = tuple(Role)
# The name of a key of each role that belongs to another account than acme.
FOREIGN: Final = "foreign "
MORE: Final = """\
credit_pools:
  prepaid: {unit: call, covers: {api_requests: 1}, packs: {p100: {credits: 100, usd: "25.00"}}}
"""


class OneEvent(Archive):
    """`UsageEvidence` of one event, which every account has under every id of up to ten characters."""

    async def arrivals(self, _account: str, _event_type: str, _span: Period) -> Arrivals:
        """One event, which arrived twice."""
        return Arrivals(1, 1, 0, 0)

    async def event(self, account: str, identifier: str) -> ArchivedEvent | None:
        """The event, if the id is short."""
        if len(identifier) > 10:
            return None
        return ArchivedEvent(
            account, identifier, "completion.finished", "test", 1_795_257_000_000_000, '{"usage": {"tokens": 25}}',
            0, 65_536, 1_795_257_000_000, False, 1_795_257_000_000, "",
        )  # fmt: skip

    async def accounts_of(self, _identifier: str, _rows_max: int) -> Sequence[str]:
        """Nobody."""
        return []

    async def repeats(self, _account: str, identifiers: Sequence[str], _rows_max: int) -> Sequence[Repeat]:
        """The first of them came again."""
        return [Repeat(identifiers[0], 1_795_257_001_000, False)] if identifiers else []

    async def used(self, _meter: Meter, event: ArchivedEvent) -> EventUsage | None:
        """25 units."""
        return EventUsage(event.id, event.time_us, "25")

    async def periods(self, _account: str, _meter: Meter, hour_ms: int, _arrived_ms: int) -> Sequence[Period]:
        """A month from the hour on."""
        return [Period(hour_ms, hour_ms + 30 * 86_400_000)]


class Whole(Paged):
    """A business whose gateway has every store, with the account acme that has a plan, credits and usage."""

    account_links: Links

    async def begin_whole(self) -> None:
        """Sell, have acme subscribe, and let an invoice be paid."""
        await self.begin_selling(MORE)
        self.account_links = await opened_links()
        await self.subscribed("essential.v1.location.month.usd", quantity=2)
        await self.settle()

    def dependencies(self) -> dict[str, Any]:
        """See `Paged`."""
        clickhouse = FakeClickHouse()

        async def revenue() -> RevenueStores:
            return RevenueStores(self.sql.catalog, self.sql.revenue, self.sql.invoice_books)

        async def journal() -> JournalStore:
            return self.sql.journal

        async def in_force() -> MeterSet | None:
            return MeterSet.model_validate(METER_SET)

        async def explain() -> ExplainStores:
            return ExplainStores(self.clock, self.sql, OneEvent(), clickhouse, in_force)

        return {
            **super().dependencies(), "accounts": self.account_links, "revenue": revenue, "journal": journal,
            "explain": explain, "evidence": OneEvent(), "usage": clickhouse, "hourly": clickhouse,
            "corrections": FakeCorrections(clickhouse),
            "genesis": Genesis(log_id=self.log_id, partitions=self.partitions, stripe_account="acct_ours"),
        }  # fmt: skip

    async def use_something(self) -> None:
        """Have some usage counted."""
        await self.use(event("1"), event("2", subject="globex"))

    def all_keys(self, folder: Path) -> dict[str, str]:
        """A key of each role, and one of each role that belongs to another account."""
        path = folder / "keys.jsonl"
        keys = {role.value: create_key(path, role, self.clock)[0] for role in Role}
        return keys | {FOREIGN + role: create_key(path, role, self.clock, account="globex")[0] for role in Role}
