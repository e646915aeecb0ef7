"""The tables of entitlements. `sinks/sql/tables.py` says what each one is for."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"

STATEMENTS = (
    "ALTER TABLE accounts ADD COLUMN entitled_seq BIGINT NOT NULL DEFAULT -1",
    "CREATE INDEX stale_accounts ON accounts (account) WHERE entitled_seq <> audit_seq",
    """
    CREATE TABLE overrides (
        account TEXT NOT NULL,
        number BIGINT NOT NULL,
        feature TEXT NOT NULL,
        kind TEXT NOT NULL,
        source TEXT NOT NULL,
        operation TEXT NOT NULL,
        value_json TEXT NOT NULL,
        starts_ms BIGINT NOT NULL,
        ends_ms BIGINT,
        actor TEXT NOT NULL,
        reason TEXT NOT NULL,
        made_ms BIGINT NOT NULL,
        revoked_ms BIGINT,
        PRIMARY KEY (account, number)
    )
    """,
    """
    CREATE TABLE entitlement_versions (
        account TEXT NOT NULL,
        version BIGINT NOT NULL,
        computed_ms BIGINT NOT NULL,
        inputs_sha256 TEXT NOT NULL,
        segments_json TEXT NOT NULL,
        cause TEXT NOT NULL,
        PRIMARY KEY (account, version)
    )
    """,
    "CREATE INDEX entitlement_versions_by_time ON entitlement_versions (computed_ms)",
)


def upgrade() -> None:
    """Create the tables."""
    for statement in STATEMENTS:
        op.execute(statement)
