"""The tables of dunning, beside those of `sinks/sql/tables.py`, where the words are explained."""

from __future__ import annotations

from typing import Final

from sqlalchemy import CheckConstraint, Column, Index, Table, Text

from schemas.dunning import DunningOutcome, DunningState
from sinks.sql.tables import INTEGER, metadata

_STATES: Final = ", ".join(f"'{state}'" for state in DunningState)
_OUTCOMES: Final = ", ".join(f"'{outcome}'" for outcome in DunningOutcome)

# Authoritative. `schemas.dunning.DunningCase`. A subscription has at most one open case.
dunning_cases: Final = Table(
    "dunning_cases",
    metadata,
    Column("id", Text, primary_key=True, nullable=False),
    Column("account", Text, nullable=False),
    Column("subscription_id", Text, nullable=False),
    Column("opened_ms", INTEGER, nullable=False),
    Column("found_ms", INTEGER, nullable=False),
    Column("state", Text, nullable=False),
    Column("amount_minor", INTEGER, nullable=False),
    Column("currency", Text, nullable=False),
    Column("exponent", INTEGER, nullable=False),
    Column("downgrade_ms", INTEGER),
    Column("next_ms", INTEGER),
    Column("closed_ms", INTEGER),
    Column("outcome", Text),
    Column("cards", Text),
    CheckConstraint(f"state IN ({_STATES})", name="dunning_cases_state"),
    CheckConstraint(f"outcome IN ({_OUTCOMES})", name="dunning_cases_outcome"),
    sqlite_strict=True,
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
dunning_invoices: Final = Table(
    "dunning_invoices",
    metadata,
    Column("invoice_id", Text, primary_key=True, nullable=False),
    Column("case_id", Text, nullable=False),
    Column("first_failed_ms", INTEGER, nullable=False),
    sqlite_strict=True,
)
Index("dunning_invoices_by_case", dunning_invoices.c.case_id)
# Authoritative. When a case reached a state.
dunning_steps: Final = Table(
    "dunning_steps",
    metadata,
    Column("case_id", Text, primary_key=True, nullable=False),
    Column("step", Text, primary_key=True, nullable=False),
    Column("reached_ms", INTEGER, nullable=False),
    sqlite_strict=True,
)
