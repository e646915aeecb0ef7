"""The pages that prove an invoice: its lines, the hours of a line of usage, and the events of an hour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Final, NamedTuple

from aggregators.instants import format_instant_ms
from aggregators.plan_offer import Shop
from aggregators.rating import Rating, billed_quantity
from aggregators.upgrade_words import date_text
from portal.account import CountedEvent, Hour
from portal.markup import Html, h, link, table
from portal.priced import marked, priced_parts
from portal.render import frame, invoice_table
from portal.view import InvoiceView, invoice_view
from portal.words import minute_text, number_text, plan_name, quantity_head, signed_money, terms_of
from schemas.account_records import InvoiceRecord
from schemas.analytics import EVENT_TIME_MAX_US
from schemas.clock import HOUR_MS, MILLISECOND_US, MINUTE_MS
from schemas.explained import LineExplanation, Priced
from schemas.meters import Meter
from schemas.periods import Period
from schemas.side_tables import Row
from schemas.upgrades import Money

LINES_MAX: Final = 200
HOURS_MAX: Final = 200
EVENTS_MAX: Final = 200


class LineView(NamedTuple):
    """A line of an invoice. `meter`: whose usage the line bills in `span`; "" if it bills no usage. `each`: the exact
    price of a unit; "" if the line has no single one. `step`: the place of the line in its price, from the first tier.
    """

    invoice: str
    id: str
    text: str
    span_words: str
    quantity: str
    amount: str
    meter: str
    span: Period
    each: str
    step: int


def line_views(shop: Shop, record: InvoiceRecord, now_ms: int) -> tuple[LineView, ...]:
    """The lines of an invoice in words."""
    currency, exponent = str(record.invoice["currency"] or ""), int(record.invoice["exponent"] or 0)
    return tuple(_line(shop, row, record.lines, Money(0, currency, exponent), now_ms) for row in record.lines)


def _line(shop: Shop, row: Row, rows: Sequence[Row], zero: Money, now_ms: int) -> LineView:
    found = terms_of(shop, str(row["price_id"] or ""), zero.currency)
    amount, span = int(row["amount_minor"] or 0), Period(int(row["start_ms"] or 0), int(row["end_ms"] or 0))
    text, meter, parts = "Other", "", []
    if found is not None:
        meter = found.terms.meter
        text = f"{plan_name(shop, found.plan)}: {found.terms.feature or meter or found.component}"
        parts = list(marked(_parts_of_price(found.terms.rating, row, rows, zero), row))
    if row["is_proration"]:
        text += ", unused time" if amount < 0 else ", remaining time"
    quantity = "" if row["quantity"] is None else number_text(Decimal(str(row["quantity"])))
    # The end is the first instant after the span.
    words = f"{date_text(span.start_ms, now_ms)} to {date_text(span.end_ms, now_ms)}"
    shown = signed_money(zero._replace(minor=amount))
    step = next((place for place, part in enumerate(parts) if part.is_line), len(parts))
    each = parts[step].each if step < len(parts) else ""
    whose = str(row["invoice_id"]), str(row["id"])
    return LineView(*whose, text, words, quantity, shown, meter, minutes_of(span), each, step)


def _parts_of_price(rating: Rating, row: Row, rows: Sequence[Row], zero: Money) -> Iterator[Priced]:
    """What all lines of the price and span of a line bill together, by the parts of the price; nothing of a part of a
    period, and nothing if the price does not explain the lines."""
    if row["is_proration"]:
        return
    whole = [each for each in rows if _price_key(each) == _price_key(row) and int(each["amount_minor"] or 0) >= 0]
    quantity = sum((Decimal(str(each["quantity"] or 0)) for each in whole), Decimal(0))
    units = billed_quantity(rating, quantity, sum(int(each["amount_minor"] or 0) for each in whole))
    if units is not None:
        yield from priced_parts(rating, units, zero)


def _price_key(row: Row) -> tuple[object, ...]:
    return row["price_id"], row["start_ms"], row["end_ms"], bool(row["is_proration"])


def minutes_of(span: Period) -> Period:
    """The whole minutes at which the periods of usage begin and end; Stripe's spans have seconds."""
    return Period(span.start_ms - span.start_ms % MINUTE_MS, span.end_ms - span.end_ms % MINUTE_MS)


def back(text: str, target: str) -> Html:
    """The way back."""
    return h("nav", link(text, target), aria_label="Way back")


def invoices_page(invoices: tuple[InvoiceView, ...], older: str) -> Html:
    """A page of all invoices."""
    more = h("p", link("Older", f"invoices?cursor={older}")) if older else ""
    return frame("Invoices", "", back("Back to your plan", "./"), h("h1", "Invoices"), invoice_table(invoices), more)


