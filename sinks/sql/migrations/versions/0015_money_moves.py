"""What was given back, and what revenue needs of invoices: credit notes with their lines, refunds, disputes.
`schemas/side_tables.py` has the columns."""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0014"

_PAYMENT = """
        id TEXT PRIMARY KEY,
        customer_id TEXT,
        invoice_id TEXT,
        payment_intent_id TEXT,
        status TEXT,
        reason TEXT,
        currency TEXT,
        exponent BIGINT,
        amount_minor BIGINT,
        created_ms BIGINT,
        deleted BIGINT,
        fetch_seq BIGINT NOT NULL,
        fetched_ms BIGINT NOT NULL
"""
STATEMENTS = (
    "ALTER TABLE invoices ADD COLUMN number TEXT",
    "ALTER TABLE invoices ADD COLUMN paid_minor BIGINT",
    "ALTER TABLE invoices ADD COLUMN voided_ms BIGINT",
    "ALTER TABLE invoices ADD COLUMN uncollectible_ms BIGINT",
    "ALTER TABLE invoice_lines ADD COLUMN inclusive_tax_minor BIGINT",
    "ALTER TABLE invoice_lines ADD COLUMN credit_minor BIGINT",
    """
    CREATE TABLE credit_notes (
        id TEXT PRIMARY KEY,
        customer_id TEXT,
        invoice_id TEXT,
        number TEXT,
        status TEXT,
        reason TEXT,
        currency TEXT,
        exponent BIGINT,
        tax_minor BIGINT,
        total_minor BIGINT,
        refunds_json TEXT,
        created_ms BIGINT,
        effective_ms BIGINT,
        voided_ms BIGINT,
        deleted BIGINT,
        fetch_seq BIGINT NOT NULL,
        fetched_ms BIGINT NOT NULL
    )
    """,
    "CREATE INDEX credit_notes_by_customer_id ON credit_notes (customer_id)",
    "CREATE INDEX credit_notes_by_invoice ON credit_notes (invoice_id)",
    """
    CREATE TABLE credit_note_lines (
        id TEXT PRIMARY KEY,
        credit_note_id TEXT,
        invoice_line_id TEXT,
        amount_minor BIGINT,
        discount_minor BIGINT,
        tax_minor BIGINT,
        inclusive_tax_minor BIGINT
    )
    """,
    "CREATE INDEX credit_note_lines_by_credit_note_id ON credit_note_lines (credit_note_id)",
    f"CREATE TABLE refunds ({_PAYMENT})",
    "CREATE INDEX refunds_by_customer_id ON refunds (customer_id)",
    f"CREATE TABLE disputes ({_PAYMENT})",
    "CREATE INDEX disputes_by_customer_id ON disputes (customer_id)",
)


def upgrade() -> None:
    """Make the tables and columns. A resync fills the columns of the invoices that are there."""
    for statement in STATEMENTS:
        op.execute(statement)
