"""Rules that need only one event: decoding, checks, quantities, periods, partitions.

Imports only the standard library. `oracle.model` counts.
"""

from __future__ import annotations

import calendar
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, Final, NamedTuple, NoReturn

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
RECORD_EVENTS_MAX: Final = 65_536
LEVELS_MAX: Final = 200
RECORD_LEVELS_MAX: Final = 500
QUANTITY_MINOR_MAX: Final = 10**18 - 1
DIMENSION_CHARACTERS_MAX: Final = 256
CONTROL_HEADER: Final = "tidemark-control"
POLICY_DEFAULTS: Final = {
    "window_ms": 72 * HOUR_MS,
    "future_ms": 5 * MINUTE_MS,
    "grace_ms": HOUR_MS,
    "event_bytes_max": 65_536,
    "late_max_ms": 35 * DAY_MS,
    "report_interval_ms": HOUR_MS,
}
FIELD_CHARACTERS_MAX: Final = {"id": 128, "source": 256, "type": 256, "subject": 256, "time": 40}
_REQUIRED_FIELDS: Final = {"specversion", "id", "source", "type", "subject"}

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_MS: Final = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)
_END_MS: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1) + 1
_TIME: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]+))?(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,17})?")
_NUMBER_TEXT_CHARACTERS_MAX: Final = 64
_COMPACT: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True, default=str)
_INTEGER_DIGITS_MAX: Final = 4_000
_MEASURED: Final = ("time_weighted", "duration", "peak")
_ADJUSTABLE: Final = ("count", "sum", *_MEASURED)


class RejectedError(Exception):
    """The event or the whole record is not counted, for the given `reason`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Event(NamedTuple):
    """An event with a valid envelope."""

    account: str
    id: str
    type: str
    source: str
    time_us: int
    data: dict[str, Any]


class Contribution(NamedTuple):
    """The contribution of an event to a meter: `minor` units, or the distinct `text` for unique meters.

    A sample adds nothing, but its meter wants the event.
    """

    meter: str
    aggregation: str
    quarantine: bool
    minor: int
    text: str
    dimensions: str
    is_sample: bool = False


def policy_of(meter_set: Mapping[str, Any], name: str) -> int:
    """A setting of the meter set's policy, or its default."""
    return int(meter_set.get("policy", {}).get(name, POLICY_DEFAULTS[name]))


def levels_of(meter_set: Mapping[str, Any]) -> list[str]:
    """The meters whose totals are levels, which stand beyond their period."""
    return [meter["slug"] for meter in meter_set["meters"] if meter.get("carry_over")]


def canonical(value: object) -> str:
    """Canonical JSON: compact, with sorted keys."""
    return _COMPACT.encode(value)


def decode(value: bytes) -> list[Any]:
    """The events of a record's value. Raises `RejectedError` if the whole record is rejected."""
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        raise RejectedError("bad_encoding") from None
    try:
        parsed = json.loads(text, parse_float=_fraction, parse_int=_integer, parse_constant=_constant)
    except RecursionError:
        raise RejectedError("too_deep") from None
    except ValueError:
        raise RejectedError("bad_json") from None
    if _levels(parsed) > RECORD_LEVELS_MAX:
        raise RejectedError("too_deep")
    if not isinstance(parsed, list):
        return [parsed]
    if len(parsed) > RECORD_EVENTS_MAX:
        raise RejectedError("too_many_events")
    return parsed


def _levels(value: object) -> int:
    """The depth of nested objects and lists."""
    deepest, layer = 0, [value]
    while layer := [node for node in layer if isinstance(node, dict | list)]:
        deepest += 1
        layer = [part for node in layer for part in (node.values() if isinstance(node, dict) else node)]
    return deepest


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _fraction(text: str) -> Decimal:
    """Parse a JSON number. An exponent that is too large for Decimal gives infinity."""
    try:
        return Decimal(text)
    except InvalidOperation:
        return Decimal("Infinity")


def _integer(text: str) -> int | Decimal:
    return int(text) if len(text) <= _INTEGER_DIGITS_MAX else _fraction(text)


