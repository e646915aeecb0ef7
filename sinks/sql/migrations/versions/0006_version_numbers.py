"""The order of all versions of entitlements. `sinks/sql/tables.py` says what it is for."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"

STATEMENTS = (
    "ALTER TABLE entitlement_versions ADD COLUMN number BIGINT NOT NULL DEFAULT 0",
    "CREATE INDEX entitlement_versions_by_number ON entitlement_versions (number)",
    "DROP INDEX entitlement_versions_by_time",
)


def upgrade() -> None:
    """Add the column, and its index instead of that of the instants."""
    for statement in STATEMENTS:
        op.execute(statement)
