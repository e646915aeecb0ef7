"""The side tables of plan changes; see `sinks.sql.tables`."""

from __future__ import annotations

from typing import Final

from sqlalchemy import CheckConstraint, Column, Index, Text

from schemas.plan_changes import OPEN_STATES, OperationState
from sinks.sql.tables import integer, table, text

# Authoritative. What a change of an account's subscription costs, and what its invoice was.
quotes: Final = table(
    "quotes",
    text("id", key=True),
    text("account"),
    text("request"),
    text("base_json"),
    text("calls_json"),
    text("lines_json"),
    text("currency"),
    integer("exponent"),
    integer("total_minor"),
    integer("due_minor"),
    integer("tax_minor"),
    integer("drift_minor"),
    integer("subtotal_minor"),
    integer("ours_minor", nullable=True),
    integer("next_minor", nullable=True),
    integer("next_ms", nullable=True),
    text("words"),
    integer("made_ms"),
    integer("expires_ms"),
    text("made_by"),
    integer("accepted_ms", nullable=True),
    text("accepted_by"),
    text("invoice"),
    integer("charged_minor", nullable=True),
)
Index(
    "accepted_quotes",
    quotes.c.accepted_ms,
    postgresql_where=quotes.c.accepted_ms.is_not(None),
    sqlite_where=quotes.c.accepted_ms.is_not(None),
)
_STATES: Final = ", ".join(f"'{state}'" for state in OperationState)
# Authoritative, and an outbox: the carrying out of accepted quotes. An account has one open change at a time.
operations: Final = table(
    "operations",
    text("id", key=True),
    text("account"),
    text("quote"),
    text("state"),
    integer("step"),
    integer("made_ms"),
    integer("touched_ms"),
    text("requested_by"),
    integer("sent_ms", nullable=True),
    text("subscription"),
    text("detail"),
    Column("return_url", Text, nullable=False, server_default=""),
    Column("session", Text, nullable=False, server_default=""),
    Column("url", Text, nullable=False, server_default=""),
    CheckConstraint(f"state IN ({_STATES})", name="operations_state"),
)
Index("operations_by_quote", operations.c.quote, unique=True)
Index(
    "one_change",
    operations.c.account,
    unique=True,
    postgresql_where=operations.c.state.in_(list(OPEN_STATES)),
    sqlite_where=operations.c.state.in_(list(OPEN_STATES)),
)
