"""The limits of the sender, and the values that it shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from pipeline.billing.window import WINDOW_MAX
from schemas.clock import HOUR_MS, MINUTE_MS
from schemas.reports import MeterEventsApi

# Stripe remembers an identifier for at least 24 h; an hour less leaves room for clocks and slow calls.
RESEND_WINDOW_MS: Final = 23 * HOUR_MS
# docs.stripe.com/rate-limits: 25 calls a second for all of a sandbox, 1 000 meter events a second in live mode, and
# 10 000 in the stream. The rest is for other programs with the same account.
SANDBOX_RATE_PER_S: Final = 20.0
LIVE_RATE_PER_S: Final = 800.0
STREAM_RATE_PER_S: Final = 8_000.0
# Calls that run at once at a rate, if each takes a fifth of a second.
CALLS_AT_ONCE_MIN: Final = 16
CALL_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class SenderPolicy:
    """Limits of the sender.

    `rate_per_s`: meter events per second. `queues_max`: concurrent calls. `round_s`: how
    long one step or idle call may send. `settle_ms`: how long Stripe's summaries may lack a send; Stripe publishes no
    bound. `hold_retry_ms`: the wait after a refusal; for a customer it doubles up to `hold_retry_max_ms`.
    `look_retry_ms`: the wait after a lookup that did not decide. `look_again_ms`: the wait between the two lookups that
    must both find that Stripe does not have an event. `breaker_customers`: if Stripe refuses events of so many
    customers of a meter in a row for one cause, the meter's events wait. `window_max`: pending intents of a partition
    in memory. `count_interval_ms`: how often pending intents are counted for the gauges.
    """

    rate_per_s: float = SANDBOX_RATE_PER_S
    queues_max: int = CALLS_AT_ONCE_MIN
    round_s: float = 5.0
    backoff_min_s: float = 0.5
    backoff_max_s: float = 120.0
    resend_window_ms: int = RESEND_WINDOW_MS
    settle_ms: int = 3 * HOUR_MS
    hold_retry_ms: int = MINUTE_MS
    hold_retry_max_ms: int = 30 * MINUTE_MS
    look_retry_ms: int = 15 * MINUTE_MS
    look_again_ms: int = 3 * HOUR_MS
    breaker_customers: int = 5
    window_max: int = WINDOW_MAX
    count_interval_ms: int = MINUTE_MS


DEFAULT_POLICY: Final = SenderPolicy()


def policy_for(*, livemode: bool, rate_per_s: float | None, api: MeterEventsApi) -> SenderPolicy:
    """The policy for a key's mode and an API. `rate_per_s` replaces their rate."""
    usual = STREAM_RATE_PER_S if api is MeterEventsApi.STREAM else LIVE_RATE_PER_S if livemode else SANDBOX_RATE_PER_S
    rate = rate_per_s or usual
    return SenderPolicy(rate_per_s=rate, queues_max=max(CALLS_AT_ONCE_MIN, round(rate * CALL_S)))


class SenderStatus(NamedTuple):
    """Values of the gauges and counters. `counts` are counted since the process started, by name.

    `held_deadline_ms` is when Stripe will refuse the first held intent for its age; None without held intents. Intents
    whose period has not begun do not count.
    """

    pending: int
    held: dict[str, int]
    held_deadline_ms: int | None
    open_breakers: int
    caught_up: bool
    counts: dict[str, int]
