"""Deliberate defects at the end of a period: what invoices and invoice items bill, and how often."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

import pipeline.billing.closing
from aggregators.late_usage import item_of
from pipeline.billing.closing import ClosingController
from pipeline.billing.late_usage import LateUsage
from schemas.bills import Bill, InvoiceItem, InvoiceItemState
from simulation.seeds import BILLING_STRIDE
from tests.simulation.mutant import Method, Mutant

# Long enough for a process to die in between.
BETWEEN_S: Final = 300.0


def _never_late(_original: Method) -> Method:
    async def invoice(*_arguments: Any) -> str:
        return ""

    return invoice


def _creates_first(_original: Method) -> Method:
    """The item at Stripe, and later the row that says so."""

    async def intend(self: ClosingController, bill: Bill, judgement: Any, items: Sequence[InvoiceItem]) -> None:
        now_ms = self._clock.now_ms()
        item = item_of(self._scope, bill, judgement, items, self._policy.late, now_ms)
        made = await self._items.create(item._replace(attempt=now_ms))
        await asyncio.sleep(BETWEEN_S)
        await self._bills.intend(item._replace(state=InvoiceItemState.CREATED, stripe_item=made), "made")

    return intend


def _settles_first(original: Method) -> Method:
    """The row says that the item is made, and later it is."""

    async def tried(self: ClosingController, item: InvoiceItem) -> InvoiceItem | None:
        sent: InvoiceItem | None = await original(self, item)
        if sent is not None:
            await self._created(sent, "ii_soon")
            await asyncio.sleep(BETWEEN_S)
        return sent

    return tried


def _on_billing_seeds(name: str, target: Any, attribute: str, made: Any) -> Mutant:
    return Mutant(name, target, attribute, made, stride=BILLING_STRIDE)


CLOSING: Final = (
    _on_billing_seeds("closing: late usage is sent after its invoice is final", LateUsage, "invoice", _never_late),
    _on_billing_seeds("closing: an item without an intent before it", ClosingController, "_intend", _creates_first),
    _on_billing_seeds("closing: an item is settled before it is made", ClosingController, "_tried", _settles_first),
    _on_billing_seeds(
        "closing: late usage is no usage", pipeline.billing.closing, "judged",
        lambda original: lambda bill, totals, items: original(bill, totals._replace(late=Decimal(0)), items),
    ),
    _on_billing_seeds(
        "closing: earlier items are forgotten", pipeline.billing.closing, "judged",
        lambda original: lambda bill, totals, _items: original(bill, totals, ()),
    ),
    _on_billing_seeds(
        "closing: usage between two subscriptions is not seen", pipeline.billing.closing, "gaps",
        lambda _original: lambda *_arguments: (),
    ),
)  # fmt: skip
