"""Times of API v2: RFC 3339 in UTC. API v1 has Unix seconds."""

from __future__ import annotations

from datetime import UTC, datetime

from stripe_simulator.errors import ApiError


def rfc3339(instant_ms: int) -> str:
    """An instant as Stripe's v2 API writes it: UTC, milliseconds, `Z`."""
    moment = datetime.fromtimestamp(instant_ms // 1_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{instant_ms % 1_000:03d}Z"


def milliseconds_of(text: str, param: str) -> int:
    """The instant of an RFC 3339 text. Raises `ApiError` (400) if it is malformed or has no offset."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ApiError(400, f"{param} is not an RFC 3339 time: {text}", param=param) from None
    if moment.tzinfo is None:
        raise ApiError(400, f"{param} has no offset: {text}", param=param)
    return round(moment.timestamp() * 1_000)


def seconds_of(text: str, param: str) -> int:
    """The same in whole seconds, rounded down."""
    return milliseconds_of(text, param) // 1_000
