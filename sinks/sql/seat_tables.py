"""The side tables of seats; see `sinks.sql.tables`."""

from __future__ import annotations

from typing import Final

from sqlalchemy import CheckConstraint, Index

from schemas.seats import SeatState
from sinks.sql.tables import integer, table, text

_STATES: Final = ", ".join(f"'{state}'" for state in SeatState)
# Authoritative. Who holds which seat. `expires_ms` is that of a reservation.
seats: Final = table(
    "seats",
    text("id", key=True),
    text("account"),
    text("feature"),
    text("holder"),
    text("state"),
    integer("made_ms"),
    integer("changed_ms"),
    integer("expires_ms", nullable=True),
    text("request_key"),
    CheckConstraint(f"state IN ({_STATES})", name="seats_state"),
)
Index("seats_by_account", seats.c.account, seats.c.id)
Index(
    "one_seat",
    seats.c.account,
    seats.c.feature,
    seats.c.holder,
    unique=True,
    postgresql_where=seats.c.state != SeatState.RELEASED.value,
    sqlite_where=seats.c.state != SeatState.RELEASED.value,
)
Index(
    "seats_by_key",
    seats.c.account,
    seats.c.request_key,
    unique=True,
    postgresql_where=seats.c.request_key != "",
    sqlite_where=seats.c.request_key != "",
)
Index(
    "expiring_seats",
    seats.c.expires_ms,
    postgresql_where=seats.c.state == SeatState.RESERVED.value,
    sqlite_where=seats.c.state == SeatState.RESERVED.value,
)
# Outbox. The accounts whose paid quantities do not follow their seats yet; one row each.
unpaid_seats: Final = table(
    "unpaid_seats",
    text("account", key=True),
    integer("number"),
    integer("since_ms"),
    integer("due_ms"),
    integer("tries"),
    text("detail"),
    integer("is_fewer"),
)
Index("unpaid_seats_by_time", unpaid_seats.c.due_ms)