def invoice_page(record: InvoiceRecord, lines: Sequence[LineView], now_ms: int) -> Html:
    """An invoice, whose lines of usage open to their hours."""
    view = invoice_view(record.invoice, now_ms)
    shown = sorted(lines, key=lambda line: (bool(line.meter), line.text, line.span, line.step))
    rows: list[Sequence[object]] = [
        (
            link(line.text, f"../{line_path(line)}") if line.meter else line.text,
            line.span_words,
            line.quantity,
            line.each,
            line.amount,
        )
        for line in shown
    ]
    tax = int(record.invoice["tax_minor"] or 0)
    if tax:
        money = Money(tax, str(record.invoice["currency"]), int(record.invoice["exponent"] or 0))
        rows.append((h("em", "Tax"), "", "", "", signed_money(money)))
    rows.append((h("strong", "Total"), "", "", "", h("strong", view.amount)))
    cut = h("p", f"The first {LINES_MAX} lines are shown.", class_="soft") if len(lines) >= LINES_MAX else ""
    pay = h("p", h("a", "Pay this invoice", href=view.pay_url, target="_top")) if view.pay_url else ""
    numbers = ("Quantity", "Unit price", "Amount")
    return frame(
        f"Invoice of {view.day}",
        "../",
        back("All invoices", "../invoices"),
        h("h1", f"Invoice of {view.day}"),
        pay,
        table(("What", "Time", *numbers), rows, "", numbers=numbers, stacks=True),
        cut,
    )


def hours_page(
    line: LineView,
    meter: Meter,
    hours: Sequence[Hour],
    older: str,
    now_ms: int,
    explanation: LineExplanation | None = None,
) -> Html:
    """The hours of a line of usage, and why the line says what it says."""
    root = "../../../"
    rows = [
        (
            link(hour_text(each.start_ms, now_ms), f"{root}{line_path(line)}/hours/{each.start_ms}"),
            number_text(each.units),
        )
        for each in hours
    ]
    more = h("p", link("Later hours", f"{line.id}?after={older}")) if older else ""
    quantity = f"{line.quantity} {meter.unit}".rstrip()
    about = f"{line.text}, {line.span_words}: {quantity} for {line.amount}."
    heads = ("Hour", quantity_head(meter.unit))
    return frame(
        f"{meter.slug}: hours",
        root,
        back("The invoice", f"{root}invoices/{line.invoice}"),
        h("h1", f"{meter.slug.replace('_', ' ').capitalize()} by the hour"),
        h("p", about),
        *_why(explanation),
        h("p", "The hour is that of the event's own time, in UTC. Late usage is billed with a later period."),
        table(heads, rows, "The archive has no usage of this span.", numbers=heads[1:]),
        more,
    )


def _why(found: LineExplanation | None) -> Iterator[Html]:
    """How the quantity becomes the amount. What only operators understand is left out."""
    if found is None or not found.priced:
        return
    rows = [
        (
            h("strong", part.text) if part.is_line else part.text,
            signed_money(found.amount._replace(minor=part.amount_minor)),
        )
        for part in found.priced
    ]
    units = sum((part.units for part in found.priced), Decimal(0))
    if len(rows) > 1:
        whole = found.amount._replace(minor=sum(part.amount_minor for part in found.priced))
        rows.append((f"all {number_text(units)}", signed_money(whole)))
    yield table(("Price", "Amount"), rows, "", numbers=("Amount",))
    if found.holds:
        yield h("p", f"The hours below add up to the quantity that is billed: {number_text(units)}.", class_="soft")


def events_page(
    line: LineView, meter: Meter, hour_ms: int, events: Sequence[CountedEvent], later: str, now_ms: int
) -> Html:
    """The events of an hour with their ids."""
    root = "../../../../../"
    heads = ("Event", "Time", quantity_head(meter.unit))
    rows = [(h("code", each.id), format_instant_ms(each.time_us // MILLISECOND_US), each.value) for each in events]
    more = h("p", link("Later events", f"{hour_ms}?after={later}")) if later else ""
    return frame(
        f"{meter.slug}: events",
        root,
        back("The hours", f"{root}{line_path(line)}"),
        h("h1", f"Events of {hour_text(hour_ms, now_ms)}"),
        h("p", "Each event counts once, however often it arrived."),
        table(heads, rows, "The archive has no events of this hour.", numbers=heads[2:], stacks=True),
        more,
    )


def line_path(line: LineView) -> str:
    """The address of a line, from that of the account's page."""
    return f"invoices/{line.invoice}/lines/{line.id}"


def hour_text(hour_ms: int, now_ms: int) -> str:
    """An hour in words."""
    return f"{date_text(hour_ms, now_ms)}, {minute_text(hour_ms)}"


def is_hour(hour_ms: int) -> bool:
    """Whether a number is a whole hour that the archive can have."""
    return 0 <= hour_ms <= EVENT_TIME_MAX_US // MILLISECOND_US and hour_ms % HOUR_MS == 0


def as_after(sent: Mapping[str, str]) -> int:
    """The hour behind which a page begins; a text that is none begins at the start."""
    text = sent.get("after", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else -1
