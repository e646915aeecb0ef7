"""Migrations from a flat price to a price for usage, and their subscriptions."""

from __future__ import annotations

from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Make the tables."""
    op.execute(
        """
        CREATE TABLE migrations (
            name TEXT NOT NULL PRIMARY KEY,
            source TEXT NOT NULL,
            shadow TEXT NOT NULL,
            target TEXT NOT NULL,
            notice_days BIGINT NOT NULL,
            rule TEXT NOT NULL,
            made_ms BIGINT NOT NULL,
            made_by TEXT NOT NULL,
            reason TEXT NOT NULL,
            halted TEXT NOT NULL
        )
        """
    )
    op.execute(
        """
        CREATE TABLE migration_items (
            migration TEXT NOT NULL,
            subscription TEXT NOT NULL,
            account TEXT NOT NULL,
            customer TEXT NOT NULL,
            wave BIGINT NOT NULL,
            state TEXT NOT NULL CONSTRAINT migration_items_state CHECK (state IN (
                'planned', 'shadow', 'compared', 'approved', 'scheduled', 'promoted', 'settled', 'returning',
                'reverted', 'left'
            )),
            figures_json TEXT NOT NULL,
            touched_ms BIGINT NOT NULL,
            wish TEXT NOT NULL,
            tries BIGINT NOT NULL,
            problem TEXT NOT NULL,
            note TEXT NOT NULL,
            renews_ms BIGINT NOT NULL,
            notified_ms BIGINT,
            PRIMARY KEY (migration, subscription)
        )
        """
    )
