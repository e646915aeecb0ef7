"""Settings of the simulator."""

from __future__ import annotations

from dataclasses import dataclass

from stripe_simulator.engine.collection import SMART_RETRIES, RetryPolicy


@dataclass(frozen=True, slots=True)
class SimulatorSettings:
    """Settings of the simulator. `latency_s`, `hold_s` and `delivery_timeout_s` are real time, all others are of the
    simulator's clock.

    `pages_url`: where a browser finds the hosted pages. `summary_lag_s`: from receipt until summaries contain an event.
    `validation_delay_s`: from the end of a validation window until its errors are reported. `latency_s`: the execution
    time of a meter event, during which another event of the same customer and meter gets 409. `hold_s`: how long an
    answer is missing before its connection is cut. `delivery_timeout_s`: the time in which an endpoint must answer.
    `rate_per_s`, `meter_event_rate_per_s`: requests per second and mode, 0 for no limit; with the second at 0, meter
    events count against the first, as in a sandbox. `seed` decides ids and the order of equal jobs. `retry_policy`: the
    account's retries of failed payments and what ends them. `invoice_grace_s`: how long the invoice of a cycle stays a
    draft.
    """

    account: str = "acct_simulator"
    pages_url: str = "http://127.0.0.1:8420"
    summary_lag_s: float = 5.0
    validation_window_s: float = 10.0
    validation_delay_s: float = 5.0
    latency_s: float = 0.0
    hold_s: float = 120.0
    delivery_timeout_s: float = 10.0
    rate_per_s: int = 0
    meter_event_rate_per_s: int = 0
    seed: int = 0
    retry_policy: RetryPolicy = SMART_RETRIES
    invoice_grace_s: int = 3_600
