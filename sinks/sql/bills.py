"""Bills and the invoice items of late usage, over any SQL engine. Each call is one transaction.

A bill is no row: the mirror has the invoice's lines, and `prices` says which of them bill a meter.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Connection, Integer, RowMapping, and_, bindparam, func, literal_column, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from schemas.bills import (
    HELD_MAX_MS,
    LOOK_AGAIN_MAX_MS,
    Bill,
    BilledPrice,
    BillState,
    Closing,
    InvoiceItem,
    InvoiceItemState,
)
from sinks.sql import audit
from sinks.sql.intents import Run
from sinks.sql.queries import Values, chunks, insert_new, lock_accounts, rows_where, save_heads
from sinks.sql.tables import account_customers, closings, intents, invoice_items, mirror, prices

ACTOR: Final = "sink"
CAUSE: Final = "period close"
ENTITY: Final = "invoice_item"
# What a threshold invoice bills, the cycle's invoice bills again from the first unit on, less the amount.
_THRESHOLD: Final = "subscription_threshold"
_ENDED: Final = ("canceled", "incomplete_expired")
_QUANTITIES: Final = ("from_quantity", "to_quantity")
_lines, _invoices, _subscriptions = mirror["invoice_lines"], mirror["invoices"], mirror["subscriptions"]
_items = mirror["subscription_items"]
_METERED: Final = and_(
    prices.c.event_name != "",
    func.coalesce(_lines.c.is_proration, 0) == 0,
    func.coalesce(_invoices.c.billing_reason, "") != _THRESHOLD,
    # The first invoice of a subscription may have a line for the period that begins: nothing of it is billed yet.
    _lines.c.end_ms <= func.coalesce(_invoices.c.finalized_ms, _invoices.c.created_ms),
)
_SOURCE: Final = _lines.join(_invoices, _invoices.c.id == _lines.c.invoice_id).join(
    prices, prices.c.id == _lines.c.price_id
)

# Statements that run very often are made once: to make one takes longer than to execute it.
_AT_MOST: Final = bindparam("at_most", type_=Integer)
_FINALIZED: Final = (
    select(_invoices.c.id)
    .select_from(_SOURCE)
    .where(
        _METERED, _invoices.c.customer_id == bindparam("of_customer"), prices.c.event_name == bindparam("of_name"),
        _lines.c.start_ms <= bindparam("instant_ms"), _lines.c.end_ms > bindparam("instant_ms"),
        _invoices.c.finalized_ms.is_not(None),
    )
    .order_by(_invoices.c.id)
    .limit(1)
)  # fmt: skip
_DRAFTS: Final = (
    select(_invoices.c.id)
    .where(
        # The text is in the statement because PostgreSQL finds the partial index only then.
        _invoices.c.status == literal_column("'draft'"), _invoices.c.deleted == 0,
        _invoices.c.finalizes_ms >= bindparam("from_ms"), _invoices.c.finalizes_ms < bindparam("to_ms"),
    )
    .order_by(_invoices.c.finalizes_ms)
    .limit(_AT_MOST)
)  # fmt: skip
_due_ms = func.coalesce(closings.c.due_ms, 0)
_DUE: Final = (
    select(_invoices.c.id)
    .select_from(_invoices.outerjoin(closings, closings.c.invoice == _invoices.c.id))
    .where(
        _invoices.c.finalized_ms >= bindparam("oldest_ms"),
        or_(_due_ms <= bindparam("now_ms"), _due_ms > bindparam("ahead_ms")),
    )
    .order_by(_due_ms, _invoices.c.finalized_ms, _invoices.c.id)
    .limit(_AT_MOST)
)
_sent_ms = func.coalesce(invoice_items.c.sent_ms, 0)
_UNSENT: Final = (
    select(invoice_items)
    .where(
        or_(
            invoice_items.c.state == literal_column("'intended'"),
            (invoice_items.c.state == literal_column("'held'"))
            & or_(_sent_ms <= bindparam("held_before_ms"), _sent_ms > bindparam("ahead_ms")),
        )
    )
    # An item that fails again and again comes behind those that were not tried yet.
    .order_by(_sent_ms, invoice_items.c.created_ms, invoice_items.c.identifier)
    .limit(_AT_MOST)
)


class SqlBills:
    """Implements `schemas.bills.Bills`, whose docstrings hold."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def finalized(self, event_name: str, stripe_customer: str, instant_ms: int) -> str:
        asked = {"of_customer": stripe_customer, "of_name": event_name, "instant_ms": instant_ms}
        return await self._run(lambda connection: connection.execute(_FINALIZED, asked).scalar() or "")

    async def drafts(self, from_ms: int, to_ms: int, limit: int) -> Sequence[str]:
        asked = {"from_ms": from_ms, "to_ms": to_ms, "at_most": limit}
        return await self._run(lambda connection: list(connection.execute(_DRAFTS, asked).scalars()))

    async def due(self, oldest_ms: int, now_ms: int, limit: int) -> Sequence[str]:
        asked = {"oldest_ms": oldest_ms, "now_ms": now_ms, "ahead_ms": now_ms + LOOK_AGAIN_MAX_MS, "at_most": limit}
        return await self._run(lambda connection: list(connection.execute(_DUE, asked).scalars()))

    async def unknown_prices(self, invoices: Sequence[str]) -> Sequence[str]:
        def body(connection: Connection) -> list[str]:
            metered = select(_items.c.price_id).where(_items.c.usage_type == "metered").distinct()
            wanted = set() if invoices else set(connection.execute(metered).scalars())
            for chunk in chunks(set(invoices)):
                of_lines = select(_lines.c.price_id).where(
                    _lines.c.invoice_id.in_(chunk), _lines.c.item_id.is_not(None), _lines.c.price_id.is_not(None)
                )
                wanted |= set(connection.execute(of_lines.distinct()).scalars())
            return sorted(wanted - {row["id"] for row in rows_where(connection, prices, "id", wanted)})

        return await self._run(body)

    async def add_prices(self, found: Sequence[BilledPrice]) -> None:
        await self._run(lambda connection: insert_new(connection, prices, [price._asdict() for price in found]))

    async def bills_of(self, invoices: Sequence[str]) -> Sequence[Bill]:
        return await self._run(
            lambda connection: [
                bill for chunk in chunks(set(invoices)) for bill in _bills(connection, _lines.c.invoice_id.in_(chunk))
            ]
        )

    async def bills(self, from_ms: int, to_ms: int, stripe_customer: str = "", limit: int = 1_000) -> Sequence[Bill]:
        def body(connection: Connection) -> list[Bill]:
            spans = and_(_lines.c.end_ms >= from_ms, _lines.c.end_ms < to_ms)
            if stripe_customer:
                spans &= _invoices.c.customer_id == stripe_customer
            latest = select(_lines.c.invoice_id).select_from(_SOURCE).where(_METERED, spans)
            latest = latest.group_by(_lines.c.invoice_id).order_by(func.max(_lines.c.end_ms).desc())
            invoices = _first(connection, latest, limit)
            found = [
                bill
                for chunk in chunks(invoices)
                for bill in _bills(connection, spans & _lines.c.invoice_id.in_(chunk))
            ]
            found += _running(connection, from_ms, to_ms, stripe_customer)
            found.sort(key=lambda bill: (-bill.end_ms, bill.stripe_customer, bill.event_name, bill.invoice))
            return found[:limit]

        return await self._run(body)

    async def items(self, stripe_customer: str, event_name: str, start_ms: int, end_ms: int) -> Sequence[InvoiceItem]:
        column = invoice_items.c
        wanted = select(invoice_items).where(
            column.stripe_customer == stripe_customer, column.event_name == event_name,
            column.start_ms == start_ms, column.end_ms == end_ms,
        ).order_by(column.number)  # fmt: skip
        return await self._run(lambda connection: list(map(_item_of, connection.execute(wanted).mappings())))

    async def intend(self, item: InvoiceItem, reason: str) -> bool:
        def body(connection: Connection) -> bool:
            if not insert_new(connection, invoice_items, [_row_of(item)]):
                return False
            _audit(connection, None, item, item.created_ms, reason)
            return True

        return await self._run(body)

    async def unsent(self, held_before_ms: int, limit: int) -> Sequence[InvoiceItem]:
        asked = {"held_before_ms": held_before_ms, "ahead_ms": held_before_ms + HELD_MAX_MS, "at_most": limit}
        return await self._run(lambda connection: list(map(_item_of, connection.execute(_UNSENT, asked).mappings())))

    async def settle(self, before: InvoiceItem, after: InvoiceItem, now_ms: int) -> bool:
        column = invoice_items.c
        is_same = and_(
            column.identifier == before.identifier, column.state == before.state, column.attempt == before.attempt,
            func.coalesce(column.sent_ms, 0) == (before.sent_ms or 0),
        )  # fmt: skip

        def body(connection: Connection) -> bool:
            if not connection.execute(update(invoice_items).where(is_same).values(_row_of(after))).rowcount:
                return False
            if after.state is not before.state:
                _audit(connection, before, after, now_ms, after.detail)
            return True

        return await self._run(body)

    async def closings(self, invoices: Sequence[str]) -> Mapping[str, Closing]:
        def body(connection: Connection) -> dict[str, Closing]:
            rows = rows_where(connection, closings, "invoice", set(invoices))
            return {row["invoice"]: _closing_of(row) for row in rows}

        return await self._run(body)

    async def noted(self, states: Sequence[BillState], limit: int) -> Sequence[Closing]:
        wanted = select(closings).where(closings.c.state.in_(states)).order_by(closings.c.invoice).limit(limit)
        return await self._run(lambda connection: [_closing_of(row) for row in connection.execute(wanted).mappings()])

    async def note(self, noted: Sequence[Closing]) -> None:
        rows = [{**closing._asdict(), "state": closing.state.value} for closing in sorted(noted)]

        def body(connection: Connection) -> None:
            insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
            statement = insert(closings)
            values = {column.name: statement.excluded[column.name] for column in closings.c if not column.primary_key}
            for chunk in chunks(rows):
                connection.execute(statement.on_conflict_do_update(index_elements=["invoice"], set_=values), chunk)

        await self._run(body)

    async def states(self) -> Mapping[BillState, int]:
        wanted = select(closings.c.state, func.count()).where(closings.c.state.not_in(["confirmed", "void"]))
        wanted = wanted.group_by(closings.c.state)
        return await self._run(
            lambda connection: {BillState(state): count for state, count in connection.execute(wanted).all()}
        )

    async def accounts(self, stripe_customer: str, since_ms: int) -> Sequence[str]:
        is_recent = (intents.c.stripe_customer == stripe_customer) & (intents.c.at_ms >= since_ms)
        linked = select(account_customers.c.account).where(account_customers.c.customer_id == stripe_customer)
        wanted = linked.union(select(intents.c.account).where(is_recent))
        return await self._run(lambda connection: sorted(connection.execute(wanted).scalars()))

    async def customers(self, after: str, limit: int) -> Sequence[str]:
        column = mirror["stripe_customers"].c.id
        wanted = select(column).where(column > after).order_by(column)
        return await self._run(lambda connection: _first(connection, wanted, limit))

    async def event_names(self, stripe_customer: str) -> Sequence[str]:
        column = intents.c.event_name
        wanted = select(column).where(intents.c.stripe_customer == stripe_customer).distinct().order_by(column)
        return await self._run(lambda connection: list(connection.execute(wanted).scalars()))


