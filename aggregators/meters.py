"""Compiles a meter set for the hot path: to which meters an event contributes, and with what quantities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec

from aggregators.quantities import minor_of, text_of
from schemas.meters import FilterOperator, LatePolicy, Meter, MeterSet, OnBad, path_keys
from schemas.reasons import Reason

NO_DIMENSIONS: Final = "{}"

_dimension_json: Final = msgspec.json.Encoder(order="sorted").encode


def dimensions_text(values: Mapping[str, str]) -> str:
    """The dimensions of a contribution as a text: JSON with the names in order."""
    return _dimension_json(values).decode()


class Contribution(msgspec.Struct, frozen=True, gc=False):
    """What an event adds to one meter: a quantity in minor units, or a distinct text, with its dimensions."""

    meter: Meter
    minor: int
    text: str
    dimensions: str


class Failure(NamedTuple):
    """Why an event cannot contribute to one of its meters."""

    reason: Reason
    detail: str


_Reader = Callable[[dict[str, Any]], Contribution | Failure | None]


class CompiledMeterSet(NamedTuple):
    """A meter set and its compiled meters by event type. `tolerant` are the meters that skip events which they cannot
    use (`on_bad`), by slug; their readers in `by_type` do not want such events."""

    meter_set: MeterSet
    by_type: dict[str, tuple[_Reader, ...]]
    tolerant: dict[str, tuple[tuple[str, _Reader], ...]]

    def contributions(self, event_type: str, data: dict[str, Any]) -> tuple[Contribution, ...] | Failure:
        """The event's contributions to all meters that want it, or why one fails; empty if no meter wants the event."""
        readers = self.by_type.get(event_type)
        if readers is None:
            return ()
        if len(readers) == 1:
            only = readers[0](data)
            if only is None:
                return ()
            return only if isinstance(only, Failure) else (only,)
        wanted = [answer for reader in readers if (answer := reader(data)) is not None]
        good = tuple(answer for answer in wanted if isinstance(answer, Contribution))
        if len(good) == len(wanted):
            return good
        failure = next(answer for answer in wanted if isinstance(answer, Failure))
        if len(wanted) > 1:
            return Failure(Reason.BAD_FOR_ONE_METER, f"{failure.reason}: {failure.detail}")
        return failure

    def skips(self, event_type: str, data: dict[str, Any]) -> list[tuple[str, Failure]]:
        """The meters that skip the event because of its data, by slug, and why. Call this for valid events only."""
        readers = self.tolerant.get(event_type, ())
        return [(slug, answer) for slug, reader in readers if isinstance(answer := reader(data), Failure)]


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
    return CompiledMeterSet(
        meter_set,
        {name: tuple(readers) for name, readers in by_type.items()},
        {name: tuple(readers) for name, readers in tolerant.items()},
    )


def quarantines_late(contributions: tuple[Contribution, ...]) -> bool:
    """Whether a late event counts in no meter because the late policy of one of its meters is `quarantine`."""
    return any(contribution.meter.late is LatePolicy.QUARANTINE for contribution in contributions)


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
        for field in ("event_type", "aggregation", "value_path", "dimensions", "filters", "scale", "late"):
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
    def read(data: dict[str, Any]) -> Contribution | None:
        answer = reader(data)
        return None if isinstance(answer, Failure) else answer

    return read


def _reader(meter: Meter) -> _Reader:
    passes = filter_of(meter)
    dimensions_of = _dimensions(meter)
    value_keys = path_keys(meter.value_path) if meter.value_path else ()
    rule = meter.aggregation.rule
    takes_value, distinct = rule.takes_value, rule.distinct
    scale, allow_negative = meter.scale, meter.allow_negative

    def read(data: dict[str, Any]) -> Contribution | Failure | None:
        if passes is not None and not passes(data):
            return None
        dimensions = NO_DIMENSIONS if dimensions_of is None else dimensions_of(data)
        if isinstance(dimensions, Failure):
            return dimensions
        if not takes_value:
            return Contribution(meter, 1, "", dimensions)
        value = _lookup(data, value_keys)
        if distinct:
            text = text_of(value)
            if not text:
                reason = Reason.BAD_QUANTITY if text is None else Reason.MISSING_QUANTITY
                return Failure(reason, f"{meter.slug}: {meter.value_path}")
            return Contribution(meter, 0, text, dimensions)
        minor = minor_of(value, scale, allow_negative)
        if isinstance(minor, Reason):
            most = f"at most {scale} decimal digits: " if minor is Reason.TOO_MANY_DIGITS else ""
            return Failure(minor, f"{meter.slug}: {most}{meter.value_path}")
        return Contribution(meter, minor, "", dimensions)

    return read


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
