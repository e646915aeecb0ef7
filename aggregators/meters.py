"""Compiles a meter set for the hot path: to which meters an event contributes, and with what quantities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec

from aggregators.instants import parse_instant_us
from aggregators.quantities import POWERS, minor_of, text_of
from schemas.adjustments import adjusted_type, adjusting
from schemas.clock import SECOND_US
from schemas.meters import SPAN_S_MAX, FilterOperator, LatePolicy, Meter, MeterSet, OnBad, path_keys
from schemas.reasons import Reason

NO_DIMENSIONS: Final = "{}"

_DEFINITION: Final = (
    "event_type", "aggregation", "value_path", "dimensions", "filters", "scale", "late", "carry_over", "series_path",
    "stands_s_max", "start_path", "session_path", "session_gap_s_max", "per",
)  # fmt: skip

_dimension_json: Final = msgspec.json.Encoder(order="sorted").encode


def dimensions_text(values: Mapping[str, str]) -> str:
    """The dimensions of a contribution as a text: JSON with the names in order."""
    return _dimension_json(values).decode()


class Contribution(msgspec.Struct, frozen=True, gc=False):
    """What an event adds to one meter: a quantity in minor units, or a distinct text, with its dimensions.

    A sample adds nothing, and needs no open period: the measured meter wants the event, and so the event is counted.
    Its `dimensions` are the empty text.
    """

    meter: Meter
    minor: int
    text: str
    dimensions: str

    @property
    def is_sample(self) -> bool:
        """Whether the event is a sample of the meter."""
        return not self.dimensions


class Sample(NamedTuple):
    """What a measured meter takes from an event of the application.

    `minor` is the level or the weight in minor units; `group` the text of the series or session, "" where the meter
    has none; `start_us` the start of the span, if the meter has a `start_path`.
    """

    minor: int
    dimensions: str
    group: str
    start_us: int | None = None


class Failure(NamedTuple):
    """Why an event cannot contribute to one of its meters."""

    reason: Reason
    detail: str


# Both take the event's data and its time in microseconds.
_Reader = Callable[[dict[str, Any], int], Contribution | Failure | None]
_SampleReader = Callable[[dict[str, Any], int], Sample | Failure | None]


class CompiledMeterSet(NamedTuple):
    """A meter set and its compiled meters by event type. `tolerant` are the meters that skip events which they cannot
    use (`on_bad`), by slug; their readers in `by_type` do not want such events."""

    meter_set: MeterSet
    by_type: dict[str, tuple[_Reader, ...]]
    tolerant: dict[str, tuple[tuple[str, _Reader], ...]]

    def contributions(self, event_type: str, data: dict[str, Any], time_us: int) -> tuple[Contribution, ...] | Failure:
        """The event's contributions to all meters that want it, or why one fails; empty if no meter wants the event."""
        readers = self.by_type.get(event_type)
        if readers is None:
            return ()
        if len(readers) == 1:
            only = readers[0](data, time_us)
            if only is None:
                return ()
            return only if isinstance(only, Failure) else (only,)
        wanted = [answer for reader in readers if (answer := reader(data, time_us)) is not None]
        good = tuple(answer for answer in wanted if isinstance(answer, Contribution))
        if len(good) == len(wanted):
            return good
        failure = next(answer for answer in wanted if isinstance(answer, Failure))
        if len(wanted) > 1:
            return Failure(Reason.BAD_FOR_ONE_METER, f"{failure.reason}: {failure.detail}")
        return failure

    def skips(self, event_type: str, data: dict[str, Any], time_us: int) -> list[tuple[str, Failure]]:
        """The meters that skip the event because of its data, by slug, and why. Call this for valid events only."""
        readers = self.tolerant.get(event_type, ())
        return [(slug, answer) for slug, reader in readers if isinstance(answer := reader(data, time_us), Failure)]


@lru_cache(maxsize=64)
def compiled(meter_set: MeterSet) -> CompiledMeterSet:
    """Compile a meter set; cached."""
    by_type: dict[str, list[_Reader]] = {}
    tolerant: dict[str, list[tuple[str, _Reader]]] = {}
    for meter in meter_set.meters:
        reader = _reader(meter)
        if meter.on_bad is OnBad.SKIP_METER:
            tolerant.setdefault(meter.event_type, []).append((meter.slug, reader))
            reader = _tolerant(reader)
        by_type.setdefault(meter.event_type, []).append(reader)
        as_adjusted = adjusting(meter)
        if as_adjusted is not None:
            by_type[as_adjusted.event_type] = [_reading(as_adjusted, meter)]
    return CompiledMeterSet(
        meter_set,
        {name: tuple(readers) for name, readers in by_type.items()},
        {name: tuple(readers) for name, readers in tolerant.items()},
    )


