"""SQL for what a meter reads from the `data` of an event: columns, conditions, dimensions and quantities.

Numbers in `data` are read as text, because every JSON function of ClickHouse converts numbers to Float64: a regular
expression first replaces each number by an object `{"#":"1.5e3"}`, whose text JSONExtractString returns.
"""

# ruff: noqa: S608  # every value in these statements is a number or went through quoted_text
from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from schemas.aggregations import Aggregation
from schemas.meters import DIMENSION_CHARACTERS_MAX, Filter, FilterOperator, Meter, path_keys
from sinks.clickhouse.client import quoted_name, quoted_text

_STRING_OR_NUMBER: Final = r'("(?:[^"\\]|\\.)*")|(-?[0-9][0-9.eE+-]*)'
# A string is followed by an empty number, which is then removed. A number becomes `{"#":"…"}`.
_MARKED: Final = r'\1{"#":"\2"}'
# A key "#" in the event is renamed first, because it would look like a replaced number.
_NUMBERED: Final = (
    "replaceAll(replaceRegexpAll(replaceAll(data, '\"#\":', '\"##\":'), "
    f"{quoted_text(_STRING_OR_NUMBER)}, {quoted_text(_MARKED)}), '{{\"#\":\"\"}}', '')"
)
_NUMBER_START: Final = '{"#":"'
_QUANTITY_TEXT: Final = r"^-?(0|[1-9][0-9]*)([.][0-9]+)?([eE][+-]?[0-9]{1,18})?$"
# A decimal text has an exponent of up to 17 digits (`aggregators/quantities.py`). The decoder limits those of numbers.
_LONG_EXPONENT: Final = "[eE][+-]?[0-9]{18}$"
_QUANTITY_CHARACTERS_MAX: Final = 64
_QUANTITY_DIGITS_MAX: Final = 18
_UNIQUE: Final = Aggregation.UNIQUE


def judged_source(source: str, meter: Meter, paths: Sequence[str]) -> str:
    """SQL for the rows of `source`, which have `data`, and two columns more. `texts` are the JSON texts at the paths,
    digit for digit; `usable` is whether the meter can use the quantity."""
    texts = ", ".join(f"JSONExtractRaw({_arguments(path)})" for path in paths)
    rows = f"SELECT *, [{texts}]::Array(String) AS texts FROM (SELECT *, {_NUMBERED} AS json FROM ({source}))"
    path = meter.value_path
    if path is None:
        return f"SELECT *, 1 AS usable FROM ({rows})"
    raw, number = _column("raw", path), _column("number", path)
    read = f"SELECT *, {_number_of(raw)} AS {number} FROM (SELECT *, JSONExtractRaw({_arguments(path)}) AS {raw} "
    return f"SELECT *, {_is_quantity(meter, path)} AS usable FROM ({read} FROM ({rows})))"


def columns_of(events: str, meters: Sequence[Meter]) -> str:
    """The rows of `counted_events`, with a column for each path that the meters read.

    A column is the value as text or the text of a number. Each path is looked up once, because ClickHouse parses the
    whole document for every JSON function.
    """
    texts = {path for meter in meters for path in _text_paths(meter)}
    numbers = {meter.value_path for meter in meters if meter.value_path} - texts
    numbers |= {meter.value_path for meter in meters if meter.value_path and meter.aggregation is not _UNIQUE}
    raw = "".join(f", JSONExtractRaw({_arguments(path)}) AS {_column('raw', path)}" for path in sorted(texts | numbers))
    values = [f"{_text_of(_column('raw', path))} AS {_column('text', path)}" for path in sorted(texts)]
    values += [f"{_number_of(_column('raw', path))} AS {_column('number', path)}" for path in sorted(numbers)]
    return (
        f"SELECT {', '.join(['*', *values])} FROM (SELECT *{raw} FROM ("
        "SELECT account, id, type, partition, arrived, position, stream_time_ms, "
        "toUnixTimestamp64Micro(time) AS time_us, "
        f"intDiv(time_us - positiveModulo(time_us, 1000), 1000) AS time_ms, {_NUMBERED} AS json FROM ({events})))"
    )


def _text_paths(meter: Meter) -> list[str]:
    paths = [*meter.dimensions.values(), *(condition.path for condition in meter.filters)]
    return [*paths, meter.value_path] if meter.value_path and meter.aggregation is _UNIQUE else paths


def _column(kind: str, path: str) -> str:
    return quoted_name(f"{kind} {path}")


