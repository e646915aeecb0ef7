"""The audit as revenue reads it: what changed about subscriptions and dunning cases, account by account."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from functools import partial
from itertools import groupby
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row, Select, and_, or_, select

from schemas.billing_events import ObjectKind
from schemas.clock import SECOND_MS
from schemas.revenue import AuditChange
from schemas.side_tables import PARTS_OF, TABLE_OF
from sinks.sql.dunning import ENTITY as DUNNING
from sinks.sql.intents import Run
from sinks.sql.tables import audit, processed_events

# Rows of a statement. The longest have an invoice of a hundred lines.
PAGE_ROWS: Final = 2_000
_TABLES: Final = (TABLE_OF[ObjectKind.SUBSCRIPTION], PARTS_OF[ObjectKind.SUBSCRIPTION][0])


class SqlRevenue:
    """Implements `schemas.revenue.RevenueStore`, whose docstrings hold."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def changes(self) -> AsyncIterator[list[AuditChange]]:
        after, rest = ("", 0), list[AuditChange]()
        while page := await self._run(partial(_page, after)):
            after = (page[-1].account, page[-1].seq)
            groups = [list(rows) for _, rows in groupby((*rest, *map(_change, page)), lambda each: each.account)]
            # The next page may have more rows of the last account.
            *whole, rest = groups
            for group in whole:
                yield group
        if rest:
            yield rest


def _page(after: tuple[str, int], connection: Connection) -> list[Row[Any]]:
    return list(connection.execute(_statement(*after)))


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
