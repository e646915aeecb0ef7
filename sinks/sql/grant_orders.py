"""Credit grants that Stripe is to have, and those that the mirror has, in SQL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, func, or_, select, update

from schemas.stripe_credits import BilledPeriod, GrantOrder, MirroredGrant, OrderState, Source
from sinks.sql import audit
from sinks.sql.grant_tables import grant_orders
from sinks.sql.intents import Run
from sinks.sql.queries import Head, insert_new, lock_accounts, save_heads
from sinks.sql.tables import account_customers, mirror

ENTITY: Final = "stripe_grant"
CAUSE: Final = "credits"
# In these, Stripe bills usage. In a trial nobody pays for usage.
_BILLED: Final = ("active", "past_due")
_WAITING: Final = (OrderState.WANTED, OrderState.ENDING)


class SqlGrantOrders:
    """Implements `schemas.stripe_credits.GrantOrders`, whose docstrings hold."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def order(self, orders: Sequence[GrantOrder]) -> int:
        return await self._run(lambda connection: _ordered(connection, orders)) if orders else 0

    async def waiting(self, limit: int) -> Sequence[GrantOrder]:
        column = grant_orders.c
        wanted = select(grant_orders).where(column.state.in_([state.value for state in _WAITING]))
        return await self._listed(wanted.order_by(column.touched_ms, column.key).limit(limit))

    async def sent(self, key: str, now_ms: int) -> GrantOrder:
        here = grant_orders.c.key == key

        def body(connection: Connection) -> GrantOrder:
            row = connection.execute(select(grant_orders).where(here).with_for_update()).mappings().one()
            first_ms = now_ms if row["sent_ms"] is None else row["sent_ms"]
            connection.execute(update(grant_orders).where(here).values(sent_ms=first_ms, touched_ms=now_ms))
            return _order({**row, "sent_ms": first_ms})

        return await self._run(body)

    async def settle(
        self, order: GrantOrder, state: OrderState, now_ms: int, stripe_id: str, detail: str
    ) -> GrantOrder:
        changes = {"state": state.value, "stripe_id": stripe_id, "detail": detail}
        return await self._run(lambda connection: _moved(connection, order, changes, CAUSE, order.reason, now_ms))

    async def end(self, account: str, key: str, by: str, reason: str, now_ms: int) -> GrantOrder | None:
        audit.check_said(("by", by), ("reason", reason))

        def body(connection: Connection) -> GrantOrder | None:
            here = (grant_orders.c.key == key.replace("\0", "")) & (grant_orders.c.account == account.replace("\0", ""))
            row = connection.execute(select(grant_orders).where(here)).mappings().first()
            if row is None or row["state"] not in (OrderState.WANTED, OrderState.MADE):
                return None if row is None else _order(row)
            return _moved(connection, _order(row), {"state": OrderState.ENDING.value}, by, reason, now_ms)

        return await self._run(body)

    async def of_account(self, account: str, limit: int = 1_000) -> Sequence[GrantOrder]:
        column = grant_orders.c
        wanted = select(grant_orders).where(column.account == account)
        return await self._listed(wanted.order_by(column.made_ms.desc(), column.key).limit(limit))

    async def mirrored(self, customers: Sequence[str], limit: int = 1_000) -> Sequence[MirroredGrant]:
        row = mirror["stripe_credit_grants"].c
        linked = customers or select(account_customers.c.customer_id)
        wanted = select(mirror["stripe_credit_grants"]).where(row.customer_id.in_(linked), row.deleted == 0)
        wanted = wanted.order_by(row.id).limit(limit)
        return await self._run(lambda connection: [_mirrored(each) for each in connection.execute(wanted).mappings()])

    async def periods(self, prices: Sequence[str]) -> Sequence[BilledPeriod]:
        subscription, item, link = mirror["subscriptions"].c, mirror["subscription_items"].c, account_customers.c
        after = account_customers.alias().c
        # The last link of the account is the one in force, or one that begins soon.
        is_last = ~select(after.account).where(after.account == link.account, after.starts_ms > link.starts_ms).exists()
        wanted = (
            select(
                link.account, link.customer_id, subscription.id, item.price_id, item.period_start_ms, item.period_end_ms
            )
            .join(mirror["subscriptions"], subscription.customer_id == link.customer_id)
            .join(mirror["subscription_items"], item.subscription_id == subscription.id)
            .where(is_last, subscription.status.in_(_BILLED), item.price_id.in_(prices))
            .where(or_(subscription.deleted.is_(None), subscription.deleted == 0))
            .order_by(link.account, subscription.id, item.id)
        )
        return await self._run(lambda connection: [BilledPeriod(*row) for row in connection.execute(wanted).all()])

    async def refused(self, limit: int) -> Sequence[GrantOrder]:
        column = grant_orders.c
        wanted = select(grant_orders).where(column.state == OrderState.REFUSED.value)
        return await self._listed(wanted.order_by(column.made_ms.desc(), column.key).limit(limit))

    async def stuck(self, refused_since_ms: int, waiting_before_ms: int) -> tuple[int, int]:
        column = grant_orders.c
        refused = (column.state == OrderState.REFUSED.value) & (column.touched_ms >= refused_since_ms)
        waiting = column.state.in_([state.value for state in _WAITING]) & (column.made_ms < waiting_before_ms)

        def body(connection: Connection) -> tuple[int, int]:
            counted = [
                connection.execute(select(func.count()).select_from(grant_orders).where(where)).scalar_one()
                for where in (refused, waiting)
            ]
            return counted[0], counted[1]

        return await self._run(body)

    async def _listed(self, wanted: Any) -> Sequence[GrantOrder]:
        return await self._run(lambda connection: [_order(row) for row in connection.execute(wanted).mappings()])


