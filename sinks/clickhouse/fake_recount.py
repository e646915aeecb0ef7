"""The recount of the fake in plain Python: one event at a time, with the arithmetic of the standard library."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from typing import Any, Final, NamedTuple

import msgspec

from schemas.aggregations import Aggregation
from schemas.analytics import EventRow, HourlyRow, RecountKey, RecountRequest
from schemas.clock import HOUR_MS
from schemas.errors import InvalidInput, OperatorNeeded
from schemas.log import POSITION_BITS
from schemas.meters import FilterOperator, Meter, OnBad
from schemas.periods import Period

_QUANTITY: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,17})?")
_EXACT: Final = Context(prec=100_000, Emax=MAX_EMAX, Emin=MIN_EMIN)


class Feed(NamedTuple):
    """The contribution of an event to one meter."""

    minor: int
    text: str
    dimensions: str


class _Counted(NamedTuple):
    event: EventRow
    meter: Meter
    period: Period
    feed: Feed


# An event's position of arrival, and the event with the position and stream time at which it counts.
Counting = tuple[int, EventRow]


def recount_cells(events: Iterable[Counting], request: RecountRequest) -> dict[RecountKey, int]:
    """Value per cell."""
    cells, first = _cells(events, request)
    return {
        key: sum((contribution.meter.slug, contribution.event.position) in first for contribution in counted)
        if counted[0].meter.aggregation is Aggregation.UNIQUE
        else _merged(counted)
        for key, counted in cells.items()
    }


def recount_rows(events: Iterable[Counting], request: RecountRequest, generation: int) -> list[HourlyRow]:
    """The cells as rows of `usage_hourly`, by account."""
    cells, first = _cells(events, request)
    rows = []
    for key, contributions in cells.items():
        meter, counted = contributions[0].meter, contributions
        if meter.aggregation is Aggregation.UNIQUE:
            counted = [
                contribution for contribution in contributions if (meter.slug, contribution.event.position) in first
            ]
        if not counted:
            continue
        value, latest = len(counted), (0, 0)
        if meter.aggregation is not Aggregation.UNIQUE:
            value = _merged(counted)
        if meter.aggregation is Aggregation.LATEST:
            latest = max((contribution.event.time_us, contribution.event.position) for contribution in counted)
        last = max(counted, key=lambda contribution: contribution.event.position)
        rows.append(
            HourlyRow(
                key.account, key.meter, key.period_start_ms, last.period.end_ms, key.hour_ms, key.dimensions,
                key.arrival_bucket_ms, meter.aggregation, meter.scale, value, *latest, request.partition,
                generation << POSITION_BITS | last.event.position,
            )
        )  # fmt: skip
    return sorted(rows, key=lambda row: row.account.encode())


def _cells(
    events: Iterable[Counting], request: RecountRequest
) -> tuple[dict[RecountKey, list[_Counted]], set[tuple[str, int]]]:
    """The events by cell, and (meter, position) of the events with a new distinct value."""
    cells: dict[RecountKey, list[_Counted]] = {}
    seen: dict[tuple[str, str, Period], set[str]] = {}
    first: set[tuple[str, int]] = set()
    for contribution in _counted(events, request):
        values = seen.setdefault((contribution.event.account, contribution.meter.slug, contribution.period), set())
        if contribution.feed.text not in values:
            values.add(contribution.feed.text)
            first.add((contribution.meter.slug, contribution.event.position))
        key = RecountKey(
            contribution.event.account,
            contribution.meter.slug,
            contribution.period.start_ms,
            contribution.event.time_us // 1000 // HOUR_MS * HOUR_MS,
            contribution.feed.dimensions,
            contribution.event.stream_time_ms // HOUR_MS * HOUR_MS,
        )
        cells.setdefault(key, []).append(contribution)
    return cells, first


def recount_totals(
    events: Iterable[Counting], request: RecountRequest, before_ms: int | None
) -> dict[tuple[str, str, Period], int]:
    """Total per account, meter and period. A level stands in the later periods that have begun."""
    totals: dict[tuple[str, str, Period], list[_Counted]] = {}
    for contribution in _counted(events, request):
        totals.setdefault((contribution.event.account, contribution.meter.slug, contribution.period), []).append(
            contribution
        )
    own = [(*key, max(counted, key=_order)) for key, counted in totals.items() if key[1] in request.levels_ms]
    for account, slug, own_period, newest in own:
        period = own_period
        until_ms = request.levels_ms[slug] if before_ms is None else min(request.levels_ms[slug], before_ms - 1)
        while period.end_ms <= until_ms:
            period = _containing(period.end_ms, request.boundaries.get(account, ()))
            totals.setdefault((account, slug, period), []).append(newest)
    return {
        key: len({contribution.feed.text for contribution in counted})
        if counted[0].meter.aggregation is Aggregation.UNIQUE
        else _merged(counted)
        for key, counted in totals.items()
    }


def recount_distinct(events: Iterable[Counting], request: RecountRequest) -> dict[tuple[str, str, int], frozenset[str]]:
    """The distinct values per account, `unique` meter and period."""
    values: dict[tuple[str, str, int], set[str]] = {}
    for contribution in _counted(events, request):
        if contribution.meter.aggregation is Aggregation.UNIQUE:
            key = (contribution.event.account, contribution.meter.slug, contribution.period.start_ms)
            values.setdefault(key, set()).add(contribution.feed.text)
    return {key: frozenset(distinct) for key, distinct in values.items()}


def _merged(counted: Sequence[_Counted]) -> int:
    aggregation = counted[0].meter.aggregation
    if aggregation is Aggregation.MAX:
        return max(contribution.feed.minor for contribution in counted)
    if aggregation is Aggregation.MIN:
        return min(contribution.feed.minor for contribution in counted)
    if aggregation is Aggregation.LATEST:
        return max(counted, key=_order).feed.minor
    return sum(contribution.feed.minor for contribution in counted)


def _order(contribution: _Counted) -> tuple[int, int]:
    return contribution.event.time_us, contribution.event.position


def _counted(events: Iterable[Counting], request: RecountRequest) -> list[_Counted]:
    contributions = []
    for arrived, event in sorted(events, key=lambda pair: pair[1].position):
        if event.partition != request.partition or event.position >= request.before_position:
            continue
        if request.accounts is not None and event.account not in request.accounts:
            continue
        for span in request.meters:
            judge = _at_arrival(request, span.meter, arrived)
            if judge is not None and span.from_position <= event.position < span.before_position:
                feed = feeds(event, judge)
                if feed is not None:
                    contributions.append(_Counted(event, span.meter, _period(event, request), feed))
    return contributions


def _at_arrival(request: RecountRequest, meter: Meter, position: int) -> Meter | None:
    """The meter as it was in force at an event's arrival."""
    for span in request.meters:
        if span.meter.slug == meter.slug and span.from_position <= position < span.before_position:
            return span.meter
    return None