def _first(connection: Connection, wanted: Any, limit: int) -> list[str]:
    return list(connection.execute(wanted.limit(limit)).scalars())


def _bills(connection: Connection, where: Any) -> list[Bill]:
    """The bills of invoice lines. A price with tiers has a line for each tier; a negative line is what threshold
    invoices billed before."""
    wanted = select(
        _invoices.c.customer_id, _invoices.c.subscription_id, _lines.c.invoice_id, prices.c.event_name,
        _lines.c.price_id, _lines.c.start_ms, _lines.c.end_ms, _lines.c.quantity, _lines.c.amount_minor,
        _invoices.c.currency, _invoices.c.exponent, _invoices.c.finalizes_ms, _invoices.c.finalized_ms,
        _invoices.c.status, _invoices.c.deleted, prices.c.title, prices.c.terms,
    ).select_from(_SOURCE).where(_METERED, where)  # fmt: skip
    found: dict[tuple[Any, ...], Bill] = {}
    for row in connection.execute(wanted).mappings():
        key = (row["invoice_id"], row["price_id"], row["start_ms"], row["end_ms"])
        bill = found.setdefault(
            key,
            Bill(
                stripe_customer=row["customer_id"] or "",
                subscription=row["subscription_id"] or "",
                invoice=row["invoice_id"],
                event_name=row["event_name"],
                price=row["price_id"],
                start_ms=row["start_ms"],
                end_ms=row["end_ms"],
                quantity=Decimal(0),
                amount_minor=0,
                currency=row["currency"],
                exponent=row["exponent"],
                deadline_ms=row["finalizes_ms"] if row["finalized_ms"] is None else None,
                finalized_ms=row["finalized_ms"],
                is_void=row["status"] == "void" or bool(row["deleted"]),
                title=row["title"],
                terms=row["terms"],
            ),
        )
        if row["amount_minor"] >= 0:
            quantity = bill.quantity + Decimal(row["quantity"] or 0)
            found[key] = bill._replace(quantity=quantity, amount_minor=bill.amount_minor + row["amount_minor"])
    running = _running_subscriptions(connection, {bill.stripe_customer for bill in found.values()})
    return [
        bill._replace(next_subscription=_next(bill, running.get(bill.stripe_customer, []))) for bill in found.values()
    ]


