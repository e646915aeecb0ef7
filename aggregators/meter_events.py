"""From an intent to a meter event: its value, and an instant inside the usage's period that Stripe takes."""

from __future__ import annotations

from typing import Final

from schemas.clock import DAY_MS, MINUTE_MS, SECOND_MS
from schemas.reports import Attempt, Intent, MeterEvent

# docs.stripe.com/api/billing/meter-event/create: at most 35 calendar days back and 5 minutes ahead.
PAST_MAX_MS: Final = 35 * DAY_MS
FUTURE_MAX_MS: Final = 5 * MINUTE_MS
# A day of room for retries, so that an event which is about to become too old keeps its bytes meanwhile.
PAST_COMFORT_MS: Final = 34 * DAY_MS


def event_time_s(intent: Intent, period_end_ms: int, now_ms: int) -> int | None:
    """The Unix seconds to report an intent at, or None once no instant of its period is young enough for Stripe.
    `period_end_ms` is where its period ends by now, which a binding may have moved since the intent was made.

    The usage's own instant, which lies inside the period: usage reported in the invoice's grace counts only with a
    timestamp of the ended period. Where that is too old, the oldest instant of the period that Stripe still takes;
    the period, not the instant, decides the bill.
    """
    last_ms = max(period_end_ms - SECOND_MS, intent.period_start_ms)
    chosen_ms = min(max(intent.instant_ms, now_ms - PAST_COMFORT_MS), last_ms)
    if chosen_ms <= now_ms - PAST_MAX_MS + MINUTE_MS:
        return None
    return min(-(-chosen_ms // SECOND_MS), last_ms // SECOND_MS)


def too_early_ms(instant_ms: int, now_ms: int) -> int:
    """How many milliseconds to wait until the instant has come; 0 where it has.

    Stripe takes instants up to five minutes ahead, by its own clock: all of that is left to a clock of ours that is
    ahead of it, because an event that it refuses for its instant is refused for good.
    """
    return max(0, -(-instant_ms // SECOND_MS) * SECOND_MS - now_ms)


def deadline_ms(intent: Intent) -> int:
    """The instant after which Stripe takes nothing of this intent's period any more."""
    return intent.period_end_ms + PAST_MAX_MS


def meter_event(intent: Intent, attempt: Attempt) -> MeterEvent:
    """The event as its attempt recorded it, so that every repetition is the same to the byte."""
    return MeterEvent(
        identifier=intent.identifier,
        event_name=intent.event_name,
        stripe_customer=attempt.stripe_customer,
        value=attempt.value,
        timestamp_s=attempt.timestamp_s,
    )
