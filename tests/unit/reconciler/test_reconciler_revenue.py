"""Revenue against the mirror: what the nightly check says of each difference. `tests/scenarios/test_revenue.py` has
stories that are equal, and tables that somebody changed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, cast

import pytest

from reconciler.causes import Cause, Pair
from reconciler.report import Findings, Report
from reconciler.revenue import RevenueComparison
from reconciler.views import Views
from schemas.clock import DAY_MS
from schemas.recognition import CreditUse, InvoiceBook
from schemas.revenue import AccountStanding, AuditChange, RevenueStores
from schemas.side_tables import Row
from tests.worlds.clock import ManualClock

NOW_MS = 1_795_257_000_000
SUBSCRIPTION: Mapping[str, Any] = {
    "id": "sub", "status": "active", "currency": "usd", "start_ms": 0, "trial_end_ms": None, "ended_ms": None,
    "deleted": 0, "discounts_json": "[]",
}  # fmt: skip
ITEM: Mapping[str, Any] = {
    "id": "si", "subscription_id": "sub", "price_id": "basic", "quantity": 2, "interval": "month", "interval_count": 1,
}  # fmt: skip
CHANGE = AuditChange(
    "acme", 1, "subscription", "sub", {},
    {"subscriptions": {"sub": SUBSCRIPTION}, "subscription_items": {"si": ITEM}},
)  # fmt: skip


def standing(*, downgrade_ms: int | None = None, quantity: int = 2, **columns: Any) -> AccountStanding:
    downgrades = {} if downgrade_ms is None else {"sub": downgrade_ms}
    return AccountStanding("acme", [{**SUBSCRIPTION, **columns}], [{**ITEM, "quantity": quantity}], downgrades)


def off(**columns: Any) -> str:
    """A discount of the subscription, as JSON."""
    usual = {"id": "di", "coupon": "c", "percent": None, "amount_minor": None, "currency": "usd", "duration": "forever",
             "start_ms": 0, "end_ms": None}  # fmt: skip
    return json.dumps([{**usual, **columns}])


class Stores:
    """Answers the standings in their turn, the last one again and again."""

    def __init__(self, *standings: AccountStanding, books: Sequence[InvoiceBook] = ()) -> None:
        self.answers, self.pages = list(standings), books

    async def standings(self, after: str = "", limit: int = 200) -> Sequence[AccountStanding]:
        assert limit > 0
        if after or not self.answers:
            return []
        return [self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]]

    async def changes_of(self, accounts: Sequence[str]) -> AsyncIterator[list[AuditChange]]:
        assert accounts == ["acme"]
        yield [CHANGE]

    async def books(self) -> AsyncIterator[Sequence[InvoiceBook]]:
        yield self.pages


async def compared(stores: Stores | None, *, has_catalog: bool = True, no_tables: str = "") -> Report:
    async def amounts() -> Any:
        return (lambda _price, quantity, _currency: Fraction(1_000 * quantity)) if has_catalog else None

    nothing, found = cast("Any", None), Findings()
    revenue = None if stores is None else RevenueStores(nothing, cast("Any", stores), cast("Any", stores))
    views = Views(nothing, nothing, nothing, nothing, revenue=revenue, amounts=amounts, no_tables=no_tables)
    await RevenueComparison(views, ManualClock(NOW_MS), found).run()
    return found.report(0, None, None)


ACCOUNTS: Mapping[str, tuple[Sequence[AccountStanding], Sequence[tuple[str, str]]]] = {
    "equal": ([standing()], []),
    "another quantity": ([standing(quantity=3)], [("3000", "2000")]),
    "another quantity, and then the same": ([standing(quantity=3), standing()], []),
    "an end of which the audit says nothing": ([standing(status="canceled")], [("0", "2000")]),
    "a downgrade of which the audit says nothing": ([standing(downgrade_ms=NOW_MS)], [("0", "2000")]),
    "a downgrade that is to come": ([standing(downgrade_ms=NOW_MS + 1)], []),
    "a discount of which the audit says nothing": (
        [standing(discounts_json=off(percent="25"))], [("1500", "2000")],
    ),
    "an amount of which the audit says nothing": (
        [standing(discounts_json=off(amount_minor=300))], [("1700", "2000")],
    ),
    "a discount that is over": ([standing(discounts_json=off(percent="25", end_ms=NOW_MS))], []),
    "a discount for once": ([standing(discounts_json=off(percent="25", duration="once"))], []),
    "a discount of which only the id is known": ([standing(discounts_json='["di"]')], []),
    "another currency": ([standing(currency="eur")], [("2000", "0"), ("0", "2000")]),
}  # fmt: skip


@pytest.mark.parametrize(("standings", "expected"), ACCOUNTS.values(), ids=ACCOUNTS)
async def test_movements_add_up_to_what_is_there(
    standings: Sequence[AccountStanding], expected: Sequence[tuple[str, str]]
) -> None:
    report = await compared(Stores(*standings))
    assert [(row.expected, row.found) for row in report.rows] == list(expected)
    assert {(row.account, row.cause) for row in report.rows} <= {("acme", Cause.DIFFERING)}
    (summary,) = (each for each in report.summaries if each.pair is Pair.REVENUE)
    assert summary.equal == (not expected)


def invoice(
    total: int = 100, *, amount: int = 100, credited: int = 0, use: CreditUse | None = None, **columns: Any
) -> InvoiceBook:
    """An invoice of one line of ten days, and perhaps a credit note of the whole."""
    head: Row = {
        "id": "in_1", "customer_id": "cus_1", "currency": "usd", "status": "paid", "finalized_ms": NOW_MS,
        "voided_ms": None, "uncollectible_ms": None, "total_minor": total, "tax_minor": 0, "paid_minor": 0,
        "remaining_minor": 0, **columns,
    }  # fmt: skip
    line: Row = {"id": "il_1", "amount_minor": amount, "start_ms": NOW_MS, "end_ms": NOW_MS + 10 * DAY_MS}
    note: Row = {
        "id": "cn_1", "created_ms": NOW_MS + 3 * DAY_MS, "effective_ms": None, "voided_ms": None, "tax_minor": 0,
        "total_minor": credited,
    }  # fmt: skip
    part: Row = {"credit_note_id": "cn_1", "invoice_line_id": None, "amount_minor": credited}
    notes, parts = [note] * bool(credited), [part] * bool(credited)
    return InvoiceBook(head, [line], notes, parts, {}, {"il_1": use} if use else {})


INVOICES: Mapping[str, tuple[InvoiceBook, Sequence[tuple[str, str]]]] = {
    "equal": (invoice(), []),
    "a line that is too little": (invoice(amount=90), [("100", "90")]),
    "a credit note": (invoice(credited=40), []),
    "a credit note of more than there is": (invoice(credited=140), [("-40", "0")]),
    "void": (invoice(status="void", voided_ms=NOW_MS + DAY_MS), []),
    "with tax": (invoice(119, tax_minor=19), []),
    "a credit note with a part of tax": (invoice(119, tax_minor=19, credited=119), []),
    "given up": (
        invoice(status="uncollectible", uncollectible_ms=NOW_MS + 5 * DAY_MS, paid_minor=40, remaining_minor=60), [],
    ),
    "credits that do not expire": (invoice(use=CreditUse(100, [(0, 30)])), []),
    "credits that expire": (invoice(use=CreditUse(100, [(0, 30)], expires_ms=NOW_MS + DAY_MS)), []),
}  # fmt: skip


@pytest.mark.parametrize(("book", "expected"), INVOICES.values(), ids=INVOICES)
async def test_days_add_up_to_the_invoice(book: InvoiceBook, expected: Sequence[tuple[str, str]]) -> None:
    report = await compared(Stores(books=[book]))
    assert [(row.expected, row.found) for row in report.rows] == list(expected)
    assert all(row.cause is Cause.DIFFERING and row.invoices == "in_1" and "in_1" in row.detail for row in report.rows)


async def test_what_cannot_be_read_is_not_equal() -> None:
    unread = await compared(None, no_tables="PostgreSQL does not answer")
    assert [(row.cause, row.detail) for row in unread.rows] == [(Cause.UNCHECKED, "PostgreSQL does not answer")]
    assert (await compared(None)).rows == ()


async def test_before_the_first_catalog_invoices_are_compared_alone() -> None:
    report = await compared(Stores(standing(quantity=3), books=[invoice()]), has_catalog=False)
    assert report.rows == ()
