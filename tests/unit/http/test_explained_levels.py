"""What explain compares an invoice with, if the meter has levels."""

from __future__ import annotations

from decimal import Decimal
from types import SimpleNamespace
from typing import Any

from pipeline.explaining.reading import _total
from schemas.aggregations import Aggregation
from schemas.clock import DAY_MS
from schemas.meters import Meter
from schemas.periods import Period
from sinks.clickhouse.fake import FakeClickHouse
from tests.conformance.clickhouse_rows import MONTH, cell

SEATS = Meter.model_validate(
    {"slug": "seats", "event_type": "seats", "aggregation": "latest", "value_path": "$.seats", "carry_over": True}
)


async def test_a_level_is_billed_in_a_month_without_events() -> None:
    """The month before has the event; the bill of both months is explained by 13 seats, and that of an earlier one by
    none."""
    archive = FakeClickHouse()
    await archive.insert_hourly([cell("seats", 13, aggregation=Aggregation.LATEST, latest=(1, 1))])
    stores: Any = SimpleNamespace(usage=archive)
    spans = [
        Period(MONTH.start_ms - 30 * DAY_MS, MONTH.start_ms), MONTH, Period(MONTH.end_ms, MONTH.end_ms + 31 * DAY_MS),
    ]  # fmt: skip
    found = [await _total(stores, "acme", SEATS, span) for span in spans]
    assert found == [(Decimal(0), Decimal(0)), (Decimal(13), Decimal(0)), (Decimal(13), Decimal(0))]
