"""What stands before the execution of a request: API keys, rate limits, names in execution, and stored answers.

Sources: docs.stripe.com/api/authentication, docs.stripe.com/rate-limits, docs.stripe.com/api/idempotent_requests.
"""

from __future__ import annotations

import base64
import re
from typing import Any, Final, NamedTuple

from stripe_simulator.errors import ApiError, conflict, rate_limited, unauthorized
from stripe_simulator.journal import Journal

METER_EVENTS: Final = "/billing/meter_events"
STREAM: Final = "/billing/meter_event_stream"
KEY_CHARACTERS_MAX: Final = 255
DAY_MS: Final = 24 * 3_600_000
# How long an answer is stored. API v2 keeps its answers longer.
WINDOW_MS: Final = {"v1": DAY_MS, "v2": 30 * DAY_MS}
_KEY: Final = re.compile(r"^(sk|rk)_(test|live)_[A-Za-z0-9_]{1,200}$")


def livemode_of(authorization: str) -> bool:
    """The mode of the key in an `Authorization` header, as a bearer token or a basic user name. Every well-formed key
    is valid. Raises `ApiError` (401)."""
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() == "basic":
        try:
            key = base64.b64decode(key, validate=True).decode("ascii").partition(":")[0]
        except ValueError:
            key = ""
    if not key or scheme.lower() not in ("basic", "bearer"):
        raise unauthorized("You did not provide an API key.")
    match = _KEY.match(key)
    if match is None:
        raise unauthorized(f"Invalid API Key provided: {key[:8]}****")
    return match[2] == "live"


class Limits:
    """The rate limits of both modes, as token buckets of one second, and the locked names. A rate of 0 is no limit."""

    def __init__(self, per_s: int, meter_events_per_s: int) -> None:
        self._locked: set[tuple[str, ...]] = set()
        self.set(per_s, meter_events_per_s)

    def set(self, per_s: int, meter_events_per_s: int) -> None:
        """Change the rates; the buckets start full."""
        self._per_s, self._meter_events_per_s = per_s, meter_events_per_s
        self._buckets: dict[tuple[bool, str], tuple[int, int]] = {}

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
        """Lock a name until `unlock`; `()` is never locked. Raises `ApiError` (409) if the name is locked."""
        if name in self._locked:
            raise conflict()
        if name:
            self._locked.add(name)

    def unlock(self, name: tuple[str, ...]) -> None:
        """Release a name."""
        self._locked.discard(name)


class StoredAnswer(NamedTuple):
    """The answer to the first request with an Idempotency-Key, and what the request asked."""

    request: list[Any]
    status: int
    body: Any
    request_id: str
    stored_ms: int


class Idempotency:
    """The stored answers of both modes and the Idempotency-Keys of requests in execution."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._answers: dict[tuple[bool, str], StoredAnswer] = {}
        self._running: set[tuple[bool, str]] = set()
        journal.register("answer", self._apply)

    def replay(self, livemode: bool, key: str, request: list[Any], now_ms: int) -> StoredAnswer | None:
        """The stored answer to the same request, or None.

        `request` is the method, the path and the raw parameters. Raises `ApiError` for a key that is too long, in use,
        or used with another request.
        """
        kind = "idempotency_error"
        if len(key) > KEY_CHARACTERS_MAX:
            raise ApiError(400, f"The Idempotency-Key is longer than {KEY_CHARACTERS_MAX} characters.", kind=kind)
        if (livemode, key) in self._running:
            message = f"There is currently another in-progress request using this Idempotent Key: {key}"
            raise ApiError(409, message, kind=kind, code="idempotency_key_in_use")
        stored = self._answers.get((livemode, key))
        if stored is None or stored.stored_ms <= now_ms - WINDOW_MS[str(stored.request[1])[1:3]]:
            return None
        if stored.request != request:
            message = "Keys for idempotent requests can only be used with the same parameters they were first used with"
            advice = f"Try using a key other than '{key}' if you meant to execute a different request."
            raise ApiError(400, f"{message}. {advice}", kind=kind)
        return stored

    def begin(self, livemode: bool, key: str) -> None:
        """Mark a key as in use until `end`."""
        self._running.add((livemode, key))

    def end(self, livemode: bool, key: str) -> None:
        """The request with this key has ended."""
        self._running.discard((livemode, key))

    def store(self, livemode: bool, key: str, answer: StoredAnswer) -> None:
        """Store the answer of an executed request, in the transaction of its changes if there is one."""
        with self._journal.transaction():
            self._journal.change("answer", livemode, key, *answer)

    def _apply(self, livemode: bool, key: str, *answer: Any) -> None:
        self._answers[livemode, key] = StoredAnswer(*answer)
