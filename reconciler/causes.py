"""The causes of differences (a closed set), the pairs of views that are compared, and the verdicts."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Cause(StrEnum):
    """Why two views differ, and what the operator must do.

    - `in_flight`: still on its way (bucket open, outbox not relayed, archive behind, intent not settled, Stripe's
      summary lags). Run again later. If the row stays, the role in the detail is stuck.
    - `missing`: a view lacks what the others have. Replay the view in the detail from the log (archive and
      `usage_hourly` are idempotent; Redis is rebuilt). At Stripe, report the difference as a correction.
    - `extra`: a view has more than the others. Rebuild the view in the detail. At Stripe, cancel the meter event or
      credit the difference, and find out who else sends to this meter.
    - `differing`: the mirror of an object at Stripe has other values: have the objects fetched again. Or an account's
      entitlements are not what its subscriptions and overrides give: have them computed again.
    - `unknown_customer`: usage waits because its account has no Stripe customer at the usage's instant. Bind the
      account or mark it free, before Stripe finalizes the period's invoice.
    - `conflict`: one event id arrived with two types, sources or payloads; the first was counted. Ask the producer
      which one is right. If it is the second, or if both are, send the uncounted one under a new id.
    - `rejected_by_stripe`: Stripe refused the event, at once (the detail has Stripe's message) or after answering 200.
      Repair the customer or the meter, then report the difference under a new identifier.
    - `unbilled`: reported, but on no invoice: the invoice of its period is final without it, or no subscription item
      bills the meter. Bill it by an invoice item, or write it off.
    - `confirmed`: no difference. The value at Stripe was read and is right.
    - `unchecked`: not read (no answer, over the limit of reads, another log, a Stripe key of another account or mode),
      and never taken as equal. Repair what the detail says and run again.
    """

    IN_FLIGHT = "in_flight"
    MISSING = "missing"
    EXTRA = "extra"
    DIFFERING = "differing"
    UNKNOWN_CUSTOMER = "unknown_customer"
    CONFLICT = "conflict"
    REJECTED_BY_STRIPE = "rejected_by_stripe"
    UNBILLED = "unbilled"
    CONFIRMED = "confirmed"
    UNCHECKED = "unchecked"

    @property
    def is_drift(self) -> bool:
        """Whether two views have different counts. All views agree about conflicts and unknown customers. Rows in
        flight or unchecked prove nothing."""
        return self in _DRIFT

    @property
    def is_open(self) -> bool:
        """Whether this part of the comparison is still to be made."""
        return self in (Cause.IN_FLIGHT, Cause.UNCHECKED)


_DRIFT: Final = frozenset({Cause.MISSING, Cause.EXTRA, Cause.DIFFERING, Cause.REJECTED_BY_STRIPE, Cause.UNBILLED})


class Pair(StrEnum):
    """Two views that are compared. The first one has the expected values."""

    REDIS = "usage_events ↔ redis"
    HOURLY = "usage_events ↔ usage_hourly"
    MEASURED = "samples ↔ adjustments"
    INTENTS = "usage_events ↔ intents"
    STRIPE = "intents ↔ stripe"
    INVOICES = "intents ↔ invoices"
    CREDITS = "intents ↔ credits"
    MIRROR = "stripe ↔ mirror"
    ENTITLEMENTS = "mirror ↔ entitlements"
    FLAGS = "entitlements ↔ stripe"
    REVENUE = "mirror ↔ revenue"
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
    """`missing` if less than expected, or nothing, was found, else `extra`. For values that do not add up, the sign
    shows only which view has the larger value."""
    if found is None or expected is None:
        return Cause.MISSING if found is None else Cause.EXTRA
    return Cause.MISSING if found < expected else Cause.EXTRA
