"""The tables of quotes and operations. `sinks/sql/tables.py` says what they are for."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"

STATEMENTS = (
    """
    CREATE TABLE quotes (
        id TEXT NOT NULL PRIMARY KEY,
        account TEXT NOT NULL,
        request TEXT NOT NULL,
        base_json TEXT NOT NULL,
        calls_json TEXT NOT NULL,
        lines_json TEXT NOT NULL,
        currency TEXT NOT NULL,
        exponent BIGINT NOT NULL,
        total_minor BIGINT NOT NULL,
        due_minor BIGINT NOT NULL,
        tax_minor BIGINT NOT NULL,
        drift_minor BIGINT NOT NULL,
        subtotal_minor BIGINT NOT NULL,
        ours_minor BIGINT,
        next_minor BIGINT,
        next_ms BIGINT,
        words TEXT NOT NULL,
        made_ms BIGINT NOT NULL,
        expires_ms BIGINT NOT NULL,
        made_by TEXT NOT NULL,
        accepted_ms BIGINT,
        accepted_by TEXT NOT NULL,
        invoice TEXT NOT NULL,
        charged_minor BIGINT
    )
    """,
    "CREATE INDEX accepted_quotes ON quotes (accepted_ms) WHERE accepted_ms IS NOT NULL",
    """
    CREATE TABLE operations (
        id TEXT NOT NULL PRIMARY KEY,
        account TEXT NOT NULL,
        quote TEXT NOT NULL,
        state TEXT NOT NULL,
        step BIGINT NOT NULL,
        made_ms BIGINT NOT NULL,
        touched_ms BIGINT NOT NULL,
        requested_by TEXT NOT NULL,
        sent_ms BIGINT,
        subscription TEXT NOT NULL,
        detail TEXT NOT NULL,
        CONSTRAINT operations_state CHECK (state IN ('planned', 'sent', 'unknown', 'done', 'failed'))
    )
    """,
    "CREATE UNIQUE INDEX operations_by_quote ON operations (quote)",
    "CREATE UNIQUE INDEX one_change ON operations (account) WHERE state IN ('planned', 'sent', 'unknown')",
)


def upgrade() -> None:
    """Create the tables."""
    for statement in STATEMENTS:
        op.execute(statement)
