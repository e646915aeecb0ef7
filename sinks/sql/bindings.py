"""The bindings that the mirror calls for: planned in the transaction that changed the mirror, sent afterwards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from sqlalchemy import Connection, RowMapping, insert, literal_column, select

from schemas.billing_events import ObjectKind
from schemas.periods import Binding
from schemas.side_tables import OVERLAP, PARTS_OF, TABLE_OF, AuditRow, Overlap, Overlaps, Row, Timeline
from sinks.sql import audit
from sinks.sql.queries import Head, Values, links_of, mirror_row, rows_where
from sinks.sql.tables import account_bindings, customer_column, mirror
from sinks.sql.tables import audit as table

# Invoices decide no binding. An account may have years of them.
_KINDS: Final = (ObjectKind.CUSTOMER, ObjectKind.SUBSCRIPTION, ObjectKind.SCHEDULE)


class Planner(NamedTuple):
    """The pure functions that say what follows from the mirror."""

    timeline: Timeline
    overlaps: Overlaps


def plan_bindings(connection: Connection, heads: Mapping[str, Head], planner: Planner, now_ms: int) -> None:
    """Plan what each locked account's bindings lack. Moves the numbers of the heads, which the caller saves."""
    if not heads:
        return
    links = links_of(connection, set(heads))
    owned = owned_rows(connection, {link.customer for own in links.values() for link in own if link.customer})
    planned = _planned(connection, set(heads))
    rows: list[Values] = []
    for account, head in sorted(heads.items()):
        tables = _tables(owned, {link.customer for link in links[account] if link.customer})
        _audit_overlaps(connection, head, account, planner.overlaps(tables, now_ms), now_ms)
        for binding in planner.timeline(links[account], tables, planned[account], now_ms):
            head.binding_number += 1
            values = {**binding.model_dump(mode="json"), "account": account, "number": head.binding_number}
            rows.append({**values, "planned_ms": now_ms})
    if rows:
        connection.execute(insert(account_bindings), rows)


def overlaps_now(connection: Connection, planner: Planner, now_ms: int, limit: int) -> list[Overlap]:
    """See `schemas.side_tables.SideTables.overlaps`. Each overlap has an audit row, so few accounts are looked at."""
    # The text is in the statement because PostgreSQL finds the partial index only then.
    is_overlap = table.c.entity == literal_column(f"'{OVERLAP}'")
    wanted = select(table.c.account).where(is_overlap).distinct().order_by(table.c.account).limit(limit)
    links = links_of(connection, set(connection.execute(wanted).scalars()))
    linked = {
        account: {link.customer for link in own if link.customer and (link.ends_ms is None or link.ends_ms > now_ms)}
        for account, own in links.items()
    }
    owned = owned_rows(connection, set().union(*linked.values()))
    found = (planner.overlaps(_tables(owned, customers), now_ms) for customers in linked.values())
    return [overlap for overlaps in found for overlap in overlaps]


def _tables(owned: Mapping[str, Mapping[str, list[Values]]], customers: set[str]) -> dict[str, list[Row]]:
    """The rows of some customers by table."""
    tables: dict[str, list[Row]] = defaultdict(list)
    for customer in sorted(customers):
        for name, own in owned[customer].items():
            tables[name] += own
    return tables


def _audit_overlaps(connection: Connection, head: Head, account: str, found: Sequence[Overlap], now_ms: int) -> None:
    """Append an audit row for each overlap that has none yet."""
    if not found:
        return
    is_overlap = (table.c.account == account) & (table.c.entity == literal_column(f"'{OVERLAP}'"))
    known = set(connection.execute(select(table.c.entity_id).where(is_overlap)).scalars())
    rows: list[tuple[AuditRow, str]] = []
    for overlap in found:
        entity_id = f"{overlap.subscription} {overlap.other}"
        if entity_id not in known:
            row = audit.next_row(
                head,
                account,
                now_ms,
                actor="stripe",
                cause=overlap.customer,
                entity=(OVERLAP, entity_id),
                before=None,
                after=None,
                reason=overlap.reason,
            )
            rows.append((row, head.audit_hash))
    audit.append(connection, rows)


def binding_of(row: Values | RowMapping) -> Binding:
    """The binding of a row of `account_bindings`."""
    return Binding.model_validate({name: row[name] for name in Binding.model_fields})


def _planned(connection: Connection, accounts: set[str]) -> dict[str, list[Binding]]:
    planned: dict[str, list[Binding]] = {account: [] for account in accounts}
    rows = rows_where(connection, account_bindings, "account", accounts)
    for row in sorted(rows, key=lambda row: (row["account"], row["number"])):
        planned[row["account"]].append(binding_of(row))
    return planned


def owned_rows(connection: Connection, customers: set[str]) -> dict[str, dict[str, list[Values]]]:
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
