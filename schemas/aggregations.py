"""The aggregations, one class for each. The class contains everything that differs between aggregations.

The reconciler's recount (`sinks/clickhouse/recount.py` and its fake) and the oracle have separate rules on purpose:
they check these classes. The view `usage` of ClickHouse is SQL and repeats `merged_sql`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from enum import StrEnum
from functools import reduce
from operator import add
from typing import Any, ClassVar, Final, Protocol

import msgspec


class Aggregation(StrEnum):
    """How the quantities of a period become one total."""

    COUNT = "count"
    SUM = "sum"
    MAX = "max"
    MIN = "min"
    UNIQUE = "unique"
    LATEST = "latest"
    TIME_WEIGHTED = "time_weighted"
    DURATION = "duration"
    PEAK = "peak"

    @property
    def rule(self) -> AggregationRule:
        """The class of this aggregation. Costs a lookup, so the hot path calls this once per meter."""
        return _RULES[self]


class Value(msgspec.Struct, frozen=True, gc=False):
    """An aggregate in minor units. An `ordered` aggregation also has the time and position of the event that won."""

    minor: int
    time_us: int = 0
    position: int = 0


class ColumnOfMeter(Protocol):
    """What many events contribute to a meter: parallel lists, of which a `count` meter has no `minors`, and only an
    `ordered` one has `times_us`."""

    numbers: list[int]
    positions: list[int]
    minors: list[int]
    times_us: list[int]


class AggregationRule(ABC):
    """The rules of one aggregation. Stateless; one object per class.

    Reports to Stripe need no rule: for every aggregation, they are the change of the total.
    """

    aggregation: ClassVar[Aggregation]
    code: ClassVar[str]
    """The letter of the aggregation in the text of a cell. Letters are stored: never reuse one."""
    takes_value: ClassVar[bool] = True
    """Whether a meter has a `value_path`; without it every event has the quantity 1."""
    takes_scale: ClassVar[bool] = True
    """Whether quantities may have decimal digits."""
    distinct: ClassVar[bool] = False
    """Whether quantities are texts. Every distinct text counts once per period."""
    ordered: ClassVar[bool] = False
    """Whether a value has the time and position of its event, because `merge` needs them."""
    is_level: ClassVar[bool] = False
    """Whether a value may stand beyond its period (`Meter.carry_over`). Merging a value twice must change nothing."""
    additive: ClassVar[bool] = False
    """Whether values of hours and dimensions may be added up. Then the meter takes adjustments (S14)."""
    measured: ClassVar[bool] = False
    """Whether the application's events are samples, which add nothing themselves: adjustments add all usage (S15)."""
    covers: ClassVar[bool] = False
    """Whether samples cover spans of time, and their quantity is a weight that may be left out; else they are levels,
    which stand until the next one."""
    greatest: ClassVar[bool] = False
    """Whether samples are levels of which the greatest counts, and not level × time."""
    empty_minor: ClassVar[int | None] = None
    """The value of a period without events; None if 0 would mean something else."""
    merged_sql: ClassVar[str]
    """ClickHouse's expression for `merged` over rows of `usage_hourly` of several accounts."""

    @abstractmethod
    def merge(self, first: Value, second: Value) -> Value:
        """The value of both together. The result must not depend on the order or the grouping of merges."""

    @abstractmethod
    def gathered(self, column: ColumnOfMeter) -> dict[int, Any]:
        """What a column adds to each of its targets, as `kept` keeps a value. Equals merging the column's values one by
        one."""

    joined: ClassVar[Any]
    """The function that is `merge` for two values as `kept` keeps them."""

    def kept(self, value: Value) -> Any:
        """A value as the fold keeps it: the minor units, and what else `joined` compares."""
        return value.minor

    def minor(self, kept: Any) -> int:
        """The minor units of a kept value."""
        minor: int = kept
        return minor

    def value(self, kept: Any) -> Value:
        """The inverse of `kept`."""
        return Value(kept)

    def merged(self, values: Iterable[Value]) -> Value:
        """The value of all together; there must be at least one."""
        return reduce(self.merge, values)


