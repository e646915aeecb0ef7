"""The causes of differences, a closed set, and the pairs of views that are compared."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Cause(StrEnum):
    """Why two views differ, and what the operator does.

    - `in_flight`: still on its way (bucket open, outbox not relayed, archive behind, intent not settled, Stripe's
      summary lags). Nothing; run again later. If it stays, the role the detail names is stuck.
    - `missing`: a view lacks what the others have. The detail names the view: replay it from the log (archive and
      `usage_hourly` are idempotent; Redis is rebuilt); at Stripe, report the difference as a correction.
    - `extra`: a view has more than the others. Rebuild the view the detail names; at Stripe, cancel the meter event
      or credit the difference, and look for who else sends to this meter.
    - `unknown_customer`: usage that waits because its account has no Stripe customer at its instant. Bind the account
      or mark it free, within Stripe's 35 days.
    - `conflict`: one event id arrived with two payloads; the first was counted. Ask the producer which is right;
      add a correction if it was the second.
    - `rejected_by_stripe`: Stripe refused it, at once (the detail is its message) or after it had answered 200.
      Repair the customer or the meter, then report the difference under a new identifier.
    - `unchecked`: not read (no answer, over the limit of reads, another log, a Stripe key of another account or mode).
      Repair what the detail names and run again. Never taken as equal.
    """

    IN_FLIGHT = "in_flight"
    MISSING = "missing"
    EXTRA = "extra"
    UNKNOWN_CUSTOMER = "unknown_customer"
    CONFLICT = "conflict"
    REJECTED_BY_STRIPE = "rejected_by_stripe"
    UNCHECKED = "unchecked"

    @property
    def is_drift(self) -> bool:
        """Whether two views hold different counts. A conflict and an unknown customer need an operator, but all views
        agree about them; what is in flight or unchecked proves nothing either way."""
        return self in (Cause.MISSING, Cause.EXTRA, Cause.REJECTED_BY_STRIPE)

    @property
    def is_open(self) -> bool:
        """Whether this part of the comparison is still to be made."""
        return self in (Cause.IN_FLIGHT, Cause.UNCHECKED)


class Pair(StrEnum):
    """Which views are compared; the first of the two is what is expected."""

    REDIS = "usage_events ↔ redis"
    HOURLY = "usage_events ↔ usage_hourly"
    INTENTS = "usage_events ↔ intents"
    STRIPE = "intents ↔ stripe"
    COUNTERS = "counters"
    DUPLICATES = "usage_events ↔ usage_duplicates"


class Verdict(StrEnum):
    """The result of a whole report: `drift` if any cause is drift, `incomplete` if something is in flight or unchecked,
    `equal` if everything was compared and is equal."""

    EQUAL = "equal"
    DRIFT = "drift"
    INCOMPLETE = "incomplete"


ARCHIVE_LACKS: Final = (
    "missing in usage_events: Redis and usage_hourly agree. Replay the archive; if it stays, the event came again "
    "after the dedup window and was counted twice"
)
ARCHIVE_HAS_MORE: Final = "extra in usage_events: Redis and usage_hourly agree"


def direction(expected: int | None, found: int | None) -> Cause:
    """`missing` if the found view has less than expected or nothing, else `extra`.

    If values do not add up, the sign shows which view holds the larger value, not which event is lost.
    """
    if found is None or expected is None:
        return Cause.MISSING if found is None else Cause.EXTRA
    return Cause.MISSING if found < expected else Cause.EXTRA
