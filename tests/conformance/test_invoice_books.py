"""Final invoices as revenue reads them, on PostgreSQL and on the simulation's fake."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, insert

from aggregators.quantities import decimal_text
from schemas.billing_events import ObjectKind
from schemas.bills import BilledPrice
from schemas.clock import DAY_MS, HOUR_MS
from schemas.recognition import CreditUse, InvoiceBook
from schemas.reports import Allocation, Attempt, OutcomeStatus, ReportEntry, ReportOutcome
from schemas.side_tables import Row
from sinks.sql import invoice_books
from sinks.sql.credit_tables import credit_grants, credit_ledger
from sinks.sql.grant_tables import grant_orders, pack_lines
from sinks.sql.side_tables import SqlSideTables
from sinks.sql.tables import stripe_objects
from tests.worlds.mirrored import NOW_MS, mirrored, mirrored_with
from tests.worlds.sender import make_intent

START_MS = NOW_MS // DAY_MS * DAY_MS - 30 * DAY_MS
TERMS: dict[str, Any] = {"currency": "usd", "exponent": 2, "status": "paid"}


async def read(tables: SqlSideTables) -> list[InvoiceBook]:
    return [book async for page in tables.invoice_books.books() for book in page]


@pytest.mark.parametrize("rows", [1, 2, 1_000])
async def test_every_final_invoice_comes_once_with_its_own_parts(
    side_tables: SqlSideTables, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(invoice_books, "PAGE_INVOICES", rows)
    for number in (1, 2, 3):
        name = f"invoice_{number}"
        lines: list[Row] = [{"id": f"il_{number}_{place}", "invoice_id": name, "amount_minor": 100} for place in (1, 2)]
        final_ms = None if number == 3 else NOW_MS
        await mirrored_with(
            side_tables, ObjectKind.INVOICE, "cus_1", {"invoice_lines": lines}, number, finalized_ms=final_ms, **TERMS
        )  # fmt: skip
    note: Row = {"id": "cnli_1", "credit_note_id": "credit_note_1", "amount_minor": 30}
    parts = {"credit_note_lines": [note]}
    await mirrored_with(side_tables, ObjectKind.CREDIT_NOTE, "cus_1", parts, invoice_id="invoice_2", total_minor=30)

    found = await read(side_tables)
    assert [
        (book.invoice["id"], [line["id"] for line in book.lines], [row["id"] for row in book.note_lines])
        for book in found
    ] == [("invoice_1", ["il_1_1", "il_1_2"], []), ("invoice_2", ["il_2_1", "il_2_2"], ["cnli_1"])]


async def test_usage_comes_with_what_was_reported_by_day(side_tables: SqlSideTables) -> None:
    """The quantities of the line's span, of its meter and customer; a line of which no meter is known has no days."""
    lines: list[Row] = [
        {"id": f"il_{price}", "invoice_id": "invoice_1", "price_id": price, "amount_minor": 100, "is_proration": 0,
         "start_ms": START_MS, "end_ms": START_MS + 30 * DAY_MS}
        for price in ("price_calls", "price_new", "price_flat")
    ]  # fmt: skip
    await mirrored_with(
        side_tables, ObjectKind.INVOICE, "cus_1", {"invoice_lines": lines}, finalized_ms=NOW_MS, **TERMS
    )  # fmt: skip
    item: Row = {"id": "si_1", "subscription_id": "subscription_1", "price_id": "price_new", "usage_type": "metered"}
    await mirrored_with(side_tables, ObjectKind.SUBSCRIPTION, "cus_1", {"subscription_items": [item]})
    await side_tables.bills.add_prices([BilledPrice("price_calls", "calls", "", "")])
    for day, quantity, customer, name, drawn in (
        (0, 5, "cus_1", "calls", 0), (0, 2, "cus_1", "calls", 0), (3, -1, "cus_1", "calls", 0),
        (4, 9, "cus_1", "calls", 8), (30, 7, "cus_1", "calls", 0), (1, 9, "cus_2", "calls", 0),
        (1, 9, "cus_1", "tokens", 0),
    ):  # fmt: skip
        await accepted(side_tables, customer, name, START_MS + day * DAY_MS + HOUR_MS, quantity, drawn)

    (book,) = await read(side_tables)
    first = START_MS // DAY_MS
    assert book.metered == {"il_price_calls": [(first, 7), (first + 3, -1), (first + 4, 1)], "il_price_new": []}


