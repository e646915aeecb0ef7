"""The payment methods of a dunning case: another one is new, and pays what is open."""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Add the column; nobody has looked at the cards of the cases so far."""
    op.execute("ALTER TABLE dunning_cases ADD COLUMN cards TEXT")
