"""What a re-cut of an account's periods says: its usage before a record of the log, counted in other periods.

Packed into one control record: JSON, compressed, as base64. Only what differs from the old cut is said of cells;
totals and distinct values of the periods concerned are said whole.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence

import msgspec

from schemas.errors import InvalidInput
from schemas.meters import Aggregation


class RecutCell(msgspec.Struct, frozen=True, array_like=True):
    """One cell as it is after the re-cut. Where its period ends as it begins, nothing is left in the cell."""

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


class RecutTotal(msgspec.Struct, frozen=True, array_like=True):
    """A total after the re-cut. `reported_minor` of it is for Stripe: less than the value where the meter was given
    its event name later."""

    period_start_ms: int
    period_end_ms: int
    meter: str
    scale: int
    value_minor: int
    latest_time_us: int
    latest_position: int
    event_name: str
    reported_minor: int


class RecutDistinct(msgspec.Struct, frozen=True, array_like=True):
    """The distinct values of a `unique` meter in a period, as the members that the live view keeps."""

    period_start_ms: int
    meter: str
    members: Sequence[int]


class RecutContent(msgspec.Struct, frozen=True, array_like=True):
    """All of it. `replaced` are the totals of the old cut that go: (period start, meters)."""

    replaced: Sequence[tuple[int, Sequence[str]]] = ()
    cells: Sequence[RecutCell] = ()
    totals: Sequence[RecutTotal] = ()
    distinct: Sequence[RecutDistinct] = ()


_DECODER = msgspec.json.Decoder(RecutContent)


def packed(content: RecutContent) -> str:
    """The text that a record carries."""
    return base64.b85encode(zlib.compress(msgspec.json.encode(content), 9)).decode("ascii")


def unpacked(text: str) -> RecutContent:
    """The inverse of `packed`. Raises `InvalidInput` for any other text."""
    try:
        return _DECODER.decode(zlib.decompress(base64.b85decode(text)))
    except (ValueError, zlib.error, msgspec.MsgspecError) as error:
        raise InvalidInput("content", f"is no re-cut: {error}") from error
