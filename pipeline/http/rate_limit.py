"""Limits how many events a second each API key may send to one gateway process."""

from __future__ import annotations

from typing import Final

from pipeline.http.api_keys import ApiKey
from pipeline.http.errors import ApiError, retry_after
from schemas.clock import SECOND_MS, Clock
from schemas.keys import KEYS_MAX

# A key that was silent may send so much at once: the events of this span.
BURST_MS: Final = 10 * SECOND_MS


class RateLimit:
    """A token bucket for each key with a limit, in memory. A bucket is forgotten when it is full again, and there are
    at most as many as keys."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # When the bucket of a key will be full again.
        self._full_at_ms: dict[str, float] = {}
        self._last_ms = 0

    def check(self, key: ApiKey) -> None:
        """Raises `ApiError` 429 while the bucket of the key is empty. Takes nothing."""
        now_ms = self._now_ms()
        wait_ms = self._missing_ms(key, now_ms) - BURST_MS
        if wait_ms > 0:
            message = f"key {key.id} may send {key.events_per_s} events a second: send the request again later"
            raise ApiError(429, "too_fast", message, headers=retry_after(wait_ms / SECOND_MS))

    def take(self, key: ApiKey, events: int) -> None:
        """Take events from the bucket of the key, which may then lack some: a request is never cut in two.

        Raises as `check`: of requests whose bodies were read at the same time, the first one may have emptied the
        bucket.
        """
        if key.events_per_s is None:
            return
        self.check(key)
        now_ms = self._last_ms
        missing_ms = self._missing_ms(key, now_ms) + events * SECOND_MS / key.events_per_s
        self._full_at_ms[key.id] = now_ms + missing_ms
        if len(self._full_at_ms) > KEYS_MAX:
            self._full_at_ms = {id_: at_ms for id_, at_ms in self._full_at_ms.items() if at_ms > now_ms}

    def _now_ms(self) -> int:
        """The time. A clock that is set back takes the buckets with it: nobody waits for as long as the step."""
        now_ms = self._clock.now_ms()
        back_ms = self._last_ms - now_ms
        if back_ms > 0:
            self._full_at_ms = {id_: at_ms - back_ms for id_, at_ms in self._full_at_ms.items()}
        self._last_ms = now_ms
        return now_ms

    def _missing_ms(self, key: ApiKey, now_ms: int) -> float:
        """The time in which the bucket fills."""
        if key.events_per_s is None:
            return 0.0
        return max(self._full_at_ms.get(key.id, 0.0) - now_ms, 0.0)