def event_of(body: object, event_bytes_max: int, arrival_ms: int) -> Event:
    """Check the envelope. Raises `RejectedError` with the first reason in the order of precedence.

    The time of an event without a time is its arrival, the stream time of its record.
    """
    if not isinstance(body, dict):
        raise RejectedError("not_an_event")
    try:
        text = canonical(body)
        length = len(text.encode("utf-8"))
    except RecursionError:
        raise RejectedError("too_deep") from None
    except UnicodeEncodeError:
        raise RejectedError("bad_json") from None
    if length > event_bytes_max:
        raise RejectedError("too_large")
    # Levels cannot exceed brackets, so few events need the count of levels.
    if text.count("{") + text.count("[") > LEVELS_MAX and _levels(body) > LEVELS_MAX:
        raise RejectedError("too_deep")
    if not body.keys() >= _REQUIRED_FIELDS:
        raise RejectedError("missing_field")
    timeless = body.get("time") is None
    for field, characters_max in FIELD_CHARACTERS_MAX.items():
        if field == "time" and timeless:
            continue
        text = body[field]
        if not isinstance(text, str) or not 1 <= len(text) <= characters_max:
            raise RejectedError("bad_field")
    data = {} if body.get("data") is None else body["data"]
    if body["specversion"] != "1.0" or not isinstance(data, dict):
        raise RejectedError("bad_field")
    try:
        time_us = arrival_ms * 1000 if timeless else time_us_of(body["time"])
    except ValueError:
        raise RejectedError("bad_time") from None
    return Event(body["subject"], body["id"], body["type"], body["source"], time_us, data)


def time_us_of(text: str) -> int:
    """Microseconds of an RFC 3339 time with an offset. Cuts further digits. Raises ValueError."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"not an RFC 3339 time with an offset: {text!r}")
    date, clock, fraction, sign, hours, minutes = match.groups()
    whole_us = _second_us(date, clock, sign, hours, minutes)
    if not _FIRST_MS * 1000 <= whole_us < _END_MS * 1000:
        raise ValueError(f"outside the years 1 to 9999: {text!r}")
    return whole_us + int((fraction or "0")[:6].ljust(6, "0"))


@lru_cache(maxsize=10_000)
def _second_us(date: str, clock: str, sign: str | None, hours: str | None, minutes: str | None) -> int:
    local = datetime.fromisoformat(f"{date}T{clock}+00:00")
    if clock.endswith("60") or int(hours or 0) > 23 or int(minutes or 0) > 59:
        raise ValueError(f"out of range: {date} {clock} {sign}{hours}:{minutes}")
    offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0)) * (-1 if sign == "-" else 1)
    return ((local - _EPOCH) - offset) // timedelta(microseconds=1)


def require_home(account: str, partition: int, partitions: int) -> None:
    """Raise `RejectedError` if the partition is not the account's."""
    if partition_of(account, partitions) != partition:
        raise RejectedError("wrong_partition")


def require_in_time(event: Event, log_ms: int, future_ms: int, late_max_ms: int) -> None:
    """Raise `RejectedError` for times before 1970, before the late limit or after the future limit. A time exactly at
    a limit is accepted."""
    if event.time_us > (log_ms + future_ms) * 1000:
        raise RejectedError("too_far_in_future")
    if event.time_us < 0:
        raise RejectedError("too_far_in_past")
    if event.time_us < (log_ms - late_max_ms) * 1000:
        raise RejectedError("too_old")


def contributions(event: Event, meter_set: Mapping[str, Any]) -> list[Contribution]:
    """The contributions to all meters that want the event. Raises `RejectedError` if one of the meters rejects it. A
    meter with `on_bad: skip_meter` does not want an event that it would reject."""
    wanted = [
        meter
        for meter in meter_set["meters"]
        if meter["event_type"] == event.type and all(_passes(event.data, test) for test in meter.get("filters", ()))
    ]
    wanted += [
        _as_adjusted(meter)
        for meter in meter_set["meters"]
        if meter["aggregation"] in _ADJUSTABLE and event.type == f"tidemark.adjusted.{meter['slug']}"
    ]
    good: list[Contribution] = []
    bad: list[RejectedError] = []
    for meter in wanted:
        try:
            is_sample = meter["aggregation"] in _MEASURED
            good.append(_sample(event, meter) if is_sample else _contribution(event.data, meter))
        except RejectedError as rejected:
            if meter.get("on_bad", "reject_event") == "reject_event":
                bad.append(rejected)
    if len(bad) == 1 and not good:
        raise bad[0]
    if bad:
        raise RejectedError("bad_for_one_meter")
    return good


def _as_adjusted(meter: Mapping[str, Any]) -> Mapping[str, Any]:
    """How the meter reads the signed quantity that this system adds to it."""
    names = meter.get("dimensions", {})
    return {
        "slug": meter["slug"],
        "aggregation": "sum",
        "value_path": "$.quantity",
        "scale": meter.get("scale", 0),
        "allow_negative": True,
        "late": meter.get("late", "carry_forward"),
        "dimensions": {name: f"$.dimensions.{name}" for name in names},
    }


