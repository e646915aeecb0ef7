"""The tables of seats. `sinks/sql/seat_tables.py` says what each one is for."""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"

STATEMENTS = (
    """
    CREATE TABLE seats (
        id TEXT NOT NULL PRIMARY KEY,
        account TEXT NOT NULL,
        feature TEXT NOT NULL,
        holder TEXT NOT NULL,
        state TEXT NOT NULL,
        made_ms BIGINT NOT NULL,
        changed_ms BIGINT NOT NULL,
        expires_ms BIGINT,
        request_key TEXT NOT NULL,
        CONSTRAINT seats_state CHECK (state IN ('reserved', 'active', 'released'))
    )
    """,
    "CREATE INDEX seats_by_account ON seats (account, id)",
    "CREATE UNIQUE INDEX one_seat ON seats (account, feature, holder) WHERE state <> 'released'",
    "CREATE UNIQUE INDEX seats_by_key ON seats (account, request_key) WHERE request_key <> ''",
    "CREATE INDEX expiring_seats ON seats (expires_ms) WHERE state = 'reserved'",
    """
    CREATE TABLE unpaid_seats (
        account TEXT NOT NULL PRIMARY KEY,
        number BIGINT NOT NULL,
        since_ms BIGINT NOT NULL,
        due_ms BIGINT NOT NULL,
        tries BIGINT NOT NULL,
        detail TEXT NOT NULL,
        is_fewer BIGINT NOT NULL
    )
    """,
    "CREATE INDEX unpaid_seats_by_time ON unpaid_seats (due_ms)",
)


def upgrade() -> None:
    """Create the tables."""
    for statement in STATEMENTS:
        op.execute(statement)