def slow_types(meter_set: MeterSet) -> list[str]:
    """The event types that no maker of columns takes by itself: those of samples and of adjustments."""
    measured = {meter.event_type: None for meter in meter_set.meters if meter.aggregation.rule.measured}
    adjusted = (adjusted_type(meter.slug) for meter in meter_set.meters if meter.aggregation.rule.additive)
    return [*measured, *adjusted]


def quarantines_late(contributions: tuple[Contribution, ...]) -> bool:
    """Whether a late event counts in no meter because the late policy of one of its meters is `quarantine`."""
    return any(item.meter.late is LatePolicy.QUARANTINE and not item.is_sample for item in contributions)


def add_nothing(contributions: tuple[Contribution, ...]) -> bool:
    """Whether an event that counts adds to no meter: no meter wants it, or all that want it take it as a sample."""
    return all(item.is_sample for item in contributions)


def definition_change(current: MeterSet | None, proposed: MeterSet) -> str | None:
    """Why the proposed meter set may not follow the one in force, or None if it may.

    The definition of a slug never changes: one recount could not check counts made under two definitions.
    """
    if current is None:
        return None
    for span in ("window_ms", "report_interval_ms"):
        if getattr(current.policy, span) != getattr(proposed.policy, span):
            return f"policy.{span} cannot change: stored marks and reports depend on it"
    if proposed.version > current.version and proposed.policy.future_ms < current.policy.future_ms:
        return (
            "policy.future_ms cannot become smaller: a binding could take effect before usage that is counted already"
        )
    known = {meter.slug: meter for meter in (*proposed.meters, *proposed.retired)}
    for before in (*current.meters, *current.retired):
        meter = known.get(before.slug)
        if meter is None:
            continue
        for field in _DEFINITION:
            if getattr(before, field) != getattr(meter, field):
                return f"meter {meter.slug}: {field} cannot change; add a meter under another slug"
    return None


def successor(current: MeterSet | None, proposed: MeterSet) -> MeterSet:
    """The proposed meter set, with the meters that it omits from the one in force added to its retired ones.

    The command and the fold both call this function: another meter set may come between the command's check and the
    command's record. Raises pydantic's `ValidationError` if a meter set cannot have so many retired meters.
    """
    if current is None:
        return proposed
    known = {meter.slug for meter in (*proposed.meters, *proposed.retired)}
    gone = [meter for meter in (*current.meters, *current.retired) if meter.slug not in known]
    retired = (*proposed.retired, *gone)
    return MeterSet(version=proposed.version, meters=proposed.meters, policy=proposed.policy, retired=retired)


def in_force_after(current: MeterSet | None, proposed: MeterSet) -> MeterSet:
    """The meter set in force after a meter set record: its `successor`, or the old one if the record is not newer. A
    newer meter set may have overtaken a record that a command repeats."""
    return successor(current, proposed) if current is None or proposed.version > current.version else current


def _tolerant(reader: _Reader) -> _Reader:
    def read(data: dict[str, Any], time_us: int) -> Contribution | None:
        answer = reader(data, time_us)
        return None if isinstance(answer, Failure) else answer

    return read


def _reader(meter: Meter) -> _Reader:
    if not meter.aggregation.rule.measured:
        return _reading(meter, meter)
    sample_of = sample_reader(meter)

    def read(data: dict[str, Any], time_us: int) -> Contribution | Failure | None:
        sample = sample_of(data, time_us)
        return Contribution(meter, 0, "", "") if isinstance(sample, Sample) else sample

    return read


def _reading(meter: Meter, into: Meter) -> _Reader:
    """Reads an event as `meter` says, and contributes to the meter `into`."""
    passes = filter_of(meter)
    dimensions_of = _dimensions(meter)
    value_keys = path_keys(meter.value_path) if meter.value_path else ()
    rule = meter.aggregation.rule
    takes_value, distinct = rule.takes_value, rule.distinct

    def read(data: dict[str, Any], _time_us: int) -> Contribution | Failure | None:
        if passes is not None and not passes(data):
            return None
        dimensions = NO_DIMENSIONS if dimensions_of is None else dimensions_of(data)
        if isinstance(dimensions, Failure):
            return dimensions
        if not takes_value:
            return Contribution(into, 1, "", dimensions)
        value = _lookup(data, value_keys)
        if distinct:
            text = _text_of(meter, meter.value_path, value)
            return text if isinstance(text, Failure) else Contribution(into, 0, text, dimensions)
        minor = _minor_of(meter, value)
        return minor if isinstance(minor, Failure) else Contribution(into, minor, "", dimensions)

    return read


