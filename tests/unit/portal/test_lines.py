"""The lines of an invoice on the customer's page: the steps of a price in their order, each with its unit price."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final

import pytest

from portal.evidence import invoice_page, line_views
from schemas.account_records import InvoiceRecord
from schemas.side_tables import Row
from tests.worlds.paged import CATALOG
from tests.worlds.sold import shop_of

START_MS: Final = int(datetime(2027, 2, 1, tzinfo=UTC).timestamp()) * 1_000
PLANS: Final = """\
  steps:
    version: 1
    name: Steps
    prices:
      - {component: base, month: {usd: "49"}}
      - component: calls
        meter: api_requests
        unit: requests
        tiers:
          - {up_to: 10000, price: {usd: "0"}}
          - {up_to: 100000, price: {usd: "0.002"}}
          - {up_to: inf, price: {usd: "0.000125"}, flat: {usd: "5"}}
  packed:
    version: 1
    name: Packed
    prices:
      - {component: tokens, meter: tokens, unit: tokens, package: 1000, month: {usd: "0.5"}}
  team:
    version: 1
    name: Team
    prices:
      - {component: seat, quantity: locations, included: 10, month: {usd: "15"}}
"""


SHOP: Final = shop_of(CATALOG.replace("dunning:", f"{PLANS}dunning:"))
CALLS, BASE = "tm.steps.v1.calls.month.usd", "tm.steps.v1.base.month.usd"
# As Stripe and the mirror may have them: in no order. 20 000 × 0.0125 cents.
STEPS: Final[list[dict[str, Any]]] = [
    {"price_id": CALLS, "quantity": "20000", "amount_minor": 250},
    {"price_id": CALLS, "quantity": "0", "amount_minor": 500},
    {"price_id": CALLS, "quantity": "90000", "amount_minor": 18_000},
    {"price_id": CALLS, "quantity": "10000", "amount_minor": 0},
    {"price_id": BASE, "quantity": "1", "amount_minor": 4_900},
]
CASES: Final[dict[str, tuple[list[dict[str, Any]], list[tuple[str, str, str]]]]] = {
    "the steps of a price, from the first tier": (
        STEPS,
        [
            ("1", "$49.00", "$49.00"),
            ("10,000", "$0.00", "$0.00"),
            ("90,000", "$0.002", "$180.00"),
            ("20,000", "$0.000125", "$2.50"),
            ("0", "", "$5.00"),
        ],
    ),
    "packages": (
        [{"price_id": "tm.packed.v1.tokens.month.usd", "quantity": "3", "amount_minor": 150}],
        [("3", "$0.50 a package of 1,000", "$1.50")],
    ),
    "two unit prices in one line": (
        [{"price_id": "tm.team.v1.seat.month.usd", "quantity": "12", "amount_minor": 3_000}],
        [("12", "", "$30.00")],
    ),
    "a part of a period": (
        [{"price_id": BASE, "quantity": "1", "amount_minor": 2_450, "is_proration": 1}],
        [("1", "", "$24.50")],
    ),
    "an amount that the price does not explain": (
        [{"price_id": BASE, "quantity": "1", "amount_minor": 4_901}],
        [("1", "", "$49.01")],
    ),
    "a price of no catalog": (
        [{"price_id": "price_x", "quantity": "2", "amount_minor": 500}],
        [("2", "", "$5.00")],
    ),
}


def shown(*lines: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Quantity, unit price and amount of each row of the page, without the total."""
    spans = {"start_ms": START_MS, "end_ms": START_MS + 28 * 86_400_000}
    rows: list[Row] = [
        {"id": f"il_{number}", "invoice_id": "in_1", "is_proration": 0, **spans, **line}
        for number, line in enumerate(lines)
    ]
    invoice: Row = {
        "id": "in_1", "status": "paid", "currency": "usd", "exponent": 2, "tax_minor": 0,
        "total_minor": sum(int(row["amount_minor"] or 0) for row in rows), "created_ms": START_MS,
        "finalized_ms": START_MS, "hosted_invoice_url": None, "remaining_minor": 0,
    }  # fmt: skip
    record = InvoiceRecord(invoice, rows)
    page = invoice_page(record, line_views(SHOP, record, START_MS), START_MS)
    cells = re.findall(r'<td data-head="(Quantity|Unit price|Amount)"[^>]*>([^<]*)', page)
    texts = [text for _, text in cells[:-3]]
    return list(zip(texts[::3], texts[1::3], texts[2::3], strict=True))


@pytest.mark.parametrize(("lines", "rows"), CASES.values(), ids=list(CASES))
def test_each_line_says_what_a_unit_costs(lines: list[dict[str, Any]], rows: list[tuple[str, str, str]]) -> None:
    assert shown(*lines) == rows


def test_the_order_of_the_lines_changes_nothing() -> None:
    assert shown(*STEPS) == shown(*reversed(STEPS))