def _running(connection: Connection, from_ms: int, to_ms: int, stripe_customer: str) -> list[Bill]:
    """The periods that end in the span and have no invoice yet."""
    source = _items.join(_subscriptions, _subscriptions.c.id == _items.c.subscription_id)
    wanted = (
        select(
            _subscriptions.c.customer_id, _subscriptions.c.id, prices.c.event_name, _items.c.price_id,
            _items.c.period_start_ms, _items.c.period_end_ms, _subscriptions.c.currency, prices.c.title,
        )
        .select_from(source.join(prices, prices.c.id == _items.c.price_id))
        .where(
            prices.c.event_name != "", _items.c.period_end_ms >= from_ms, _items.c.period_end_ms < to_ms,
            _subscriptions.c.deleted == 0, _subscriptions.c.status.not_in(_ENDED),
        )
    )  # fmt: skip
    if stripe_customer:
        wanted = wanted.where(_subscriptions.c.customer_id == stripe_customer)
    return [
        Bill(
            *row[:2], "", *row[2:6], Decimal(0), 0, row[6] or "", 0, None, None, next_subscription=row[1], title=row[7]
        )
        for row in connection.execute(wanted)
    ]


def _running_subscriptions(connection: Connection, customers: Collection[str]) -> dict[str, list[tuple[str, str]]]:
    """The subscriptions of each customer that make further invoices, each with its currency."""
    running: dict[str, list[tuple[str, str]]] = {}
    for row in rows_where(connection, _subscriptions, "customer_id", set(customers)):
        if not row["deleted"] and row["status"] not in _ENDED:
            running.setdefault(row["customer_id"], []).append((row["id"], row["currency"]))
    return running


