"""The tables of credits, and what credits paid of an intent. `sinks/sql/credit_tables.py` says what each one is for."""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0013"

STATEMENTS = (
    """
    CREATE TABLE credit_grants (
        id TEXT PRIMARY KEY,
        account TEXT NOT NULL,
        pool TEXT NOT NULL,
        category TEXT NOT NULL,
        credits BIGINT NOT NULL,
        remaining BIGINT NOT NULL,
        priority BIGINT NOT NULL,
        effective_ms BIGINT NOT NULL,
        expires_ms BIGINT,
        source_key TEXT NOT NULL,
        made_ms BIGINT NOT NULL,
        rollover_max BIGINT NOT NULL,
        rolls_until_ms BIGINT,
        rolled BIGINT NOT NULL,
        voided_ms BIGINT,
        paid_minor BIGINT,
        currency TEXT,
        exponent BIGINT,
        CONSTRAINT credit_grants_by_source UNIQUE (account, source_key),
        CONSTRAINT credit_grants_category CHECK (category IN ('promotional', 'included', 'paid')),
        CONSTRAINT credit_grants_remaining CHECK (remaining BETWEEN 0 AND credits)
    )
    """,
    """
    CREATE TABLE credit_ledger (
        account TEXT NOT NULL,
        number BIGINT NOT NULL,
        grant_id TEXT NOT NULL,
        kind TEXT NOT NULL,
        credits BIGINT NOT NULL,
        source_key TEXT NOT NULL,
        at_ms BIGINT NOT NULL,
        meter TEXT NOT NULL,
        period_start_ms BIGINT,
        PRIMARY KEY (account, number),
        CONSTRAINT credit_ledger_once UNIQUE (source_key, grant_id, kind),
        CONSTRAINT credit_ledger_kind CHECK (kind IN ('grant', 'draw', 'return', 'void', 'debt'))
    )
    """,
    "CREATE INDEX credit_ledger_by_grant ON credit_ledger (grant_id)",
    "CREATE INDEX credit_ledger_by_usage ON credit_ledger (account, meter, period_start_ms)",
    """
    CREATE TABLE credit_debts (
        account TEXT NOT NULL,
        source_key TEXT NOT NULL,
        pool TEXT NOT NULL,
        credits BIGINT NOT NULL,
        open BIGINT NOT NULL,
        made_ms BIGINT NOT NULL,
        settled_ms BIGINT,
        PRIMARY KEY (account, source_key),
        CONSTRAINT credit_debts_open CHECK (open BETWEEN 0 AND credits)
    )
    """,
    """
    CREATE TABLE credit_coverage (
        account TEXT NOT NULL,
        meter TEXT NOT NULL,
        period_start_ms BIGINT NOT NULL,
        pool TEXT NOT NULL,
        rate TEXT NOT NULL,
        covered NUMERIC NOT NULL,
        PRIMARY KEY (account, meter, period_start_ms, pool, rate)
    )
    """,
    """
    CREATE TABLE credit_allocations (
        identifier TEXT PRIMARY KEY,
        account TEXT NOT NULL,
        meter TEXT NOT NULL,
        period_start_ms BIGINT NOT NULL,
        drawn_minor NUMERIC NOT NULL,
        remainder_minor NUMERIC NOT NULL,
        parts_json TEXT NOT NULL,
        at_ms BIGINT NOT NULL,
        is_taken_back BIGINT NOT NULL
    )
    """,
    "ALTER TABLE intents ADD COLUMN drawn_minor NUMERIC",
    "ALTER TABLE intents DROP CONSTRAINT intents_state",
    """
    ALTER TABLE intents ADD CONSTRAINT intents_state CHECK (state IN (
        'pending', 'accepted', 'credited', 'free', 'replaced', 'late', 'dead', 'redriven'
    ))
    """,
)


def upgrade() -> None:
    """Create the tables, the column and the state."""
    for statement in STATEMENTS:
        op.execute(statement)
