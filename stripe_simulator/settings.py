"""Settings of the simulator."""

from __future__ import annotations

from dataclasses import dataclass

from stripe_simulator.engine.collection import SMART_RETRIES, RetryPolicy


@dataclass(frozen=True, slots=True)
class SimulatorSettings:
    """Settings of the simulator. `latency_s`, `hold_s` and `delivery_timeout_s` are real time, all others are of the
    simulator's clock.

    `summary_lag_s`: from receipt until summaries contain an event. `validation_delay_s`: from the end of a validation
    window until its errors are reported. `latency_s`: the execution time of a meter event, during which another event
    of the same customer and meter gets 409. `keys`: the valid API keys; None accepts every well-formed key.
    `rate_per_s`, `meter_event_rate_per_s`: requests per second and mode, 0 for no limit; with the second at 0, meter
    events count against the first, as in a sandbox. `check_responses`: a response that differs from the SDK's shapes
    becomes a 500 and is recorded. `retry_policy`: the account's retries of failed payments and what ends them.
    `invoice_grace_s`: how long the invoice of a cycle stays a draft.
    `delivery_timeout_s`: the real time in which an endpoint must answer.
    """

    account: str = "acct_simulator"
    summary_lag_s: float = 5.0
    validation_window_s: float = 10.0
    validation_delay_s: float = 5.0
    latency_s: float = 0.0
    hold_s: float = 120.0
    delivery_timeout_s: float = 10.0
    keys: frozenset[str] | None = None
    rate_per_s: int = 0
    meter_event_rate_per_s: int = 0
    check_responses: bool = False
    seed: int = 0
    retry_policy: RetryPolicy = SMART_RETRIES
    invoice_grace_s: int = 3_600

    @property
    def summary_lag_ms(self) -> int:
        """The summaries' lag in milliseconds."""
        return round(self.summary_lag_s * 1_000)
