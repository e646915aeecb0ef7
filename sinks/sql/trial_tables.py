"""The side tables of trials and of subscriptions that are one too many; see `sinks.sql.tables`."""

from __future__ import annotations

from typing import Final

from sqlalchemy import CheckConstraint, Index

from schemas.duplicates import DuplicateState
from schemas.trials import TrialState
from sinks.sql.tables import integer, table, text

_STATES: Final = ", ".join(f"'{state}'" for state in TrialState)
_FOUND: Final = ", ".join(f"'{state}'" for state in DuplicateState)

# Authoritative. `schemas.trials.Trial`.
trials: Final = table(
    "trials",
    text("id", key=True),
    text("account"),
    text("customer"),
    text("operation"),
    text("terms_json"),
    text("state"),
    integer("made_ms"),
    integer("look_ms", nullable=True),
    text("session"),
    text("subscription"),
    integer("ends_ms", nullable=True),
    integer("is_flagged"),
    CheckConstraint(f"state IN ({_STATES})", name="trials_state"),
)
Index("trials_by_account", trials.c.account, trials.c.made_ms)
Index("trials_by_time", trials.c.made_ms, trials.c.id)
Index("trials_by_operation", trials.c.operation)
_UNSETTLED: Final = trials.c.state.in_(["reserved", "running", "ending"])
Index("unsettled_trials", trials.c.state, trials.c.look_ms, postgresql_where=_UNSETTLED, sqlite_where=_UNSETTLED)
# Authoritative. What nobody gets a second trial with, in a family of plans. The values are keyed hashes.
trial_keys: Final = table(
    "trial_keys",
    text("family", key=True),
    text("kind", key=True),
    text("value_hash", key=True),
    text("trial"),
    integer("made_ms"),
)
Index("trial_keys_by_trial", trial_keys.c.trial)
Index("trial_keys_by_time", trial_keys.c.made_ms)
# Authoritative. `schemas.duplicates.Duplicate`.
duplicates: Final = table(
    "duplicate_subscriptions",
    text("subscription", key=True),
    text("kept"),
    text("account"),
    text("customer"),
    text("state"),
    integer("found_ms"),
    text("invoice"),
    integer("amount_minor"),
    text("currency"),
    integer("exponent"),
    text("settled_by"),
    text("reason"),
    integer("settled_ms", nullable=True),
    CheckConstraint(f"state IN ({_FOUND})", name="duplicate_subscriptions_state"),
)
Index("duplicate_subscriptions_by_state", duplicates.c.state, duplicates.c.found_ms)
