"""The tables of the catalog. `sinks/sql/tables.py` says what each one is for."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"

STATEMENTS = (
    """
    CREATE TABLE catalog_versions (
        version BIGINT NOT NULL,
        sha256 TEXT NOT NULL,
        body TEXT NOT NULL,
        state TEXT NOT NULL,
        applied_ms BIGINT NOT NULL,
        applied_by TEXT NOT NULL,
        reason TEXT NOT NULL,
        PRIMARY KEY (version),
        CONSTRAINT catalog_versions_state CHECK (state IN ('applying', 'active', 'replaced'))
    )
    """,
    """
    CREATE TABLE plan_versions (
        plan TEXT NOT NULL,
        version BIGINT NOT NULL,
        kind TEXT NOT NULL,
        catalog_version BIGINT NOT NULL,
        body TEXT NOT NULL,
        state TEXT NOT NULL,
        PRIMARY KEY (plan, version),
        CONSTRAINT plan_versions_kind CHECK (kind IN ('plan', 'addon')),
        CONSTRAINT plan_versions_state CHECK (state IN ('open', 'closed', 'retired'))
    )
    """,
    """
    CREATE TABLE stripe_objects (
        lookup_key TEXT NOT NULL,
        kind TEXT NOT NULL,
        stripe_id TEXT NOT NULL,
        plan TEXT,
        plan_version BIGINT,
        component TEXT NOT NULL,
        price_interval TEXT NOT NULL,
        currency TEXT NOT NULL,
        PRIMARY KEY (lookup_key, kind)
    )
    """,
    "CREATE UNIQUE INDEX stripe_objects_by_stripe_id ON stripe_objects (stripe_id)",
)


def upgrade() -> None:
    """Make the tables."""
    for statement in STATEMENTS:
        op.execute(statement)
