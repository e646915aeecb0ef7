"""The tables of API keys and of redrives of the quarantine (`sinks/sql/tables.py` explains the words)."""

from __future__ import annotations

from typing import Final

from sqlalchemy import CheckConstraint, Index

from schemas.redrives import RedriveState
from sinks.sql.tables import integer, table, text

_STATES: Final = ", ".join(f"'{state}'" for state in RedriveState)

# Authoritative. `schemas.keys.StoredKey`. Whoever changes a key locks the account without a name, whose `audit_seq` is
# the version of all keys.
api_keys: Final = table(
    "api_keys",
    text("id", key=True),
    text("hash"),
    text("role"),
    text("account"),
    integer("events_per_s", nullable=True),
    integer("created_ms"),
    text("created_by"),
    text("note"),
    integer("expires_ms", nullable=True),
    integer("revoked_ms", nullable=True),
    text("successor"),
    integer("used_ms", nullable=True),
)
Index("api_keys_by_created_ms", api_keys.c.created_ms, api_keys.c.id)
# Authoritative. `schemas.redrives.Redrive`.
redrives: Final = table(
    "quarantine_redrives",
    text("id", key=True),
    text("selection_json"),
    text("by"),
    text("reason"),
    text("ends_json"),
    text("positions_json"),
    integer("steps"),
    text("counts_json"),
    text("state"),
    integer("begun_ms"),
    integer("touched_ms"),
    CheckConstraint(f"state IN ({_STATES})", name="quarantine_redrives_state"),
)
Index("quarantine_redrives_by_begun_ms", redrives.c.begun_ms)
Index(
    "one_running_redrive",
    redrives.c.selection_json,
    unique=True,
    postgresql_where=redrives.c.state == "running",
    sqlite_where=redrives.c.state == "running",
)
