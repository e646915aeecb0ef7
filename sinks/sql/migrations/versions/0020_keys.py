"""API keys, and redrives of the quarantine. `sinks/sql/key_tables.py` says what each table is for."""

from __future__ import annotations

from alembic import op

revision = "0020"
down_revision = "0018"

STATEMENTS = (
    """
    CREATE TABLE api_keys (
        id TEXT PRIMARY KEY,
        hash TEXT NOT NULL,
        role TEXT NOT NULL,
        account TEXT NOT NULL,
        events_per_s BIGINT,
        created_ms BIGINT NOT NULL,
        created_by TEXT NOT NULL,
        note TEXT NOT NULL,
        expires_ms BIGINT,
        revoked_ms BIGINT,
        successor TEXT NOT NULL,
        used_ms BIGINT
    )
    """,
    "CREATE INDEX api_keys_by_created_ms ON api_keys (created_ms, id)",
    """
    CREATE TABLE quarantine_redrives (
        id TEXT PRIMARY KEY,
        selection_json TEXT NOT NULL,
        by TEXT NOT NULL,
        reason TEXT NOT NULL,
        ends_json TEXT NOT NULL,
        positions_json TEXT NOT NULL,
        steps BIGINT NOT NULL,
        counts_json TEXT NOT NULL,
        state TEXT NOT NULL,
        begun_ms BIGINT NOT NULL,
        touched_ms BIGINT NOT NULL,
        CONSTRAINT quarantine_redrives_state CHECK (state IN ('running', 'done'))
    )
    """,
    "CREATE INDEX quarantine_redrives_by_begun_ms ON quarantine_redrives (begun_ms)",
    """
    CREATE UNIQUE INDEX one_running_redrive ON quarantine_redrives (selection_json)
    WHERE state = 'running'
    """,
)


def upgrade() -> None:
    """Create the tables."""
    for statement in STATEMENTS:
        op.execute(statement)