def _next(bill: Bill, running: Sequence[tuple[str, str]]) -> str:
    same = sorted(subscription for subscription, currency in running if currency == bill.currency)
    return bill.subscription if bill.subscription in same else next(iter(same), "")


def _audit(connection: Connection, before: InvoiceItem | None, after: InvoiceItem, at_ms: int, reason: str) -> None:
    """Write the change of an item to the audit of the customer's account; a customer without an account has none."""
    column = account_customers.c
    owner = select(column.account).where(column.customer_id == after.stripe_customer)
    account = connection.execute(owner.order_by(column.starts_ms.desc()).limit(1)).scalar()
    if account is None:
        return
    heads = lock_accounts(connection, {account})
    old = {"state": before.state.value} if before else None
    new: Values = {"state": after.state.value, "stripe_item": after.stripe_item}
    if before is None:
        shown = ("invoice", "event_name", "from_quantity", "to_quantity", "amount_minor", "currency")
        row = _row_of(after)
        new |= {name: row[name] for name in shown}
    written = audit.next_row(
        heads[account],
        account,
        at_ms,
        actor=ACTOR,
        cause=CAUSE,
        entity=(ENTITY, after.identifier),
        before=old,
        after=new,
        reason=reason,
    )
    audit.append(connection, [(written, heads[account].audit_hash)])
    save_heads(connection, heads)


def _row_of(item: InvoiceItem) -> Values:
    row = {**item._asdict(), "state": item.state.value}
    return row | {name: format(row[name], "f") for name in _QUANTITIES}


def _closing_of(row: Mapping[str, Any] | RowMapping) -> Closing:
    return Closing(**{**row, "state": BillState(row["state"])})


def _item_of(row: RowMapping) -> InvoiceItem:
    quantities = {name: Decimal(row[name]) for name in _QUANTITIES}
    return InvoiceItem(**{**row, **quantities, "state": InvoiceItemState(row["state"])})
