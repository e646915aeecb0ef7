"""Compares what a customer's finalized invoices bill of a meter with what was reported: pure, one customer at a time.

An invoice closes a span if it was made at the span's end or later: its lines have the whole quantity of the span, one
for each tier. Lines of an earlier invoice, such as one of a threshold, are part of that quantity.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from typing import Final, NamedTuple

from aggregators.quantities import decimal_text
from aggregators.rating import Rating, amount_of, billed_quantity, rating_of
from aggregators.stripe_sums import DOUBLE_BITS, ROUNDED_BESIDES, SCALE_MAX
from reconciler.causes import Cause
from schemas.bills import InvoiceItem, InvoiceItemState
from schemas.clock import HOUR_MS, MINUTE_MS
from schemas.errors import InvalidInput
from schemas.invoices import CustomerBilling, ListedInvoice, ListedItem, MeteredLine
from schemas.periods import Period

# Stripe makes the draft of a period within an hour of its end.
DRAFT_WITHIN_MS: Final = 2 * HOUR_MS
ADD_ITEM: Final = (
    "Stripe adds usage to no invoice that is final: bill the difference by an invoice item (`tidemark reconcile "
    "--repair` plans it), or write it off"
)
NO_ITEM: Final = (
    "no subscription item of the customer bills this meter at the time of the usage: subscribe the customer to a price "
    "of the meter, and bill this usage by an invoice item"
)
NOT_BILLED_YET: Final = "no subscription item of the customer bills this meter yet: subscribe the customer to a price"
VOIDED: Final = "a person voided the invoice {}, so nothing of it is billed"
WRITTEN_OFF: Final = "{} were written off (TIDEMARK_LATE_USAGE)"
FREE: Final = "the difference costs nothing"
OTHER_AMOUNT: Final = (
    "the lines of the invoice bill {} {}, and the price {} says {}: somebody changed the lines, or the price has a "
    "form that is not known here"
)
NO_QUANTITY: Final = "the metadata of the invoice item {} lacks meter or quantities: restore it at Stripe"
BILLED_TWICE: Final = "{} and {} bill the same usage: cancel one of the subscriptions and credit its invoice"
MORE: Final = "the invoice bills more than was reported: find the other sender to the meter, and credit the difference"


class Usage(NamedTuple):
    """An intent as a bill sees it: `units` of 10^-12 at an instant. `settled` False: its outcome is not known yet.
    `is_doubtful`: a dead letter, which an invoice item may bill or not."""

    instant_ms: int
    units: int
    period: Period
    account: str
    meter: str
    settled: bool = True
    is_doubtful: bool = False


class Billed(NamedTuple):
    """What became of a meter's usage in a span. Quantities in units of 10^-12; `invoiced` None: no invoice is final."""

    cause: Cause
    event_name: str
    span: Period
    reported: int
    invoiced: int | None
    items: int
    accounts: tuple[str, ...]
    meters: tuple[str, ...]
    invoices: tuple[str, ...] = ()
    detail: str = ""

    @property
    def found(self) -> int | None:
        """What is billed in all; None if nothing can be billed yet."""
        return None if self.invoiced is None else self.invoiced + self.items


@dataclass(slots=True)
class _Span:
    """The lines of one meter, subscription and price over one span."""

    invoices: dict[str, ListedInvoice] = field(default_factory=dict)
    quantity: Decimal = Decimal(0)
    amount_minor: int = 0
    rating: Rating | None = None

    @property
    def is_final(self) -> bool:
        return all(invoice.status != "draft" for invoice in self.invoices.values())


_Name = tuple[str, Period, str, str]


def compare(usages: Mapping[str, Sequence[Usage]], billing: CustomerBilling, now_ms: int) -> list[Billed]:
    """The spans of a customer, by the event name of the meter, whose `usages` are all that the customer pays for.

    `CONFIRMED`: a final invoice and our invoice items bill exactly what was reported. `UNBILLED`: they bill less.
    `IN_FLIGHT`: the invoice is a draft, the period runs, or an intent is not settled.
    """
    spans = _spans(billing.invoices, billing.terms)
    found: list[Billed] = []
    for event_name, used in usages.items():
        of_meter = {name: span for name, span in spans.items() if name[0] == event_name}
        items = [item for item in billing.items if item.event_name in ("", event_name)]
        found += [_twice(first, second) for first, second in _overlapping(of_meter)]
        for name, span in of_meter.items():
            period = name[1]
            inside = [usage for usage in used if _is_in(usage, period)]
            own = [item for item in items if item.start_ms < period.end_ms and period.start_ms < item.end_ms]
            if inside or span.quantity or own:
                found.append(_judged(event_name, name, span, inside, own))
        outside = [usage for usage in used if not any(_is_in(usage, name[1]) for name in of_meter)]
        free = [item for item in items if not any(_touches(item, name[1]) for name in of_meter)]
        running = [
            Period(item.start_ms, item.end_ms) for item in billing.running if item.event_name == event_name
        ]  # fmt: skip
        found += _outside(event_name, outside, free, running, now_ms)
    return found


