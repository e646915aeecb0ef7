"""The table of moves to another version of a plan. `sinks/sql/tables.py` says what it is for."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"

STATEMENTS = (
    """
    CREATE TABLE plan_moves (
        subscription TEXT NOT NULL,
        number BIGINT NOT NULL,
        plan TEXT NOT NULL,
        from_version BIGINT NOT NULL,
        to_version BIGINT NOT NULL,
        account TEXT NOT NULL,
        state TEXT NOT NULL,
        made_ms BIGINT NOT NULL,
        sent_ms BIGINT,
        stripe_schedule TEXT NOT NULL,
        detail TEXT NOT NULL,
        PRIMARY KEY (subscription, number),
        CONSTRAINT plan_moves_state CHECK (state IN ('intended', 'scheduled', 'given_up'))
    )
    """,
)


def upgrade() -> None:
    """Create the table."""
    for statement in STATEMENTS:
        op.execute(statement)
