"""Which holds count against a limit."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Final

from schemas.holds import KEPT_MS, SETTLE_MS, Hold

NOTHING: Final = Decimal(0)


def until_ms(hold: Hold) -> int:
    """Up to when the usage of a hold may have arrived."""
    return hold.expires_ms if hold.ended_ms is None else hold.ended_ms


def open_since_ms(complete_up_to_ms: int | None, now_ms: int) -> int:
    """Holds whose `until_ms` is earlier than this do not count, as in `is_open`."""
    if complete_up_to_ms is None:
        return now_ms - KEPT_MS
    return min(complete_up_to_ms, now_ms) - SETTLE_MS


def is_open(hold: Hold, complete_up_to_ms: int | None, now_ms: int) -> bool:
    """Whether a hold counts beside usage that is complete up to an instant; None: not known.

    A used hold counts until the usage is complete past the instant at which the caller said so: until then the usage
    may be missing. A hold of which nobody said anything may have been used until it expired. Seats are counted by the
    caller, whose number is as old as the request.
    """
    if hold.used == NOTHING:
        return False
    known_ms = complete_up_to_ms if hold.is_metered else now_ms
    return known_ms is None or known_ms <= until_ms(hold) + SETTLE_MS


def held_by(holds: Iterable[Hold], features: frozenset[str], complete_up_to_ms: int | None, now_ms: int) -> Decimal:
    """What the open holds of features promise together, in units."""
    return sum(
        (
            hold.quantity if hold.used is None else hold.used
            for hold in holds
            if hold.feature in features and is_open(hold, complete_up_to_ms, now_ms)
        ),
        NOTHING,
    )