def _minor_of(meter: Meter, value: object) -> int | Failure:
    minor = minor_of(value, meter.scale, meter.allow_negative)
    if isinstance(minor, Reason):
        most = f"at most {meter.scale} decimal digits: " if minor is Reason.TOO_MANY_DIGITS else ""
        return Failure(minor, f"{meter.slug}: {most}{meter.value_path}")
    return minor


def _text_of(meter: Meter, path: str | None, value: object) -> str | Failure:
    """A text that the meter must have."""
    text = text_of(value)
    if not text:
        return Failure(Reason.BAD_QUANTITY if text is None else Reason.MISSING_QUANTITY, f"{meter.slug}: {path}")
    return text


def sample_reader(meter: Meter) -> _SampleReader:
    """Reads the samples of a measured meter. The reader answers None for an event that does not pass the filters."""
    passes = filter_of(meter)
    dimensions_of = _dimensions(meter)
    value_keys = path_keys(meter.value_path) if meter.value_path else ()
    whole = POWERS[meter.scale]
    group_of = _group_of_session if meter.aggregation.rule.covers else _group_of_level
    start_path = meter.start_path

    def read(data: dict[str, Any], time_us: int) -> Sample | Failure | None:
        if passes is not None and not passes(data):
            return None
        dimensions = NO_DIMENSIONS if dimensions_of is None else dimensions_of(data)
        if isinstance(dimensions, Failure):
            return dimensions
        minor = _minor_of(meter, _lookup(data, value_keys)) if value_keys else whole
        if isinstance(minor, Failure):
            return minor
        if start_path is not None:
            start_us = _start_us(meter, start_path, data, time_us)
            return start_us if isinstance(start_us, Failure) else Sample(minor, dimensions, "", start_us)
        group = group_of(meter, data)
        return group if isinstance(group, Failure) else Sample(minor, dimensions, group)

    return read


def _group_of_level(meter: Meter, data: dict[str, Any]) -> str | Failure:
    if meter.series_path is None:
        return ""
    text = text_of(_lookup(data, path_keys(meter.series_path)))
    return Failure(Reason.BAD_DIMENSION, f"{meter.slug}: {meter.series_path}") if text is None else text


def _group_of_session(meter: Meter, data: dict[str, Any]) -> str | Failure:
    path = meter.session_path or ""
    return _text_of(meter, path, _lookup(data, path_keys(path)))


def _start_us(meter: Meter, path: str, data: dict[str, Any], time_us: int) -> int | Failure:
    value = _lookup(data, path_keys(path))
    if value is None:
        return Failure(Reason.MISSING_QUANTITY, f"{meter.slug}: {path}")
    start_us = parse_instant_us(value) if isinstance(value, str) else None
    if start_us is None or not 0 <= time_us - start_us <= SPAN_S_MAX * SECOND_US:
        return Failure(Reason.BAD_QUANTITY, f"{meter.slug}: {path}")
    return start_us


def _lookup(data: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        if not isinstance(data, dict):
            return None
        data = data.get(key)
    return data


def filter_of(meter: Meter) -> Callable[[dict[str, Any]], bool] | None:
    """Whether data passes the meter's filters; None if the meter has none."""
    if not meter.filters:
        return None
    tests = tuple(
        (
            path_keys(condition.path),
            frozenset(condition.values),
            condition.operator in (FilterOperator.EQUAL, FilterOperator.IN),
        )
        for condition in meter.filters
    )

    def passes(data: dict[str, Any]) -> bool:
        for keys, values, inside in tests:  # noqa: SIM110  all() makes a generator per event: twice the time
            # A value that is not a text, integer or boolean equals nothing.
            if (text_of(_lookup(data, keys)) in values) is not inside:
                return False
        return True

    return passes


def _dimensions(meter: Meter) -> Callable[[dict[str, Any]], str | Failure] | None:
    if not meter.dimensions:
        return None
    names = tuple(sorted(meter.dimensions))
    paths = tuple(path_keys(meter.dimensions[name]) for name in names)

    @lru_cache(maxsize=65_536)
    def encoded(values: tuple[str, ...]) -> str:
        return dimensions_text(dict(zip(names, values, strict=True)))

    def dimensions_of(data: dict[str, Any]) -> str | Failure:
        values: list[str] = []
        for keys in paths:
            text = text_of(data.get(keys[0]) if len(keys) == 1 else _lookup(data, keys))
            if text is None:
                name = names[len(values)]
                return Failure(Reason.BAD_DIMENSION, f"{meter.slug}: dimension {name}: {meter.dimensions[name]}")
            values.append(text)
        return encoded(tuple(values))

    return dimensions_of
