"""Credit grants at Stripe and packs that are bought. `sinks/sql/grant_tables.py` says what each table
is for."""

from __future__ import annotations

from alembic import op

revision = "0018"
down_revision = "0017"

STATEMENTS = (
    """
    CREATE TABLE stripe_credit_grants (
        id TEXT PRIMARY KEY,
        customer_id TEXT,
        name TEXT,
        category TEXT,
        currency TEXT,
        exponent BIGINT,
        amount_minor BIGINT,
        available_minor BIGINT,
        priority BIGINT,
        prices_json TEXT,
        source TEXT,
        created_ms BIGINT,
        effective_ms BIGINT,
        expires_ms BIGINT,
        voided_ms BIGINT,
        deleted BIGINT,
        fetch_seq BIGINT NOT NULL,
        fetched_ms BIGINT NOT NULL
    )
    """,
    "CREATE INDEX stripe_credit_grants_by_customer_id ON stripe_credit_grants (customer_id)",
    """
    CREATE TABLE stripe_grant_orders (
        key TEXT PRIMARY KEY,
        account TEXT NOT NULL,
        customer TEXT NOT NULL,
        pool TEXT NOT NULL,
        source TEXT NOT NULL,
        amount_minor BIGINT NOT NULL,
        currency TEXT NOT NULL,
        prices_json TEXT NOT NULL,
        priority BIGINT NOT NULL,
        effective_ms BIGINT NOT NULL,
        expires_ms BIGINT,
        made_ms BIGINT NOT NULL,
        by TEXT NOT NULL,
        reason TEXT NOT NULL,
        state TEXT NOT NULL,
        sent_ms BIGINT,
        stripe_id TEXT NOT NULL,
        detail TEXT NOT NULL,
        touched_ms BIGINT NOT NULL,
        CONSTRAINT stripe_grant_orders_state CHECK (state IN ('wanted', 'made', 'ending', 'ended', 'refused'))
    )
    """,
    "CREATE INDEX stripe_grant_orders_by_account ON stripe_grant_orders (account, made_ms)",
    """
    CREATE INDEX waiting_stripe_grant_orders ON stripe_grant_orders (touched_ms)
    WHERE state IN ('wanted', 'ending')
    """,
    """
    CREATE TABLE credit_purchases (
        id TEXT PRIMARY KEY,
        account TEXT NOT NULL,
        customer TEXT NOT NULL,
        pool TEXT NOT NULL,
        pack TEXT NOT NULL,
        version BIGINT NOT NULL,
        price TEXT NOT NULL,
        currency TEXT NOT NULL,
        credits BIGINT NOT NULL,
        quantity BIGINT NOT NULL,
        how TEXT NOT NULL,
        return_url TEXT NOT NULL,
        by TEXT NOT NULL,
        made_ms BIGINT NOT NULL,
        state TEXT NOT NULL,
        sent_ms BIGINT,
        session TEXT NOT NULL,
        url TEXT NOT NULL,
        invoice TEXT NOT NULL,
        detail TEXT NOT NULL,
        ended_ms BIGINT,
        touched_ms BIGINT NOT NULL,
        CONSTRAINT credit_purchases_state CHECK (state IN ('wanted', 'open', 'paid', 'ended', 'failed')),
        CONSTRAINT credit_purchases_how CHECK (how IN ('page', 'top_up'))
    )
    """,
    "CREATE INDEX credit_purchases_by_account ON credit_purchases (account, made_ms)",
    "CREATE INDEX open_credit_purchases ON credit_purchases (touched_ms) WHERE state IN ('wanted', 'open')",
    """
    CREATE UNIQUE INDEX one_top_up ON credit_purchases (account, pool)
    WHERE how = 'top_up' AND state IN ('wanted', 'open')
    """,
    """
    CREATE TABLE pack_lines (
        line TEXT PRIMARY KEY,
        invoice TEXT NOT NULL,
        account TEXT NOT NULL,
        pool TEXT NOT NULL,
        grant_key TEXT NOT NULL,
        number BIGINT NOT NULL,
        is_granted BIGINT NOT NULL,
        noted_ms BIGINT NOT NULL
    )
    """,
    "CREATE INDEX pack_lines_by_pool ON pack_lines (pool, account)",
    "CREATE INDEX granted_pack_lines ON pack_lines (invoice) WHERE is_granted = 1",
    "CREATE INDEX invoice_lines_by_price ON invoice_lines (price_id)",
)


def upgrade() -> None:
    """Create the tables."""
    for statement in STATEMENTS:
        op.execute(statement)
