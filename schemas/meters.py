"""The meter set: which events are metered and how. Published as JSON Schema by `tidemark meters schema`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from schemas.aggregations import Aggregation
from schemas.clock import DAY_MS, HOUR_MS, HOUR_US, MINUTE_MS, SECOND_US
from schemas.spelling import DATA_PATH, SLUG

Slug = Annotated[str, StringConstraints(pattern=SLUG)]
Path = Annotated[str, StringConstraints(pattern=DATA_PATH)]

DIMENSION_CHARACTERS_MAX = 256
RESERVED_DIMENSIONS = frozenset({"account"})
QUANTITY_MINOR_MAX = 10**18 - 1
GRACE_MAX_MS = 35 * DAY_MS
# The prefix of the event types of this system's own events (`schemas.adjustments`).
RESERVED_PREFIX = "tidemark."
SESSION_GAP_S_MAX = 3600
# The longest span of one event of a `duration` meter.
SPAN_S_MAX = 35 * DAY_MS // 1000
STANDS_S_MAX = 36_600 * DAY_MS // 1000


class LatePolicy(StrEnum):
    """What a meter does with an event whose period is closed (I9)."""

    CARRY_FORWARD = "carry_forward"
    QUARANTINE = "quarantine"


class OnBad(StrEnum):
    """What becomes of an event that a meter wants and that has no valid quantity or dimension for the meter."""

    REJECT_EVENT = "reject_event"
    SKIP_METER = "skip_meter"


class TimeUnit(StrEnum):
    """The unit of time in which a measured meter states level × time."""

    SECOND = "second"
    MINUTE = "minute"
    HOUR = "hour"

    @property
    def us(self) -> int:
        """The microseconds of the unit."""
        return {TimeUnit.SECOND: SECOND_US, TimeUnit.MINUTE: 60 * SECOND_US, TimeUnit.HOUR: HOUR_US}[self]


class FilterOperator(StrEnum):
    """How a filter compares the text of a scalar."""

    EQUAL = "eq"
    NOT_EQUAL = "ne"
    IN = "in"
    NOT_IN = "not_in"


class Filter(BaseModel):
    """The meter wants an event only if the text of the scalar at `path` passes. A missing value is the empty text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    operator: FilterOperator = FilterOperator.EQUAL
    values: tuple[str, ...] = Field(min_length=1, max_length=100)


