"""The table of notices. `sinks/sql/tables.py` says what it is for."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"

STATEMENTS = (
    """
    CREATE TABLE notices (
        id TEXT NOT NULL,
        channel TEXT NOT NULL,
        kind TEXT NOT NULL,
        account TEXT NOT NULL,
        subject TEXT NOT NULL,
        period_start_ms BIGINT NOT NULL,
        period_end_ms BIGINT NOT NULL,
        percent BIGINT NOT NULL,
        body TEXT NOT NULL,
        made_ms BIGINT NOT NULL,
        state TEXT NOT NULL,
        attempts BIGINT NOT NULL,
        failures BIGINT NOT NULL,
        due_ms BIGINT NOT NULL,
        detail TEXT NOT NULL,
        settled_ms BIGINT,
        PRIMARY KEY (id, channel),
        CONSTRAINT notices_state CHECK (state IN ('waiting', 'sent', 'obsolete', 'unaddressed', 'dead'))
    )
    """,
    "CREATE UNIQUE INDEX notices_by_fact ON notices (account, kind, subject, period_start_ms, percent, channel)",
    "CREATE INDEX notices_by_time ON notices (made_ms, id, channel)",
    "CREATE INDEX notices_by_period_end ON notices (period_end_ms)",
    "CREATE INDEX waiting_notices ON notices (due_ms, id) WHERE state = 'waiting'",
    "CREATE INDEX dead_notices ON notices (id) WHERE state = 'dead'",
)


def upgrade() -> None:
    """Create the table."""
    for statement in STATEMENTS:
        op.execute(statement)
