"""A journal whose entries come from invoices and subscriptions in the mirror, and a finance system that receives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

from pipeline.notices.sending import Sending
from pipeline.notices.truth import Truth
from schemas.billing_events import ObjectKind, ObjectName, Via
from schemas.journal import JournalEntry
from schemas.notices import ChannelName
from schemas.side_tables import TABLE_OF, Fetched, Outcome, Row
from sinks.sql.side_tables import SqlSideTables
from tests.conformance.side_table_steps import event, step
from tests.worlds.clock import ManualClock
from tests.worlds.notices import Receiver

PARTITION: Final = 7
NOW_MS: Final = 1_795_257_000_000


class Journaled:
    """The customer `cus_1` of the account `acme`, whose objects Stripe tells."""

    def __init__(self, tables: SqlSideTables) -> None:
        self.tables = tables
        self.clock = ManualClock(NOW_MS)
        self.receiver = Receiver()
        self.events = 0

    async def link(self) -> None:
        """Link the customer to the account."""
        await self.tables.link("acme", "cus_1", 0, "ann", "signed up", NOW_MS)

    async def invoice(
        self, number: int = 1, *, name: str = "", via: Via = Via.WEBHOOK, lines: Sequence[Row] = (), **columns: Any
    ) -> Outcome:
        """Stripe tells of an invoice by another event, or by the event `name` again."""
        row: Row = {
            "id": f"in_{number}", "customer_id": "cus_1", "deleted": 0, "currency": "usd", "exponent": 2,
            "total_minor": 10_900, "tax_minor": 900, "billing_reason": "subscription_cycle", **columns,
        }  # fmt: skip
        return await self._told(
            ObjectName(ObjectKind.INVOICE, f"in_{number}"), {"invoices": [row], "invoice_lines": lines}, name, via
        )

    async def subscription(self, *prices: tuple[str, int | None], number: int = 1, **columns: Any) -> Outcome:
        """Stripe tells of a subscription with items."""
        name = f"sub_{number}"
        row: Row = {
            "id": name, "customer_id": "cus_1", "deleted": 0, "status": "active", "currency": "usd", "anchor_ms": 0,
            "start_ms": 5_000, **columns,
        }  # fmt: skip
        items: Sequence[Row] = [
            {"id": f"si_{number}_{index}", "subscription_id": name, "price_id": price, "quantity": quantity}
            for index, (price, quantity) in enumerate(prices)
        ]
        rows = {"subscriptions": [row], "subscription_items": items}
        return await self._told(ObjectName(ObjectKind.SUBSCRIPTION, name), rows)

    async def given_back(self, kind: str, number: int = 1, **columns: Any) -> Outcome:
        """Stripe tells of a credit note, a refund or a dispute about the invoice `in_1`."""
        name = ObjectName(ObjectKind(kind), f"{kind}_{number}")
        row: Row = {
            "id": name.id, "customer_id": "cus_1", "invoice_id": "in_1", "currency": "usd", "exponent": 2, "deleted": 0,
            **columns,
        }  # fmt: skip
        return await self._told(name, {TABLE_OF[name.kind]: [row]})

    async def _told(self, name: ObjectName, rows: Any, told: str = "", via: Via = Via.WEBHOOK) -> Outcome:
        self.events += 1
        self.clock.advance(1)
        heard = event(self.events, name)
        heard = heard._replace(id=told or heard.id)
        seq = (await self.tables.fetch_seqs([name]))[name]
        offset = await self.tables.position(PARTITION) or 0
        made = step(offset, [heard], [Fetched(name, seq, rows)], partition=PARTITION, via=via, now_ms=self.clock.ms)
        return (await self.tables.commit(made))[heard.id]

    async def number(self, limit: int = 1_000, *, delivers: bool = False) -> int:
        """Give numbers once."""
        return await self.tables.journal.number(self.clock.ms, limit, delivers=delivers)

    async def entries(self) -> Sequence[JournalEntry]:
        """All entries, after those without a number have theirs."""
        await self.number()
        return await self.tables.journal.entries()

    async def booked(self) -> list[tuple[str, int | None]]:
        """Kind and amount of all entries."""
        return [(each.kind.value, each.amount_minor) for each in await self.entries()]

    def sender(self) -> Sending:
        """A new process that delivers to the finance system."""
        nothing = cast("Any", None)
        # An entry stays true, so no store is asked.
        truth = Truth(nothing, nothing, nothing, self.tables.notices, self.clock, "log", 1)
        return Sending(self.tables.notices, truth, {ChannelName.FINANCE: self.receiver}, self.clock)