async def accepted(
    tables: SqlSideTables, customer: str, name: str, at_ms: int, quantity: int, drawn: int = 0
) -> None:  # fmt: skip
    """An intent of which Stripe took what credits left."""
    identifier = f"{customer} {name} {at_ms} {quantity}"
    intent = make_intent(identifier, delta=quantity, event_name=name)
    attempt = Attempt(
        identifier=identifier, stripe_customer=customer, timestamp_s=at_ms // 1_000,
        value=decimal_text(quantity - drawn, intent.scale),
        attempted_at_ms=NOW_MS, replaces_ms=None,
    )  # fmt: skip
    outcome = ReportOutcome(
        identifier=identifier, status=OutcomeStatus.ACCEPTED, detail="", stripe_customer=customer, settled_at_ms=NOW_MS
    )
    start = await tables.intents.position(0)
    allocation = Allocation(identifier=identifier, drawn_minor=drawn, remainder_minor=quantity - drawn, draws={})
    entries: list[ReportEntry] = [intent, *[allocation][: bool(drawn)], attempt, outcome]
    await tables.intents.apply(0, start, (start or 0) + len(entries), list(enumerate(entries, start or 0)))


async def test_a_pack_comes_with_what_became_of_its_credits(side_tables: SqlSideTables) -> None:
    """Draws, returns and paid debts by day; nothing of a pack that is not granted; of one of Stripe's, days."""
    names = ("granted", "waiting", "stripe")
    lines: list[Row] = [
        {"id": f"il_{name}", "invoice_id": "invoice_1", "price_id": "price_pack", "amount_minor": 100}
        for name in names
    ]  # fmt: skip
    parts = {"invoice_lines": lines}
    await mirrored_with(side_tables, ObjectKind.INVOICE, "cus_1", parts, finalized_ms=NOW_MS, **TERMS)
    price = {
        "lookup_key": "tm.pack.scans.p100.v1.usd", "kind": "price", "stripe_id": "price_pack", "plan_version": None,
        "component": "", "price_interval": "", "currency": "usd",
    }  # fmt: skip
    noted = [
        {"line": f"il_{name}", "invoice": "invoice_1", "account": "acme", "pool": "scans", "grant_key": name,
         "number": 0, "is_granted": 1, "noted_ms": 0}
        for name in ("granted", "stripe")
    ]  # fmt: skip
    grant = {
        "id": "cg_1", "account": "acme", "pool": "scans", "category": "paid", "credits": 100, "remaining": 60,
        "priority": 50, "effective_ms": 0, "expires_ms": 9, "source_key": "granted", "made_ms": 0, "rollover_max": 0,
        "rolled": 0, "voided_ms": 7,
    }  # fmt: skip
    order = {
        "key": "stripe", "account": "acme", "customer": "cus_1", "pool": "scans", "source": "paid", "amount_minor": 1,
        "currency": "usd", "prices_json": "[]", "priority": 50, "effective_ms": 0, "made_ms": 0, "by": "", "reason": "",
        "state": "made", "stripe_id": "", "detail": "", "touched_ms": 0,
    }  # fmt: skip
    moves = [("grant", 100, 0), ("draw", -30, 1), ("draw", -20, 2), ("return", 5, 2), ("debt", -1, 0), ("void", -54, 3)]
    ledger = [
        {"account": "acme", "number": number, "grant_id": "cg_1", "kind": kind, "credits": gained,
         "source_key": str(number), "at_ms": day * DAY_MS, "meter": ""}
        for number, (kind, gained, day) in enumerate(moves)
    ]  # fmt: skip
    for table, rows in (
        (stripe_objects, [price]), (pack_lines, noted), (credit_grants, [grant]), (grant_orders, [order]),
        (credit_ledger, ledger),
    ):  # fmt: skip
        await side_tables._run(partial(Connection.execute, statement=insert(table), parameters=rows))

    (book,) = await read(side_tables)
    assert book.credits == {
        "il_granted": CreditUse(100, [(0, 1), (1, 30), (2, 15)], expires_ms=9, voided_ms=7),
        "il_waiting": CreditUse(1),
    }


async def test_an_account_stands_as_the_mirror_has_it(side_tables: SqlSideTables) -> None:
    """One that was linked twice, or shares its customer, is left out: its audit does not say all."""
    for account, customer, at_ms in (("a", "cus_a", 0), ("b", "cus_b", 0), ("c", "cus_c", 0)):
        await side_tables.link(account, customer, at_ms, "ann", "", 1_000)
    await side_tables.unlink("c", "ann", "", NOW_MS)
    for number, customer in ((1, "cus_a"), (2, "cus_b"), (3, "cus_c")):
        await mirrored(side_tables, ObjectKind.SUBSCRIPTION, "subscriptions", customer, number, status="past_due")
    found = await side_tables.revenue.standings()
    assert [(each.account, [row["id"] for row in each.subscriptions]) for each in found] == [
        ("a", ["subscription_1"]), ("b", ["subscription_2"]),
    ]  # fmt: skip
    assert [each.account for each in await side_tables.revenue.standings("a")] == ["b"]
