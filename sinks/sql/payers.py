"""Who subscribes to what, from the mirror, a page at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, select

from schemas.backtest import PaidItem, PaidSubscription, Payer
from sinks.sql.intents import Run
from sinks.sql.queries import Values, chunks, links_of, rows_where
from sinks.sql.tables import account_customers, mirror

# Of these a subscription bills, or will once it is paid.
BILLING: Final = ("active", "trialing", "past_due", "unpaid", "paused")


class SqlPayers:
    """Implements `schemas.backtest.Payers`, whose docstrings hold."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def payers(self, after: str, limit: int, now_ms: int) -> Sequence[Payer]:
        return await self._run(lambda connection: _payers(connection, after, limit, now_ms))


def _payers(connection: Connection, after: str, limit: int, now_ms: int) -> list[Payer]:
    table = mirror["subscriptions"]
    is_billing = table.c.status.in_(BILLING) & table.c.deleted.is_distinct_from(1)
    page = select(table.c.customer_id).where(is_billing, table.c.customer_id > after).distinct()
    customers = list(connection.execute(page.order_by(table.c.customer_id).limit(limit)).scalars())
    rows: list[Values] = []
    for chunk in chunks(customers):
        wanted = select(table).where(table.c.customer_id.in_(chunk), is_billing).order_by(table.c.id)
        rows += [dict(row) for row in connection.execute(wanted).mappings()]
    items: dict[str, list[PaidItem]] = defaultdict(list)
    found = rows_where(connection, mirror["subscription_items"], "subscription_id", {row["id"] for row in rows})
    for item in sorted(found, key=lambda item: str(item["id"])):
        quantity = None if item["usage_type"] == "metered" else item["quantity"]
        items[item["subscription_id"]].append(
            PaidItem(item["price_id"] or "", quantity, item["period_end_ms"] or 0)
        )  # fmt: skip
    subscriptions: dict[str, list[PaidSubscription]] = defaultdict(list)
    for row in rows:
        subscriptions[row["customer_id"]].append(_subscription(row, items[row["id"]]))
    accounts = _accounts(connection, set(customers), now_ms)
    return [
        Payer(customer, accounts.get(customer, ""), tuple(subscriptions[customer])) for customer in customers
    ]  # fmt: skip


def _subscription(row: Values, items: Sequence[PaidItem]) -> PaidSubscription:
    starts_ms = max(row["start_ms"] or 0, row["trial_end_ms"] or 0)
    is_discounted = row["discounts_json"] not in (None, "[]")
    return PaidSubscription(
        row["id"], row["currency"] or "", row["anchor_ms"] or starts_ms, starts_ms, is_discounted, tuple(items)
    )


def _accounts(connection: Connection, customers: set[str], now_ms: int) -> dict[str, str]:
    """The account that is linked to each customer now; no two are at one time."""
    found: dict[str, str] = {}
    names = {row["account"] for row in rows_where(connection, account_customers, "customer_id", customers)}
    for account, links in links_of(connection, names).items():
        for link in links:
            if link.customer in customers and link.starts_ms <= now_ms and (not link.ends_ms or now_ms < link.ends_ms):
                found[link.customer] = account
    return found
