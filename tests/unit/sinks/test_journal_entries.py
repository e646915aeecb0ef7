"""What the journal has of an invoice, a credit note, a refund and a dispute, whatever their histories are."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import pytest_asyncio

from schemas.billing_events import Via
from sinks.sql.fake import FakeSideTables
from tests.worlds.billing import SCOPE
from tests.worlds.journaled import Journaled

OPEN: dict[str, Any] = {"status": "open", "finalized_ms": 1_000, "remaining_minor": 10_900, "paid_minor": 0}
PAID: dict[str, Any] = {
    "status": "paid",
    "finalized_ms": 1_000,
    "paid_ms": 2_000,
    "remaining_minor": 0,
    "paid_minor": 10_900,
}
PART: dict[str, Any] = {**OPEN, "remaining_minor": 6_900, "paid_minor": 4_000}
VOID: dict[str, Any] = {**OPEN, "status": "void"}
LOST: dict[str, Any] = {**PART, "status": "uncollectible"}

# What Stripe tells of an invoice, one after the other, and what is in the journal then.
HISTORIES: dict[str, tuple[list[dict[str, Any]], list[tuple[str, int]]]] = {
    "a draft is no invoice yet": ([{"status": "draft"}], []),
    "a deleted draft never was one": ([{"status": "draft", "deleted": 1}], []),
    "final": ([{"status": "draft"}, OPEN], [("invoice", 10_900)]),
    "paid later": ([OPEN, PAID], [("invoice", 10_900), ("payment", 10_900)]),
    "paid when first heard of": ([PAID], [("invoice", 10_900), ("payment", 10_900)]),
    "paid in two parts": ([OPEN, PART, PAID], [("invoice", 10_900), ("payment", 4_000), ("payment", 6_900)]),
    "a payment bounces": (
        [PAID, {**OPEN, "paid_minor": 0}, PAID],
        [("invoice", 10_900), ("payment", 10_900), ("payment", -10_900), ("payment", 10_900)],
    ),
    "void": ([OPEN, VOID], [("invoice", 10_900), ("void", 10_900)]),
    "written off is what was open": ([PART, LOST], [("invoice", 10_900), ("payment", 4_000), ("write_off", 6_900)]),
    "paid after it was written off": (
        [LOST, PAID],
        [("invoice", 10_900), ("payment", 4_000), ("write_off", 6_900), ("payment", 6_900), ("write_off", -6_900)],
    ),
    "nothing to pay": ([{**PAID, "total_minor": 0, "paid_minor": 0}], [("invoice", 0)]),
    "the mirror does not know yet what was paid": ([{**PAID, "paid_minor": None}], [("invoice", 10_900)]),
}


@pytest_asyncio.fixture
async def business() -> Journaled:
    tables = FakeSideTables(lambda *_: [])
    await tables.migrate(SCOPE, "log")
    business = Journaled(tables)
    await business.link()
    return business


@pytest.mark.parametrize("name", HISTORIES)
async def test_each_fact_of_an_invoice_has_one_entry(business: Journaled, name: str) -> None:
    told, entries = HISTORIES[name]
    for columns in told:
        await business.invoice(**columns)
        # Another event, a second delivery, and a resync tell the same.
        await business.invoice(**columns)
        await business.invoice(**columns, name=f"evt_{business.events}")
        await business.invoice(**columns, via=Via.RESYNC)
    assert await business.booked() == entries


ISSUED: dict[str, Any] = {
    "status": "issued",
    "total_minor": 2_000,
    "tax_minor": 200,
    "created_ms": 7_000,
    "reason": "duplicate",
}
# An object that gives back, what Stripe tells of it one after the other, and the entries: amount, tax and instant.
GIVEN_BACK: dict[str, tuple[str, list[dict[str, Any]], list[tuple[int, int | None, int | None]]]] = {
    "a credit note": ("credit_note", [ISSUED], [(2_000, 200, 7_000)]),
    "a credit note that was voided": (
        "credit_note", [ISSUED, {**ISSUED, "status": "void", "voided_ms": 9_000}],
        [(2_000, 200, 7_000), (-2_000, -200, 9_000)],
    ),
    "a credit note that takes effect later": (
        "credit_note", [{**ISSUED, "effective_ms": 8_000}], [(2_000, 200, 8_000)],
    ),
    "a refund": (
        "refund", [{"status": "pending", "amount_minor": 500}, {"status": "succeeded", "amount_minor": 500}],
        [(500, None, None)],
    ),
    "a refund that fails after all": (
        "refund", [{"status": "succeeded", "amount_minor": 500}, {"status": "failed", "amount_minor": 500}],
        [(500, None, None), (-500, None, None)],
    ),
    "an inquiry": ("dispute", [{"status": "warning_needs_response", "amount_minor": 500}], []),
    "a dispute that is won": (
        "dispute", [{"status": each, "amount_minor": 500} for each in ("needs_response", "under_review", "won")],
        [(500, None, None), (-500, None, None)],
    ),
    "a dispute that is lost": (
        "dispute", [{"status": each, "amount_minor": 500} for each in ("under_review", "lost")], [(500, None, None)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GIVEN_BACK)
async def test_what_is_given_back(business: Journaled, name: str) -> None:
    kind, told, entries = GIVEN_BACK[name]
    for columns in told:
        for _ in range(2):
            await business.given_back(kind, **columns)
    found = await business.entries()
    heard_ms = 1_750_000_000_000
    assert [
        (each.amount_minor, each.tax_minor, each.at_ms if each.at_ms != heard_ms else None) for each in found
    ] == entries
    assert {(each.kind.value, each.invoice) for each in found} <= {(kind, "in_1")}


async def test_a_void_takes_back_what_no_credit_note_took(business: Journaled) -> None:
    await business.invoice(**OPEN)
    await business.given_back("credit_note", **ISSUED)
    await business.invoice(**VOID, voided_ms=8_000)
    await business.given_back("credit_note", **{**ISSUED, "status": "void", "voided_ms": 9_000})
    await business.invoice(**VOID, voided_ms=8_000)
    found = [(each.kind.value, each.amount_minor, each.tax_minor) for each in await business.entries()]
    assert found == [
        ("invoice", 10_900, 900), ("credit_note", 2_000, 200), ("void", 8_900, 700), ("credit_note", -2_000, -200),
        ("void", 2_000, 200),
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
async def test_the_sums_are_always_what_stripe_has(business: Journaled, seed: int) -> None:
    """Random histories of several invoices, told by any event in any number."""
    draw = random.Random(seed)
    last: dict[int, dict[str, Any]] = {}
    for _ in range(30):
        number = draw.randrange(4)
        paid = draw.randrange(0, 10_901, 100)
        columns: dict[str, Any] = {
            "status": draw.choice(["open", "open", "paid", "void", "uncollectible"]), "finalized_ms": 1_000,
            "paid_minor": paid, "remaining_minor": 10_900 - paid,
        }  # fmt: skip
        last[number] = columns
        for _ in range(draw.randrange(1, 4)):
            await business.invoice(number, **columns, via=draw.choice(list(Via)))
    sums: Counter[tuple[str, str]] = Counter()
    for each in await business.entries():
        sums[each.object, each.kind.value] += each.amount_minor or 0
    for number, columns in last.items():
        is_lost = columns["status"] == "uncollectible"
        assert {kind: sums[f"in_{number}", kind] for kind in ("invoice", "payment", "void", "write_off")} == {
            "invoice": 10_900,
            "payment": columns["paid_minor"],
            "void": 10_900 if columns["status"] == "void" else 0,
            "write_off": columns["remaining_minor"] if is_lost else 0,
        }