def _spans(invoices: Iterable[ListedInvoice], terms: Mapping[str, str]) -> dict[_Name, _Span]:
    spans: dict[_Name, _Span] = {}
    for invoice in invoices:
        for line in invoice.lines:
            # A negative line is what an earlier invoice of the span billed.
            if line.amount_minor < 0 or not _closes(invoice, line):
                continue
            name = (line.event_name, Period(line.start_ms, line.end_ms), line.subscription, line.price)
            span = spans.setdefault(name, _Span())
            span.invoices[invoice.id] = invoice
            if invoice.status != "void":
                span.quantity += line.quantity
                span.amount_minor += line.amount_minor
            rating = _rating(terms.get(line.price))
            span.rating = rating if rating is not None and rating.currency == invoice.currency else None
    return spans


def _rating(terms: str | None) -> Rating | None:
    """The terms of a price, or None if they cannot be read: then only quantities are compared."""
    try:
        return rating_of(terms) if terms else None
    except InvalidInput:
        return None


def _closes(invoice: ListedInvoice, line: MeteredLine) -> bool:
    return line.start_ms < line.end_ms <= invoice.created_ms + MINUTE_MS


def _overlapping(spans: Mapping[_Name, _Span]) -> Iterable[tuple[_Name, _Name]]:
    billing = sorted(name for name, span in spans.items() if span.quantity)
    for first, second in pairwise(billing):
        if second[1].start_ms < first[1].end_ms:
            yield first, second


def _twice(first: _Name, second: _Name) -> Billed:
    span = Period(second[1].start_ms, min(first[1].end_ms, second[1].end_ms))
    detail = BILLED_TWICE.format(first[2] or first[3], second[2] or second[3])
    return Billed(Cause.EXTRA, first[0], span, 0, None, 0, (), (), (), detail)


def _judged(event_name: str, name: _Name, span: _Span, inside: Sequence[Usage], items: Sequence[ListedItem]) -> Billed:
    certain = [usage for usage in inside if usage.settled and not usage.is_doubtful]
    reported = sum(usage.units for usage in certain)
    quantity = span.quantity
    if span.rating is not None and span.is_final:
        # A line of a price per package has the number of packages.
        paid = billed_quantity(span.rating, span.quantity, span.amount_minor)
        quantity = span.quantity if paid is None else paid
    invoiced, added = _units(quantity), sum(_units(item.quantity or Decimal(0)) for item in items)
    difference = _difference(inside, reported, invoiced + added)
    pending = [usage.units for usage in inside if not usage.settled]
    unread = next((item.id for item in items if item.quantity is None), "")
    voided = next((invoice.id for invoice in span.invoices.values() if invoice.status == "void"), "")
    if not span.is_final:
        cause, detail = Cause.IN_FLIGHT, "the invoice is a draft"
    elif unread:
        cause, detail = Cause.UNCHECKED, NO_QUANTITY.format(unread)
    elif voided and difference <= 0:
        cause, detail = Cause.CONFIRMED, VOIDED.format(voided)
    elif other := _other_amount(name, span):
        cause, detail = Cause.DIFFERING, other
    elif not difference:
        cause, detail = Cause.CONFIRMED, ""
    elif sum(min(units, 0) for units in pending) <= difference <= sum(max(units, 0) for units in pending):
        cause, detail = Cause.IN_FLIGHT, f"{len(pending)} intents are not settled"
    elif span.rating is not None and _cost(span.rating, reported) == _cost(span.rating, invoiced + added):
        cause, detail = Cause.CONFIRMED, FREE
    elif difference < 0:
        missing = decimal_text(reported - invoiced - added, SCALE_MAX)
        cause, detail = Cause.UNBILLED, f"{missing} reported and not billed: {ADD_ITEM}"
    else:
        cause, detail = Cause.EXTRA, MORE
    return Billed(
        cause, event_name, name[1], reported, invoiced, added, *_names(inside), tuple(span.invoices), detail
    )  # fmt: skip


