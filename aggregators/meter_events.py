"""Makes the meter event of an intent: its bytes, and a timestamp in the usage's period that Stripe accepts."""

from __future__ import annotations

from typing import Final

from schemas.clock import DAY_MS, MINUTE_MS, SECOND_MS
from schemas.reports import Attempt, Intent, MeterEvent

# docs.stripe.com/api/billing/meter-event/create: at most 35 calendar days back and 5 minutes ahead.
PAST_MAX_MS: Final = 35 * DAY_MS
FUTURE_MAX_MS: Final = 5 * MINUTE_MS
# Leaves a day for retries with unchanged bytes before an event becomes too old.
PAST_COMFORT_MS: Final = 34 * DAY_MS


def event_time_s(intent: Intent, period_end_ms: int, now_ms: int) -> int | None:
    """The timestamp of an intent's event in Unix seconds, or None if Stripe would refuse every instant of its period.

    `period_end_ms` is the end of the period as known now; a binding may have moved the end since the intent was made.
    The timestamp is the instant of the usage, because Stripe counts usage that is reported in the invoice's grace only
    with a timestamp of the ended period. If that instant is too old, the timestamp is the oldest instant of the period
    that Stripe accepts: the period decides the bill, not the instant.
    """
    last_ms = max(period_end_ms - SECOND_MS, intent.period_start_ms)
    chosen_ms = min(max(intent.instant_ms, now_ms - PAST_COMFORT_MS), last_ms)
    if chosen_ms <= now_ms - PAST_MAX_MS + MINUTE_MS:
        return None
    return min(-(-chosen_ms // SECOND_MS), last_ms // SECOND_MS)


def too_early_ms(instant_ms: int, now_ms: int) -> int:
    """How many milliseconds to wait until the instant; 0 if it has passed.

    Stripe accepts instants up to five minutes ahead of its clock and refuses later ones for good. The five minutes are
    left as room for a local clock that is ahead.
    """
    return max(0, -(-instant_ms // SECOND_MS) * SECOND_MS - now_ms)


def deadline_ms(intent: Intent) -> int:
    """The instant after which Stripe accepts no event of this intent's period."""
    return intent.period_end_ms + PAST_MAX_MS


def meter_event(intent: Intent, attempt: Attempt) -> MeterEvent:
    """The event with the values that its attempt recorded: every repetition has the same bytes."""
    return MeterEvent(
        identifier=intent.identifier,
        event_name=intent.event_name,
        stripe_customer=attempt.stripe_customer,
        value=attempt.value,
        timestamp_s=attempt.timestamp_s,
    )
