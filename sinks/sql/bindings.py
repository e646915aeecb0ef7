"""The bindings that the mirror calls for: planned in the transaction that changed the mirror, sent afterwards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Final

from sqlalchemy import Connection, RowMapping, insert

from schemas.billing_events import ObjectKind
from schemas.periods import Binding
from schemas.side_tables import PARTS_OF, TABLE_OF, Row, Timeline
from sinks.sql.queries import Head, Values, links_of, mirror_row, rows_where
from sinks.sql.tables import account_bindings, customer_column, mirror

# Invoices decide no binding. An account may have years of them.
_KINDS: Final = (ObjectKind.CUSTOMER, ObjectKind.SUBSCRIPTION, ObjectKind.SCHEDULE)


def plan_bindings(connection: Connection, heads: Mapping[str, Head], timeline: Timeline, now_ms: int) -> None:
    """Plan what each locked account's bindings lack. Moves the numbers of the heads, which the caller saves."""
    if not heads:
        return
    links = links_of(connection, set(heads))
    owned = _owned(connection, {link.customer for own in links.values() for link in own})
    planned = _planned(connection, set(heads))
    rows: list[Values] = []
    for account, head in sorted(heads.items()):
        customers = sorted({link.customer for link in links[account]})
        tables: dict[str, list[Row]] = defaultdict(list)
        for customer in customers:
            for table, own in owned[customer].items():
                tables[table] += own
        for binding in timeline(links[account], tables, planned[account], now_ms):
            head.binding_number += 1
            values = {**binding.model_dump(mode="json"), "account": account, "number": head.binding_number}
            rows.append({**values, "planned_ms": now_ms})
    if rows:
        connection.execute(insert(account_bindings), rows)


def binding_of(row: Values | RowMapping) -> Binding:
    """The binding of a row of `account_bindings`."""
    return Binding.model_validate({name: row[name] for name in Binding.model_fields})


def _planned(connection: Connection, accounts: set[str]) -> dict[str, list[Binding]]:
    planned: dict[str, list[Binding]] = {account: [] for account in accounts}
    rows = rows_where(connection, account_bindings, "account", accounts)
    for row in sorted(rows, key=lambda row: (row["account"], row["number"])):
        planned[row["account"]].append(binding_of(row))
    return planned


def _owned(connection: Connection, customers: set[str]) -> dict[str, dict[str, list[Values]]]:
    """The mirror rows of each customer by table, by key."""
    owned: dict[str, dict[str, list[Values]]] = {customer: defaultdict(list) for customer in customers}
    for kind in _KINDS:
        name, column = TABLE_OF[kind], customer_column(kind)
        rows = rows_where(connection, mirror[name], column, customers)
        customer_of = {row["id"]: row[column] for row in rows}
        for row in sorted(rows, key=lambda row: str(row["id"])):
            owned[row[column]][name].append(mirror_row(name, row))
        if kind in PARTS_OF:
            part, owner = PARTS_OF[kind]
            parts = rows_where(connection, mirror[part], owner, set(customer_of))
            for row in sorted(parts, key=lambda row: str(row["id"])):
                owned[customer_of[row[owner]]][part].append(mirror_row(part, row))
    return owned