def _period(event: EventRow, request: RecountRequest) -> Period:
    """The period that counts the event: its own or, if that is closed, the first open period from stream time on."""
    if not request.graces:
        raise InvalidInput("graces", "name the grace in force, at least (0, grace_ms)")
    grace_ms = request.graces[0][1]
    for from_position, later_grace_ms in request.graces:
        if from_position <= event.position:
            grace_ms = later_grace_ms
    boundaries = request.boundaries.get(event.account, ())
    closed = {start_ms for start_ms, at in request.closings.get(event.account, ()) if at < event.position}
    period = _containing(event.time_us // 1000, boundaries)
    if period.end_ms + grace_ms > event.stream_time_ms and period.start_ms not in closed:
        return period
    period = _containing(event.stream_time_ms, boundaries)
    while period.start_ms in closed:
        period = _containing(period.end_ms, boundaries)
    return period


def _containing(instant_ms: int, boundaries: Sequence[Period]) -> Period:
    if not boundaries or instant_ms < boundaries[0].start_ms:
        moment = datetime.fromtimestamp(instant_ms // 1000, UTC)
        start = datetime(moment.year, moment.month, 1, tzinfo=UTC)
        months = moment.year * 12 + moment.month
        end = datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC)
        return Period(int(start.timestamp()) * 1000, int(end.timestamp()) * 1000)
    for period in boundaries:
        if period.start_ms <= instant_ms < period.end_ms:
            return period
    raise OperatorNeeded("the boundaries do not reach an event or its stream time: widen them")


def feeds(event: EventRow, meter: Meter) -> Feed | None:
    """The contribution of the event to the meter; None if the event does not pass the meter's type and filters, or if
    the meter skips the event because of its data.

    Raises `OperatorNeeded` if the quantity is not exact and the meter does not skip such events: then they are never
    archived.
    """
    data = json.loads(event.data, parse_float=Decimal)
    if meter.aggregation.rule.additive and event.type == f"tidemark.adjusted.{meter.slug}":
        values = {name: text_of_path(data, f"$.dimensions.{name}") or "" for name in sorted(meter.dimensions)}
        return Feed(_minor(data["quantity"], meter.scale), "", msgspec.json.encode(values).decode())
    if event.type != meter.event_type or meter.aggregation.rule.measured or not _passes(data, meter):
        return None
    if meter.on_bad is OnBad.SKIP_METER and not _usable(data, meter):
        return None
    values = {name: text_of_path(data, path) or "" for name, path in sorted(meter.dimensions.items())}
    dimensions = msgspec.json.encode(values).decode()
    if meter.value_path is None:
        return Feed(1, "", dimensions)
    if meter.aggregation is Aggregation.UNIQUE:
        return Feed(0, text_of_path(data, meter.value_path) or "", dimensions)
    return Feed(_minor(_at(data, meter.value_path), meter.scale), "", dimensions)


def sample_feed(event: EventRow, meter: Meter) -> Feed | None:
    """A sample of a measured meter: `minor` is the level or the weight, `text` that of the series, the session or the
    start. None if the meter cannot use the event."""
    data = json.loads(event.data, parse_float=Decimal)
    if event.type != meter.event_type or not _passes(data, meter) or not _usable(data, meter):
        return None
    path = meter.series_path or meter.session_path or meter.start_path
    text = "" if path is None else text_of_path(data, path)
    if text is None or (meter.session_path is not None and not text):
        return None
    values = {name: text_of_path(data, path) or "" for name, path in sorted(meter.dimensions.items())}
    minor = 10**meter.scale if meter.value_path is None else _minor(_at(data, meter.value_path), meter.scale)
    return Feed(minor, text, msgspec.json.encode(values).decode())


def _passes(data: Any, meter: Meter) -> bool:
    return all(
        (text_of_path(data, condition.path) in condition.values)
        is (condition.operator in (FilterOperator.EQUAL, FilterOperator.IN))
        for condition in meter.filters
    )


def _usable(data: Any, meter: Meter) -> bool:
    if any(text_of_path(data, path) is None for path in meter.dimensions.values()):
        return False
    if meter.value_path is None:
        return True
    if meter.aggregation is Aggregation.UNIQUE:
        return bool(text_of_path(data, meter.value_path))
    value = _at(data, meter.value_path)
    if isinstance(value, str) and len(value) <= 64 and _QUANTITY.fullmatch(value):
        value = Decimal(value)
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return False
    number = Decimal(value).normalize(_EXACT)
    exponent = number.as_tuple().exponent
    exact = number.is_zero() or (isinstance(exponent, int) and exponent + meter.scale >= 0)
    return exact and number.copy_abs() < Decimal(10) ** (18 - meter.scale) and (meter.allow_negative or number >= 0)


def _minor(value: Any, scale: int) -> int:
    with localcontext() as context:
        context.prec = 10_000
        exact = Decimal(value) * 10**scale
        if exact != exact.to_integral_value():
            raise OperatorNeeded("usage_events holds a quantity with more digits than its scale")
        return int(exact)


def text_of_path(data: Any, path: str) -> str | None:
    """The scalar at a path as text; "" if it is absent, None if the value has no text form."""
    value = _at(data, path)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if -(10**255) < value < 10**256 else None
    return value if isinstance(value, str) and len(value) <= 256 else None


def _at(data: Any, path: str) -> Any:
    for key in path.split(".")[1:]:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def dimensions_of(text: str) -> Mapping[str, str]:
    """The dimensions of a cell by name, from their canonical JSON."""
    return {str(name): str(value) for name, value in json.loads(text).items()}
