"""What SQL has of one account, for people who look at the account."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, and_, false, or_, select

from schemas.account_records import InvoiceRecord
from schemas.errors import InvalidInput
from schemas.side_tables import AuditRow, Row
from sinks.sql.intents import Run
from sinks.sql.queries import links_of, mirror_row, rows_where
from sinks.sql.tables import account_customers, audit, mirror

_INVOICES: Final = mirror["invoices"]
_LINES: Final = mirror["invoice_lines"]
_JSON: Final = {"before": "before_json", "after": "after_json"}
_AUDIT: Final = [audit.c[_JSON.get(name, name)] for name in AuditRow._fields]
_OF_CUSTOMER: Final = {
    "stripe_customers": "id", "payment_methods": "customer_id", "subscriptions": "customer_id",
    "subscription_schedules": "customer_id",
}  # fmt: skip


class SqlAccountRecords:
    """Implements `schemas.account_records.AccountRecords`, whose docstrings hold."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def mirrored_of(self, account: str, now_ms: int) -> Mapping[str, Sequence[Row]]:
        def body(connection: Connection) -> Mapping[str, Sequence[Row]]:
            customers = [
                link.customer
                for link in links_of(connection, {_stored(account)})[_stored(account)]
                if link.customer and link.starts_ms <= now_ms and (link.ends_ms is None or now_ms < link.ends_ms)
            ]
            found = {
                name: [mirror_row(name, row) for row in rows_where(connection, mirror[name], column, customers)]
                for name, column in _OF_CUSTOMER.items()
            }
            subscriptions = [str(row["id"]) for row in found["subscriptions"]]
            items = rows_where(connection, mirror["subscription_items"], "subscription_id", subscriptions)
            return found | {"subscription_items": [mirror_row("subscription_items", row) for row in items]}

        return await self._run(body)

    async def invoices(self, account: str, limit: int, before: str = "") -> Sequence[Row]:
        created, identifier = _INVOICES.c.created_ms, _INVOICES.c.id
        place = _place(before) if before else None

        def body(connection: Connection) -> Sequence[Row]:
            wanted = select(_INVOICES).where(_shown(connection, account))
            if place is not None:
                wanted = wanted.where(or_(created < place[0], and_(created == place[0], identifier < place[1])))
            rows = connection.execute(wanted.order_by(created.desc(), identifier.desc()).limit(limit)).mappings()
            return [mirror_row("invoices", dict(row)) for row in rows]

        return await self._run(body)

    async def invoice(self, account: str, identifier: str, lines_max: int) -> InvoiceRecord | None:
        def body(connection: Connection) -> InvoiceRecord | None:
            wanted = select(_INVOICES).where(_INVOICES.c.id == _stored(identifier), _shown(connection, account))
            found = connection.execute(wanted).mappings().first()
            if found is None:
                return None
            lines = select(_LINES).where(_LINES.c.invoice_id == found["id"]).order_by(_LINES.c.id).limit(lines_max)
            rows = connection.execute(lines).mappings()
            return InvoiceRecord(
                mirror_row("invoices", dict(found)), [mirror_row("invoice_lines", dict(row)) for row in rows]
            )

        return await self._run(body)

    async def accounts_of_invoice(self, identifier: str) -> Sequence[str]:
        def body(connection: Connection) -> Sequence[str]:
            customer = select(_INVOICES.c.customer_id).where(_INVOICES.c.id == _stored(identifier)).scalar_subquery()
            column = account_customers.c
            names = connection.execute(
                select(column.account).where(column.customer_id == customer).distinct()
            ).scalars()
            wanted = select(_INVOICES.c.id).where(_INVOICES.c.id == _stored(identifier))
            return [
                name for name in sorted(names) if connection.execute(wanted.where(_shown(connection, name))).scalar()
            ]

        return await self._run(body)

    async def audit_before(self, account: str, limit: int, before: int | None = None) -> Sequence[AuditRow]:
        wanted = select(*_AUDIT).where(audit.c.account == _stored(account)).order_by(audit.c.seq.desc()).limit(limit)
        if before is not None:
            wanted = wanted.where(audit.c.seq < before)
        rows: Sequence[Any] = await self._run(lambda connection: connection.execute(wanted).all())
        return [AuditRow(*row) for row in rows]


def _shown(connection: Connection, account: str) -> ColumnElement[bool]:
    """Of the invoices those that the account may see."""
    name, row = _stored(account), account_customers.c
    links = [link for link in links_of(connection, {name})[name] if link.customer]
    wanted = select(row.customer_id).where(row.customer_id.in_({link.customer for link in links}), row.account != name)
    shared = set(connection.execute(wanted).scalars())
    spans = []
    for link in links:
        span = [_INVOICES.c.customer_id == link.customer]
        if link.customer in shared:
            span.append(_INVOICES.c.created_ms >= link.starts_ms)
        if link.ends_ms is not None:
            span.append(_INVOICES.c.created_ms < link.ends_ms)
        spans.append(and_(*span))
    # A draft changes until it is final, and a deleted row has no more than its id.
    return and_(or_(false(), *spans), _INVOICES.c.deleted == 0, _INVOICES.c.status != "draft")


def _place(before: str) -> tuple[int, str]:
    created, _, identifier = before.partition(".")
    if not (created.isascii() and created.isdigit() and len(created) <= 15) or "\0" in identifier:
        raise InvalidInput("cursor", "is not one of this list; begin without a cursor")
    return int(created), identifier


def _stored(text: str) -> str:
    """A text that PostgreSQL takes: it has no NUL."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")
