"""A line of usage: from the cents to the tiers, the reports and the hours, with numbers that must be equal. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import NamedTuple

from aggregators.late_usage import text_of
from aggregators.rating import amount_of, billed_quantity, rating_of
from aggregators.upgrade_words import date_text
from portal.priced import marked, priced_parts
from portal.words import number_text, signed_money
from schemas.bills import Bill, InvoiceItemState
from schemas.errors import InvalidInput
from schemas.explained import Check, LineExplanation, Priced, UsageFacts
from schemas.side_tables import Row
from schemas.upgrades import Money


class _Sums(NamedTuple):
    """Units of all spans that the invoice bills of the meter. `counted`: what the archive has, of all accounts."""

    counted: Decimal
    billed: Decimal
    by_items: Decimal
    written_off: Decimal


def explain_usage(
    line: LineExplanation, row: Row, rows: Sequence[Row], usage: UsageFacts, now_ms: int
) -> LineExplanation:
    """The line with its explanation. `rows`: all lines of the invoice."""
    bill = _bill_of(row, usage)
    hours = tuple((each.hour_ms, Decimal(each.value_minor).scaleb(-usage.meter.scale)) for each in usage.hours)
    line = line._replace(kind="usage", meter=usage.meter.slug, unit=usage.meter.unit, hours=hours)
    if bill is None:
        why = f"the mirror has not read the price {row['price_id']} yet, so the amount cannot be derived"
        return line._replace(says=("This line bills usage.",), unexplained=(why,))
    try:
        rating = rating_of(bill.terms)
    except InvalidInput as error:
        return line._replace(says=("This line bills usage.",), unexplained=(f"the price cannot be read: {error}",))
    units = billed_quantity(rating, bill.quantity, bill.amount_minor)
    if units is None:
        due = amount_of(rating, bill.quantity)
        why = f"the lines bill {bill.amount_minor}, and {bill.quantity} at the price {bill.price} cost {due}"
        return line._replace(says=("This line bills usage.",), unexplained=(why,))
    zero = Money(0, bill.currency, bill.exponent)
    priced = tuple(marked(priced_parts(rating, units, zero), row))
    sums = _sums_of(usage, bill, units)
    checks = (
        Check("the parts of the price add up to the lines, in minor units", str(bill.amount_minor),
              str(sum(part.amount_minor for part in priced))),
        *_quantity_checks(usage, sums),
    )  # fmt: skip
    says = (*_first_words(line, row, rows, bill, units, priced, now_ms), *_words(usage, sums))
    return line._replace(says=says, priced=priced, checks=checks, unexplained=tuple(_unexplained(usage, sums)))


def _bill_of(row: Row, usage: UsageFacts) -> Bill | None:
    wanted = (row["price_id"], row["start_ms"], row["end_ms"])
    return next((bill for bill in usage.bills if (bill.price, bill.start_ms, bill.end_ms) == wanted), None)


def _sums_of(usage: UsageFacts, bill: Bill, units: Decimal) -> _Sums:
    billed = units
    for other in usage.bills:
        if other is not bill:
            billed += billed_quantity(rating_of(other.terms), other.quantity, other.amount_minor) or other.quantity
    changes = [(item.state, item.to_quantity - item.from_quantity) for item in usage.items]
    by_items = sum((change for state, change in changes if state is not InvoiceItemState.WRITTEN_OFF), Decimal(0))
    written_off = sum((change for state, change in changes if state is InvoiceItemState.WRITTEN_OFF), Decimal(0))
    return _Sums(usage.total + usage.others, billed, by_items, written_off)


def _first_words(
    line: LineExplanation,
    row: Row,
    rows: Sequence[Row],
    bill: Bill,
    units: Decimal,
    priced: Sequence[Priced],
    now_ms: int,
) -> Iterator[str]:
    same = [each for each in rows if (each["price_id"], each["start_ms"], each["end_ms"]) ==
            (row["price_id"], row["start_ms"], row["end_ms"]) and int(each["amount_minor"] or 0) >= 0]  # fmt: skip
    dates = f"{date_text(bill.start_ms, now_ms)} to {date_text(bill.end_ms, now_ms)}"
    shown = f"{number_text(units)} {line.unit or line.meter}"
    cost = signed_money(Money(bill.amount_minor, bill.currency, bill.exponent))
    yield f"{shown} were used from {dates}; they cost {cost}."
    if len(same) > 1 and any(part.is_line for part in priced):
        yield f"The invoice has {len(same)} lines for them, one for each part of the price."
    if int(row["amount_minor"] or 0) < 0:
        yield "This line takes off what an earlier invoice of the same span billed."


def _words(usage: UsageFacts, sums: _Sums) -> Iterator[str]:
    """What stands behind the quantity."""
    unit = usage.meter.unit or usage.meter.slug
    if usage.others:
        yield f"{number_text(usage.others)} {unit} of them are of other accounts that the same customer pays for."
    if usage.carried:
        yield f"{number_text(usage.carried)} {unit} of them were used before the span, and came after its end: late."
    if usage.totals.late or sums.by_items:
        yield (
            f"{number_text(usage.totals.late)} {unit} came too late for the invoice; invoice items bill "
            f"{number_text(sums.by_items)}."
        )
    if usage.drawn:
        yield f"Credits paid {number_text(usage.drawn)} {unit} of them: Stripe was sent the rest."
    if sums.written_off:
        yield f"{number_text(sums.written_off)} {unit} were written off and are billed nowhere."
    if usage.totals.dead:
        yield f"{number_text(usage.totals.dead)} {unit} were refused by Stripe: `tidemark billing list` says why."
    if usage.totals.pending:
        yield f"{number_text(usage.totals.pending)} {unit} are on their way to Stripe."
    found = usage.arrivals
    if found is not None:
        yield (
            f"The archive has the span's events, each once: {found.events:,}. Arrivals of the same event again, which "
            f"were not counted: {found.repeats:,}, of these with other content: {found.conflicts:,}. Events so late "
            f"that the archive was asked whether they are new: {found.deferred:,}."
        )
    else:
        yield "How often events arrived again is not known at the moment: the archive does not answer."


def _quantity_checks(usage: UsageFacts, sums: _Sums) -> Iterator[Check]:
    """The hours are the total, the total is what was reported, and what was reported is billed."""
    rule, totals = usage.meter.aggregation.rule, usage.totals
    if (rule.additive or rule.distinct) and not usage.is_cut:
        hours = Decimal(sum(each.value_minor for each in usage.hours)).scaleb(-usage.meter.scale)
        yield Check("the hours add up to our total of the account", text_of(usage.total), text_of(hours))
    reported = totals.accepted + totals.late + totals.dead + totals.pending + usage.drawn
    what = "our total is what was reported" + (", and what credits paid" if usage.drawn else "")
    yield Check(what, text_of(sums.counted), text_of(reported))
    behind = sums.by_items + sums.written_off + totals.dead + totals.pending + usage.drawn
    what = "what Stripe bills"
    if behind:
        what += f", with {text_of(behind)} that the sentences above name,"
    yield Check(f"{what} is our total", text_of(max(sums.counted, Decimal(0))), text_of(sums.billed + behind))


def _unexplained(usage: UsageFacts, sums: _Sums) -> Iterator[str]:
    """What the numbers leave open, in words."""
    if any(bill.finalized_ms is None for bill in usage.bills):
        yield "the invoice is a draft: Stripe still adds usage"
        return
    for check in _quantity_checks(usage, sums):
        if not check.holds:
            rest = Decimal(check.expected) - Decimal(check.found)
            yield f"{check.what}: {check.expected} against {check.found}, and nothing known explains {text_of(rest)}"
