"""A meter set as the structures that the C core reads (`meters.h`)."""

from __future__ import annotations

from collections.abc import Iterable
from ctypes import POINTER, Array, Structure, c_char_p, c_int32
from typing import NamedTuple

from aggregators.meters import slow_types
from schemas.meters import FilterOperator, Meter, MeterSet, path_keys

TAKES_NOTHING, TAKES_QUANTITY, TAKES_TEXT = range(3)
LEFT_OUT = -1


class Text(Structure):
    """Bytes with their length. The structure keeps the bytes alive."""

    _fields_ = [("at", c_char_p), ("len", c_int32), ("unused", c_int32)]


class CPath(Structure):
    """The keys of a path."""

    _fields_ = [("keys", POINTER(Text)), ("count", c_int32), ("unused", c_int32)]


class CFilter(Structure):
    """A filter: its path, its values, and whether the value must be inside or outside of them."""

    _fields_ = [("path", CPath), ("values", POINTER(Text)), ("count", c_int32), ("inside", c_int32)]


class CMeter(Structure):
    """A meter, as far as the core must know it."""

    _fields_ = [
        ("value", CPath), ("dimensions", POINTER(CPath)), ("filters", POINTER(CFilter)), ("dimension_count", c_int32),
        ("filter_count", c_int32), ("takes", c_int32), ("scale", c_int32), ("negative", c_int32), ("ordered", c_int32),
    ]  # fmt: skip


class CType(Structure):
    """An event type, and where its meters stand. If `count` is `LEFT_OUT`, Python takes all its events."""

    _fields_ = [("name", Text), ("first", c_int32), ("count", c_int32)]


class MeterTable(NamedTuple):
    """The meters by event type; `order` has them in the order of the table."""

    types: Array[CType]
    meters: Array[CMeter]
    order: tuple[Meter, ...]


def meter_table(meter_set: MeterSet) -> MeterTable:
    """The table of a meter set."""
    by_type: dict[str, list[Meter]] = {}
    for meter in meter_set.meters:
        by_type.setdefault(meter.event_type, []).append(meter)
    order = tuple(meter for meters in by_type.values() for meter in meters)
    slow = dict.fromkeys(slow_types(meter_set), LEFT_OUT)
    types, first = [], 0
    for name, meters in by_type.items():
        types.append(CType(_text(name), first, slow.pop(name, len(meters))))
        first += len(meters)
    types += [CType(_text(name), 0, count) for name, count in slow.items()]
    return MeterTable((CType * len(types))(*types), (CMeter * len(order))(*map(_meter, order)), order)


def _meter(meter: Meter) -> CMeter:
    rule = meter.aggregation.rule
    takes = TAKES_NOTHING if not rule.takes_value else TAKES_TEXT if rule.distinct else TAKES_QUANTITY
    dimensions = [_path(path) for _, path in sorted(meter.dimensions.items())]
    filters = [
        CFilter(
            _path(each.path),
            _texts(each.values),
            len(each.values),
            each.operator in (FilterOperator.EQUAL, FilterOperator.IN),
        )
        for each in meter.filters
    ]
    return CMeter(
        _path(meter.value_path) if meter.value_path else CPath(), (CPath * len(dimensions))(*dimensions),
        (CFilter * len(filters))(*filters), len(dimensions), len(filters), takes, meter.scale, meter.allow_negative,
        rule.ordered,
    )  # fmt: skip


def _path(path: str) -> CPath:
    keys = path_keys(path)
    return CPath(_texts(keys), len(keys), 0)


def _texts(values: Iterable[str]) -> Array[Text]:
    made = [_text(value) for value in values]
    return (Text * len(made))(*made)


def _text(value: str) -> Text:
    encoded = value.encode()
    return Text(encoded, len(encoded), 0)