def _difference(inside: Sequence[Usage], reported: int, billed: int) -> int:
    """How much more is billed than was reported; negative: less. Dead letters may be billed or not."""
    doubtful = [usage.units for usage in inside if usage.is_doubtful]
    # Stripe bills 0 of a sum below 0.
    low = max(0, reported + sum(min(units, 0) for units in doubtful))
    high = max(0, reported + sum(max(units, 0) for units in doubtful))
    gross = sum(abs(usage.units) for usage in inside)
    slack = gross * (len(inside) + ROUNDED_BESIDES) >> DOUBLE_BITS
    less, more = min(0, billed - low + slack), max(0, billed - high - slack)
    return less or more


def _other_amount(name: _Name, span: _Span) -> str:
    """Why the amount is not that of the price; "" if it is, or if that is not known."""
    if span.rating is None or billed_quantity(span.rating, span.quantity, span.amount_minor) is not None:
        return ""
    currency = span.rating.currency
    return OTHER_AMOUNT.format(span.amount_minor, currency, name[3], amount_of(span.rating, span.quantity))


def _cost(rating: Rating, units: int) -> int:
    return amount_of(rating, Decimal(units).scaleb(-SCALE_MAX))


def with_own_items(billed: Billed, items: Iterable[InvoiceItem]) -> Billed:
    """A bill that is `UNBILLED` at Stripe, with what our database says of its span: usage that was written off is
    billed nowhere on purpose, and an item may be under way."""
    own = list(items)
    written_off = sum(
        _units(item.to_quantity - item.from_quantity) for item in own if item.state is InvoiceItemState.WRITTEN_OFF
    )
    if written_off and billed.reported <= (billed.found or 0) + written_off:
        return billed._replace(cause=Cause.CONFIRMED, detail=WRITTEN_OFF.format(decimal_text(written_off, SCALE_MAX)))
    if any(item.state is InvoiceItemState.INTENDED for item in own):
        return billed._replace(cause=Cause.IN_FLIGHT, detail="an invoice item is being made")
    return billed


def _outside(
    event_name: str, usages: Sequence[Usage], items: Sequence[ListedItem], running: Sequence[Period], now_ms: int
) -> Iterable[Billed]:
    """What no invoice has a line for, by the periods of the usage: it runs still, or nothing bills it."""
    periods: dict[Period, list[Usage]] = {}
    for usage in usages:
        periods.setdefault(usage.period, []).append(usage)
    for period, used in periods.items():
        reported = sum(usage.units for usage in used if usage.settled and not usage.is_doubtful)
        own = [item for item in items if _touches(item, period)]
        added = sum(_units(item.quantity or Decimal(0)) for item in own)
        waits = all(any(_is_in(usage, span) for span in running) for usage in used)
        unsettled = sum(not usage.settled for usage in used)
        if waits:
            cause, invoiced, detail = Cause.IN_FLIGHT, None, "the period runs"
        elif now_ms < period.end_ms + DRAFT_WITHIN_MS:
            cause, invoiced, detail = Cause.IN_FLIGHT, None, NOT_BILLED_YET
        elif max(0, reported) == added and not unsettled:
            cause, invoiced, detail = Cause.CONFIRMED, 0, ""
        elif reported <= added:
            cause, invoiced = (Cause.IN_FLIGHT, None) if unsettled else (Cause.EXTRA, 0)
            detail = f"{unsettled} intents are not settled" if unsettled else MORE
        else:
            missing = decimal_text(reported - added, SCALE_MAX)
            cause, invoiced, detail = Cause.UNBILLED, 0, f"{missing} reported and not billed: {NO_ITEM}"
        yield Billed(cause, event_name, period, reported, invoiced, added, *_names(used), (), detail)


def _is_in(usage: Usage, period: Period) -> bool:
    return period.start_ms <= usage.instant_ms < period.end_ms


def _touches(item: ListedItem, period: Period) -> bool:
    return item.start_ms < period.end_ms and period.start_ms < item.end_ms


def _names(usages: Iterable[Usage]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    used = list(usages)
    return tuple(sorted({usage.account for usage in used})), tuple(sorted({usage.meter for usage in used}))


def _units(quantity: Decimal) -> int:
    return int(quantity.scaleb(SCALE_MAX))
