"""The ledger of intents."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"

STATEMENTS = (
    """
    CREATE TABLE intents (
        identifier TEXT NOT NULL,
        log_partition BIGINT NOT NULL,
        log_offset BIGINT NOT NULL,
        livemode BIGINT NOT NULL,
        stripe_account TEXT NOT NULL,
        log_id TEXT NOT NULL,
        meter TEXT NOT NULL,
        event_name TEXT NOT NULL,
        account TEXT NOT NULL,
        period_start_ms BIGINT NOT NULL,
        period_end_ms BIGINT NOT NULL,
        bucket_start_ms BIGINT NOT NULL,
        bucket_end_ms BIGINT NOT NULL,
        delta_minor NUMERIC NOT NULL,
        scale BIGINT NOT NULL,
        revision BIGINT NOT NULL,
        state TEXT NOT NULL,
        attempt_customer TEXT,
        timestamp_s BIGINT,
        value TEXT,
        attempted_at_ms BIGINT,
        replaces_ms BIGINT,
        stripe_customer TEXT NOT NULL,
        at_ms BIGINT NOT NULL,
        hold TEXT NOT NULL,
        detail TEXT NOT NULL,
        settled_at_ms BIGINT,
        in_doubt BIGINT NOT NULL,
        not_before_ms BIGINT NOT NULL,
        failures BIGINT NOT NULL,
        absent_at_ms BIGINT,
        PRIMARY KEY (identifier),
        CONSTRAINT intents_state CHECK (
            state IN ('pending', 'accepted', 'free', 'replaced', 'late', 'dead', 'redriven')
        )
    )
    """,
    "CREATE INDEX intents_by_customer ON intents (stripe_customer, event_name, at_ms)",
    "CREATE INDEX intents_by_account ON intents (account, identifier)",
    "CREATE INDEX pending_intents ON intents (log_partition, not_before_ms, log_offset) WHERE state = 'pending'",
    "CREATE INDEX unbilled_intents ON intents (identifier) WHERE state IN ('dead', 'late')",
)


def upgrade() -> None:
    """Make the table."""
    for statement in STATEMENTS:
        op.execute(statement)
