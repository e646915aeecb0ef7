"""Why an invoice says what it says: its lines in words, with the numbers that prove them. Pure.

What nothing known explains is said, and not guessed at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import groupby
from typing import Final

from aggregators.periods import anchored_period
from aggregators.plan_offer import Shop
from aggregators.rating import exact_amount, rounded
from aggregators.upgrade_words import date_text
from portal.priced import priced_parts, quotient_text
from portal.usage_explained import explain_usage
from portal.words import SoldPrice, number_text, plan_name, signed_money, terms_of
from schemas.account_records import InvoiceRecord
from schemas.bills import InvoiceItem
from schemas.clock import SECOND_MS
from schemas.explained import Check, InvoiceExplanation, LineExplanation, UsageFacts
from schemas.periods import Period
from schemas.side_tables import Row
from schemas.upgrades import Money

LINES_MAX: Final = 200
_PERCENT: Final = 100


def explain_invoice(
    shop: Shop,
    account: str,
    record: InvoiceRecord,
    usages: Mapping[str, UsageFacts],
    items: Sequence[InvoiceItem],
    anchors: Mapping[str, int],
    now_ms: int,
) -> InvoiceExplanation:
    """An invoice with its first `LINES_MAX` lines.

    `usages`: what is known of the usage of each line that bills some, by the line's id. `items`: our invoice items of
    late usage that Stripe has. `anchors`: from when the periods of each subscription are counted.
    """
    invoice, rows = record.invoice, record.lines[:LINES_MAX]
    zero = Money(0, str(invoice["currency"] or ""), int(invoice["exponent"] or 0))
    anchor_ms = anchors.get(str(invoice["subscription_id"] or ""))
    lines = tuple(
        _explained(shop, account, row, record.lines, usages.get(str(row["id"])), items, zero, anchor_ms, now_ms)
        for row in rows
    )
    lines = tuple(sorted(lines, key=_place))
    total = zero._replace(minor=int(invoice["total_minor"] or 0))
    is_cut = len(record.lines) > LINES_MAX
    cut = (f"The first {LINES_MAX} lines are explained; the invoice has more.",) if is_cut else ()
    checks = () if cut else tuple(_sums(invoice, rows, zero))
    says = tuple(_invoice_words(invoice, zero, now_ms))
    return InvoiceExplanation(account, str(invoice["id"]), str(invoice["status"]), total, lines, checks, says, cut)


def by_usage(lines: Sequence[LineExplanation]) -> Iterator[Sequence[LineExplanation]]:
    """The lines in their order, those of the steps of one price together: they share what is said and what proves."""

    def shared(line: LineExplanation) -> tuple[object, ...]:
        if not (line.kind == "usage" and line.priced):
            return (line.line,)
        priced = tuple(part._replace(is_line=False) for part in line.priced)
        return line.text, line.meter, line.span, priced, line.checks

    yield from (list(group) for _, group in groupby(lines, key=shared))


def _place(line: LineExplanation) -> tuple[object, ...]:
    """Stripe keeps no order that a reader would expect: what is paid ahead first, and usage from its first tier on."""
    tier = next((place for place, part in enumerate(line.priced) if part.is_line), len(line.priced))
    return line.kind == "usage", line.text, line.span, tier, line.line


def _invoice_words(invoice: Row, zero: Money, now_ms: int) -> Iterator[str]:
    day = date_text(int(invoice["finalized_ms"] or invoice["created_ms"] or 0), now_ms)
    total, tax = int(invoice["total_minor"] or 0), int(invoice["tax_minor"] or 0)
    yield f"The invoice of {day} is {invoice['status']} and bills {signed_money(zero._replace(minor=total))}."
    if tax:
        yield f"Tax of {signed_money(zero._replace(minor=tax))} is in the total; it is Stripe's, or an adviser's."
    remaining = invoice["remaining_minor"]
    if invoice["status"] == "open" and remaining is not None:
        yield f"{signed_money(zero._replace(minor=int(remaining)))} of it is not paid yet."


def _sums(invoice: Row, rows: Sequence[Row], zero: Money) -> Iterator[Check]:
    """The lines, less discounts and with tax, are the total."""
    amounts = sum(int(row["amount_minor"] or 0) for row in rows)
    discounts = sum(int(row["discount_minor"] or 0) for row in rows)
    subtotal, tax = invoice["subtotal_minor"], int(invoice["tax_minor"] or 0)
    unit = f"minor units of {zero.currency}"
    if subtotal is not None:
        yield Check(f"the lines add up to the invoice before discounts and tax, in {unit}", str(subtotal), str(amounts))
    what = f"the lines, less discounts of {discounts}, with tax of {tax}, are the total, in {unit}"
    yield Check(what, str(invoice["total_minor"] or 0), str(amounts - discounts + tax))


def _explained(
    shop: Shop,
    account: str,
    row: Row,
    rows: Sequence[Row],
    usage: UsageFacts | None,
    items: Sequence[InvoiceItem],
    zero: Money,
    anchor_ms: int | None,
    now_ms: int,
) -> LineExplanation:
    found = terms_of(shop, str(row["price_id"] or ""), zero.currency)
    amount = zero._replace(minor=int(row["amount_minor"] or 0))
    span = Period(int(row["start_ms"] or 0), int(row["end_ms"] or 0))
    quantity = "" if row["quantity"] is None else number_text(Decimal(str(row["quantity"])))
    name = (
        f"{plan_name(shop, found.plan)}: {found.terms.feature or found.terms.meter or found.component}" if found else ""
    )
    line = LineExplanation(account, str(row["invoice_id"]), str(row["id"]), "unknown", name, span, quantity, amount, ())
    item = next((each for each in items if _is_item(each, row)), None)
    if usage is not None:
        line = explain_usage(line._replace(text=name or usage.meter.slug), row, rows, usage, now_ms)
    elif item is not None:
        line = _late(line, item, now_ms)
    elif found is not None and row["is_proration"]:
        line = _prorated(line, found, row, anchor_ms, now_ms)
    elif found is not None and not found.terms.is_metered:
        line = _paid_ahead(line, found, row, now_ms)
    else:
        line = _unknown(line, found, row)
    return line._replace(says=(*line.says, *_besides(row, zero)))


def _is_item(item: InvoiceItem, row: Row) -> bool:
    seconds = (item.start_ms // SECOND_MS, item.end_ms // SECOND_MS, item.amount_minor)
    return seconds == (
        int(row["start_ms"] or 0) // SECOND_MS,
        int(row["end_ms"] or 0) // SECOND_MS,
        row["amount_minor"],
    )


def _late(line: LineExplanation, item: InvoiceItem, now_ms: int) -> LineExplanation:
    """An invoice item of ours: usage that an earlier invoice could not have, or had too much."""
    change = item.to_quantity - item.from_quantity
    dates = f"{date_text(item.start_ms, now_ms)} to {date_text(item.end_ms, now_ms)}"
    what = "came after its invoice was final" if change > 0 else "was taken back after its invoice was final"
    first = f"{number_text(abs(change))} of {item.event_name} from {dates} {what}: invoice {item.invoice}."
    second = (
        f"That invoice and earlier items bill {number_text(item.from_quantity)}; with this line "
        f"{number_text(item.to_quantity)} are billed, which is what was reported. The line is the difference in price."
    )
    says = first, second
    check = Check("the line bills the difference in minor units", str(item.amount_minor), str(line.amount.minor))
    return line._replace(kind="late_usage", text=line.text or item.description, says=says, checks=(check,))


def _paid_ahead(line: LineExplanation, found: SoldPrice, row: Row, now_ms: int) -> LineExplanation:
    number = int(Decimal(str(row["quantity"] or 1)))
    due = rounded(exact_amount(found.terms.rating, number))
    what = found.terms.feature or found.component
    every = f" by the {found.interval}" if found.interval else ""
    seats = f", of which {found.terms.included:,} are included" if found.terms.included else ""
    dates = f"{date_text(line.span.start_ms, now_ms)} to {date_text(line.span.end_ms, now_ms)}"
    says = (f"{number:,} × {what}{seats}, paid ahead{every}: {dates}.",)
    check = Check("quantity and price give the amount in minor units", str(line.amount.minor), str(due))
    priced = tuple(priced_parts(found.terms.rating, Decimal(number), line.amount))
    return line._replace(kind="paid_ahead", says=says, priced=priced, checks=(check,))


def _prorated(line: LineExplanation, found: SoldPrice, row: Row, anchor_ms: int | None, now_ms: int) -> LineExplanation:
    """The rest of a period, by the second."""
    start_ms, end_ms = line.span
    number = int(Decimal(str(row["quantity"] or 1)))
    is_credit = line.amount.minor < 0
    what = f"{number:,} × {line.text}"
    dates = f"{date_text(start_ms, now_ms)} to {date_text(end_ms, now_ms)}"
    first = (
        f"{what}: the time from {dates} was paid and is given back, because the plan or quantity changed."
        if is_credit
        else f"{what}: the time from {dates} is charged, because the plan or quantity changed."
    )
    line = line._replace(kind="proration", says=(first,))
    if found.interval is None or found.terms.is_metered:
        return line._replace(unexplained=("the length of the period is not known, so the amount cannot be derived",))
    period = anchored_period(end_ms if anchor_ms is None else anchor_ms, found.interval, 1, start_ms)
    whole = exact_amount(found.terms.rating, number)
    left_s, all_s = (end_ms - start_ms) // SECOND_MS, (period.end_ms - period.start_ms) // SECOND_MS
    due = rounded(whole * left_s / all_s) * (-1 if is_credit else 1)
    sentence = (
        f"{left_s:,} of {all_s:,} seconds of the period are left: {quotient_text(whole)} × {left_s} / {all_s}, "
        f"rounded to a whole minor unit, is {abs(due):,}."
    )
    check = Check("price and time left give the amount in minor units", str(line.amount.minor), str(due))
    unexplained: tuple[str, ...] = ()
    if not check.holds:
        why = (
            f"price and time give {due}, the line bills {line.amount.minor}: prorations use the price after discounts, "
            "and what Stripe billed before, which the mirror does not have"
        )
        unexplained = (why,)
    return line._replace(says=(first, sentence), checks=(check,), unexplained=unexplained)


def _unknown(line: LineExplanation, found: SoldPrice | None, row: Row) -> LineExplanation:
    price = row["price_id"]
    if found is not None:
        why = "the line bills usage, and the archive or the mirror does not have the meter's price yet"
    elif price:
        why = f"no catalog made the price {price}: somebody made it at Stripe, so what it costs is not known here"
    else:
        why = "the line has no price: somebody added it at Stripe by hand"
    return line._replace(
        text=line.text or "a line made at Stripe", says=("This line is Stripe's.",), unexplained=(why,)
    )


def _besides(row: Row, zero: Money) -> Iterator[str]:
    """Discounts and tax of a line."""
    discount, tax, amount = (int(row[name] or 0) for name in ("discount_minor", "tax_minor", "amount_minor"))
    if discount:
        share = Fraction(discount * _PERCENT, amount) if amount else Fraction(0)
        percent = f", {share} %" if share.denominator == 1 and share else ""
        yield f"A discount takes {signed_money(zero._replace(minor=discount))} off{percent}."
    if tax:
        yield f"Tax of {signed_money(zero._replace(minor=tax))} belongs to the line."
