"""The table of the journal, beside those of `sinks/sql/tables.py`, where the words are explained."""

from __future__ import annotations

from typing import Final

from sqlalchemy import CheckConstraint, Index

from schemas.journal import JournalKind
from sinks.sql.tables import integer, table, text

_KINDS: Final = ", ".join(f"'{kind}'" for kind in JournalKind)

# Ledger. `schemas.journal.JournalEntry`. Only `number` is written later, once; it is NULL until then.
journal: Final = table(
    "journal",
    text("id", key=True),
    integer("number", nullable=True),
    text("kind"),
    text("account"),
    text("object"),
    text("invoice"),
    integer("at_ms"),
    integer("made_ms"),
    text("currency"),
    integer("exponent", nullable=True),
    integer("amount_minor", nullable=True),
    integer("tax_minor", nullable=True),
    text("cause"),
    text("reason"),
    text("before_json"),
    text("after_json"),
    CheckConstraint(f"kind IN ({_KINDS})", name="journal_kind"),
)
Index("journal_by_number", journal.c.number, unique=True)
Index("journal_by_account", journal.c.account, journal.c.number)
Index("journal_by_object", journal.c.object)
Index("journal_by_invoice", journal.c.invoice)
Index(
    "unnumbered_journal",
    journal.c.made_ms,
    journal.c.at_ms,
    journal.c.id,
    postgresql_where=journal.c.number.is_(None),
    sqlite_where=journal.c.number.is_(None),
)
