"""What is unbilled of a bill, and the invoice item that bills it. Pure: the store and Stripe are asked elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Context, Decimal
from hashlib import blake2b
from typing import Final, NamedTuple

import msgspec

from aggregators.rating import amount_of, billed_quantity, rating_of
from schemas.bills import Bill, BillState, InvoiceItem, InvoiceItemState, LatePolicy
from schemas.clock import DAY_MS, SECOND_MS
from schemas.errors import InvalidInput
from schemas.intent_ledger import IntentTotals

# A bill gets at most one invoice item in this time, and usage without an outcome delays an item no longer.
ITEM_INTERVAL_MS: Final = DAY_MS
# No invoice of Stripe has so many minor units, and the item's column has 64 bits.
AMOUNT_MINOR_MAX: Final = 10**15
# Enough for any sum of quantities of any scale; the default of 28 digits is not.
_EXACT: Final = Context(prec=100)
_ITEM_DONE: Final = frozenset({InvoiceItemState.CREATED, InvoiceItemState.WRITTEN_OFF})


class Judgement(NamedTuple):
    """Where a bill stands, in units of the meter. `billed_by_items` has the items that are only intended, too.

    `amount_minor` is what the unbilled quantity costs; negative: a credit.
    """

    state: BillState
    reported: Decimal
    billed: Decimal
    billed_by_items: Decimal
    unbilled: Decimal
    amount_minor: int
    reason: str


def judged(bill: Bill, totals: IntentTotals, items: Sequence[InvoiceItem]) -> Judgement:
    """Compare what was reported of a bill's span with what its invoice and its invoice items bill."""
    reported = _EXACT.add(totals.accepted, totals.late)
    by_items = Decimal(0)
    for item in items:
        by_items = _EXACT.add(by_items, _EXACT.subtract(item.to_quantity, item.from_quantity))

    def found(state: BillState, billed: Decimal, amount_minor: int = 0, reason: str = "") -> Judgement:
        unbilled = _EXACT.subtract(reported, _EXACT.add(billed, by_items))
        return Judgement(state, reported, billed, by_items, unbilled, amount_minor, reason)

    if bill.is_void:
        return found(BillState.VOID, bill.quantity, reason="the invoice is void or deleted")
    if bill.finalized_ms is None:
        return found(BillState.DRAFT if bill.invoice else BillState.OPEN, bill.quantity)
    try:
        rating = rating_of(bill.terms)
    except InvalidInput as error:
        return found(BillState.HELD, bill.quantity, reason=f"the price {bill.price} cannot be read: {error}")
    billed = billed_quantity(rating, bill.quantity, bill.amount_minor)
    if billed is None or rating.currency != bill.currency:
        ours = f"{amount_of(rating, bill.quantity)} {rating.currency}"
        reason = f"the invoice bills {bill.amount_minor} {bill.currency}, the price {bill.price} {ours}: compare them"
        return found(BillState.HELD, bill.quantity, reason=reason)
    before = _EXACT.add(billed, by_items)
    amount_minor = amount_of(rating, reported) - amount_of(rating, before)
    refused = next((item.detail for item in items if item.state is InvoiceItemState.HELD), None)
    if abs(amount_minor) > AMOUNT_MINOR_MAX:
        reason = f"the unbilled usage costs {amount_minor} {bill.currency} in minor units, more than an invoice has"
        return found(BillState.HELD, billed, amount_minor, reason)
    if refused is not None:
        return found(BillState.HELD, billed, amount_minor, f"Stripe refused the invoice item: {refused}")
    if amount_minor or any(item.state not in _ITEM_DONE for item in items):
        return found(BillState.UNBILLED, billed, amount_minor)
    if totals.pending:
        return found(BillState.WAITING, billed, reason="reports of the span have no outcome yet")
    return found(BillState.CONFIRMED, billed)


def wait_ms(bill: Bill, judgement: Judgement, totals: IntentTotals, items: Sequence[InvoiceItem], now_ms: int) -> int:
    """How long an item for the unbilled usage must wait; 0 if it may be made now.

    A report without an outcome may be on the invoice already, so a credit waits for all of them. Other usage waits for
    a day at most.
    """
    last_ms = max((item.created_ms for item in items), default=None)
    # An item of the future was made before the clock was put back.
    if last_ms is not None and last_ms <= now_ms < last_ms + ITEM_INTERVAL_MS:
        return last_ms + ITEM_INTERVAL_MS - now_ms
    until_ms = (bill.finalized_ms or 0) + ITEM_INTERVAL_MS
    if totals.pending and (judgement.amount_minor < 0 or now_ms < until_ms):
        return max(until_ms - now_ms, SECOND_MS)
    return 0


def item_of(
    scope: str, bill: Bill, judgement: Judgement, items: Sequence[InvoiceItem], policy: LatePolicy, now_ms: int
) -> InvoiceItem:
    """The next invoice item of a bill's chain, from the quantity that is billed to the one that was reported.

    A credit is never written off. The identifier is a hash of the scope and the chain, so two processes that make the
    same item make it under one identifier.
    """
    before = _EXACT.add(judgement.billed, judgement.billed_by_items)
    number = max((each.number for each in items), default=-1) + 1
    chain = (scope, bill.stripe_customer, bill.event_name, bill.start_ms, bill.end_ms, number)
    identity = (*chain, text_of(before), text_of(judgement.reported))
    is_written_off = policy is LatePolicy.WRITE_OFF and judgement.amount_minor > 0
    return InvoiceItem(
        identifier="tmi_" + blake2b(msgspec.json.encode(identity), digest_size=20).hexdigest(),
        stripe_customer=bill.stripe_customer,
        subscription=bill.next_subscription,
        invoice=bill.invoice,
        event_name=bill.event_name,
        price=bill.price,
        start_ms=bill.start_ms,
        end_ms=bill.end_ms,
        number=number,
        from_quantity=before,
        to_quantity=judgement.reported,
        amount_minor=judgement.amount_minor,
        currency=bill.currency,
        exponent=bill.exponent,
        description=_description(bill, _EXACT.subtract(judgement.reported, before)),
        state=InvoiceItemState.WRITTEN_OFF if is_written_off else InvoiceItemState.INTENDED,
        created_ms=now_ms,
    )


def overlapping(bill: Bill, others: Sequence[Bill]) -> str:
    """Another invoice that bills the same meter of the customer for a part of the span; "" if none does."""
    for other in others:
        is_same = (other.invoice, other.start_ms, other.end_ms, other.price) == (
            bill.invoice, bill.start_ms, bill.end_ms, bill.price,
        )  # fmt: skip
        is_bill = other.event_name == bill.event_name and other.finalized_ms is not None and not other.is_void
        if is_bill and not is_same and other.start_ms < bill.end_ms and bill.start_ms < other.end_ms:
            return other.invoice
    return ""


def gaps(bills: Sequence[Bill], event_name: str, from_ms: int, to_ms: int) -> Sequence[tuple[int, int]]:
    """The spans of `[from_ms, to_ms)` for which no bill bills the meter."""
    found, end_ms = [], from_ms
    for bill in sorted((bill for bill in bills if bill.event_name == event_name), key=lambda bill: bill.start_ms):
        if end_ms < min(bill.start_ms, to_ms):
            found.append((end_ms, min(bill.start_ms, to_ms)))
        end_ms = max(end_ms, bill.end_ms)
    return [*found, (end_ms, to_ms)] if end_ms < to_ms else found


def text_of(quantity: Decimal) -> str:
    """A quantity as the shortest decimal text."""
    text = format(quantity, "f")
    return (text.rstrip("0").rstrip(".") or "0") if "." in text else text


def _description(bill: Bill, quantity: Decimal) -> str:
    first, last = (datetime.fromtimestamp(ms / SECOND_MS, UTC) for ms in (bill.start_ms, bill.end_ms - SECOND_MS))
    kind = "additional usage" if quantity > 0 else "usage taken back"
    return (
        f"{bill.title or bill.event_name}: {text_of(abs(quantity))} {kind}, {first:%Y-%m-%d} to {last:%Y-%m-%d} (UTC)"
    )