def _ordered(connection: Connection, orders: Sequence[GrantOrder]) -> int:
    heads = lock_accounts(connection, {order.account for order in orders})
    known = set(
        connection.execute(select(grant_orders.c.key).where(grant_orders.c.key.in_([o.key for o in orders]))).scalars()
    )
    new = [order for order in orders if order.key not in known]
    for order in new:
        row = _row(order)
        if insert_new(connection, grant_orders, [{**row, "touched_ms": order.made_ms}]):
            _note(connection, heads[order.account], order, order.made_ms, order.by, {}, row, order.reason)
    save_heads(connection, heads)
    return len(new)


def _moved(
    connection: Connection, order: GrantOrder, changes: Mapping[str, Any], by: str, reason: str, now_ms: int
) -> GrantOrder:
    """Move an order on from the state that it is believed to have. Returns the order as it is then."""
    heads, here = lock_accounts(connection, {order.account}), grant_orders.c.key == order.key
    is_so = here & (grant_orders.c.state == order.state.value)
    if connection.execute(update(grant_orders).where(is_so).values(**changes, touched_ms=now_ms)).rowcount:
        before = {name: _row(order)[name] for name in changes}
        _note(connection, heads[order.account], order, now_ms, by, before, changes, reason)
        save_heads(connection, heads)
    return _order(connection.execute(select(grant_orders).where(here)).mappings().one())


def _note(
    connection: Connection, head: Head, order: GrantOrder, now_ms: int, by: str, before: Any, after: Any, reason: str
) -> None:
    trail = audit.next_row(
        head, order.account, now_ms, actor=by, cause=CAUSE, entity=(ENTITY, order.key), before=before, after=after,
        reason=reason,
    )  # fmt: skip
    audit.append(connection, [(trail, head.audit_hash)])


def _row(order: GrantOrder) -> dict[str, Any]:
    row = {**order._asdict(), "source": order.source.value, "state": order.state.value}
    return {**{name: value for name, value in row.items() if name != "prices"}, "prices_json": json.dumps(order.prices)}


def _order(row: RowMapping | Mapping[str, Any]) -> GrantOrder:
    fields = {name: row[name] for name in GrantOrder._fields if name not in ("prices", "source", "state")}
    prices, state = tuple(json.loads(row["prices_json"])), OrderState(row["state"])
    return GrantOrder(**fields, prices=prices, source=Source(row["source"]), state=state)


def _mirrored(row: RowMapping) -> MirroredGrant:
    return MirroredGrant(
        row["id"], row["customer_id"] or "", row["name"] or "", row["category"] or "", row["currency"] or "",
        row["exponent"] or 0, row["amount_minor"] or 0, row["available_minor"],
        50 if row["priority"] is None else row["priority"], tuple(json.loads(row["prices_json"] or "[]")),
        row["source"] or "", row["created_ms"] or 0, row["effective_ms"] or row["created_ms"] or 0, row["expires_ms"],
        row["voided_ms"], row["fetched_ms"],
    )  # fmt: skip