def is_wanted(meter: Meter, in_force: str) -> str:
    """SQL: the event is of the meter's type, the meter is in force, and all filters pass."""
    conditions = [f"type = {quoted_text(meter.event_type)}", in_force, *map(_passes, meter.filters)]
    return " AND ".join(conditions)


def is_usable(meter: Meter) -> str:
    """SQL, beginning with AND: the meter gets its dimensions and a quantity or a distinct text from the event."""
    texts = [f"isNotNull({_column('text', path)})" for path in meter.dimensions.values()]
    if meter.value_path is not None and meter.aggregation is _UNIQUE:
        texts.append(f"notEmpty(ifNull({_column('text', meter.value_path)}, ''))")
    elif meter.value_path is not None:
        texts.append(_is_quantity(meter, meter.value_path))
    return "".join(f" AND {text}" for text in texts)


def _is_quantity(meter: Meter, path: str) -> str:
    """SQL: the number at the path is exact at the meter's scale, below 10^18 minor units and not negative unless the
    meter allows that."""
    number, raw = _column("number", path), _column("raw", path)
    mantissa = f"replaceOne(extract({number}, '^-?([0-9.]+)'), '.', '')"
    significant = f"replaceRegexpAll({mantissa}, '^0+|0+$', '')"
    exponent = f"toInt64OrZero(replaceOne(extract({number}, '[eE](.+)$'), '+', ''))"
    trailing = f"length(extract({mantissa}, '0*$')) - length(extract({number}, '[.]([0-9]+)'))"
    shift = f"({exponent} + toInt64({trailing}) + {meter.scale})"
    sign = "" if meter.allow_negative else f" AND NOT startsWith({number}, '-')"
    return (
        f"(match({number}, {quoted_text(_QUANTITY_TEXT)}) "
        f"AND (startsWith({raw}, '{_NUMBER_START}') OR (length({number}) <= {_QUANTITY_CHARACTERS_MAX} "
        f"AND NOT match({number}, {quoted_text(_LONG_EXPONENT)}))) "
        f"AND (empty({significant}) OR ({shift} >= 0 AND length({significant}) + {shift} <= {_QUANTITY_DIGITS_MAX}"
        f"{sign})))"
    )


def _passes(condition: Filter) -> str:
    values = ", ".join(quoted_text(value) for value in condition.values)
    # A value other than text, integer or boolean equals no filter value.
    equal = f"ifNull({_column('text', condition.path)} IN ({values}), 0)"
    return equal if condition.operator in (FilterOperator.EQUAL, FilterOperator.IN) else f"NOT {equal}"


def dimension_texts(meter: Meter) -> list[str]:
    """SQL for the text of each dimension, in the order of their names."""
    return [f"assumeNotNull({_column('text', meter.dimensions[name])})" for name in sorted(meter.dimensions)]


def value_column(meter: Meter) -> str:
    """SQL for the text of the quantity, or of the distinct value."""
    if meter.value_path is None:
        return "'1'"
    if meter.aggregation is _UNIQUE:
        return f"assumeNotNull({_column('text', meter.value_path)})"
    return _column("number", meter.value_path)


def _text_of(raw: str) -> str:
    """A JSON value as text; NULL for a fraction, a list, an object, or a text that is too long."""
    number = f"substring({raw}, 7, length({raw}) - 8)"
    # As written, without the sign of -0: a conversion would lose digits of a large integer.
    whole = f"match({number}, '^-?[0-9]+$') AND length({number}) <= {DIMENSION_CHARACTERS_MAX}"
    string = f"JSONExtractString({raw})"
    return (
        f"multiIf(startsWith({raw}, '\"'), if(lengthUTF8({string}) <= {DIMENSION_CHARACTERS_MAX}, "
        f"toNullable({string}), NULL), "
        f"startsWith({raw}, '{_NUMBER_START}'), if({whole}, toNullable(if({number} = '-0', '0', {number})), NULL), "
        f"{raw} IN ('true', 'false'), toNullable({raw}), "
        f"{raw} IN ('', 'null'), toNullable(''), NULL)"
    )


def _number_of(raw: str) -> str:
    return f"if(startsWith({raw}, '{_NUMBER_START}'), substring({raw}, 7, length({raw}) - 8), JSONExtractString({raw}))"


def _arguments(path: str) -> str:
    return ", ".join(["json", *(quoted_text(key) for key in path_keys(path))])
