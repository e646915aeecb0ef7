"""Objects of Stripe's in the mirror, for tests that need no history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from schemas.billing_events import ObjectKind, ObjectName
from schemas.clock import HOUR_MS
from schemas.side_tables import TABLE_OF, Fetched, Row
from sinks.sql.side_tables import SqlSideTables
from tests.conformance.side_table_steps import event, step

NOW_MS = 1_795_257_000_000


async def mirrored(
    tables: SqlSideTables, kind: ObjectKind, table: str, customer: str, number: int = 1, **columns: Any
) -> None:
    """Write one object of Stripe's into the mirror, again with every call."""
    assert table == TABLE_OF[kind]
    await mirrored_with(tables, kind, customer, {}, number, **columns)


async def mirrored_with(
    tables: SqlSideTables,
    kind: ObjectKind,
    customer: str,
    parts: Mapping[str, Sequence[Row]],
    number: int = 1,
    **columns: Any,
) -> None:
    """Write one object of Stripe's with its parts into the mirror, again with every call."""
    name = ObjectName(kind, f"{kind.value}_{number}")
    seq = (await tables.fetch_seqs([name]))[name]
    row: Row = {"id": name.id, "customer_id": customer, "deleted": 0, **columns}
    offset = await tables.position(9) or 0
    fetched = [Fetched(name, seq, {TABLE_OF[kind]: [row], **parts})]
    await tables.commit(step(offset, [event(1_000 + offset, name, customer=customer)], fetched, partition=9))


async def customer(tables: SqlSideTables, default: str = "", **cards: int | None) -> None:
    """Write the customer `cus_1` into the mirror, with cards by id and when they expire."""
    name = ObjectName(ObjectKind.CUSTOMER, "cus_1")
    seq = (await tables.fetch_seqs([name]))[name]
    row: Row = {"id": name.id, "deleted": 0, "default_payment_method": default or None}
    methods: list[Row] = [
        {"id": card, "customer_id": name.id, "type": "card", "expires_ms": expires_ms}
        for card, expires_ms in cards.items()
    ]
    offset = await tables.position(9) or 0
    fetched = [Fetched(name, seq, {"stripe_customers": [row], "payment_methods": methods})]
    await tables.commit(step(offset, [event(1_000 + offset, name, customer=name.id)], fetched, partition=9))


async def subscription(tables: SqlSideTables, **columns: Any) -> None:
    """Write a subscription of `cus_1` into the mirror."""
    await mirrored(tables, ObjectKind.SUBSCRIPTION, "subscriptions", "cus_1", **{"anchor_ms": 0, **columns})


async def invoice(tables: SqlSideTables, **columns: Any) -> None:
    """Write an invoice of `cus_1` into the mirror; 149 dollars of it are open."""
    owed = {"remaining_minor": 14_900, "currency": "usd", "exponent": 2, "created_ms": NOW_MS - HOUR_MS}
    await mirrored(tables, ObjectKind.INVOICE, "invoices", "cus_1", **{**owed, **columns})
