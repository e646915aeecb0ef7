"""The limits of the sender, and the values that it shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from pipeline.billing.ledger import PENDING_MAX
from schemas.clock import HOUR_MS, MINUTE_MS

# Stripe remembers an identifier for at least 24 h; an hour less leaves room for clocks and slow calls.
RESEND_WINDOW_MS: Final = 23 * HOUR_MS


@dataclass(frozen=True, slots=True)
class SenderPolicy:
    """Limits of the sender.

    `rate_per_s`: Stripe allows 25/s for a sandbox and 1 000/s live. `queues_max`: concurrent calls. `round_s`: how
    long one step or idle call may send. `settle_ms`: how long Stripe's summaries may lack a send; Stripe publishes no
    bound. `hold_retry_ms`: the wait after a refusal; for a customer it doubles up to `hold_retry_max_ms`.
    `look_retry_ms`: the wait after a lookup that did not decide. `look_again_ms`: the wait between the two lookups that
    must both find that Stripe does not have an event. `breaker_customers`: if Stripe refuses events of so many
    customers of a meter in a row for one cause, the meter's events wait.
    """

    rate_per_s: float = 20.0
    queues_max: int = 16
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
    pending_max: int = PENDING_MAX


DEFAULT_POLICY: Final = SenderPolicy()


class SenderStatus(NamedTuple):
    """Values of the gauges and counters. `counts` are counted since the process started, by name.

    `held_deadline_ms` is when Stripe will refuse the first held intent for its age; None without held intents. Intents
    whose period has not begun do not count.
    """

    pending: int
    settled: int
    held: dict[str, int]
    held_deadline_ms: int | None
    open_breakers: int
    low_watermarks: dict[int, int]
    caught_up: bool
    counts: dict[str, int]
