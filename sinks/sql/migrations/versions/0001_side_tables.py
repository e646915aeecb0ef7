"""The tables of the first version. `sinks/sql/tables.py` says what each one is for."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None

STATEMENTS = (
    """
    CREATE TABLE meta (
        one BIGINT NOT NULL,
        scope TEXT NOT NULL,
        log_id TEXT NOT NULL,
        PRIMARY KEY (one),
        CONSTRAINT meta_has_one_row CHECK (one = 1)
    )
    """,
    """
    CREATE TABLE positions (
        reader TEXT NOT NULL,
        log_partition BIGINT NOT NULL,
        next_offset BIGINT NOT NULL,
        PRIMARY KEY (reader, log_partition)
    )
    """,
    """
    CREATE TABLE processed_events (
        event_id TEXT NOT NULL,
        type TEXT NOT NULL,
        customer_id TEXT NOT NULL,
        created_s BIGINT NOT NULL,
        via TEXT NOT NULL,
        outcome TEXT NOT NULL,
        log_partition BIGINT NOT NULL,
        log_offset BIGINT NOT NULL,
        processed_ms BIGINT NOT NULL,
        PRIMARY KEY (event_id),
        CONSTRAINT processed_events_outcome CHECK (outcome IN ('applied', 'unchanged', 'ignored', 'held', 'set_aside'))
    )
    """,
    "CREATE INDEX held_events ON processed_events (customer_id, processed_ms) WHERE outcome = 'held'",
    "CREATE INDEX set_aside_events ON processed_events (processed_ms) WHERE outcome = 'set_aside'",
    """
    CREATE INDEX delivered_customer_updates ON processed_events (customer_id, processed_ms)
    WHERE type = 'customer.updated' AND via = 'webhook'
    """,
    """
    CREATE TABLE accounts (
        account TEXT NOT NULL,
        created_ms BIGINT NOT NULL,
        audit_seq BIGINT NOT NULL,
        audit_hash TEXT NOT NULL,
        binding_number BIGINT NOT NULL,
        PRIMARY KEY (account)
    )
    """,
    """
    CREATE TABLE account_customers (
        account TEXT NOT NULL,
        starts_ms BIGINT NOT NULL,
        customer_id TEXT NOT NULL,
        PRIMARY KEY (account, starts_ms)
    )
    """,
    "CREATE INDEX account_customers_by_customer ON account_customers (customer_id)",
    """
    CREATE TABLE account_bindings (
        account TEXT NOT NULL,
        number BIGINT NOT NULL,
        effective_from_ms BIGINT NOT NULL,
        anchor_ms BIGINT NOT NULL,
        interval TEXT NOT NULL,
        interval_count BIGINT NOT NULL,
        billing TEXT NOT NULL,
        stripe_customer TEXT NOT NULL,
        planned_ms BIGINT NOT NULL,
        sent_ms BIGINT,
        PRIMARY KEY (account, number)
    )
    """,
    "CREATE INDEX due_bindings ON account_bindings (account, number) WHERE sent_ms IS NULL",
    """
    CREATE TABLE audit (
        account TEXT NOT NULL,
        seq BIGINT NOT NULL,
        at_ms BIGINT NOT NULL,
        actor TEXT NOT NULL,
        cause TEXT NOT NULL,
        entity TEXT NOT NULL,
        entity_id TEXT NOT NULL,
        before_json TEXT,
        after_json TEXT,
        reason TEXT NOT NULL,
        hash TEXT NOT NULL,
        PRIMARY KEY (account, seq)
    )
    """,
    "CREATE INDEX audit_overlaps ON audit (account, seq) WHERE entity = 'overlap'",
    """
    CREATE TABLE cursors (
        name TEXT NOT NULL,
        until_s BIGINT NOT NULL,
        moved_ms BIGINT NOT NULL,
        PRIMARY KEY (name)
    )
    """,
    """
    CREATE TABLE stripe_customers (
        id TEXT NOT NULL,
        email TEXT,
        currency TEXT,
        default_payment_method TEXT,
        country TEXT,
        tax_exempt TEXT,
        created_ms BIGINT,
        deleted BIGINT,
        fetch_seq BIGINT NOT NULL,
        fetched_ms BIGINT NOT NULL,
        PRIMARY KEY (id)
    )
    """,
    """
    CREATE TABLE subscriptions (
        id TEXT NOT NULL,
        customer_id TEXT,
        status TEXT,
        billing_mode TEXT,
        collection_method TEXT,
        currency TEXT,
        anchor_ms BIGINT,
        start_ms BIGINT,
        trial_end_ms BIGINT,
        cancel_at_ms BIGINT,
        ended_ms BIGINT,
        pause_reason TEXT,
        schedule_id TEXT,
        pending_update_until_ms BIGINT,
        latest_invoice_id TEXT,
        default_payment_method TEXT,
        discounts_json TEXT,
        deleted BIGINT,
        fetch_seq BIGINT NOT NULL,
        fetched_ms BIGINT NOT NULL,
        PRIMARY KEY (id)
    )
    """,
    "CREATE INDEX subscriptions_by_customer_id ON subscriptions (customer_id)",
    """
    CREATE TABLE subscription_items (
        id TEXT NOT NULL,
        subscription_id TEXT,
        price_id TEXT,
        meter_id TEXT,
        usage_type TEXT,
        interval TEXT,
        interval_count BIGINT,
        quantity BIGINT,
        period_start_ms BIGINT,
        period_end_ms BIGINT,
        PRIMARY KEY (id)
    )
    """,
    "CREATE INDEX subscription_items_by_subscription_id ON subscription_items (subscription_id)",
    """
    CREATE TABLE subscription_schedules (
        id TEXT NOT NULL,
        customer_id TEXT,
        subscription_id TEXT,
        status TEXT,
        end_behavior TEXT,
        phases_json TEXT,
        deleted BIGINT,
        fetch_seq BIGINT NOT NULL,
        fetched_ms BIGINT NOT NULL,
        PRIMARY KEY (id)
    )
    """,
    "CREATE INDEX subscription_schedules_by_customer_id ON subscription_schedules (customer_id)",
    """
    CREATE TABLE invoices (
        id TEXT NOT NULL,
        customer_id TEXT,
        subscription_id TEXT,
        status TEXT,
        billing_reason TEXT,
        currency TEXT,
        exponent BIGINT,
        subtotal_minor BIGINT,
        tax_minor BIGINT,
        total_minor BIGINT,
        remaining_minor BIGINT,
        attempt_count BIGINT,
        next_attempt_ms BIGINT,
        created_ms BIGINT,
        finalizes_ms BIGINT,
        finalized_ms BIGINT,
        paid_ms BIGINT,
        hosted_url TEXT,
        deleted BIGINT,
        fetch_seq BIGINT NOT NULL,
        fetched_ms BIGINT NOT NULL,
        PRIMARY KEY (id)
    )
    """,
    "CREATE INDEX invoices_by_customer_id ON invoices (customer_id)",
    """
    CREATE TABLE invoice_lines (
        id TEXT NOT NULL,
        invoice_id TEXT,
        item_id TEXT,
        price_id TEXT,
        is_proration BIGINT,
        quantity TEXT,
        amount_minor BIGINT,
        discount_minor BIGINT,
        tax_minor BIGINT,
        start_ms BIGINT,
        end_ms BIGINT,
        PRIMARY KEY (id)
    )
    """,
    "CREATE INDEX invoice_lines_by_invoice_id ON invoice_lines (invoice_id)",
)


def upgrade() -> None:
    """Make the tables."""
    for statement in STATEMENTS:
        op.execute(statement)
