"""The SQL that recounts `usage_events`: ClickHouse alone evaluates meters, periods and quantities.

The SQL shares no code with the fold on purpose, so that a defect in one of them shows as a difference. Meters, graces,
boundaries and closings are literals in the statements.
"""

# ruff: noqa: S608  # every value in these statements is a number or went through quoted_text
from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from schemas.adjustments import adjusting, forms_of
from schemas.aggregations import Aggregation
from schemas.analytics import MeterSpan, RecountRequest
from schemas.clock import HOUR_MS
from schemas.errors import InvalidInput
from schemas.meters import Meter, OnBad
from sinks.clickhouse.client import json_literal, quoted_text
from sinks.clickhouse.event_values import columns_of, dimension_texts, is_usable, is_wanted, value_column

_NUMBER_TEXT: Final = r"^(-?)([0-9]+)(?:\.([0-9]*))?(?:[eE]([+-]?[0-9]+))?$"
_CELL: Final = "meter, account, period_start_ms, hour_ms, dimensions, bucket_ms"
_UNIQUE: Final = Aggregation.UNIQUE
# More than all meters of a meter set, retired ones too.
_ADJUSTED: Final = 10_000


class Statements(NamedTuple):
    """The statements of a recount. The first column of their rows is an index into `meters`."""

    meters: tuple[Meter, ...]
    sql: tuple[str, ...]


def cell_statements(request: RecountRequest) -> Statements:
    """Statements whose rows are (meter index, account, period start, hour, dimension values, bucket, value).

    The dimension values are in the order of their names. There may be more values than the meter has dimensions.
    """
    additive, unique = _by_kind(request.meters)
    statements = []
    if additive:
        source = _periods(request, additive, None)
        statements.append(f"SELECT {_CELL}, {_merged(additive)} FROM ({source}) GROUP BY {_CELL}")
    if unique:
        counted = "toInt128(countIf(position = first_position))"
        statements.append(f"SELECT {_CELL}, {counted} FROM ({_first_positions(request, unique)}) GROUP BY {_CELL}")
    return Statements(tuple(_meters(request.meters)), tuple(statements))


def row_statements(request: RecountRequest) -> Statements:
    """Statements whose rows have the columns of `cell_statements` and four more: the period's end, the event time and
    position of the newest event (for `latest`), and the position of the last contributing event.

    Cells of `unique` meters without a new distinct value are left out.
    """
    ends = "argMax(period_end_ms, position)"
    additive, unique = _by_kind(request.meters)
    statements = []
    if additive:
        source = _periods(request, additive, None)
        last = "argMax(time_us, (time_us, position)), argMax(position, (time_us, position)), max(position)"
        statements.append(f"SELECT {_CELL}, {_merged(additive)}, {ends}, {last} FROM ({source}) GROUP BY {_CELL}")
    if unique:
        source = f"({_first_positions(request, unique)}) WHERE position = first_position"
        counted = f"toInt128(count()), {ends}, toInt64(0), toUInt64(0), max(position)"
        statements.append(f"SELECT {_CELL}, {counted} FROM {source} GROUP BY {_CELL}")
    return Statements(tuple(_meters(request.meters)), tuple(statements))


def total_statements(request: RecountRequest, before_ms: int | None) -> Statements:
    """Statements whose rows are (meter index, account, period start, end, value)."""
    key = "meter, account, period_start_ms, period_end_ms"
    merged, unique = _by_kind(request.meters)
    additive = [entry for entry in merged if entry[1].slug not in request.levels_ms]
    levels = [entry for entry in merged if entry[1].slug in request.levels_ms]
    statements = []
    if additive:
        source = _periods(request, additive, before_ms)
        statements.append(f"SELECT {key}, {_merged(additive)} FROM ({source}) GROUP BY {key}")
    if levels:
        statements.append(_level_totals(request, levels, before_ms))
    if unique:
        source = _periods(request, unique, before_ms)
        statements.append(f"SELECT {key}, toInt128(uniqExact(value)) FROM ({source}) GROUP BY {key}")
    return Statements(tuple(_meters(request.meters)), tuple(statements))


