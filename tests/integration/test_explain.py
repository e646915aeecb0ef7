"""Invoices and events are explained through the product: archive, reports, the simulator's invoices, and the mirror."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from aggregators.signed_lines import file_key
from pipeline.explaining.events import explained_event
from pipeline.explaining.export import exported
from pipeline.explaining.reading import explained_invoice, explained_line
from pipeline.explaining.verifying import verified
from schemas.control import CorrectionRecord
from schemas.meters import MeterSet
from sinks.clickhouse.client import ClickHouse
from tests.worlds.deployment import SECRET
from tests.worlds.explained import Explained, explained_business

# Scenario 1: 137 510 calls. The second event comes twice, and the last one is quarantined.
USES = (
    ("ada", "100000", 3, "op-1"), ("ada", "37000", 9, "op-2"), ("ada", "37000", 9, "op-2"), ("ada", "510", 20, "op-3"),
    ("ada", "-1", 21, "op-4"),
)  # fmt: skip


@pytest_asyncio.fixture
async def business(clickhouse: ClickHouse) -> AsyncIterator[Explained]:
    async with explained_business(clickhouse) as opened:
        yield opened


async def test_why_an_invoice_says_26_651_cents(business: Explained) -> None:
    """Scenario 1: 4900 + 18000 + 3751, each from its tier, and the tiers' quantity from hours and events."""
    await business.buy("ada", "api.v1.base", "api.v1.calls")
    await business.november(*USES)
    invoice, total = (await business.billed("ada"))[-1]
    assert total == 26_651

    found = await explained_invoice(business.stores, "ada", invoice)

    assert found is not None
    assert found.holds, found
    amounts = {line.amount.minor: line for line in found.lines}
    assert sorted(amounts) == [0, 3_751, 4_900, 18_000]
    assert amounts[4_900].kind == "paid_ahead"
    assert [(part.text, part.amount_minor, part.is_line) for part in amounts[3_751].priced] == [
        ("the first 10,000 at $0.00 each", 0, False),
        ("the next 90,000 at $0.002 each", 18_000, False),
        ("the next 37,510 at $0.001 each", 3_751, True),
    ]
    line = await explained_line(business.stores, "ada", invoice, amounts[18_000].line)
    assert line is not None
    assert [str(units.normalize()) for _, units in line.hours] == ["1E+5", "3.7E+4", "5.1E+2"]
    assert sum(units for _, units in line.hours) == 137_510
    assert "Arrivals of the same event again, which were not counted: 1," in " ".join(line.says)


async def test_where_an_event_ended(business: Explained) -> None:
    """From an event's id to the line of the invoice, and why another one was not counted."""
    await business.buy("ada", "api.v1.base", "api.v1.calls")
    await business.november(*USES)
    invoice, _ = (await business.billed("ada"))[-1]

    twice = await explained_event(business.stores, "ada", "op-2")
    refused = await explained_event(business.stores, "ada", "op-4")
    nothing = await explained_event(business.stores, "ada", "op-5")

    assert (twice.state, len(twice.again), [each.invoice for each in twice.ended]) == ("counted", 1, [invoice])
    (ended,) = twice.ended
    assert (ended.meter, ended.value, len(ended.lines)) == ("calls", "37000", 3)
    assert (refused.state, refused.facts["reason"]) == ("quarantined", "negative_quantity")
    assert nothing.state == "unknown"

    record = CorrectionRecord(account="ada", correction="t-7", event="op-2", kind="void", by="ann", reason="by mistake")
    await business.world.control(business.partition("ada"), record)
    await business.archive()
    corrected = await explained_event(business.stores, "ada", "op-2")
    assert any(each.startswith("The correction t-7 of") and "voided it: ann wrote" in each for each in corrected.says)


async def test_a_file_has_the_events_of_a_meter_that_is_not_counted_any_more(business: Explained) -> None:
    """The meter is retired after the invoice: the dispute comes later."""
    await business.buy("ada", "api.v1.base", "api.v1.calls")
    await business.november(*USES)
    invoice, _ = (await business.billed("ada"))[-1]
    found = await explained_invoice(business.stores, "ada", invoice)
    in_force = await business.stores.meter_set()
    assert found is not None
    assert in_force is not None

    async def retired() -> MeterSet:
        return MeterSet(version=2, meters=(), retired=in_force.meters)

    stores = business.stores._replace(meter_set=retired)
    lines = [line async for line in exported(stores, found, SECRET, "salt")]

    whole = verified(lines, SECRET)
    assert (whole.problems, whole.events) == ([], 3)
    event = await explained_event(stores, "ada", "op-2")
    assert [each.invoice for each in event.ended] == [invoice]


async def test_a_signed_file_names_what_was_changed(business: Explained) -> None:
    """The file has every event; each line that is changed, left out or moved is named, and a wrong sum too."""
    await business.buy("ada", "api.v1.base", "api.v1.calls")
    await business.november(*USES)
    invoice, _ = (await business.billed("ada"))[-1]
    found = await explained_invoice(business.stores, "ada", invoice)
    assert found is not None

    lines = [line async for line in exported(business.stores, found, SECRET, "salt")]

    whole = verified(lines, SECRET)
    assert (whole.problems, whole.events, whole.hours, whole.invoice) == ([], 3, 3, invoice)
    assert verified(lines, b"", file_key(SECRET, "salt")).problems == []
    assert verified(lines, b"another secret").problems
    place = next(number for number, line in enumerate(lines) if b'"op-2"' in line)
    assert b'"arrived_again":1' in lines[place]
    byte = sum(map(len, lines[:place]))
    changed = [*lines[:place], lines[place].replace(b"37000", b"27000"), *lines[place + 1 :]]
    problems = verified(changed, SECRET).problems
    assert problems[0] == f"line {place + 1} (byte {byte}): changed, or the line before it is missing"
    assert any(
        "the events of the hour 2026-11-10T00:00:00Z add up to 27000, the hour has 37000" in each for each in problems
    )
    missing = verified([*lines[:place], *lines[place + 1 :]], SECRET).problems
    assert missing[0].startswith(f"line {place + 1} (byte {byte}): changed, or the line before it is missing")
    cut = verified(lines[:-1], SECRET).problems
    assert cut == [
        f"the end is missing: the file was cut after line {len(lines) - 1} (byte {sum(map(len, lines[:-1]))})"
    ]
