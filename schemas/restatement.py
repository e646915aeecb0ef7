"""The content of a restatement: an account's usage before a record of the log, counted in other periods.

The content is packed into one control record as compressed JSON in base85. It has only the cells that change, but all
totals and distinct values of the affected periods.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence

import msgspec

from schemas.aggregations import Aggregation
from schemas.errors import InvalidInput


class RestatementCell(msgspec.Struct, frozen=True, array_like=True):
    """One cell after the restatement. If its period ends at its start, the cell is empty."""

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
    """A total after the restatement. `reported_minor` is the part to report to Stripe: less than the total if the meter
    got its Stripe event name after some of the usage."""

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
    """The distinct values of a `unique` meter in a period, as members of the set in the live view."""

    period_start_ms: int
    meter: str
    members: Sequence[int]


class RestatementContent(msgspec.Struct, frozen=True, array_like=True):
    """The whole content. `replaced` are the totals of the old periods to delete: (period start, meters)."""

    replaced: Sequence[tuple[int, Sequence[str]]] = ()
    cells: Sequence[RestatementCell] = ()
    totals: Sequence[RestatementTotal] = ()
    distinct: Sequence[RestatementDistinct] = ()


_DECODER = msgspec.json.Decoder(RestatementContent)


def packed(content: RestatementContent) -> str:
    """The content as the text of a control record."""
    return base64.b85encode(zlib.compress(msgspec.json.encode(content), 9)).decode("ascii")


def unpacked(text: str) -> RestatementContent:
    """The inverse of `packed`. Raises `InvalidInput` for any other text."""
    try:
        return _DECODER.decode(zlib.decompress(base64.b85decode(text)))
    except (ValueError, zlib.error, msgspec.MsgspecError) as error:
        raise InvalidInput("content", f"is no restatement: {error}") from error
