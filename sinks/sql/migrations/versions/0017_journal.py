"""The journal for the finance system. `sinks/sql/journal_tables.py` says what the
table is for."""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0016"

STATEMENTS = (
    """
    CREATE TABLE journal (
        id TEXT PRIMARY KEY,
        number BIGINT,
        kind TEXT NOT NULL,
        account TEXT NOT NULL,
        object TEXT NOT NULL,
        invoice TEXT NOT NULL,
        at_ms BIGINT NOT NULL,
        made_ms BIGINT NOT NULL,
        currency TEXT NOT NULL,
        exponent BIGINT,
        amount_minor BIGINT,
        tax_minor BIGINT,
        cause TEXT NOT NULL,
        reason TEXT NOT NULL,
        before_json TEXT NOT NULL,
        after_json TEXT NOT NULL,
        CONSTRAINT journal_kind CHECK (kind IN (
            'invoice', 'payment', 'void', 'write_off', 'credit_note', 'refund', 'dispute', 'recognized',
            'plan_change'
        ))
    )
    """,
    "CREATE UNIQUE INDEX journal_by_number ON journal (number)",
    "CREATE INDEX journal_by_account ON journal (account, number)",
    "CREATE INDEX journal_by_object ON journal (object)",
    "CREATE INDEX journal_by_invoice ON journal (invoice)",
    "CREATE INDEX unnumbered_journal ON journal (made_ms, at_ms, id) WHERE number IS NULL",
)


def upgrade() -> None:
    """Make the table. What the mirror has by now is journaled when Stripe's objects are fetched again."""
    for statement in STATEMENTS:
        op.execute(statement)