def _level_totals(request: RecountRequest, meters: Sequence[tuple[int, Meter, str]], before_ms: int | None) -> str:
    """The rows of `total_statements` for meters with levels: the newest event of the period or of an earlier one."""
    numbers = ", ".join(str(number) for number, _, _ in meters)
    last_ms = before_ms - 1 if before_ms is not None else max(request.levels_ms.values())
    untils = ", ".join(f"toInt64({min(request.levels_ms[meter.slug], last_ms)})" for _, meter, _ in meters)
    own = (
        "SELECT meter, account, period_start_ms, period_end_ms, starts, ends, "
        "argMax(minor, (time_us, position)) AS level, max((time_us, position)) AS set_at "
        f"FROM ({_periods(request, meters, before_ms)}) "
        "GROUP BY meter, account, period_start_ms, period_end_ms, starts, ends"
    )
    later = (
        f"SELECT *, transform(meter, [{numbers}], [{untils}], toInt64(0)) AS until_ms, "
        # Before the first boundary, periods are calendar months.
        f"if(length(starts) > 0, least({_month('starts[1]')} - 1, {_month('until_ms')}), {_month('until_ms')}) "
        "AS last_month, "
        f"{_month('period_start_ms')} AS own_month, "
        f"arrayMap(month -> ({_month_start('month')}, {_month_start('month + 1')}), "
        "range(toUInt32(own_month + 1), toUInt32(greatest(last_month, own_month) + 1))) AS months, "
        "arrayFilter(each -> each.1 > period_start_ms AND each.1 <= until_ms, arrayZip(starts, ends)) AS bounds, "
        "arrayConcat([(period_start_ms, period_end_ms)], months, bounds) AS stands "
        f"FROM ({own})"
    )
    return (
        "SELECT meter, account, stood.1 AS start_ms, stood.2 AS end_ms, argMax(level, set_at) "
        f"FROM ({later}) ARRAY JOIN stands AS stood GROUP BY meter, account, start_ms, end_ms"
    )


def distinct_statements(request: RecountRequest) -> Statements:
    """Statements whose rows are (meter index, account, period start, the distinct values of a `unique` meter)."""
    _, unique = _by_kind(request.meters)
    key = "meter, account, period_start_ms"
    statements = [
        f"SELECT {key}, groupUniqArray(value) FROM ({_periods(request, unique, None)}) GROUP BY {key}"
    ] if unique else []  # fmt: skip
    return Statements(tuple(_meters(request.meters)), tuple(statements))


def counted_events(condition: str, outcomes: str = "'counted'") -> str:
    """SQL for the events of `usage_events` that satisfy `condition` (over the table's columns), each event once.

    `arrived` is the event's own position. `position` and `stream_time_ms` are those of the event or, for a deferred
    event, of its dedup decision. Deferred events are left out if their decision has none of the `outcomes`, where '' is
    an event without a decision."""
    return (
        "SELECT account, id, type, time, data, partition, arrived, if(waits, decision_position, arrived) AS position, "
        "if(waits, decision_ms, arrived_ms) AS stream_time_ms FROM ("
        "SELECT account, id, type, time, data, partition, position AS arrived, deferred = 1 AS waits, "
        f"toUnixTimestamp64Milli(stream_time) AS arrived_ms FROM usage_events FINAL WHERE {condition}) AS chosen "
        "LEFT JOIN (SELECT partition, position AS arrived, account, decision_position, outcome, "
        "stream_time_ms AS decision_ms FROM dedup_decisions FINAL) AS judged USING (partition, arrived, account) "
        f"WHERE NOT waits OR outcome IN ({outcomes})"
    )


def distinct_source(meter: Meter, in_force: str) -> str:
    """SQL for (account, hour_ms, value, dimensions) of the events that a `unique` meter counts if `in_force` holds."""
    # The meter may have skipped events at some time. Other archived events are usable in any case.
    wanted = is_wanted(meter, in_force) + is_usable(meter)
    dimensions = ", ".join(dimension_texts(meter))
    return (
        "SELECT account, time_ms - positiveModulo(time_ms, " + str(HOUR_MS) + ") AS hour_ms, "
        f"{value_column(meter)} AS value, "
        f"{f'[{dimensions}]' if dimensions else 'emptyArrayString()'} AS dimensions "
        f"FROM ({_events(f'type = {quoted_text(meter.event_type)}', [meter])}) WHERE {wanted}"
    )