def _sample(event: Event, meter: Mapping[str, Any]) -> Contribution:
    _dimensions(event.data, meter)
    if meter.get("value_path"):
        present, value = _at(event.data, meter["value_path"])
        if not present:
            raise RejectedError("missing_quantity")
        _minor(value, meter.get("scale", 0), allow_negative=meter.get("allow_negative", False))
    if meter.get("start_path"):
        _require_span(event, meter["start_path"])
    if meter.get("session_path"):
        _distinct_text(event.data, meter["session_path"])
    if meter.get("series_path"):
        present, value = _at(event.data, meter["series_path"])
        _dimension_text(value if present else "")
    return Contribution(meter["slug"], "sum", False, 0, "", "", True)


def _require_span(event: Event, path: str) -> None:
    present, value = _at(event.data, path)
    if not present:
        raise RejectedError("missing_quantity")
    try:
        start_us = time_us_of(value) if isinstance(value, str) else -(10**18)
    except ValueError:
        raise RejectedError("bad_quantity") from None
    if start_us > event.time_us or event.time_us - start_us > 35 * DAY_MS * 1000:
        raise RejectedError("bad_quantity")


def _distinct_text(data: dict[str, Any], path: str) -> str:
    present, value = _at(data, path)
    if not present:
        raise RejectedError("missing_quantity")
    text = _text(value) or ""
    if not 1 <= len(text) <= DIMENSION_CHARACTERS_MAX:
        raise RejectedError("missing_quantity" if value == "" else "bad_quantity")
    return text


def _dimensions(data: dict[str, Any], meter: Mapping[str, Any]) -> dict[str, str]:
    names: dict[str, str] = {}
    for name, path in meter.get("dimensions", {}).items():
        present, value = _at(data, path)
        names[name] = _dimension_text(value) if present else ""
    return names


def _contribution(data: dict[str, Any], meter: Mapping[str, Any]) -> Contribution:
    names = _dimensions(data, meter)
    minor, text = 1, ""
    if meter["aggregation"] != "count":
        present, value = _at(data, meter["value_path"])
        if not present:
            raise RejectedError("missing_quantity")
        if meter["aggregation"] == "unique":
            text = _distinct_text(data, meter["value_path"])
        else:
            minor = _minor(value, meter.get("scale", 0), allow_negative=meter.get("allow_negative", False))
    quarantine = meter.get("late", "carry_forward") == "quarantine"
    return Contribution(meter["slug"], meter["aggregation"], quarantine, minor, text, _names_text(tuple(names.items())))


@lru_cache(maxsize=10_000)
def _names_text(items: tuple[tuple[str, str], ...]) -> str:
    return canonical(dict(items))


def _at(data: object, path: str) -> tuple[bool, object]:
    """(whether `path` has a value, the value). Null counts as no value."""
    for key in path.split(".")[1:]:
        if not isinstance(data, dict) or key not in data:
            return False, None
        data = data[key]
    return data is not None, data


def _text(value: object) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) else None


def _dimension_text(value: object) -> str:
    text = _text(value)
    if text is None or len(text) > DIMENSION_CHARACTERS_MAX:
        raise RejectedError("bad_dimension")
    return text


def _passes(data: object, test: Mapping[str, Any]) -> bool:
    """Whether the filter accepts the data. A missing value is the empty text; invalid dimensions equal no text."""
    present, value = _at(data, test["path"])
    text = _text(value) if present else ""
    among = text is not None and len(text) <= DIMENSION_CHARACTERS_MAX and text in test["values"]
    return among if test.get("operator", "eq") in ("eq", "in") else not among


