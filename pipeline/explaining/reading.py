"""Reads an invoice of an account with all that explains it: bills, reports, items, hours and arrivals."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Final

from pipeline.changes.parts import shop_of
from pipeline.explaining.stores import ExplainStores
from portal.evidence import minutes_of
from portal.explained import LINES_MAX, explain_invoice
from schemas.account_records import InvoiceRecord
from schemas.analytics import PeriodQuery
from schemas.bills import Bill, InvoiceItem, InvoiceItemState
from schemas.errors import Transient
from schemas.explained import InvoiceExplanation, LineExplanation, UsageFacts
from schemas.meters import Meter
from schemas.periods import Period
from schemas.usage_evidence import Arrivals, HourUsage

# A year of hours, and as many of late usage.
HOURS_MAX: Final = 20_000
PERIODS_MAX: Final = 1_000
# Of one customer. The usage of further accounts is left unexplained.
ACCOUNTS_MAX: Final = 50
ARRIVALS_TIMEOUT_S: Final = 5.0


async def explained_invoice(
    stores: ExplainStores, account: str, invoice: str, line: str = ""
) -> InvoiceExplanation | None:
    """An invoice of an account, explained; with a line's id that line alone. None if the account has no such invoice.

    Raises `Transient`, and `InvalidInput` before the first catalog.
    """
    tables = stores.tables
    record = await tables.account_records.invoice(account, invoice, LINES_MAX + 1)
    if record is None:
        return None
    now_ms = stores.clock.now_ms()
    shop, mirror = await asyncio.gather(shop_of(tables.catalog), tables.account_records.mirrored_of(account, now_ms))
    anchors = {str(row["id"]): int(row["anchor_ms"]) for row in mirror["subscriptions"] if row["anchor_ms"] is not None}
    usages, items = await asyncio.gather(_usages(stores, account, record, line), _items(stores, record))
    found = explain_invoice(shop, account, record, usages, items, anchors, now_ms)
    if line:
        found = found._replace(lines=tuple(each for each in found.lines if each.line == line), checks=())
    return found


async def explained_line(stores: ExplainStores, account: str, invoice: str, line: str) -> LineExplanation | None:
    """One line of an invoice, explained; None if there is none."""
    found = await explained_invoice(stores, account, invoice, line)
    return found.lines[0] if found is not None and found.lines else None


async def _items(stores: ExplainStores, record: InvoiceRecord) -> Sequence[InvoiceItem]:
    """Our invoice items that a line of this invoice may be."""
    customer = str(record.invoice["customer_id"] or "")
    spans = {(int(row["start_ms"] or 0), int(row["end_ms"] or 0)) for row in record.lines if not row["item_id"]}
    if not (spans and customer):
        return []
    names = await stores.tables.bills.event_names(customer)
    found: list[InvoiceItem] = []
    for name in names:
        for start_ms, end_ms in sorted(spans):
            items = await stores.tables.bills.items(customer, name, start_ms, end_ms)
            found += [item for item in items if item.state is InvoiceItemState.CREATED]
    return found


async def _usages(stores: ExplainStores, account: str, record: InvoiceRecord, line: str) -> Mapping[str, UsageFacts]:
    """By the line's id, what is known of the usage that the line bills."""
    meter_set = await stores.meter_set()
    by_name = {
        meter.stripe_event_name: meter
        for meter in ((*meter_set.meters, *meter_set.retired) if meter_set else ())
        if meter.stripe_event_name
    }
    bills = [
        bill for bill in await stores.tables.bills.bills_of([str(record.invoice["id"])]) if bill.event_name in by_name
    ]
    prices = {(bill.price, bill.start_ms, bill.end_ms): bill.event_name for bill in bills}
    lines: dict[str, str] = {}
    for row in record.lines:
        name = prices.get((str(row["price_id"]), int(row["start_ms"] or 0), int(row["end_ms"] or 0)))
        if name is not None and not row["is_proration"] and line in ("", row["id"]):
            lines[str(row["id"])] = name
    found = {
        name: await _facts(stores, account, by_name[name], [bill for bill in bills if bill.event_name == name])
        for name in dict.fromkeys(lines.values())
    }
    return {identifier: found[name] for identifier, name in lines.items()}


async def _facts(stores: ExplainStores, account: str, meter: Meter, bills: Sequence[Bill]) -> UsageFacts:
    customer, event_name = bills[0].stripe_customer, bills[0].event_name
    start_ms, end_ms = min(bill.start_ms for bill in bills), max(bill.end_ms for bill in bills)
    span, tables = minutes_of(Period(start_ms, end_ms)), stores.tables
    totals, drawn, names = await asyncio.gather(
        tables.intents.totals(event_name, customer, start_ms, end_ms),
        tables.intents.drawn(event_name, customer, start_ms, end_ms),
        tables.bills.accounts(customer, start_ms),
    )
    items = [
        item for bill in bills for item in await tables.bills.items(customer, event_name, bill.start_ms, bill.end_ms)
    ]
    hours = await stores.evidence.hours(account, meter, span, -1, HOURS_MAX + 1)
    total, carried = await _total(stores, account, meter, span)
    others = Decimal(0)
    for name in [each for each in names if each != account][:ACCOUNTS_MAX]:
        others += (await _total(stores, name, meter, span))[0]
    arrivals = await _arrivals(stores, account, meter, span, hours)
    is_cut = len(hours) > HOURS_MAX
    return UsageFacts(meter, bills, totals, items, hours[:HOURS_MAX], is_cut, total, carried, others, drawn, arrivals)


async def _total(stores: ExplainStores, account: str, meter: Meter, span: Period) -> tuple[Decimal, Decimal]:
    """The units of the periods that begin in the span, and of these the units of earlier hours. Of a level: the level
    at the end of the span."""
    if meter.carry_over:
        levels = await stores.usage.period_levels(meter.slug, account, span.end_ms)
        minor = levels[-1].value_minor if levels else 0
        return Decimal(minor).scaleb(-meter.scale), Decimal(0)
    query = PeriodQuery(meter.slug, account, span.start_ms, span.end_ms)
    periods = [
        each
        for each in await stores.usage.period_usage(query, meter.aggregation, PERIODS_MAX)
        if span.start_ms <= each.period.start_ms < span.end_ms
    ]
    total, carried = sum(each.value_minor for each in periods), sum(each.carried_minor or 0 for each in periods)
    return Decimal(total).scaleb(-meter.scale), Decimal(carried).scaleb(-meter.scale)


async def _arrivals(
    stores: ExplainStores, account: str, meter: Meter, span: Period, hours: Sequence[HourUsage]
) -> Arrivals | None:
    """What arrived, from the first hour that is billed on. None if the archive does not say in time."""
    first_ms = min([span.start_ms, *(hour.hour_ms for hour in hours[:1])])
    try:
        async with asyncio.timeout(ARRIVALS_TIMEOUT_S):
            return await stores.evidence.arrivals(account, meter.event_type, Period(first_ms, span.end_ms))
    except (Transient, TimeoutError):
        return None