def event_source(meter: Meter, condition: str) -> str:
    """SQL for (partition, arrived, time_us, stream_time_ms, value) of the events that satisfy `condition` and add to
    the meter, adjustments too. `value` is text."""
    columns = "partition, arrived, time_us, stream_time_ms"
    return " UNION ALL ".join(
        f"SELECT {columns}, {value_column(form)} AS value FROM ({_events(condition, [form])}) "
        f"WHERE {is_wanted(form, '1')}{is_usable(form)}"
        for form in forms_of(meter)
    )


def read_as(form: Meter, events: str) -> str:
    """SQL for (account, id, arrived, time_us, time_ms, stream_time_ms, dimensions, minor) of the rows of
    `counted_events` that the meter can use."""
    dimensions = ", ".join(dimension_texts(form))
    values = (
        f"SELECT *, toUInt16(0) AS meter, {value_column(form)} AS value, "
        f"{f'[{dimensions}]' if dimensions else 'emptyArrayString()'} AS dimensions "
        f"FROM ({columns_of(events, [form])}) WHERE {is_wanted(form, '1')}{is_usable(form)}"
    )
    columns = "account, id, arrived, time_us, time_ms, stream_time_ms, dimensions"
    return f"SELECT {columns}, {_number_in_minor_units([(0, form, '')])} AS minor FROM ({values})"


def _meters(spans: Sequence[MeterSpan]) -> list[Meter]:
    return list({span.meter.slug: span.meter for span in spans}.values())


def _by_kind(spans: Sequence[MeterSpan]) -> tuple[list[tuple[int, Meter, str]], list[tuple[int, Meter, str]]]:
    """(index, meter, SQL condition under which it was in force): meters that merge by arithmetic, and unique ones.

    The adjustments of a meter are read as those of another meter (S14), whose index is `_ADJUSTED` higher. Samples add
    nothing.
    """
    numbered = []
    for number, meter in enumerate(_meters(spans)):
        # A deferred event feeds the meters that were in force at its arrival and at its dedup decision. Its data is
        # judged at its arrival.
        arrived, decided = _within("arrived", spans, meter, judged=True), _within("position", spans, meter)
        if not meter.aggregation.rule.measured:
            numbered.append((number, meter, f"({arrived} AND {decided})"))
        adjusted = adjusting(meter)
        if adjusted is not None:
            arrived = _within("arrived", spans, meter)
            numbered.append((number + _ADJUSTED, adjusted, f"({arrived} AND {decided})"))
    return (
        [entry for entry in numbered if entry[1].aggregation is not _UNIQUE],
        [entry for entry in numbered if entry[1].aggregation is _UNIQUE],
    )


def _within(column: str, spans: Sequence[MeterSpan], meter: Meter, *, judged: bool = False) -> str:
    """SQL: the column's position lies in a span of the meter. With `judged`, spans of a meter that skips events hold
    only the events whose data the meter can use."""
    conditions = (
        f"({column} >= {span.from_position} AND {column} < {span.before_position}"
        f"{is_usable(span.meter) if judged and span.meter.on_bad is OnBad.SKIP_METER else ''})"
        for span in spans
        if span.meter.slug == meter.slug
    )
    return f"({' OR '.join(conditions)})"


def _merged(meters: Sequence[tuple[int, Meter, str]]) -> str:
    def numbers(aggregation: Aggregation) -> str:
        return "[" + ", ".join(str(number) for number, meter, _ in meters if meter.aggregation is aggregation) + "]"

    return (
        f"multiIf(has(CAST({numbers(Aggregation.MAX)}, 'Array(UInt16)'), meter), max(minor), "
        f"has(CAST({numbers(Aggregation.MIN)}, 'Array(UInt16)'), meter), min(minor), "
        f"has(CAST({numbers(Aggregation.LATEST)}, 'Array(UInt16)'), meter), argMax(minor, (time_us, position)), "
        "sum(minor))"
    )


def _first_positions(request: RecountRequest, meters: Sequence[tuple[int, Meter, str]]) -> str:
    """The rows of `_periods`, with the position of the first event of the period that has the same value."""
    first = "min(position) OVER (PARTITION BY meter, account, period_start_ms, value)"
    return f"SELECT *, {first} AS first_position FROM ({_periods(request, meters, None)})"


