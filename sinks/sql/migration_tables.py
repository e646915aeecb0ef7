"""The side tables of migrations to a price for usage; see `sinks.sql.tables`."""

from __future__ import annotations

from typing import Final

from sqlalchemy import CheckConstraint

from schemas.flat_to_metered import ItemState
from sinks.sql.tables import integer, table, text

_STATES: Final = ", ".join(f"'{state}'" for state in ItemState)

# Authoritative. `schemas.flat_to_metered.Migration`.
migrations: Final = table(
    "migrations",
    text("name", key=True),
    text("source"),
    text("shadow"),
    text("target"),
    integer("notice_days"),
    text("rule"),
    integer("made_ms"),
    text("made_by"),
    text("reason"),
    text("halted"),
)
# Authoritative. `schemas.flat_to_metered.Item`.
migration_items: Final = table(
    "migration_items",
    text("migration", key=True),
    text("subscription", key=True),
    text("account"),
    text("customer"),
    integer("wave"),
    text("state"),
    text("figures_json"),
    integer("touched_ms"),
    text("wish"),
    integer("tries"),
    text("problem"),
    text("note"),
    integer("renews_ms"),
    integer("notified_ms", nullable=True),
    CheckConstraint(f"state IN ({_STATES})", name="migration_items_state"),
)
