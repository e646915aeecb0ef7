"""The table of holds. `sinks/sql/tables.py` says what it is for."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"

STATEMENTS = (
    """
    CREATE TABLE holds (
        id TEXT NOT NULL PRIMARY KEY,
        account TEXT NOT NULL,
        feature TEXT NOT NULL,
        quantity TEXT NOT NULL,
        taken_ms BIGINT NOT NULL,
        expires_ms BIGINT NOT NULL,
        is_metered BIGINT NOT NULL,
        request_key TEXT NOT NULL,
        used TEXT,
        ended_ms BIGINT,
        until_ms BIGINT NOT NULL
    )
    """,
    "CREATE UNIQUE INDEX holds_by_request ON holds (account, request_key) WHERE request_key <> ''",
    "CREATE INDEX open_holds ON holds (account, until_ms)",
    "CREATE INDEX holds_by_end ON holds (until_ms, account)",
)


def upgrade() -> None:
    """Create the table."""
    for statement in STATEMENTS:
        op.execute(statement)