class Sum(AggregationRule):
    """The sum of the quantities."""

    aggregation = Aggregation.SUM
    code = "s"
    additive = True
    empty_minor = 0
    merged_sql = "sum(value_minor)"

    def merge(self, first: Value, second: Value) -> Value:
        """See the base class."""
        return Value(first.minor + second.minor)

    def gathered(self, column: ColumnOfMeter) -> dict[int, Any]:
        """See the base class."""
        added: dict[int, int] = {}
        for number, minor in zip(column.numbers, column.minors, strict=True):
            added[number] = added.get(number, 0) + minor
        return added

    joined = staticmethod(add)


class Count(Sum):
    """The number of events: every event has the quantity 1."""

    aggregation = Aggregation.COUNT
    code = "c"
    takes_value = takes_scale = False

    def gathered(self, column: ColumnOfMeter) -> dict[int, Any]:
        """See the base class."""
        return Counter(column.numbers)


class TimeWeighted(Sum):
    """The sum of levels × the time for which each stands. Its cells are sums of adjustments."""

    aggregation = Aggregation.TIME_WEIGHTED
    code = "w"
    measured = True


class Peak(Sum):
    """The greatest level that stood in the period, also one from before. Its cells are sums of adjustments: by how much
    the greatest level so far has grown."""

    aggregation = Aggregation.PEAK
    code = "p"
    measured = greatest = True


class Duration(Sum):
    """The time that spans or sessions cover, × their weight. Its cells are sums of adjustments."""

    aggregation = Aggregation.DURATION
    code = "d"
    measured = covers = True


class Unique(Sum):
    """The number of distinct texts. A cell counts the texts that are new in the period, so cells add up to the period.
    They do not give the distinct texts of an hour: those are counted over the events."""

    aggregation = Aggregation.UNIQUE
    code = "u"
    takes_scale = False
    distinct = True
    additive = False


class Max(AggregationRule):
    """The greatest quantity."""

    aggregation = Aggregation.MAX
    code = "m"
    merged_sql = "max(value_minor)"

    def merge(self, first: Value, second: Value) -> Value:
        """See the base class."""
        return second if second.minor > first.minor else first

    def gathered(self, column: ColumnOfMeter) -> dict[int, Any]:
        """See the base class."""
        return _extremes(column.numbers, column.minors, max)

    joined = staticmethod(max)


class Min(AggregationRule):
    """The least quantity."""

    aggregation = Aggregation.MIN
    code = "n"
    merged_sql = "min(value_minor)"

    def merge(self, first: Value, second: Value) -> Value:
        """See the base class."""
        return second if second.minor < first.minor else first

    def gathered(self, column: ColumnOfMeter) -> dict[int, Any]:
        """See the base class."""
        return _extremes(column.numbers, column.minors, min)

    joined = staticmethod(min)


class Latest(AggregationRule):
    """The quantity of the event with the latest event time. If times are equal, the later event in the log wins."""

    aggregation = Aggregation.LATEST
    code = "l"
    ordered = is_level = True
    merged_sql = "argMax(value_minor, (latest_time_us, latest_position, account))"

    def merge(self, first: Value, second: Value) -> Value:
        """See the base class."""
        later = (second.time_us, second.position) > (first.time_us, first.position)
        return second if later else first

    def gathered(self, column: ColumnOfMeter) -> dict[int, Any]:
        """See the base class."""
        return _extremes(column.numbers, zip(column.times_us, column.positions, column.minors, strict=True), max)

    joined = staticmethod(max)

    def kept(self, value: Value) -> tuple[int, int, int]:
        """See the base class."""
        return value.time_us, value.position, value.minor

    def minor(self, kept: Any) -> int:
        """See the base class."""
        minor: int = kept[2]
        return minor

    def value(self, kept: Any) -> Value:
        """See the base class."""
        time_us, position, minor = kept
        return Value(minor, time_us, position)


def _extremes(numbers: Iterable[int], values: Iterable[Any], chosen: Callable[[Any, Any], Any]) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for number, value in zip(numbers, values, strict=True):
        held = found.get(number)
        found[number] = value if held is None else chosen(held, value)
    return found


ADJUSTED_AS: Final = Aggregation.SUM
"""How adjustments add up, whatever the aggregation of their meter."""

_ALL: Final = (Count(), Sum(), Max(), Min(), Unique(), Latest(), TimeWeighted(), Duration(), Peak())
_RULES: Final = {rule.aggregation: rule for rule in _ALL}
