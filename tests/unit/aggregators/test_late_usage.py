"""What is unbilled of a bill, when an item may bill it, and what the item says. Amounts are cents."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from aggregators.late_usage import ITEM_INTERVAL_MS, item_of, judged, overlapping, wait_ms
from schemas.bills import Bill, BillState, InvoiceItem, InvoiceItemState, LatePolicy
from schemas.clock import DAY_MS, HOUR_MS
from schemas.intent_ledger import IntentTotals

START_MS = 1_793_491_200_000  # 2026-11-01
END_MS = 1_796_083_200_000  # 2026-12-01
FINAL_MS = END_MS + HOUR_MS
TWO_CENTS = json.dumps({"currency": "usd", "unit_amount_decimal": "2"})
FREE_TIER = json.dumps(
    {
        "currency": "usd", "billing_scheme": "tiered", "tiers_mode": "graduated",
        "tiers": [{"up_to": 5_000, "unit_amount_decimal": "0"}, {"up_to": None, "unit_amount_decimal": "2"}],
    }
)  # fmt: skip


def bill(quantity: str = "1000", cents: int = 2_000, **changes: Any) -> Bill:
    """An invoice of November."""
    of_november = Bill(
        "cus_1", "sub_1", "in_1", "calls", "price_1", START_MS, END_MS, Decimal(quantity), cents, "usd", 2, None,
        FINAL_MS, next_subscription="sub_1", title="API calls", terms=TWO_CENTS,
    )  # fmt: skip
    return of_november._replace(**changes)


def totals(accepted: str = "1000", late: str = "0", pending: str = "0", dead: str = "0") -> IntentTotals:
    return IntentTotals(Decimal(accepted), Decimal(late), Decimal(dead), Decimal(pending))


def item(number: int, start: str, end: str, state: InvoiceItemState = InvoiceItemState.CREATED) -> InvoiceItem:
    """An item of the chain."""
    judgement = judged(bill(start, 2 * int(start)), totals(end), ())
    made = item_of("test:acct_1", bill(start), judgement, (), LatePolicy.NEXT_INVOICE_ITEM, FINAL_MS)
    return made._replace(number=number, state=state, detail="no such customer" * (state is InvoiceItemState.HELD))


S = InvoiceItemState


@pytest.mark.parametrize(
    ("given", "reported", "items", "state", "unbilled", "cents"),
    [
        pytest.param(bill(), totals(), (), BillState.CONFIRMED, "0", 0, id="all is billed"),
        pytest.param(bill(), totals("1125"), (), BillState.UNBILLED, "125", 250, id="taken after finalization"),
        pytest.param(bill(), totals(late="125"), (), BillState.UNBILLED, "125", 250, id="not sent, because late"),
        pytest.param(bill("0", 0), totals("21"), (), BillState.UNBILLED, "21", 42, id="taken, then rejected"),
        pytest.param(bill(), totals("900"), (), BillState.UNBILLED, "-100", -200, id="usage was taken back"),
        pytest.param(bill(), totals(dead="7"), (), BillState.CONFIRMED, "0", 0, id="dead letters are no usage"),
        pytest.param(bill(), totals(pending="7"), (), BillState.WAITING, "0", 0, id="reports without outcome"),
        pytest.param(
            bill("0", 0), totals("-5"), (), BillState.CONFIRMED, "-5", 0, id="a negative total is billed as nothing"
        ),
        pytest.param(
            bill(cents=0, terms=FREE_TIER), totals("1125"), (), BillState.CONFIRMED, "125", 0, id="it costs nothing"
        ),
        pytest.param(
            bill(), totals("1125"), (item(0, "1000", "1125"),), BillState.CONFIRMED, "0", 0, id="an item billed it"
        ),
        pytest.param(
            bill(), totals("1125"), (item(0, "1000", "1125", S.WRITTEN_OFF),), BillState.CONFIRMED, "0", 0, id="no bill"
        ),
        pytest.param(
            bill(), totals("1125"), (item(0, "1000", "1125", S.INTENDED),), BillState.UNBILLED, "0", 0, id="intended"
        ),
        pytest.param(
            bill(), totals("1125"), (item(0, "1000", "1125", S.HELD),), BillState.HELD, "0", 0, id="Stripe refuses it"
        ),
        pytest.param(
            bill(), totals("1130"), (item(0, "1000", "1125"),), BillState.UNBILLED, "5", 10, id="more after an item"
        ),
        pytest.param(
            bill(), totals(), (item(0, "1000", "1125"),), BillState.UNBILLED, "-125", -250, id="less after an item"
        ),
        pytest.param(bill(cents=1_999), totals("1125"), (), BillState.HELD, "125", 0, id="another amount"),
        pytest.param(bill(currency="eur"), totals("1125"), (), BillState.HELD, "125", 0, id="another currency"),
        pytest.param(bill(terms='{"currency":"usd"}'), totals("1125"), (), BillState.HELD, "125", 0, id="no price"),
        pytest.param(bill(is_void=True), totals("1125"), (), BillState.VOID, "125", 0, id="void"),
        pytest.param(bill(finalized_ms=None), totals("1125"), (), BillState.DRAFT, "125", 0, id="draft"),
        pytest.param(bill(invoice="", finalized_ms=None), totals(), (), BillState.OPEN, "0", 0, id="open"),
        pytest.param(
            bill("123456789012345678.000000000001", 246_913_578_024_691_356),
            totals("123456789012345678.000000000003"),
            (),
            BillState.CONFIRMED,
            "0.000000000002",
            0,
            id="exact beyond 28 digits",
        ),
    ],
)  # fmt: skip
def test_judgements(
    given: Bill, reported: IntentTotals, items: tuple[InvoiceItem, ...], state: BillState, unbilled: str, cents: int
) -> None:
    found = judged(given, reported, items)
    assert (found.state, found.unbilled, found.amount_minor) == (state, Decimal(unbilled), cents)
    assert bool(found.reason) == (state in {BillState.HELD, BillState.VOID, BillState.WAITING})


@pytest.mark.parametrize(
    ("reported", "items", "after_ms", "wait"),
    [
        pytest.param(totals("1125"), (), 0, 0, id="at once"),
        pytest.param(totals("1125", pending="7"), (), HOUR_MS, DAY_MS - HOUR_MS, id="for other reports"),
        pytest.param(totals("1125", pending="7"), (), DAY_MS, 0, id="no longer than a day"),
        pytest.param(totals("900", pending="100"), (), 9 * DAY_MS, 1_000, id="a credit as long as it takes"),
        pytest.param(totals("900"), (), 0, 0, id="a credit when all is settled"),
        pytest.param(
            totals("1130"), (item(0, "1000", "1125"),), HOUR_MS, ITEM_INTERVAL_MS - HOUR_MS, id="one item a day"
        ),
        pytest.param(totals("1130"), (item(0, "1000", "1125"),), DAY_MS, 0, id="the next day"),
    ],
)
def test_waits(reported: IntentTotals, items: tuple[InvoiceItem, ...], after_ms: int, wait: int) -> None:
    assert wait_ms(bill(), judged(bill(), reported, items), reported, items, FINAL_MS + after_ms) == wait


def make(
    reported: str, *, policy: LatePolicy = LatePolicy.NEXT_INVOICE_ITEM, scope: str = "test:acct_1", **changes: Any
) -> InvoiceItem:
    given = bill(**changes)
    return item_of(scope, given, judged(given, totals(reported), ()), (), policy, FINAL_MS + 5)


def test_an_item_says_what_it_bills() -> None:
    made = make("1125")
    assert (int(made.from_quantity), int(made.to_quantity), made.amount_minor) == (1000, 1125, 250)
    assert (made.state, made.subscription, made.created_ms) == (InvoiceItemState.INTENDED, "sub_1", FINAL_MS + 5)
    assert made.description == "API calls: 125 additional usage, 2026-11-01 to 2026-11-30 (UTC)"
    assert make("900").description == "API calls: 100 usage taken back, 2026-11-01 to 2026-11-30 (UTC)"


def test_usage_is_written_off_and_credits_are_not() -> None:
    assert make("1125", policy=LatePolicy.WRITE_OFF).state is InvoiceItemState.WRITTEN_OFF
    assert make("900", policy=LatePolicy.WRITE_OFF).state is InvoiceItemState.INTENDED


def test_the_identifier_names_scope_chain_and_quantities() -> None:
    same = {make("1125").identifier, make("1125.0").identifier}
    others = {
        make("1126").identifier, make("1125", scope="live:acct_1").identifier,
        make("1125", stripe_customer="cus_2").identifier, make("1125", event_name="tokens").identifier,
        make("1125", start_ms=START_MS + 1).identifier, make("1125", end_ms=END_MS - 1).identifier,
        make("1125", quantity=Decimal(999), amount_minor=1_998).identifier,
    }  # fmt: skip
    assert (len(same), len(others | same)) == (1, 8)


@pytest.mark.parametrize(
    ("other", "found"),
    [
        pytest.param(bill(), "", id="the bill itself"),
        pytest.param(bill(invoice="in_2"), "in_2", id="the same span"),
        pytest.param(bill(invoice="in_2", start_ms=END_MS - 1, end_ms=END_MS + 9), "in_2", id="its last millisecond"),
        pytest.param(bill(invoice="in_2", start_ms=END_MS, end_ms=END_MS + 9), "", id="the next span"),
        pytest.param(bill(invoice="in_2", event_name="tokens"), "", id="another meter"),
        pytest.param(bill(invoice="in_2", finalized_ms=None), "", id="a draft"),
        pytest.param(bill(invoice="in_2", is_void=True), "", id="a void invoice"),
    ],
)
def test_overlaps(other: Bill, found: str) -> None:
    assert overlapping(bill(), [other]) == found
