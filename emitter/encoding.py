"""One usage event, its id, and its encoding as CloudEvents 1.0 JSON."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, NamedTuple

ID_CHARACTERS_MAX: Final = 128
NAME_CHARACTERS_MAX: Final = 256
TIME_CHARACTERS_MAX: Final = 40

# JSON texts have no line break, so a batch is split without a parser.
_BETWEEN: Final = b",\n"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Event(NamedTuple):
    """One usage event from the application. `time` is RFC 3339 text or integer nanoseconds since 1970."""

    id: str
    type: str
    account: str
    data: Mapping[str, Any]
    time: str | int


def uuid7(now_ns: Callable[[], int] = time.time_ns) -> str:
    """A UUID of version 7 (RFC 9562, 5.7): 48 bits of milliseconds, 74 random bits from the operating system.

    Ids of the same millisecond are not ordered. A process and its fork never draw the same random bits.
    """
    bits = (now_ns() // 1_000_000 & 0xFFFF_FFFF_FFFF) << 80 | int.from_bytes(os.urandom(10), "big")
    bits = bits & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62
    text = f"{bits:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def checked_time(instant: datetime | str) -> str:
    """The instant as RFC 3339 text. Raises `ValueError` for a `datetime` without a time zone."""
    if isinstance(instant, str):
        if not 0 < len(instant) <= TIME_CHARACTERS_MAX:
            raise ValueError("time must be RFC 3339 text such as 2026-11-21T10:00:00Z")
        return instant
    if instant.utcoffset() is None:
        raise ValueError("time has no time zone: pass datetime.now(UTC) or another aware datetime")
    return instant.isoformat().replace("+00:00", "Z")


def encoded(event: Event, source: str) -> bytes:
    """The event as CloudEvents JSON in UTF-8, without line breaks.

    A `Decimal` is written as a decimal string, which the gateway reads exactly. A float is written as its `repr`.
    Raises `ValueError` or `TypeError` if `data` cannot be JSON: NaN, infinities, lone surrogates, keys that are not
    text, values of other types, or an object that contains itself.
    """
    document = {
        "specversion": "1.0",
        "id": event.id,
        "source": source,
        "type": event.type,
        "subject": event.account,
        "time": event.time if isinstance(event.time, str) else _time_text(event.time),
        "data": event.data,
    }
    try:
        return _encode(document).encode()
    except RecursionError:
        raise ValueError("data is nested too deep") from None


def decoded(body: bytes) -> Event:
    """The event of a body that `encoded` made. Numbers with a fraction are `Decimal`."""
    document = json.loads(body, parse_float=Decimal)
    return Event(document["id"], document["type"], document["subject"], document["data"], document["time"])


def batch(events: Iterable[bytes]) -> bytes:
    """A JSON list of events that `encoded` made."""
    return b"[" + _BETWEEN.join(events) + b"]"


def bodies(events: bytes) -> list[bytes]:
    """The bytes of each event of a `batch`."""
    return events[1:-1].split(_BETWEEN)


def _time_text(instant_ns: int) -> str:
    # Readers of the log parse milliseconds with a Z fastest.
    instant = _EPOCH + timedelta(milliseconds=instant_ns // 1_000_000)
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: object) -> object:
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise ValueError(f"{value} is not a quantity")
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON: pass text, numbers, booleans, lists or dicts")


_encode: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode
