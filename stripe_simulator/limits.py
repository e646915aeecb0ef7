"""Rate limits (docs.stripe.com/rate-limits): token buckets of one second, and locks of names."""

from __future__ import annotations

from typing import Final

from stripe_simulator.errors import conflict, rate_limited

METER_EVENTS: Final = "/billing/meter_events"


class _Bucket:
    def __init__(self, per_s: int, now_ms: int) -> None:
        self.per_s = per_s
        self._thousandths = per_s * 1_000
        self._at_ms = now_ms

    def take(self, now_ms: int) -> bool:
        """Take one token, if there is one."""
        elapsed_ms = max(0, now_ms - self._at_ms)
        self._thousandths = min(self.per_s * 1_000, self._thousandths + elapsed_ms * self.per_s)
        self._at_ms = now_ms
        if self._thousandths < 1_000:
            return False
        self._thousandths -= 1_000
        return True


class Limits:
    """The limits of both modes. A rate of 0 is no limit."""

    def __init__(self, per_s: int, meter_events_per_s: int) -> None:
        self._per_s = per_s
        self._meter_events_per_s = meter_events_per_s
        self._buckets: dict[tuple[bool, str], _Bucket] = {}
        self._locked: set[tuple[str, ...]] = set()

    def set(self, per_s: int, meter_events_per_s: int) -> None:
        """Change the rates; the buckets start full."""
        self._per_s, self._meter_events_per_s = per_s, meter_events_per_s
        self._buckets.clear()

    def check(self, livemode: bool, path: str, now_ms: int) -> None:
        """Count a request. Raises `ApiError` (429) if the request exceeds a rate."""
        is_separate = self._meter_events_per_s > 0 and path.endswith(METER_EVENTS)
        per_s = self._meter_events_per_s if is_separate else self._per_s
        if per_s <= 0:
            return
        reason = "endpoint-rate" if is_separate else "global-rate"
        bucket = self._buckets.get((livemode, reason))
        if bucket is None:
            bucket = self._buckets[livemode, reason] = _Bucket(per_s, now_ms)
        if not bucket.take(now_ms):
            raise rate_limited(reason)

    def lock(self, name: tuple[str, ...]) -> None:
        """Lock a name until `unlock`. Raises `ApiError` (409) if another request has locked the name."""
        if name in self._locked:
            raise conflict()
        self._locked.add(name)

    def unlock(self, name: tuple[str, ...]) -> None:
        """Release a locked name."""
        self._locked.discard(name)
