"""The audit: rows that are appended only, each account's in a chain of hashes."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import msgspec
from sqlalchemy import Connection, insert

from schemas.errors import InvalidInput
from schemas.side_tables import AuditRow
from sinks.sql.queries import Head, chunks
from sinks.sql.tables import audit


def canonical(value: object) -> str:
    """A value as JSON with sorted keys and without spaces."""
    return msgspec.json.encode(value, order="sorted").decode()


def chain_hash(previous: str, row: AuditRow) -> str:
    """The hash of a row: SHA-256 of the hash of the account's row before ("" for the first) and the row as JSON."""
    return sha256(msgspec.json.encode([previous, *row])).hexdigest()


def check_said(*said: tuple[str, str]) -> None:
    """Raise `InvalidInput` with the field for a text that the audit cannot keep."""
    for field, value in said:
        if not value.strip() or "\0" in value:
            raise InvalidInput(field, "must not be empty or have a NUL: the audit keeps who did it, and why")


def next_row(
    head: Head,
    account: str,
    at_ms: int,
    *,
    actor: str,
    cause: str,
    entity: tuple[str, str],
    before: object,
    after: object,
    reason: str,
) -> AuditRow:
    """The row after `head`, which becomes the head. Empty `before` and `after` become None."""
    row = AuditRow(
        account=account,
        seq=head.audit_seq + 1,
        at_ms=at_ms,
        actor=actor,
        cause=cause,
        entity=entity[0],
        entity_id=entity[1],
        before=canonical(before) if before else None,
        after=canonical(after) if after else None,
        reason=reason,
    )
    head.audit_seq = row.seq
    head.audit_hash = chain_hash(head.audit_hash, row)
    return row


def append(connection: Connection, rows: Sequence[tuple[AuditRow, str]]) -> None:
    """Insert rows, each with its hash."""
    for chunk in chunks(rows):
        connection.execute(
            insert(audit),
            [
                {
                    **{name: value for name, value in row._asdict().items() if name not in {"before", "after"}},
                    "before_json": row.before,
                    "after_json": row.after,
                    "hash": value,
                }
                for row, value in chunk
            ],
        )