def _periods(request: RecountRequest, meters: Sequence[tuple[int, Meter, str]], before_ms: int | None) -> str:
    """One row per event and meter, with the period that counts the event."""
    if not request.graces:
        raise InvalidInput("graces", "name the grace in force, at least (0, grace_ms)")
    months = _month_start
    ranges = f"SELECT *, {_number_in_minor_units(meters)} AS minor, {_grace(request)} AS grace_ms"
    natural = (
        "SELECT *, length(starts) > 0 AS bound, "
        "arrayFilter((start, at) -> at < position, closed_starts, closed_positions) AS closed, "
        "arrayFirstIndex((start, end) -> start <= time_ms AND time_ms < end, starts, ends) AS own, "
        # Before the first boundary, periods are calendar months: no account has a binding before the log begins.
        "bound AND time_ms >= starts[1] AS cut, "
        "throwIf(cut AND own = 0, 'the boundaries do not reach an event: widen them') AS checked, "
        f"{_month('time_ms')} AS own_month, {_month('stream_time_ms')} AS log_month, "
        f"if(cut, starts[own], {months('own_month')}) AS own_start_ms, "
        f"if(cut, ends[own], {months('own_month + 1')}) AS own_end_ms, "
        "own_end_ms + grace_ms <= stream_time_ms OR has(closed, own_start_ms) AS late"
    )
    carried = (
        "SELECT *, "
        "arrayFirstIndex((start, end) -> end > stream_time_ms AND NOT has(closed, start), starts, ends) AS next, "
        "throwIf(late AND bound AND next = 0, 'the boundaries do not reach the stream time: widen them') AS reached, "
        f"arrayFirst(month -> NOT has(closed, {months('month')}), "
        "range(toUInt32(log_month), toUInt32(log_month + length(closed) + 1))) AS next_month, "
        f"multiIf(NOT late, own_start_ms, bound, starts[next], {months('next_month')}) + checked + reached "
        "AS period_start_ms, "
        f"multiIf(NOT late, own_end_ms, bound, ends[next], {months('next_month + 1')}) AS period_end_ms"
    )
    # Apart, because every path costs time in every row that is read, and few events are adjustments.
    forms = [[each for each in meters if (each[0] >= _ADJUSTED) is adjusts] for adjusts in (False, True)]
    every = " UNION ALL ".join(_entries(request, each, before_ms) for each in forms if each)
    entries = f"({every}) AS entries LEFT JOIN ({_accounts(request)}) AS known"
    return (
        f"SELECT toUInt16(positiveModulo(fed.meter, {_ADJUSTED})) AS meter, account, period_start_ms, "
        "period_end_ms, starts, ends, dimensions, value, minor, time_us, position, "
        f"time_ms - positiveModulo(time_ms, {HOUR_MS}) AS hour_ms, "
        f"stream_time_ms - positiveModulo(stream_time_ms, {HOUR_MS}) AS bucket_ms "
        f"FROM ({carried} FROM ({natural} FROM ({ranges} FROM {entries} USING (account)))) AS fed"
    )


def _accounts(request: RecountRequest) -> str:
    """(account, starts, ends, closed_starts, closed_positions) of the accounts with boundaries or closings."""
    names = sorted(request.boundaries.keys() | request.closings.keys())
    rows = [
        (
            name,
            [period.start_ms for period in request.boundaries.get(name, ())],
            [period.end_ms for period in request.boundaries.get(name, ())],
            [start_ms for start_ms, _ in request.closings.get(name, ())],
            [position for _, position in request.closings.get(name, ())],
        )
        for name in names
    ]
    literal = json_literal(rows, "Array(Tuple(String, Array(Int64), Array(Int64), Array(Int64), Array(UInt64)))")
    return (
        "SELECT row.1 AS account, row.2 AS starts, row.3 AS ends, row.4 AS closed_starts, row.5 AS closed_positions "
        f"FROM (SELECT arrayJoin({literal}) AS row)"
    )


