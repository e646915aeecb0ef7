"""What several transactions read and lock. Every function runs within the caller's transaction, on either engine."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from typing import Any, Final

from sqlalchemy import Column, Connection, Select, Table, bindparam, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import ReturningInsert

from schemas.errors import Fenced
from schemas.side_tables import MIRROR_COLUMNS, Link
from sinks.sql.tables import account_customers, accounts, mirror, positions

# A statement names at most this many values of a list. PostgreSQL takes 65 535, SQLite 32 766.
VALUES_MAX: Final = 1_000
# Customers share this many locks, so that a long step stays below PostgreSQL's lock table (64 for each connection).
CUSTOMER_LOCKS: Final = 512
# The first key of our advisory locks; it keeps them apart from those of other programs in the same database.
LOCK_SPACE: Final = 0x71DE

Values = dict[str, Any]


@dataclass
class Head:
    """The ends of an account's sequences: its last audit row's number and hash, its last binding's number."""

    audit_seq: int
    audit_hash: str
    binding_number: int


def chunks(values: Collection[Any]) -> Iterator[list[Any]]:
    """The values, sorted if they are a set, in lists that fit into a statement."""
    listed = sorted(values) if isinstance(values, set | frozenset) else list(values)
    for start in range(0, len(listed), VALUES_MAX):
        yield listed[start : start + VALUES_MAX]


def storable(value: Any) -> Any:
    """A value that PostgreSQL stores: its texts have no NUL."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value


def rows_where(connection: Connection, table: Table, column: str, values: Collection[str]) -> list[Values]:
    """All rows of a table whose column has one of the values."""
    return [
        dict(row)
        for chunk in chunks(values)
        for row in connection.execute(_where_in(table, column), {"wanted": chunk}).mappings()
    ]


# Statements that run very often are made once: to make one takes longer than to execute it.
@cache
def _where_in(table: Table, column: str) -> Select[Any]:
    return select(table).where(table.c[column].in_(bindparam("wanted", expanding=True)))


def insert_new(connection: Connection, table: Table, rows: Sequence[Values]) -> int:
    """Insert the rows whose key is new. Returns their number. Waits for a transaction that inserts the same key."""
    return len(connection.execute(_insert_new(table, connection.dialect.name), rows).all()) if rows else 0


@cache
def _insert_new(table: Table, dialect: str) -> ReturningInsert[Any]:
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    key: Column[Any] = next(iter(table.primary_key))
    return insert(table).on_conflict_do_nothing().returning(key)


_HERE: Final = (positions.c.reader == bindparam("of_reader")) & (positions.c.log_partition == bindparam("partition"))
_NEXT_OFFSET: Final = select(positions.c.next_offset).where(_HERE)
_MOVE: Final = (
    update(positions)
    .where(_HERE, positions.c.next_offset == bindparam("believed"))
    .values(next_offset=bindparam("moved_to"))
)


def next_offset(connection: Connection, reader: str, partition: int) -> int | None:
    """The stored position of a reader in a partition."""
    found: int | None = connection.execute(_NEXT_OFFSET, {"of_reader": reader, "partition": partition}).scalar()
    return found


def move_position(
    connection: Connection,
    reader: str,
    partition: int,
    believed_offset: int | None,
    next_offset: int,
    *,
    may_begin: bool = True,
) -> None:
    """Move a position, and lock it until the transaction ends. With `may_begin`, a partition without one takes any.

    Raises `Fenced` if the position is not the believed one.
    """
    here = {"of_reader": reader, "partition": partition, "believed": believed_offset, "moved_to": next_offset}
    if believed_offset is not None and connection.execute(_MOVE, here).rowcount:
        return
    row = {"reader": reader, "log_partition": partition, "next_offset": next_offset}
    if not may_begin or not insert_new(connection, positions, [row]):
        raise Fenced(f"partition {partition} of {reader}: another process moved the position from {believed_offset}")


def lock_customers(connection: Connection, customers: set[str]) -> None:
    """Lock customers until the transaction ends, whether they are known or not. Call it before `lock_accounts`.

    Without these locks, `link` could miss an event that is being held at the same time. In SQLite a transaction has the
    whole database.
    """
    if connection.dialect.name != "postgresql":
        return
    numbers = sorted({zlib.crc32(customer.encode()) % CUSTOMER_LOCKS for customer in customers})
    statement = "SELECT pg_advisory_xact_lock(:space, number) FROM unnest(CAST(:numbers AS integer[])) AS number"
    connection.execute(text(statement), {"space": LOCK_SPACE, "numbers": numbers})


def lock_accounts(connection: Connection, names: set[str]) -> dict[str, Head]:
    """Lock accounts in ascending order until the transaction ends, and return the ends of their sequences."""
    heads = {}
    for chunk in chunks(names):
        wanted = select(accounts).where(accounts.c.account.in_(chunk)).order_by(accounts.c.account).with_for_update()
        for row in connection.execute(wanted):
            heads[row.account] = Head(row.audit_seq, row.audit_hash, row.binding_number)
    return heads


def save_heads(connection: Connection, heads: Mapping[str, Head]) -> None:
    """Write the ends of the sequences of locked accounts."""
    if heads:
        connection.execute(
            update(accounts).where(accounts.c.account == bindparam("name")),
            [{"name": account, **vars(head)} for account, head in sorted(heads.items())],
        )


def links_of(connection: Connection, names: set[str]) -> dict[str, list[Link]]:
    """The links of each account, oldest first. A link ends where the account's next one starts."""
    starts: dict[str, list[tuple[int, str]]] = {name: [] for name in sorted(names)}
    for row in rows_where(connection, account_customers, "account", names):
        starts[row["account"]].append((row["starts_ms"], row["customer_id"]))
    links = {}
    for account, own in starts.items():
        own.sort()
        ends = [start_ms for start_ms, _ in own[1:]]
        links[account] = [
            Link(account, customer, start_ms, end_ms) for (start_ms, customer), end_ms in zip_longest(own, ends)
        ]
    return links


def mirror_row(table: str, row: Mapping[str, Any]) -> Values:
    """A mirror row with all columns that Stripe's object decides, and none of the store's own."""
    return {column: row.get(column) for column in MIRROR_COLUMNS[table]}


def mirror_rows(connection: Connection) -> dict[str, list[Values]]:
    """All rows of the mirror tables, by key."""
    return {
        name: sorted(
            (mirror_row(name, dict(row)) for row in connection.execute(select(table)).mappings()),
            key=lambda row: str(row[MIRROR_COLUMNS[name][0]]),
        )
        for name, table in mirror.items()
    }
