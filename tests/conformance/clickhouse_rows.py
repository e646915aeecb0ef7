"""For the suites of the analytical store: the fake and the real store, and rows with sensible defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

from schemas.aggregations import Aggregation
from schemas.analytics import ArchiveStore, EventRow, HourlyRow, HourlyStore, MeterSpan, RecountRequest, UsageReader
from schemas.clock import HOUR_MS
from schemas.meters import Meter
from schemas.periods import Period


class Store(ArchiveStore, HourlyStore, Protocol):
    """Both writing protocols."""


class Both(NamedTuple):
    """A store and its reader."""

    store: Store
    reader: UsageReader


def ms(text: str) -> int:
    """Milliseconds of a UTC time such as `2026-03-29T01:30`."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


NOW_MS = ms("2026-11-21T10:15")
MONTH = Period(ms("2026-11-01"), ms("2026-12-01"))
OCTOBER = Period(ms("2026-10-01"), ms("2026-11-01"))
ALL_SPANS = 1 << 50
TOKENS = Meter(slug="tokens", event_type="llm", aggregation=Aggregation.SUM, value_path="$.tokens", scale=3)
CALLS = Meter(slug="calls", event_type="llm", aggregation=Aggregation.COUNT)
PEAK = Meter(slug="peak", event_type="llm", aggregation=Aggregation.MAX, value_path="$.tokens", scale=3)
LEAST = Meter(slug="least", event_type="llm", aggregation=Aggregation.MIN, value_path="$.tokens", scale=3)
LAST = Meter(slug="last", event_type="llm", aggregation=Aggregation.LATEST, value_path="$.tokens", scale=3)
USERS = Meter(slug="users", event_type="llm", aggregation=Aggregation.UNIQUE, value_path="$.user")
LEVEL = LAST.model_copy(update={"slug": "level", "carry_over": True})
STORED = Meter(
    slug="stored", event_type="llm", aggregation=Aggregation.TIME_WEIGHTED, value_path="$.tokens", scale=3,
    dimensions={"region": "$.quantity"},
)  # fmt: skip
EVERY = (TOKENS, CALLS, PEAK, LEAST, LAST, USERS)
"""One meter of each aggregation."""


def event(
    number: int,
    data: object,
    *,
    account: str = "acme",
    event_id: str | None = None,
    time_ms: int = NOW_MS,
    stream_time_ms: int | None = None,
    partition: int = 3,
    event_type: str = "llm",
) -> EventRow:
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"), sort_keys=True)
    return EventRow(
        account,
        event_id or f"e{number}",
        event_type,
        "app",
        time_ms * 1000 + number % 1000,
        text,
        partition,
        number,
        NOW_MS if stream_time_ms is None else stream_time_ms,
    )


def request_of(
    *meters: Meter,
    before_position: int = ALL_SPANS,
    boundaries: Mapping[str, Sequence[Period]] | None = None,
    closings: Mapping[str, Sequence[tuple[int, int]]] | None = None,
    accounts: Sequence[str] | None = None,
    graces: Sequence[tuple[int, int]] = ((0, HOUR_MS),),
) -> RecountRequest:
    spans = [MeterSpan(meter, 0, ALL_SPANS) for meter in meters]
    return RecountRequest(3, before_position, spans, graces, boundaries or {}, closings or {}, accounts)


def cell(
    meter: str,
    value: int,
    *,
    aggregation: Aggregation = Aggregation.SUM,
    account: str = "acme",
    hour_ms: int = ms("2026-11-21T10:00"),
    bucket_ms: int = ms("2026-11-21T10:00"),
    dimensions: str = "{}",
    version: int = 1,
    latest: tuple[int, int] = (0, 0),
    partition: int = 3,
) -> HourlyRow:
    return HourlyRow(
        account, meter, *MONTH, hour_ms, dimensions, bucket_ms, aggregation, 3, value, *latest, partition, version
    )