def _minor(value: object, scale: int, *, allow_negative: bool) -> int:
    """Return value * 10^scale exactly. Works on the digits, so large exponents cost no memory."""
    if isinstance(value, str) and len(value) <= _NUMBER_TEXT_CHARACTERS_MAX and _NUMBER.fullmatch(value):
        value = _fraction(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = Decimal(value)
    if not isinstance(value, Decimal):
        raise RejectedError("bad_quantity")
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise RejectedError("quantity_too_large")
    digit_text = "".join(map(str, digits))
    significant = digit_text.rstrip("0")
    if not significant:
        return 0
    power = exponent + len(digit_text) - len(significant) + scale
    if power < 0:
        raise RejectedError("too_many_digits")
    if power > 18 or int(significant[:40]) * 10**power > QUANTITY_MINOR_MAX:
        raise RejectedError("quantity_too_large")
    if sign and not allow_negative:
        raise RejectedError("negative_quantity")
    return int(f"{'-' if sign else ''}{significant}{'0' * power}")


class Binding(NamedTuple):
    """The rule for an account's periods from an instant on. `ends_period`: a period ends at that instant even if the
    rule does not change, because another payer takes over."""

    effective_from_ms: int
    anchor_ms: int = 0
    interval: str = "month"
    interval_count: int = 1
    ends_period: bool = False

    @property
    def rule(self) -> tuple[int, str, int]:
        """Anchor, interval and count, which decide the boundaries of periods."""
        return self[1:4]


def binding_of(fields: Mapping[str, Any], earliest_ms: int = _FIRST_MS) -> Binding:
    """Read the JSON form of `schemas.periods.Binding`; the binding takes effect at `earliest_ms` or later."""
    cut = {name: fields[name] for name in ("anchor_ms", "interval", "interval_count") if name in fields}
    if "anchor_ms" in cut:
        cut["anchor_ms"] = cut["anchor_ms"] // MINUTE_MS * MINUTE_MS
    return Binding(max(int(fields["effective_from_ms"]), earliest_ms), **cut)


def period_containing(bindings: Sequence[Binding], instant_ms: int) -> tuple[int, int]:
    """The period that contains the instant, by bindings in ascending order of their effect."""
    start_ms, end_ms, rule = _FIRST_MS, _END_MS, Binding(_FIRST_MS)
    for binding in bindings:
        if binding.rule == rule.rule and not binding.ends_period:
            continue
        if binding.effective_from_ms > instant_ms:
            end_ms = binding.effective_from_ms
            break
        start_ms, rule = binding.effective_from_ms, binding
    number = _steps_about(rule, instant_ms)
    while _boundary(rule, number) > instant_ms:
        number -= 1
    while _boundary(rule, number + 1) <= instant_ms:
        number += 1
    return max(start_ms, _boundary(rule, number)), min(end_ms, _boundary(rule, number + 1))


def _steps_about(rule: Binding, instant_ms: int) -> int:
    """The approximate number of periods between the anchor and the instant."""
    if rule.interval in ("day", "week"):
        return (instant_ms - rule.anchor_ms) // (rule.interval_count * _days_ms(rule.interval))
    (year, month), (anchor_year, anchor_month) = _month(instant_ms // DAY_MS), _month(rule.anchor_ms // DAY_MS)
    return ((year - anchor_year) * 12 + month - anchor_month) // (rule.interval_count * _months(rule.interval))


def _days_ms(interval: str) -> int:
    return {"day": 1, "week": 7}[interval] * DAY_MS


def _months(interval: str) -> int:
    return {"month": 1, "year": 12}[interval]


@lru_cache(maxsize=10_000)
def _month(day: int) -> tuple[int, int]:
    moment = _moment(day * DAY_MS)
    return moment.year, moment.month


def _moment(instant_ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=instant_ms)


@lru_cache(maxsize=10_000)
def _boundary(rule: Binding, periods: int) -> int:
    """The instant `periods` periods after the anchor. Counts from the anchor itself: 31 Jan, 28 Feb, 31 Mar."""
    steps = periods * rule.interval_count
    if rule.interval in ("day", "week"):
        return min(max(rule.anchor_ms + steps * _days_ms(rule.interval), _FIRST_MS), _END_MS)
    anchor = _moment(rule.anchor_ms)
    year, month = divmod(anchor.year * 12 + anchor.month - 1 + steps * _months(rule.interval), 12)
    if not 1 <= year <= 9999:
        return _FIRST_MS if year < 1 else _END_MS
    day = min(anchor.day, calendar.monthrange(year, month + 1)[1])
    return (anchor.replace(year=year, month=month + 1, day=day) - _EPOCH) // timedelta(milliseconds=1)


@lru_cache(maxsize=10_000)
def partition_of(account: str, partitions: int) -> int:
    """The partition of an account, as Kafka's default partitioner: murmur2 of the UTF-8 bytes, without the sign."""
    return (murmur2(account.encode("utf-8")) & 0x7FFFFFFF) % partitions


def murmur2(data: bytes) -> int:
    """MurmurHash2, 32 bits, with Kafka's seed; unsigned."""
    multiplier, mask = 0x5BD1E995, 0xFFFFFFFF
    state = 0x9747B28C ^ len(data)
    whole = len(data) - len(data) % 4
    for start in range(0, whole, 4):
        word = int.from_bytes(data[start : start + 4], "little") * multiplier & mask
        word = (word ^ word >> 24) * multiplier & mask
        state = state * multiplier & mask ^ word
    if rest := data[whole:]:
        state = (state ^ int.from_bytes(rest, "little")) * multiplier & mask
    state = (state ^ state >> 13) * multiplier & mask
    return state ^ state >> 15
