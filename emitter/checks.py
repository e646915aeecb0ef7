"""Checks of the gateway that the double of the emitter makes too. The gateway makes more, and its word counts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

# The default policy of a meter set.
FUTURE_NS: Final = 5 * 60 * 1_000_000_000
LATE_NS: Final = 35 * 86_400 * 1_000_000_000
EVENT_BYTES_MAX: Final = 65_536
LEVELS_MAX: Final = 200

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# The offset may move a time out of the years 1 to 9999.
_FIRST_DAY: Final = (datetime.min.replace(tzinfo=UTC) - _EPOCH).days
_LAST_DAY: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH).days
_HOUR_MINUTE: Final = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_SHAPE: Final = re.compile(
    rf"([0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}})[Tt]({_HOUR_MINUTE}:[0-5][0-9])(\.[0-9]+)?([Zz]|[+-]{_HOUR_MINUTE})"
)

# Of the events that Tidemark writes itself.
_ADJUSTMENT_ID: Final = re.compile(r"m:[a-z][a-z0-9_]*:[0-9a-f]{16}:[0-9]+:.+|c:[0-9a-f]{24}:[a-z][a-z0-9_]*:.+")


def problem(event: Mapping[str, Any], size: int, now_ns: int) -> tuple[str, str] | None:
    """The reason and the detail with which a gateway with the default policy rejects the event; None if it does not.

    `size` are the bytes of the event's JSON. The emitter has checked the lengths of the names before.
    """
    if size > EVENT_BYTES_MAX:
        return "too_large", f"{size} bytes, at most {EVENT_BYTES_MAX}"
    if _levels(event) > LEVELS_MAX:
        return "too_deep", f"nested more than {LEVELS_MAX} levels deep"
    if event["type"].startswith("tidemark."):
        return "reserved_type", "type: only Tidemark may send it"
    if _ADJUSTMENT_ID.fullmatch(event["id"]):
        return "reserved_type", "id: only Tidemark's adjustments have ids of this form"
    instant_ns = _instant_ns(event["time"])
    if instant_ns is None:
        return "bad_time", f"time: {event['time']!r} is no RFC 3339 time with an offset"
    if instant_ns < 0:
        return "too_far_in_past", f"time: {event['time']} is before 1970"
    if instant_ns < now_ns - LATE_NS:
        return "too_old", f"time: {event['time']} is more than 35 days ago"
    if instant_ns > now_ns + FUTURE_NS:
        return "too_far_in_future", f"time: {event['time']} is more than 5 minutes ahead"
    return None


def _instant_ns(text: str) -> int | None:
    shape = _SHAPE.fullmatch(text)
    if shape is None:
        return None
    day, clock, fraction, offset = shape.groups()
    try:
        since = datetime.fromisoformat(f"{day}T{clock}{offset.upper()}") - _EPOCH
    except (ValueError, OverflowError):
        return None
    if not _FIRST_DAY <= since.days <= _LAST_DAY:
        return None
    microseconds = int((fraction or ".")[1:].ljust(6, "0")[:6])
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + microseconds * 1_000


def _levels(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_levels, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_levels, value), default=0)
    return 0


def wanting(event: Mapping[str, Any], meters: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The meters that count the event, or reject it: of its type, with filters that its data passes. `meters` are those
    of `GET /v1/meters`."""
    data = event["data"]
    wanted = (meter for meter in meters if meter["event_type"] == event["type"] and _passes(data, meter["filters"]))
    return [meter for meter in wanted if meter["on_bad"] == "reject_event" or _missing(data, meter) is None]


def missing_value(event: Mapping[str, Any], wanted: list[Mapping[str, Any]]) -> tuple[str, str] | None:
    """The reason and the detail if one of the `wanting` meters finds no value in the data."""
    for meter in wanted:
        if (path := _missing(event["data"], meter)) is not None:
            reason, detail = "missing_quantity", f"{meter['slug']}: {path}"
            return (reason, detail) if len(wanted) == 1 else ("bad_for_one_meter", f"{reason}: {detail}")
    return None


def _missing(data: object, meter: Mapping[str, Any]) -> str | None:
    """The first path of the meter at which the data has nothing."""
    for name, nothing in (("value_path", (None,)), ("start_path", (None,)), ("session_path", (None, ""))):
        # A gateway of an earlier version does not name all of them.
        path = meter.get(name)
        if path is not None and _value(data, path) in nothing:
            return str(path)
    return None


def _passes(data: object, filters: Iterable[Mapping[str, Any]]) -> bool:
    return all(
        (_text(_value(data, condition["path"])) in condition["values"]) is (condition["operator"] in ("eq", "in"))
        for condition in filters
    )


def _value(data: object, path: str) -> object:
    for name in path.split(".")[1:]:
        data = data.get(name) if isinstance(data, dict) else None
    return data


def _text(value: object) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value) if isinstance(value, str | int) else None
