"""What a correction changes of a final invoice, in cents (S16). Pure: the store and the mirror are asked elsewhere.

What the numbers do not prove is not known, and the answer says why.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from decimal import Context, Decimal
from fractions import Fraction
from typing import Final, NamedTuple

from aggregators.late_usage import Judgement, judged, text_of
from aggregators.rating import amount_of, rating_of, rounded
from schemas.account_records import InvoiceRecord
from schemas.bills import Bill, BillState, InvoiceItem, InvoiceItemState
from schemas.corrections import Settlement
from schemas.intent_ledger import IntentTotals
from schemas.periods import Period
from schemas.side_tables import Row

_EXACT: Final = Context(prec=100)


class Discounts(NamedTuple):
    """What discounts took off an invoice: `taken_minor` of lines that add up to `base_minor`. `percent` or
    `amount_minor` is that of the only discount; `percent` is 0 without one, and None for other discounts."""

    taken_minor: int
    base_minor: int
    percent: Fraction | None
    amount_minor: int = 0

    def of(self, base_minor: int) -> int:
        """What the discount takes off lines that add up to this: Stripe rounds once for all lines."""
        base_minor = max(base_minor, 0)
        return min(base_minor, self.amount_minor) + rounded(base_minor * (self.percent or Fraction(0)) / 100)

    @property
    def are_known(self) -> bool:
        """Whether the discount explains what was taken off."""
        return self.percent is not None and self.of(self.base_minor) == self.taken_minor


class Facts(NamedTuple):
    """What is known of a bill: its reports, what credits paid of them, our invoice items, and the discounts."""

    totals: IntentTotals
    drawn: Decimal
    items: Sequence[InvoiceItem]
    discounts: Discounts


def settled(meter: str, bill: Bill, facts: Facts, before: Decimal, after: Decimal) -> Settlement:
    """What a correction changes of a bill.

    `before` and `after`: by how many units the usage differs from what was reported, by the corrections that were
    settled before, and by these and the new one.
    """
    found = Settlement(
        meter, Period(bill.start_ms, bill.end_ms), bill.invoice, currency=bill.currency, exponent=bill.exponent
    )
    judgement = judged(bill, facts.totals, facts.items)
    why = _not_settled(bill, judgement) or _not_whole(facts)
    reported, corrected = judgement.reported, _EXACT.add(judgement.reported, after)
    # Credits come back after what Stripe got, and may pay for what is added.
    if not why and facts.drawn and (after > before or corrected < 0):
        why = f"credits paid for {text_of(facts.drawn)} units of the span, and a part of the difference is theirs"
    if why:
        return found._replace(unknown=why)
    rating = rating_of(bill.terms)
    billed_minor, corrected_minor = amount_of(rating, reported), amount_of(rating, corrected)
    before_minor = amount_of(rating, _EXACT.add(reported, before))
    discounts = facts.discounts
    if not discounts.are_known or (discounts.taken_minor and facts.items):
        why = (
            f"discounts took {discounts.taken_minor} off the invoice, and the mirror does not know how; before "
            f"discounts and in minor units the usage costs {before_minor}, and {corrected_minor} as corrected"
        )
        return found._replace(unknown=why)
    others_minor = discounts.base_minor - bill.amount_minor
    return found._replace(
        billed=reported,
        corrected=corrected,
        billed_minor=billed_minor,
        settled_minor=before_minor - billed_minor,
        corrected_minor=corrected_minor,
        discount_minor=discounts.of(others_minor + corrected_minor) - discounts.of(others_minor + before_minor),
    )


def discounts_of(record: InvoiceRecord, subscriptions: Iterable[Row]) -> Discounts:
    """What discounts took off an invoice, of whose subscriptions these are the rows of the mirror."""
    taken = sum(int(row["discount_minor"] or 0) for row in record.lines)
    base = sum(int(row["amount_minor"] or 0) for row in record.lines if not row["is_proration"])
    subscription = record.invoice["subscription_id"]
    texts = [row["discounts_json"] or "[]" for row in subscriptions if row["id"] == subscription]
    made_ms = int(record.invoice["created_ms"] or 0)
    active = [
        each
        for text in texts
        for each in json.loads(str(text))
        if not isinstance(each, dict) or (each["start_ms"] <= made_ms < (each["end_ms"] or made_ms + 1))
    ]
    if not active:
        return Discounts(taken, base, Fraction(0))
    only = active[0] if len(active) == 1 and isinstance(active[0], dict) else {}
    if only.get("percent") is not None:
        return Discounts(taken, base, Fraction(only["percent"]))
    if only.get("amount_minor") and only["currency"] == record.invoice["currency"]:
        return Discounts(taken, base, Fraction(0), int(only["amount_minor"]))
    return Discounts(taken, base, None)


def _not_settled(bill: Bill, judgement: Judgement) -> str:
    """Why a bill can still change, or bills nothing; "" if it bills what was reported."""
    match judgement.state:
        case BillState.OPEN:
            return f"no invoice bills the span yet: the subscription {bill.subscription} will"
        case BillState.DRAFT:
            return f"the invoice {bill.invoice} is a draft, to which Stripe adds usage: ask again when it is final"
        case BillState.UNBILLED:
            units = text_of(judgement.unbilled)
            return f"{units} units of the span are not billed yet: ask again when an invoice item bills them"
        case BillState.WAITING | BillState.HELD | BillState.VOID:
            return judgement.reason
        case BillState.CONFIRMED:
            return ""


def _not_whole(facts: Facts) -> str:
    """Why what is billed is not all of the usage."""
    if facts.totals.dead:
        units = text_of(facts.totals.dead)
        return f"Stripe refused reports of {units} units of the span: `tidemark billing list` names them"
    if any(item.state is InvoiceItemState.WRITTEN_OFF for item in facts.items):
        return "late usage of the span was written off: whether the event was a part of it, nobody knows"
    return ""
