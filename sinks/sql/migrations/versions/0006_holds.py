"""The table of holds, and the numbers of versions of entitlements. `sinks/sql/tables.py` says what they are for."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"

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
    "ALTER TABLE entitlement_versions ADD COLUMN number BIGINT NOT NULL DEFAULT 0",
    "CREATE SEQUENCE entitlement_numbers",
    "CREATE INDEX entitlement_versions_by_number ON entitlement_versions (number)",
    "DROP INDEX entitlement_versions_by_time",
)


def upgrade() -> None:
    """Create the table, and number the versions from now on."""
    for statement in STATEMENTS:
        op.execute(statement)