def _entries(request: RecountRequest, meters: Sequence[tuple[int, Meter, str]], before_ms: int | None) -> str:
    """One row per event and meter that counts the event: meter index, value text, dimension values."""
    types = ", ".join(sorted({quoted_text(meter.event_type) for _, meter, _ in meters}))
    chosen = [f"partition = {request.partition}", f"type IN ({types})"]
    counted = [f"position < {request.before_position}"]
    if before_ms is not None:
        counted.append(f"stream_time_ms < {before_ms}")
    if request.accounts is not None:
        literal = json_literal(list(request.accounts), "Array(String)")
        chosen.append(f"account IN (SELECT arrayJoin({literal}))")
    # Each event is joined with small integers only; arrays of tuples would cost ten times as much.
    numbers = ", ".join(str(number) for number, _, _ in meters)
    feeds = ", ".join(f"({is_wanted(meter, in_force)})" for _, meter, in_force in meters)
    values = _by_meter([(number, value_column(meter)) for number, meter, _ in meters])
    slots = max(len(meter.dimensions) for _, meter, _ in meters)
    dimensions = ", ".join(
        _by_meter(
            [(number, dimension_texts(meter)[slot]) for number, meter, _ in meters if slot < len(meter.dimensions)]
        )
        for slot in range(slots)
    )
    events = _events(" AND ".join(chosen), [meter for _, meter, _ in meters], " AND ".join(counted))
    fanned_out = (
        f"SELECT *, arrayJoin(arrayFilter((number, feeds) -> feeds, "
        f"CAST([{numbers}], 'Array(UInt16)'), [{feeds}])) AS meter FROM ({events})"
    )
    return (
        f"SELECT account, position, time_us, time_ms, stream_time_ms, meter, {values} AS value, "
        f"{f'[{dimensions}]' if slots else 'emptyArrayString()'} AS dimensions FROM ({fanned_out})"
    )


def _by_meter(texts: Sequence[tuple[int, str]]) -> str:
    cases = ", ".join(f"meter = {number}, {text}" for number, text in texts)
    return f"multiIf({cases}, '')"


def _events(condition: str, meters: Sequence[Meter], counted: str = "1") -> str:
    return columns_of(f"SELECT * FROM ({counted_events(condition)}) WHERE {counted}", meters)


def _number_in_minor_units(meters: Sequence[tuple[int, Meter, str]]) -> str:
    """The text `value` × 10^scale as Int128, computed on digits; throws if the result is not an integer."""
    numeric = [entry for entry in meters if entry[1].aggregation is not _UNIQUE]
    if not numeric:
        return "toInt128(0)"
    numbers = ", ".join(str(number) for number, _, _ in numeric)
    scales = ", ".join(str(meter.scale) for _, meter, _ in numeric)
    return (
        f"extractGroups(value, {quoted_text(_NUMBER_TEXT)}) AS groups, "
        "throwIf(empty(groups), 'usage_events holds a quantity that is no number') AS is_number, "
        "replaceRegexpOne(concat(groups[2], groups[3]), '^0+', '') AS digits, "
        f"toInt64OrZero(replaceOne(groups[4], '+', '')) - length(groups[3]) "
        f"+ transform(meter, [{numbers}], [{scales}], 0) AS shift, "
        "throwIf(shift < 0 AND match(substring(digits, greatest(toInt64(length(digits)) + shift, 0) + 1), '[1-9]'), "
        "'usage_events holds a quantity with more digits than its scale') AS is_whole, "
        "toInt128(concat(groups[1], multiIf(empty(digits), '0', "
        "shift >= 0, concat(digits, repeat('0', toUInt8(least(greatest(shift, 0), 38)))), "
        "concat('0', substring(digits, 1, greatest(toInt64(length(digits)) + shift, 0)))))) "
        # Added, because ClickHouse does not evaluate unused columns; throwIf returns 0.
        "+ is_number + is_whole"
    )


def _grace(request: RecountRequest) -> str:
    froms = [0, *(position for position, _ in request.graces[1:])]
    graces = [grace_ms for _, grace_ms in request.graces]
    return f"arrayLast((grace, at) -> at <= position, CAST({graces}, 'Array(Int64)'), CAST({froms}, 'Array(UInt64)'))"


def _month(instant_ms: str) -> str:
    """The months from the year 0 to an instant, in UTC."""
    instant = f"fromUnixTimestamp64Milli({instant_ms}, 'UTC')"
    return f"(toInt64(toYear({instant})) * 12 + toMonth({instant}) - 1)"


def _month_start(month: str) -> str:
    months = f"({month})"
    return f"toUnixTimestamp64Milli(makeDateTime64(intDiv({months}, 12), {months} % 12 + 1, 1, 0, 0, 0, 0, 3, 'UTC'))"
