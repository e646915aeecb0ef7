"""What a restatement of an account's periods says: its usage before a record of the log, counted in other periods.

Packed into one control record: JSON, compressed, as base64. Only what differs from the old cut is said of cells;
totals and distinct values of the periods concerned are said whole.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence

import msgspec

from schemas.aggregations import Aggregation
from schemas.errors import InvalidInput


class RestatementCell(msgspec.Struct, frozen=True, array_like=True):
    """One cell as it is after the restatement. Where its period ends as it begins, nothing is left in the cell."""

    arrival_bucket_ms: int
    hour_ms: int
    period_start_ms: int
    period_end_ms: int
    meter: str
    dimensions: str
    aggregation: Aggregation
    scale: int
    value_minor: int
    latest_time_us: int = 0
    latest_position: int = 0


class RestatementTotal(msgspec.Struct, frozen=True, array_like=True):
    """A total after the restatement. `reported_minor` of it is for Stripe: less than the value where the meter was
    given its event name later."""

    period_start_ms: int
    period_end_ms: int
    meter: str
    scale: int
    value_minor: int
    latest_time_us: int
    latest_position: int
    event_name: str
    reported_minor: int


class RestatementDistinct(msgspec.Struct, frozen=True, array_like=True):
    """The distinct values of a `unique` meter in a period, as the members that the live view keeps."""

    period_start_ms: int
    meter: str
    members: Sequence[int]


class RestatementContent(msgspec.Struct, frozen=True, array_like=True):
    """All of it. `replaced` are the totals of the old cut that go: (period start, meters)."""

    replaced: Sequence[tuple[int, Sequence[str]]] = ()
    cells: Sequence[RestatementCell] = ()
    totals: Sequence[RestatementTotal] = ()
    distinct: Sequence[RestatementDistinct] = ()


_DECODER = msgspec.json.Decoder(RestatementContent)


def packed(content: RestatementContent) -> str:
    """The text that a record carries."""
    return base64.b85encode(zlib.compress(msgspec.json.encode(content), 9)).decode("ascii")


def unpacked(text: str) -> RestatementContent:
    """The inverse of `packed`. Raises `InvalidInput` for any other text."""
    try:
        return _DECODER.decode(zlib.decompress(base64.b85decode(text)))
    except (ValueError, zlib.error, msgspec.MsgspecError) as error:
        raise InvalidInput("content", f"is no restatement: {error}") from error
