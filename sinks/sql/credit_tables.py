"""The side tables of credits; see `sinks.sql.tables`."""

from __future__ import annotations

from typing import Final

from sqlalchemy import CheckConstraint, Column, Index, Text, UniqueConstraint

from schemas.credits import Category, EntryKind
from sinks.sql.tables import WholeNumber, integer, table, text

_CATEGORIES: Final = ", ".join(f"'{category}'" for category in Category)
_KINDS: Final = ", ".join(f"'{kind}'" for kind in EntryKind)

# Ledger. `schemas.credits.CreditGrant`: what changes of a grant follows from the rows of the ledger.
credit_grants: Final = table(
    "credit_grants",
    text("id", key=True),
    text("account"),
    text("pool"),
    text("category"),
    integer("credits"),
    integer("remaining"),
    integer("priority"),
    integer("effective_ms"),
    integer("expires_ms", nullable=True),
    text("source_key"),
    integer("made_ms"),
    integer("rollover_max"),
    integer("rolls_until_ms", nullable=True),
    integer("rolled"),
    integer("voided_ms", nullable=True),
    integer("paid_minor", nullable=True),
    Column("currency", Text),
    integer("exponent", nullable=True),
    UniqueConstraint("account", "source_key", name="credit_grants_by_source"),
    CheckConstraint(f"category IN ({_CATEGORIES})", name="credit_grants_category"),
    CheckConstraint("remaining BETWEEN 0 AND credits", name="credit_grants_remaining"),
)
# Ledger. `schemas.credits.CreditEntry`: appended only.
credit_ledger: Final = table(
    "credit_ledger",
    text("account", key=True),
    integer("number", key=True),
    text("grant_id"),
    text("kind"),
    integer("credits"),
    text("source_key"),
    integer("at_ms"),
    text("meter"),
    integer("period_start_ms", nullable=True),
    UniqueConstraint("source_key", "grant_id", "kind", name="credit_ledger_once"),
    CheckConstraint(f"kind IN ({_KINDS})", name="credit_ledger_kind"),
)
Index("credit_ledger_by_grant", credit_ledger.c.grant_id)
Index("credit_ledger_by_usage", credit_ledger.c.account, credit_ledger.c.meter, credit_ledger.c.period_start_ms)
# Ledger. `schemas.credits.Debt`.
credit_debts: Final = table(
    "credit_debts",
    text("account", key=True),
    text("source_key", key=True),
    text("pool"),
    integer("credits"),
    integer("open"),
    integer("made_ms"),
    integer("settled_ms", nullable=True),
    CheckConstraint("open BETWEEN 0 AND credits", name="credit_debts_open"),
)
# Ledger. `schemas.credits.Coverage`: running totals of a meter and period. `rate` is a fraction, such as 1/1000.
credit_coverage: Final = table(
    "credit_coverage",
    text("account", key=True),
    text("meter", key=True),
    integer("period_start_ms", key=True),
    text("pool", key=True),
    text("rate", key=True),
    Column("covered", WholeNumber, nullable=False),
)
# Ledger. How each intent was paid, by the identifier of its first revision. `parts_json`: what each pool's running
# total gained.
credit_allocations: Final = table(
    "credit_allocations",
    text("identifier", key=True),
    text("account"),
    text("meter"),
    integer("period_start_ms"),
    Column("drawn_minor", WholeNumber, nullable=False),
    Column("remainder_minor", WholeNumber, nullable=False),
    text("parts_json"),
    integer("at_ms"),
    integer("is_taken_back"),
)
