"""The command `billing bills`: what each invoice bills of the usage that was reported, and what is missing on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from aggregators.instants import format_instant_ms
from aggregators.late_usage import Judgement, judged, text_of
from pipeline.billing.closing import KEPT_MS, not_sold
from pipeline.open import open_base, open_side_tables
from pipeline.settings import Settings
from schemas.bills import Bill, Bills, BillState, InvoiceItem, NotSold
from schemas.clock import DAY_MS
from schemas.errors import InvalidInput
from schemas.intent_ledger import IntentLedger
from schemas.periods import INSTANT_MAX_MS
from schemas.side_tables import SideTables

RECENT_MS: Final = 62 * DAY_MS
UNBILLED: Final = (BillState.UNBILLED, BillState.HELD, BillState.WAITING)
CUSTOMERS_AT_ONCE: Final = 500


async def list_bills(
    settings: Settings, account: str, customer: str, limit: int, *, unbilled: bool
) -> list[dict[str, Any]]:
    """The bills of an account, of a customer, or of all, the latest first.

    `unbilled`: only those with usage that is not billed, or not yet; then also usage that no subscription item bills.
    Without a name and without `unbilled`, the bills of the last 62 days. Raises `InvalidInput` for an account that is
    linked to no customer.
    """
    base = await open_base(settings, create=False)
    try:
        tables = await open_side_tables(base)
        try:
            now_ms = base.clock.now_ms()
            return await rows(tables, tables.bills, tables.intents, now_ms, account, customer, limit, unbilled=unbilled)
        finally:
            await tables.close()
    finally:
        await base.log.close()


async def rows(
    tables: SideTables,
    bills: Bills,
    ledger: IntentLedger,
    now_ms: int,
    account: str,
    customer: str,
    limit: int,
    *,
    unbilled: bool,
) -> list[dict[str, Any]]:
    """The rows of `list_bills`."""
    customers = await _customers(tables, account, customer)
    oldest_ms = now_ms - KEPT_MS
    from_ms = oldest_ms if customers != [""] else now_ms - RECENT_MS
    if unbilled and customers == [""]:
        noted = await bills.noted(UNBILLED, limit)
        found = list(await bills.bills_of([closing.invoice for closing in noted]))
    else:
        found = [bill for each in customers for bill in await bills.bills(from_ms, INSTANT_MAX_MS, each, limit)]
    shown = []
    for bill in found:
        totals = await ledger.totals(bill.event_name, bill.stripe_customer, bill.start_ms, bill.end_ms)
        items = await bills.items(bill.stripe_customer, bill.event_name, bill.start_ms, bill.end_ms)
        judgement = judged(bill, totals, items)
        if not unbilled or judgement.state in UNBILLED:
            shown.append(_row(bill, judgement, items))
    if unbilled:
        shown += await _not_sold(bills, ledger, customers, oldest_ms, now_ms, limit)
    return shown[:limit]


async def _customers(tables: SideTables, account: str, customer: str) -> list[str]:
    """The customers that are asked for; "" stands for all."""
    if not account:
        return [customer]
    linked = sorted({link.customer for link in await tables.links(account) if link.customer})
    if not linked:
        raise InvalidInput("--account", f"{account!r} is linked to no customer: give --customer cus_…")
    return linked


async def _not_sold(
    bills: Bills, ledger: IntentLedger, customers: Sequence[str], from_ms: int, to_ms: int, limit: int
) -> list[dict[str, Any]]:
    found: list[NotSold] = []
    page: Sequence[str] = customers if customers != [""] else await bills.customers("", CUSTOMERS_AT_ONCE)
    while page and len(found) < limit:
        found += await not_sold(bills, ledger, page, from_ms, to_ms)
        page = [] if customers != [""] else await bills.customers(page[-1], CUSTOMERS_AT_ONCE)
    return [
        {
            "state": "not sold",
            "customer": each.stripe_customer,
            "meter": each.event_name,
            "start": format_instant_ms(each.start_ms),
            "end": format_instant_ms(each.end_ms),
            "reported": text_of(each.quantity),
            "unbilled": text_of(each.quantity),
            "reason": "no subscription of the customer billed the meter at that time",
        }
        for each in found
    ]


def _row(bill: Bill, judgement: Judgement, items: Sequence[InvoiceItem]) -> dict[str, Any]:
    return {
        "state": judgement.state.value,
        "customer": bill.stripe_customer,
        "meter": bill.event_name,
        "product": bill.title,
        "start": format_instant_ms(bill.start_ms),
        "end": format_instant_ms(bill.end_ms),
        "invoice": bill.invoice,
        "deadline": format_instant_ms(bill.deadline_ms) if bill.deadline_ms else "",
        "reported": text_of(judgement.reported),
        "billed_by_invoice": text_of(judgement.billed),
        "billed_by_items": text_of(judgement.billed_by_items),
        "unbilled": text_of(judgement.unbilled),
        "unbilled_amount_minor": judgement.amount_minor,
        "currency": bill.currency,
        "items": [
            {
                "state": item.state.value,
                "item": item.stripe_item,
                "quantity": text_of(item.to_quantity - item.from_quantity),
                "amount_minor": item.amount_minor,
            }
            for item in items
        ],
        "reason": judgement.reason,
    }
