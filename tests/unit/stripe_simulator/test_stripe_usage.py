"""Meter events: limits of values, validation, lag, and running sums."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

import pytest

from stripe_simulator import Simulator, SimulatorSettings
from stripe_simulator.times import rfc3339
from stripe_simulator.usage import MeterEvent
from tests.services.stripe_sdk import Sdk
from tests.services.stripe_wire import DAY_S, NOW_MS, NOW_S
from tests.worlds.clock import ManualClock

METER = {"display_name": "Tokens", "event_name": "tokens", "default_aggregation": {"formula": "sum"}}
HOUR_S = 3_600
UNIT = 10**12


def _event(value: str, **more: Any) -> dict[str, Any]:
    return {"event_name": "tokens", "payload": {"stripe_customer_id": "cus_one", "value": value}, **more}


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("123456789012345", 200),
        ("1234567890123456", 400),
        ("1234567.12345678", 200),
        ("1234567.123456789", 400),
        ("-1234567.123456789", 400),
        ("0.00000123456789", 200),
        ("0000000000000000001", 200),
        ("10000000000000000000", 200),
        ("1.000000000000000", 400),
        ("many", 200),
        ("", 200),
    ],
    ids=[
        "15 digits", "16 digits", "15 with a point", "16 with a point", "negative", "zeros before", "leading zeros",
        "zeros at the end", "zeros after the point", "no number", "empty",
    ],
)  # fmt: skip
@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_values_have_at_most_fifteen_significant_digits(sdk: Sdk, version: str, value: str, status: int) -> None:
    """A longer one is refused at once; what is no number is refused later."""
    sdk.simulator.create_customer(False, {}, "cus_one")
    await sdk("v1.billing.meters.create", METER)
    service = f"{version}.billing.meter_events.create"
    if status == 200:
        assert (await sdk(service, _event(value)))["payload"]["value"] == value
        return
    error = await sdk.error(service, _event(value))

    assert (error["status"], error["code"]) == (status, "meter_event_value_too_many_digits")
    assert error["param"] == "payload[value]"
    assert sdk.simulator.test.usage.events == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"event_name": "words"}, "no_meter"),
        ({"identifier": "one"}, "duplicate_meter_event"),
        ({"timestamp": "2026-10-17T11:59:59Z"}, "timestamp_too_far_in_past"),
        ({"timestamp": "2026-11-21T12:05:01Z"}, "timestamp_in_future"),
        ({"timestamp": "noon"}, None),
    ],
    ids=["unknown name", "duplicate", "too old", "too early", "no time"],
)
async def test_errors_of_the_second_api_have_codes(sdk: Sdk, change: dict[str, Any], code: str | None) -> None:
    """API v2 takes JSON and RFC 3339 and names what is wrong."""
    await sdk("v1.billing.meters.create", METER)
    taken = await sdk("v2.billing.meter_events.create", _event("1", identifier="one"))

    error = await sdk.error("v2.billing.meter_events.create", _event("1", **change))

    assert (taken["object"], taken["timestamp"]) == ("v2.billing.meter_event", rfc3339(NOW_MS))
    assert (error["status"], error.get("code")) == (400, code)


@pytest.mark.parametrize(
    ("lag_s", "at_s", "expected"),
    [(5, 4, 0.0), (5, 5, 2.0), (0, 0, 2.0)],
    ids=["before the lag", "after the lag", "no lag"],
)
async def test_sums_follow_later(lag_s: int, at_s: int, expected: float) -> None:
    """An event is answered, then part of the sum."""
    clock = ManualClock(NOW_MS)
    simulator = Simulator(clock, SimulatorSettings(summary_lag_s=lag_s))
    simulator.create_customer(False, {}, "cus_one")
    usage = simulator.test.usage
    usage.receive(MeterEvent("one", "tokens", "mtr", "cus_one", "2", NOW_S))

    clock.advance(at_s * 1_000)
    simulator.catch_up()

    assert usage.total("mtr", "cus_one", NOW_S - HOUR_S, NOW_S + HOUR_S) / UNIT == expected


@pytest.mark.parametrize("seed", range(6))
def test_running_sums_equal_the_sums_of_the_events(seed: int) -> None:
    """Over random events, cancellations and spans, against the definition. A minute counts whole, by its beginning."""
    chance = random.Random(f"sums {seed}")
    clock = ManualClock(NOW_MS)
    simulator = Simulator(clock, SimulatorSettings(summary_lag_s=1))
    simulator.create_customer(False, {}, "cus_one")
    usage = simulator.test.usage
    events: list[tuple[int, Decimal]] = []
    for number in range(300):
        at_s = NOW_S - chance.randrange(3 * DAY_S)
        value = Decimal(chance.randrange(-(10**9), 10**9)).scaleb(-chance.randrange(7))
        event = usage.receive(MeterEvent(f"id-{number}", "tokens", "mtr", "cus_one", f"{value}", at_s))
        if chance.random() < 0.3:
            clock.advance(chance.randrange(2_000))
            simulator.catch_up()
        if chance.random() < 0.2:
            usage.cancel(event)
        else:
            events.append((at_s, value))
    clock.advance(1_000)
    simulator.catch_up()

    for _ in range(40):
        start_s = NOW_S - chance.randrange(3 * DAY_S)
        end_s = start_s + chance.randrange(1, 3 * DAY_S)
        expected = sum(value for at_s, value in events if start_s <= at_s // 60 * 60 < end_s) * UNIT
        assert usage.total("mtr", "cus_one", start_s, end_s) == expected
