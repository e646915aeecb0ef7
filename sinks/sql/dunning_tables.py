"""The tables of dunning, beside those of `sinks/sql/tables.py`, where the words are explained."""

from __future__ import annotations

from typing import Final

from sqlalchemy import CheckConstraint, Column, Index, Text

from schemas.dunning import DunningOutcome, DunningState
from sinks.sql.tables import integer, table, text

_STATES: Final = ", ".join(f"'{state}'" for state in DunningState)
_OUTCOMES: Final = ", ".join(f"'{outcome}'" for outcome in DunningOutcome)

# Authoritative. `schemas.dunning.DunningCase`. A subscription has at most one open case.
dunning_cases: Final = table(
    "dunning_cases",
    text("id", key=True),
    text("account"),
    text("subscription_id"),
    integer("opened_ms"),
    integer("found_ms"),
    text("state"),
    integer("amount_minor"),
    text("currency"),
    integer("exponent"),
    integer("downgrade_ms", nullable=True),
    integer("next_ms", nullable=True),
    integer("closed_ms", nullable=True),
    Column("outcome", Text),
    Column("cards", Text),
    CheckConstraint(f"state IN ({_STATES})", name="dunning_cases_state"),
    CheckConstraint(f"outcome IN ({_OUTCOMES})", name="dunning_cases_outcome"),
)
Index(
    "open_dunning_cases",
    dunning_cases.c.subscription_id,
    unique=True,
    postgresql_where=dunning_cases.c.closed_ms.is_(None),
    sqlite_where=dunning_cases.c.closed_ms.is_(None),
)
Index("dunning_cases_by_subscription", dunning_cases.c.subscription_id)
Index("dunning_cases_by_account", dunning_cases.c.account)
Index("dunning_cases_by_time", dunning_cases.c.opened_ms, dunning_cases.c.id)
Index(
    "due_dunning_cases",
    dunning_cases.c.next_ms,
    postgresql_where=dunning_cases.c.next_ms.is_not(None),
    sqlite_where=dunning_cases.c.next_ms.is_not(None),
)
# Authoritative. The case that an invoice belongs to, for ever.
dunning_invoices: Final = table(
    "dunning_invoices",
    text("invoice_id", key=True),
    text("case_id"),
    integer("first_failed_ms"),
)
Index("dunning_invoices_by_case", dunning_invoices.c.case_id)
# Authoritative. When a case reached a state.
dunning_steps: Final = table(
    "dunning_steps",
    text("case_id", key=True),
    text("step", key=True),
    integer("reached_ms"),
)
