"""Pages of checkout, trials with their keys, second subscriptions, and why an invoice cannot become final.
`sinks/sql/trial_tables.py` says what each table is for."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"

STATEMENTS = (
    "ALTER TABLE operations ADD COLUMN return_url TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE operations ADD COLUMN session TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE operations ADD COLUMN url TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE invoices ADD COLUMN finalization_error TEXT",
    "CREATE INDEX unfinalized_invoices ON invoices (created_ms) WHERE finalization_error IS NOT NULL",
    """
    CREATE TABLE trials (
        id TEXT PRIMARY KEY,
        account TEXT NOT NULL,
        customer TEXT NOT NULL,
        operation TEXT NOT NULL,
        terms_json TEXT NOT NULL,
        state TEXT NOT NULL,
        made_ms BIGINT NOT NULL,
        look_ms BIGINT,
        session TEXT NOT NULL,
        subscription TEXT NOT NULL,
        ends_ms BIGINT,
        is_flagged BIGINT NOT NULL,
        CONSTRAINT trials_state CHECK (state IN (
            'reserved', 'running', 'ending', 'refused', 'converted', 'expired', 'released'
        ))
    )
    """,
    "CREATE INDEX trials_by_account ON trials (account, made_ms)",
    "CREATE INDEX trials_by_time ON trials (made_ms, id)",
    "CREATE INDEX trials_by_operation ON trials (operation)",
    "CREATE INDEX unsettled_trials ON trials (state, look_ms) WHERE state IN ('reserved', 'running', 'ending')",
    """
    CREATE TABLE trial_keys (
        family TEXT NOT NULL,
        kind TEXT NOT NULL,
        value_hash TEXT NOT NULL,
        trial TEXT NOT NULL,
        made_ms BIGINT NOT NULL,
        PRIMARY KEY (family, kind, value_hash)
    )
    """,
    "CREATE INDEX trial_keys_by_trial ON trial_keys (trial)",
    "CREATE INDEX trial_keys_by_time ON trial_keys (made_ms)",
    """
    CREATE TABLE duplicate_subscriptions (
        subscription TEXT PRIMARY KEY,
        kept TEXT NOT NULL,
        account TEXT NOT NULL,
        customer TEXT NOT NULL,
        state TEXT NOT NULL,
        found_ms BIGINT NOT NULL,
        invoice TEXT NOT NULL,
        amount_minor BIGINT NOT NULL,
        currency TEXT NOT NULL,
        exponent BIGINT NOT NULL,
        settled_by TEXT NOT NULL,
        reason TEXT NOT NULL,
        settled_ms BIGINT,
        CONSTRAINT duplicate_subscriptions_state
            CHECK (state IN ('found', 'refund_proposed', 'foreign', 'settled'))
    )
    """,
    "CREATE INDEX duplicate_subscriptions_by_state ON duplicate_subscriptions (state, found_ms)",
)


def upgrade() -> None:
    """Create the tables and columns."""
    for statement in STATEMENTS:
        op.execute(statement)
