"""How fast the sender calls Stripe in each mode."""

from __future__ import annotations

import pytest

from pipeline.billing.concurrency import TokenBucket
from pipeline.billing.policy import policy_for
from schemas.reports import MeterEventsApi
from tests.worlds.clock import ManualClock
from tests.worlds.sender import NOW_MS

# docs.stripe.com/rate-limits
SANDBOX_MAX = 25
LIVE_MAX = 1_000
STREAM_MAX = 10_000
V1, STREAM = MeterEventsApi.V1, MeterEventsApi.STREAM


@pytest.mark.parametrize(
    ("livemode", "api", "setting", "rate_per_s", "calls_at_once"),
    [
        pytest.param(False, V1, None, 20, 16, id="sandbox"),
        pytest.param(True, V1, None, 800, 160, id="live"),
        pytest.param(True, STREAM, None, 8_000, 1_600, id="stream"),
        pytest.param(True, V1, 50.0, 50, 16, id="lowered"),
        pytest.param(False, V1, 200.0, 200, 40, id="raised"),
    ],
)
async def test_rate_follows_the_mode_of_the_key_the_api_and_the_setting(
    livemode: bool, api: MeterEventsApi, setting: float | None, rate_per_s: int, calls_at_once: int
) -> None:
    """At 20/s, the reports of 60 000 queues took 50 minutes of each hour, which is Stripe's grace at a month's end."""
    policy = policy_for(livemode=livemode, rate_per_s=setting, api=api)
    limit = STREAM_MAX if api is STREAM else LIVE_MAX if livemode else SANDBOX_MAX
    clock = ManualClock(NOW_MS)
    bucket = TokenBucket(clock, policy.rate_per_s)

    for _ in range(10 * rate_per_s):
        await bucket.take()

    assert policy.queues_max == calls_at_once
    assert 9_000 <= clock.ms - NOW_MS <= 10_000
    assert setting is not None or policy.rate_per_s <= 0.8 * limit
