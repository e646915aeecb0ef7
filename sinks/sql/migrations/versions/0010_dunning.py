"""The tables of dunning, and the cards that it warns about. `sinks/sql/dunning_tables.py` says what each one is for."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"

STATEMENTS = (
    "ALTER TABLE subscriptions ADD COLUMN cancellation_reason TEXT",
    "ALTER TABLE invoices ADD COLUMN decline_code TEXT",
    "CREATE TABLE payment_methods (id TEXT PRIMARY KEY, customer_id TEXT, type TEXT, expires_ms BIGINT)",
    "CREATE INDEX payment_methods_by_customer_id ON payment_methods (customer_id)",
    """
    CREATE TABLE dunning_cases (
        id TEXT PRIMARY KEY,
        account TEXT NOT NULL,
        subscription_id TEXT NOT NULL,
        opened_ms BIGINT NOT NULL,
        found_ms BIGINT NOT NULL,
        state TEXT NOT NULL,
        amount_minor BIGINT NOT NULL,
        currency TEXT NOT NULL,
        exponent BIGINT NOT NULL,
        downgrade_ms BIGINT,
        next_ms BIGINT,
        closed_ms BIGINT,
        outcome TEXT,
        CONSTRAINT dunning_cases_state
            CHECK (state IN ('notified', 'urgent', 'final_warning', 'downgraded', 'win_back', 'closed')),
        CONSTRAINT dunning_cases_outcome CHECK (outcome IN ('recovered', 'churned', 'written_off'))
    )
    """,
    "CREATE UNIQUE INDEX open_dunning_cases ON dunning_cases (subscription_id) WHERE closed_ms IS NULL",
    "CREATE INDEX dunning_cases_by_subscription ON dunning_cases (subscription_id)",
    "CREATE INDEX dunning_cases_by_account ON dunning_cases (account)",
    "CREATE INDEX dunning_cases_by_time ON dunning_cases (opened_ms, id)",
    "CREATE INDEX due_dunning_cases ON dunning_cases (next_ms) WHERE next_ms IS NOT NULL",
    """
    CREATE TABLE dunning_invoices (
        invoice_id TEXT PRIMARY KEY,
        case_id TEXT NOT NULL,
        first_failed_ms BIGINT NOT NULL
    )
    """,
    "CREATE INDEX dunning_invoices_by_case ON dunning_invoices (case_id)",
    """
    CREATE TABLE dunning_steps (
        case_id TEXT NOT NULL,
        step TEXT NOT NULL,
        reached_ms BIGINT NOT NULL,
        PRIMARY KEY (case_id, step)
    )
    """,
    # Who owes already and has the plan gets a case, though nothing may happen at Stripe for a year. Who has lost the
    # plan keeps it lost: such an account is not looked at before something happens.
    """
    UPDATE accounts SET entitled_seq = -1 WHERE account IN (
        SELECT l.account FROM account_customers l
        JOIN subscriptions s ON s.customer_id = l.customer_id AND s.status IN ('active', 'trialing', 'past_due')
        JOIN invoices i ON i.subscription_id = s.id AND i.status = 'open' AND i.attempt_count > 0
    )
    """,
)


def upgrade() -> None:
    """Create the tables, and mark who owes already."""
    for statement in STATEMENTS:
        op.execute(statement)
