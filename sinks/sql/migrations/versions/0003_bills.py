"""The prices of metered usage, what was noted of invoices, and the invoice items of late usage."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"

STATEMENTS = (
    """
    CREATE TABLE prices (
        id TEXT NOT NULL,
        event_name TEXT NOT NULL,
        title TEXT NOT NULL,
        terms TEXT NOT NULL,
        PRIMARY KEY (id)
    )
    """,
    """
    CREATE TABLE closings (
        invoice TEXT NOT NULL,
        state TEXT NOT NULL,
        detail TEXT NOT NULL,
        due_ms BIGINT NOT NULL,
        summary TEXT NOT NULL,
        PRIMARY KEY (invoice)
    )
    """,
    """
    CREATE TABLE invoice_items (
        identifier TEXT NOT NULL,
        stripe_customer TEXT NOT NULL,
        subscription TEXT NOT NULL,
        invoice TEXT NOT NULL,
        event_name TEXT NOT NULL,
        price TEXT NOT NULL,
        start_ms BIGINT NOT NULL,
        end_ms BIGINT NOT NULL,
        number BIGINT NOT NULL,
        from_quantity TEXT NOT NULL,
        to_quantity TEXT NOT NULL,
        amount_minor BIGINT NOT NULL,
        currency TEXT NOT NULL,
        exponent BIGINT NOT NULL,
        description TEXT NOT NULL,
        state TEXT NOT NULL,
        stripe_item TEXT NOT NULL,
        detail TEXT NOT NULL,
        created_ms BIGINT NOT NULL,
        sent_ms BIGINT,
        attempt BIGINT NOT NULL,
        PRIMARY KEY (identifier),
        CONSTRAINT invoice_items_state CHECK (state IN ('intended', 'created', 'written_off', 'held'))
    )
    """,
    """
    CREATE UNIQUE INDEX invoice_items_by_chain ON invoice_items (
        stripe_customer, event_name, start_ms, end_ms, number
    )
    """,
    "CREATE INDEX unsent_invoice_items ON invoice_items (created_ms) WHERE state IN ('intended', 'held')",
    "CREATE INDEX draft_invoices ON invoices (finalizes_ms) WHERE status = 'draft'",
)


def upgrade() -> None:
    """Make the tables."""
    for statement in STATEMENTS:
        op.execute(statement)