class Meter(BaseModel):
    """One meter: the events it wants and the quantity it takes from an event.

    `value_path` is the path of the quantity: a number or a decimal string, or the distinct value for `unique`; `count`
    has none. `scale` is the number of decimal digits of the minor unit (I5). If the meter cannot use an event's data,
    `on_bad` says whether the event is rejected (it counts in no meter) or counts in its other meters only.
    `carry_over`: the quantity is a level, which stands in later periods until another event changes it (S13).

    Of a measured meter (S15) the events are samples, and its total is level × time in units of `per`. `time_weighted`:
    a level stands until the next sample with the same dimensions and the same text at `series_path`, for at most
    `stands_s_max` seconds. `peak`: the greatest sum of such levels, without time. `duration`: an event covers the time
    since the instant at `start_path`; or the events with the same text at `session_path` cover the time between them,
    except gaps of more than `session_gap_s_max` seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    slug: Slug
    event_type: str = Field(min_length=1, max_length=256)
    aggregation: Aggregation
    value_path: Path | None = None
    dimensions: dict[Slug, Path] = Field(default_factory=dict, max_length=8)
    filters: tuple[Filter, ...] = Field(default=(), max_length=16)
    unit: str = Field(default="", max_length=64)
    scale: int = Field(default=0, ge=0, le=12)
    allow_negative: bool = False
    carry_over: bool = False
    series_path: Path | None = None
    stands_s_max: int | None = Field(default=None, ge=1, le=STANDS_S_MAX)
    start_path: Path | None = None
    session_path: Path | None = None
    session_gap_s_max: int = Field(default=SESSION_GAP_S_MAX, ge=1, le=SPAN_S_MAX)
    per: TimeUnit = TimeUnit.HOUR
    late: LatePolicy = LatePolicy.CARRY_FORWARD
    on_bad: OnBad = OnBad.REJECT_EVENT
    stripe_event_name: str | None = Field(default=None, max_length=100)
    description: str = Field(default="", max_length=1000)

    @field_validator("dimensions")
    @classmethod
    def _in_one_order(cls, value: dict[str, str]) -> dict[str, str]:
        """Sorted by name, so that equal meters have equal texts."""
        return dict(sorted(value.items()))

    @field_validator("dimensions")
    @classmethod
    def _no_reserved_name(cls, value: dict[str, str]) -> dict[str, str]:
        """`group_by` groups by these names without a dimension."""
        for name in RESERVED_DIMENSIONS & value.keys():
            raise ValueError(f"a dimension cannot be called {name}: answers group by the account under that name")
        return value

    @model_validator(mode="after")
    def _value_path_fits_the_aggregation(self) -> Self:
        rule = self.aggregation.rule
        if not rule.takes_value and self.value_path is not None:
            raise ValueError(f"a {self.aggregation} meter takes no value_path: remove it, or use sum")
        if rule.takes_value and not rule.covers and self.value_path is None:
            raise ValueError(f"a {self.aggregation} meter needs a value_path such as $.tokens")
        if not rule.takes_scale and self.scale:
            raise ValueError(f"a {self.aggregation} meter counts whole things: scale must be 0")
        if self.carry_over and not rule.is_level:
            raise ValueError(f"a {self.aggregation} meter has no level: remove carry_over, or use latest or peak")
        if self.event_type.startswith(RESERVED_PREFIX):
            raise ValueError(f"event types that begin with {RESERVED_PREFIX} are reserved: name another event_type")
        return self

    @model_validator(mode="after")
    def _measures_what_it_can(self) -> Self:
        rule = self.aggregation.rule
        is_duration, is_gauge = rule.covers, rule.measured and not rule.covers
        is_peak = rule.greatest
        fields = [
            ("series_path", self.series_path is not None, is_gauge, "time_weighted or peak"),
            ("stands_s_max", self.stands_s_max is not None, is_gauge, "time_weighted or peak"),
            ("start_path", self.start_path is not None, is_duration, "duration"),
            ("session_path", self.session_path is not None, is_duration, "duration"),
            ("per", self.per is not TimeUnit.HOUR, rule.measured and not is_peak, "time_weighted or duration"),
        ]
        for name, is_set, fits, aggregations in fields:
            if is_set and not fits:
                raise ValueError(f"a {self.aggregation} meter has no {name}: remove it, or use {aggregations}")
        if self.session_gap_s_max != SESSION_GAP_S_MAX and self.session_path is None:
            raise ValueError("session_gap_s_max belongs to session_path: remove it, or add session_path")
        if is_duration and (self.start_path is None) is (self.session_path is None):
            raise ValueError("a duration meter needs either start_path or session_path, such as $.started_at")
        if is_duration and self.value_path is not None and self.start_path is None:
            raise ValueError("a session has no weight: remove value_path, or use start_path")
        if (is_duration or is_peak) and self.allow_negative:
            raise ValueError(f"the quantities of a {self.aggregation} meter are 0 or more: remove allow_negative")
        return self


class Policy(BaseModel):
    """The limits and spans of the fold. They are in the log with the meters, so a replay decides the same (I7).

    `deferred_max`: if this many events of a partition wait for their dedup decision, more far-late events are rejected.
    `keep_periods_ms`: how long a period's totals stay in the live view after its end, see `periods_kept_ms`.
    `late_max_ms`: an event whose time is more than this before stream time is rejected as `too_old`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    window_ms: int = Field(default=72 * HOUR_MS, ge=2 * HOUR_MS, le=90 * DAY_MS)
    future_ms: int = Field(default=5 * MINUTE_MS, ge=0, le=DAY_MS)
    grace_ms: int = Field(default=HOUR_MS, ge=0, le=GRACE_MAX_MS)
    report_interval_ms: int = Field(default=HOUR_MS, ge=MINUTE_MS, le=DAY_MS)
    event_bytes_max: int = Field(default=65_536, ge=1_024, le=1_048_576)
    deferred_max: int = Field(default=100_000, ge=0, le=10_000_000)
    keep_periods_ms: int = Field(default=62 * DAY_MS, ge=0, le=36_600 * DAY_MS)
    late_max_ms: int = Field(default=35 * DAY_MS, ge=HOUR_MS, le=36_600 * DAY_MS)

    @model_validator(mode="after")
    def _spans_divide(self) -> Self:
        if self.window_ms % 2:
            raise ValueError("window_ms must be even: marks are stored in halves of the window")
        if DAY_MS % self.report_interval_ms:
            raise ValueError("report_interval_ms must divide a day, so that report buckets are aligned")
        return self

    def report_bucket_ms(self, stream_time_ms: int) -> int:
        """The start of the report bucket that takes usage which arrives at a stream time."""
        return stream_time_ms // self.report_interval_ms * self.report_interval_ms

    def report_bucket_end_ms(self, stream_time_ms: int) -> int:
        """The end of that report bucket."""
        return self.report_bucket_ms(stream_time_ms) + self.report_interval_ms

    @property
    def periods_kept_ms(self) -> int:
        """`keep_periods_ms`, but at least the greatest grace and a window. After that span every period is closed, and
        no flush, which is shorter than half a window, both begins and retires a total."""
        return max(self.keep_periods_ms, GRACE_MAX_MS + self.window_ms)


class MeterSet(BaseModel):
    """All meters of a deployment. Every partition has the whole meter set, in effect from the offset of its record.

    `retired` are meters of earlier meter sets, so that their slugs never get another meaning. `tidemark meters apply`
    lists those it knows, and the fold adds meters that this meter set omits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(ge=1)
    meters: tuple[Meter, ...] = Field(max_length=500)
    policy: Policy = Policy()
    retired: tuple[Meter, ...] = Field(default=(), max_length=500)

    @model_validator(mode="after")
    def _slugs_differ(self) -> Self:
        twice = _twice(meter.slug for meter in (*self.meters, *self.retired))
        if twice:
            raise ValueError(f"meter slug used twice: {', '.join(twice)}")
        shared = _twice(meter.stripe_event_name for meter in self.meters if meter.stripe_event_name)
        if shared:
            raise ValueError(f"stripe_event_name used by two meters: {', '.join(shared)}")
        return self

    def __hash__(self) -> int:
        """Hash of the version: hashing up to 1,000 meters at every cache lookup costs too much."""
        return hash(self.version)

    def meter(self, slug: str) -> Meter | None:
        """The meter with this slug, or None."""
        return next((meter for meter in self.meters if meter.slug == slug), None)


def _twice(names: Iterable[str]) -> list[str]:
    return sorted(name for name, times in Counter(names).items() if times > 1)


def path_keys(path: str) -> tuple[str, ...]:
    """`$.usage.tokens` → `("usage", "tokens")`."""
    return tuple(re.split(r"\.", path)[1:])
