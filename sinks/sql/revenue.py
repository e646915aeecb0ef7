"""The audit as revenue reads it: what changed about subscriptions and dunning cases, account by account."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row, Select, and_, exists, or_, select

from schemas.billing_events import ObjectKind
from schemas.clock import SECOND_MS
from schemas.revenue import AccountStanding, AuditChange
from schemas.side_tables import PARTS_OF, TABLE_OF
from sinks.sql.dunning import ENTITY as DUNNING
from sinks.sql.dunning_tables import dunning_cases
from sinks.sql.intents import Run
from sinks.sql.queries import rows_where
from sinks.sql.tables import account_customers, audit, mirror, processed_events

# Rows of a statement. The longest have an invoice of a hundred lines.
PAGE_ROWS: Final = 2_000
_TABLES: Final = (TABLE_OF[ObjectKind.SUBSCRIPTION], PARTS_OF[ObjectKind.SUBSCRIPTION][0])


class SqlRevenue:
    """Implements `schemas.revenue.RevenueStore`, whose docstrings hold."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def changes(self) -> AsyncIterator[list[AuditChange]]:
        async for group in self._changes(None):
            yield group

    async def changes_of(self, accounts: Sequence[str]) -> AsyncIterator[list[AuditChange]]:
        async for group in self._changes(accounts):
            yield group

    async def standings(self, after: str = "", limit: int = 200) -> Sequence[AccountStanding]:
        return await self._run(partial(_standings, after, limit))

    async def _changes(self, accounts: Sequence[str] | None) -> AsyncIterator[list[AuditChange]]:
        after, rest = ("", 0), list[AuditChange]()
        while page := await self._run(partial(_page, after, accounts)):
            after = (page[-1].account, page[-1].seq)
            groups = [list(rows) for _, rows in groupby((*rest, *map(_change, page)), lambda each: each.account)]
            # The next page may have more rows of the last account.
            *whole, rest = groups
            for group in whole:
                yield group
        if rest:
            yield rest


def _page(after: tuple[str, int], accounts: Sequence[str] | None, connection: Connection) -> list[Row[Any]]:
    wanted = _statement(*after)
    if accounts is not None:
        wanted = wanted.where(audit.c.account.in_(accounts))
    return list(connection.execute(wanted))


def _standings(after: str, limit: int, connection: Connection) -> list[AccountStanding]:
    links, others = account_customers.c, account_customers.alias().c
    is_shared = exists().where(others.customer_id == links.customer_id, others.account != links.account)
    was_other = exists().where(others.account == links.account, others.starts_ms != links.starts_ms)
    wanted = (
        select(links.account, links.customer_id)
        .where(links.account > after, ~is_shared, ~was_other)
        .order_by(links.account)
        .limit(limit)
    )
    owners = [(account, name) for account, name in connection.execute(wanted)]
    subscriptions = rows_where(connection, mirror["subscriptions"], "customer_id", [name for _, name in owners])
    ids = [row["id"] for row in subscriptions]
    items = rows_where(connection, mirror["subscription_items"], "subscription_id", ids)
    cases = rows_where(connection, dunning_cases, "subscription_id", ids)
    newest = {
        row["subscription_id"]: row["downgrade_ms"]
        for row in sorted(cases, key=lambda row: (row["found_ms"], row["opened_ms"]))
    }
    found = []
    for account, name in owners:
        own = [row for row in subscriptions if row["customer_id"] == name]
        keys = {row["id"] for row in own}
        downgrades = {key: newest[key] for key in keys if newest.get(key) is not None}
        parts = [row for row in items if row["subscription_id"] in keys]
        found.append(AccountStanding(account, own, parts, downgrades))
    return found


def _statement(account: str, seq: int) -> Select[Any]:
    concerned = or_(
        audit.c.entity == DUNNING,
        *(side.contains(f'"{table}"') for side in (audit.c.before_json, audit.c.after_json) for table in _TABLES),
    )
    follows = or_(audit.c.account > account, and_(audit.c.account == account, audit.c.seq > seq))
    return (
        select(audit, processed_events.c.created_s)
        .outerjoin(processed_events, processed_events.c.event_id == audit.c.cause)
        .where(concerned, follows)
        .order_by(audit.c.account, audit.c.seq)
        .limit(PAGE_ROWS)
    )


def _change(row: Row[Any]) -> AuditChange:
    at_ms = row.at_ms if row.created_s is None else row.created_s * SECOND_MS
    return AuditChange(row.account, at_ms, row.entity, row.entity_id, _side(row.before_json), _side(row.after_json))


def _side(text: str | None) -> Mapping[str, Any]:
    """One side of an audit row; that of a link, which is a list, has nothing of subscriptions."""
    found = msgspec.json.decode(text) if text else {}
    return found if isinstance(found, dict) else {}
