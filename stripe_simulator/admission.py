"""What stands before the execution of a request: API keys, rate limits, and stored answers.

Sources: docs.stripe.com/api/authentication, docs.stripe.com/rate-limits, docs.stripe.com/api/idempotent_requests.
"""

from __future__ import annotations

import base64
import re
from typing import Any, Final

from stripe_simulator.errors import ApiError, rate_limited, unauthorized
from stripe_simulator.mode import Mode
from stripe_simulator.store import Object

ANSWER: Final = "simulator.answer"
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
    """The rate limits of both modes, as token buckets of one second. A rate of 0 is no limit."""

    def __init__(self, per_s: int, meter_events_per_s: int) -> None:
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


def stored_answer(mode: Mode, key: str, asked: list[Any]) -> Object | None:
    """The answer that `store_answer` has stored under this Idempotency-Key for the same request, or None.

    `asked` is the method, the path and the raw parameters. Raises `ApiError` for a key that is too long, in use, or
    used with another request.
    """
    kind = "idempotency_error"
    if len(key) > KEY_CHARACTERS_MAX:
        raise ApiError(400, f"The Idempotency-Key is longer than {KEY_CHARACTERS_MAX} characters.", kind=kind)
    if key in mode.running:
        message = f"There is currently another in-progress request using this Idempotent Key: {key}"
        raise ApiError(409, message, kind=kind, code="idempotency_key_in_use")
    stored = mode.store.get(ANSWER, f"answer/{key}")
    if stored is None or stored["at_ms"] <= mode.now_ms() - WINDOW_MS[stored["asked"][1][1:3]]:
        return None
    if stored["asked"] != asked:
        message = "Keys for idempotent requests can only be used with the same parameters they were first used with"
        advice = f"Try using a key other than '{key}' if you meant to execute a different request."
        raise ApiError(400, f"{message}. {advice}", kind=kind)
    return stored


def store_answer(mode: Mode, key: str, asked: list[Any], status: int, body: Any, request_id: str) -> None:
    """Store the answer of an executed request, in the transaction of its changes if there is one."""
    answer = {"status": status, "body": body, "request": request_id, "at_ms": mode.now_ms()}
    mode.store.put({"id": f"answer/{key}", "object": ANSWER, "asked": asked, **answer})
