"""The lines of an invoice in words: each kind, what is checked, and what is said not to be explained."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple

import pytest

from portal.explained import explain_invoice
from portal.operator_page import invoice_explained
from schemas.account_records import InvoiceRecord
from schemas.aggregations import Aggregation
from schemas.bills import Bill, InvoiceItem, InvoiceItemState
from schemas.explained import InvoiceExplanation, UsageFacts
from schemas.intent_ledger import IntentTotals
from schemas.meters import Meter
from schemas.side_tables import Row
from schemas.usage_evidence import HourUsage
from tests.worlds.paged import CATALOG
from tests.worlds.sold import shop_of


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000


FEBRUARY: Final = ms("2027-02-01"), ms("2027-03-01")
LATE: Final = InvoiceItem(
    "tmi_1", "cus_1", "sub_1", "in_0", "tokens", "tm.scale.v1.tokens.month.usd", ms("2027-01-01"), ms("2027-02-01"), 0,
    Decimal(1_000), Decimal(1_125), 125, "usd", 2, "Tokens: 125 additional usage", InvoiceItemState.CREATED,
)  # fmt: skip


SHOP: Final = shop_of(CATALOG)


def explained(total: int, *lines: dict[str, Any], tax: int = 0, usage: UsageFacts | None = None) -> InvoiceExplanation:
    """An invoice of a subscription whose periods begin on the first of a month."""
    rows: list[Row] = [
        {
            "id": f"il_{number}", "invoice_id": "in_1", "item_id": None, "is_proration": 0, "quantity": None,
            "discount_minor": 0, "tax_minor": 0, "price_id": None, "start_ms": FEBRUARY[0], "end_ms": FEBRUARY[1],
            **line,
        }
        for number, line in enumerate(lines)
    ]  # fmt: skip
    invoice: Row = {
        "id": "in_1", "status": "paid", "currency": "usd", "exponent": 2, "subscription_id": "sub_1", "tax_minor": tax,
        "total_minor": total, "subtotal_minor": sum(int(row["amount_minor"] or 0) for row in rows),
        "remaining_minor": 0, "created_ms": FEBRUARY[0], "finalized_ms": FEBRUARY[0],
    }  # fmt: skip
    usages = {} if usage is None else dict.fromkeys((str(row["id"]) for row in rows), usage)
    record, anchors = InvoiceRecord(invoice, rows), {"sub_1": FEBRUARY[0]}
    return explain_invoice(SHOP, "acme", record, usages, [LATE], anchors, FEBRUARY[0])


PRO, ESSENTIAL = "tm.pro.v1.location.month.usd", "tm.essential.v1.location.month.usd"
UPGRADE_MS: Final = ms("2027-02-10")


class Line(NamedTuple):
    """A line, its kind, whether it is explained, and words that it says."""

    row: dict[str, Any]
    kind: str
    holds: bool
    says: str


LINES: Final = {
    "paid ahead": Line(
        {"price_id": PRO, "quantity": "2", "amount_minor": 29_800}, "paid_ahead", True, "2 × locations, paid ahead"
    ),
    "paid ahead, another amount": Line(
        {"price_id": PRO, "quantity": "2", "amount_minor": 29_801}, "paid_ahead", False, "2 × locations"
    ),
    # Scenario 4: 19 of 28 days.
    "time given back": Line(
        {"price_id": ESSENTIAL, "quantity": "1", "amount_minor": -5_361, "is_proration": 1, "start_ms": UPGRADE_MS},
        "proration", True, "7,900 × 1641600 / 2419200, rounded to a whole minor unit, is 5,361",
    ),
    "time charged": Line(
        {"price_id": PRO, "quantity": "1", "amount_minor": 10_111, "is_proration": 1, "start_ms": UPGRADE_MS},
        "proration", True, "14,900 × 1641600 / 2419200",
    ),
    "time of a discounted price": Line(
        {"price_id": PRO, "quantity": "1", "amount_minor": 8_089, "is_proration": 1, "start_ms": UPGRADE_MS},
        "proration", False, "price and time give 10111, the line bills 8089: prorations use the price after discounts",
    ),
    "a discount": Line(
        {"price_id": PRO, "quantity": "1", "amount_minor": 14_900, "discount_minor": 2_980},
        "paid_ahead", True, "A discount takes $29.80 off, 20 %.",
    ),
    "late usage": Line(
        {"amount_minor": 125, "start_ms": LATE.start_ms, "end_ms": LATE.end_ms},
        "late_usage", True, "125 of tokens from January 1 to February 1 came after its invoice was final",
    ),
    "a price of no catalog": Line(
        {"price_id": "price_x", "amount_minor": 500}, "unknown", False, "no catalog made the price price_x"
    ),
    "by hand": Line({"amount_minor": 500}, "unknown", False, "the line has no price: somebody added it at Stripe"),
}  # fmt: skip


@pytest.mark.parametrize("case", LINES.values(), ids=list(LINES))
def test_a_line_says_why_it_is_what_it_is(case: Line) -> None:
    amount, discount = case.row["amount_minor"], case.row.get("discount_minor", 0)
    found = explained(amount - discount, case.row)

    (line,) = found.lines
    assert (line.kind, line.holds, found.holds) == (case.kind, case.holds, case.holds)
    assert case.says in " ".join((*line.says, *line.unexplained))
    assert all(check.holds for check in found.checks)


TOKENS: Final = Meter(slug="tokens", event_type="t", aggregation=Aggregation.COUNT, stripe_event_name="tokens")
HOUR: Final = HourUsage(FEBRUARY[0], 1_000)


def used(
    billed: int, *, total: int = 1_000, drawn: int = 0, items: Sequence[InvoiceItem] = (), **totals: int
) -> UsageFacts:
    """Usage of a cent each in February; what is not named was accepted by Stripe."""
    bill = Bill(
        "cus_1", "sub_1", "in_1", "tokens", "price_t", *FEBRUARY, Decimal(billed), billed, "usd", 2, None, FEBRUARY[1],
        terms='{"currency": "usd", "billing_scheme": "per_unit", "unit_amount_decimal": "1"}',
    )  # fmt: skip
    each = {name: Decimal(totals.get(name, 0)) for name in ("late", "dead", "pending")}
    accepted = Decimal(totals.get("accepted", total - drawn - sum(totals.values())))
    known = IntentTotals(accepted, **each)
    hours = [HOUR._replace(value_minor=total)]
    return UsageFacts(TOKENS, [bill], known, items, hours, False, Decimal(total), Decimal(0), drawn=Decimal(drawn))


JANUARY: Final = LATE._replace(
    start_ms=FEBRUARY[0], end_ms=FEBRUARY[1], from_quantity=Decimal(900), to_quantity=Decimal(1_000)
)
USAGES: Final = {
    "all is billed": (used(1_000), True, "1,000 tokens were used"),
    "credits paid a part": (used(700, drawn=300), True, "Credits paid 300 tokens of them"),
    "late usage by an item": (used(900, items=[JANUARY], late=100), True, "invoice items bill 100"),
    "refused by Stripe": (used(950, dead=50), True, "50 tokens were refused by Stripe"),
    "not reported": (used(900, accepted=900), False, "nothing known explains 100"),
    "billed too much": (used(1_100), False, "nothing known explains -100"),
}


@pytest.mark.parametrize(("usage", "holds", "says"), USAGES.values(), ids=list(USAGES))
def test_a_line_of_usage_says_what_stands_behind_its_quantity(usage: UsageFacts, *, holds: bool, says: str) -> None:
    quantity, amount = str(usage.bills[0].quantity), usage.bills[0].amount_minor
    found = explained(amount, {"price_id": "price_t", "quantity": quantity, "amount_minor": amount}, usage=usage)

    (line,) = found.lines
    assert (line.kind, line.holds) == ("usage", holds), line
    assert says in " ".join((*line.says, *line.unexplained))


def test_the_lines_less_discounts_with_tax_are_the_total() -> None:
    row = {"price_id": PRO, "quantity": "1", "amount_minor": 14_900, "discount_minor": 2_980}

    right, wrong = explained(14_304, row, tax=2_384), explained(14_305, row, tax=2_384)

    assert [check.holds for check in right.checks] == [True, True]
    assert [check.holds for check in wrong.checks] == [True, False]
    assert not wrong.holds


def test_the_operator_reads_once_what_the_steps_of_a_price_share() -> None:
    """A dollar each for the first 400, then a cent: two lines of one usage, of which one has a discount."""
    facts = used(1_000)
    terms = {
        "currency": "usd", "billing_scheme": "tiered", "tiers_mode": "graduated",
        "tiers": [{"up_to": 400, "unit_amount_decimal": "100"}, {"up_to": None, "unit_amount_decimal": "1"}],
    }  # fmt: skip
    bill = facts.bills[0]._replace(amount_minor=40_600, terms=json.dumps(terms))
    second = {"price_id": "price_t", "quantity": "600", "amount_minor": 600, "discount_minor": 60}
    first = {"price_id": "price_t", "quantity": "400", "amount_minor": 40_000}

    found = explained(40_540, second, first, usage=facts._replace(bills=[bill]))
    page = " ".join(re.sub("<[^>]+>", " ", invoice_explained(found)).split())

    assert found.holds
    assert "tokens: $406.00 1,000 tokens were used" in page
    assert page.count("were used from") == page.count("the hours add up to our total of the account") == 1
    assert "the next 600 at $0.01 each: A discount takes $0.60 off, 10 %." in page
    # The steps stand in the summary and in the card, from the first tier on.
    assert page.count("the first 400 at $1.00 each $400.00") == page.count("the next 600 at $0.01 each $6.00") == 2
