"""Short ways to say a step of the side tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schemas.billing_events import ObjectKind, ObjectName, StripeEvent, Via
from schemas.side_tables import Arrived, Fetched, Row, SideTables, Step

NOW_MS = 1_750_000_000_000
ANCHOR_MS = 1_750_000_020_000 // 60_000 * 60_000


def subscription(number: int = 1) -> ObjectName:
    return ObjectName(ObjectKind.SUBSCRIPTION, f"sub_{number}")


def invoice(number: int = 1) -> ObjectName:
    return ObjectName(ObjectKind.INVOICE, f"in_{number}")


def event(number: int, *objects: ObjectName, customer: str = "cus_1") -> StripeEvent:
    return StripeEvent(f"evt_{number}", "customer.subscription.updated", 1_750_000_000, customer, objects)


def fetched_subscription(fetch_seq: int = 0, number: int = 1, seats: Sequence[int] = (3,), **columns: Any) -> Fetched:
    """A subscription of `cus_1` with an item for each number of seats."""
    name = subscription(number)
    row: Row = {
        "id": name.id,
        "customer_id": "cus_1",
        "status": "active",
        "anchor_ms": ANCHOR_MS,
        "deleted": 0,
        **columns,
    }
    items: list[Row] = [
        {"id": f"si_{number}_{index}", "subscription_id": name.id, "quantity": quantity}
        for index, quantity in enumerate(seats)
    ]
    return Fetched(name, fetch_seq, {"subscriptions": [row], "subscription_items": items})


def fetched_invoice(fetch_seq: int = 0, number: int = 1, total_minor: int = 1900, customer: str = "cus_1") -> Fetched:
    """An invoice with one line."""
    name = invoice(number)
    row: Row = {"id": name.id, "customer_id": customer, "status": "draft", "total_minor": total_minor, "deleted": 0}
    line: Row = {"id": f"il_{number}", "invoice_id": name.id, "amount_minor": total_minor, "quantity": "1"}
    return Fetched(name, fetch_seq, {"invoices": [row], "invoice_lines": [line]})


def step(
    believed_offset: int,
    events: Sequence[StripeEvent] = (),
    fetched: Sequence[Fetched] = (),
    *,
    via: Via = Via.WEBHOOK,
    partition: int = 0,
    next_offset: int | None = None,
    now_ms: int = NOW_MS,
) -> Step:
    arrived = [Arrived(one, via, believed_offset + index) for index, one in enumerate(events)]
    after = believed_offset + max(1, len(events)) if next_offset is None else next_offset
    return Step(partition, believed_offset, after, now_ms, arrived, fetched)


async def linked(store: SideTables, account: str = "acme", customer: str = "cus_1", starts_ms: int = 0) -> None:
    await store.link(account, customer, starts_ms, "ada", "signed up", NOW_MS)
