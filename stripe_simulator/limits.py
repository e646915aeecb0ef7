"""Rate limits (docs.stripe.com/rate-limits): token buckets of one second, and locks of names."""

from __future__ import annotations

from typing import Final

from stripe_simulator.errors import conflict, rate_limited

METER_EVENTS: Final = "/billing/meter_events"
STREAM: Final = "/billing/meter_event_stream"


class Limits:
    """The limits of both modes. A rate of 0 is no limit."""

    def __init__(self, per_s: int, meter_events_per_s: int) -> None:
        self._per_s = per_s
        self._meter_events_per_s = meter_events_per_s
        self._buckets: dict[tuple[bool, str], tuple[int, int]] = {}
        self._locked: set[tuple[str, ...]] = set()

    def set(self, per_s: int, meter_events_per_s: int) -> None:
        """Change the rates; the buckets start full."""
        self._per_s, self._meter_events_per_s = per_s, meter_events_per_s
        self._buckets.clear()

    def check(self, livemode: bool, path: str, now_ms: int) -> None:
        """Count a request. Raises `ApiError` (429) if the request exceeds a rate."""
        is_separate = self._meter_events_per_s > 0 and path.endswith(METER_EVENTS)
        per_s = self._meter_events_per_s if is_separate else self._per_s
        if per_s <= 0 or path.endswith(STREAM):
            return
        reason = "endpoint-rate" if is_separate else "global-rate"
        # Thousandths of requests that may still come, and the time at which this was so.
        left, at_ms = self._buckets.get((livemode, reason), (per_s * 1_000, now_ms))
        left = min(per_s * 1_000, left + max(0, now_ms - at_ms) * per_s)
        if left < 1_000:
            raise rate_limited(reason)
        self._buckets[livemode, reason] = (left - 1_000, now_ms)

    def lock(self, name: tuple[str, ...]) -> None:
        """Lock a name until `unlock`. Raises `ApiError` (409) if another request has locked the name."""
        if name in self._locked:
            raise conflict()
        self._locked.add(name)

    def unlock(self, name: tuple[str, ...]) -> None:
        """Release a locked name."""
        self._locked.discard(name)
