"""API v2's stream of meter events, its sessions, and adjustments that cancel events."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import pytest_asyncio

from stripe_simulator import Simulator, SimulatorSettings, create_app
from tests.services.stripe import check_shapes
from tests.services.stripe_sdk import Sdk
from tests.services.stripe_shapes import problems
from tests.services.stripe_wire import DAY_S, NOW_MS, NOW_S
from tests.worlds.clock import ManualClock

METER: Final = {"display_name": "Tokens", "event_name": "tokens", "default_aggregation": {"formula": "sum"}}
MINUTE_MS: Final = 60_000
REQUESTS: Final = 400
EVENTS_PER_S_MIN: Final = 20_000
# An event against a bare answer: about 25 on an idle machine.
RATIO_MAX: Final = 80


@pytest_asyncio.fixture
async def live(sdk: Sdk) -> AsyncIterator[Sdk]:
    """stripe-python with a live key, a meter `tokens` and the customer `cus_one`."""
    live = Sdk(sdk.simulator, sdk.clock, sdk.url, key="sk_live_one")
    live.simulator.create_customer(True, {}, "cus_one")
    await live("v1.billing.meters.create", METER)
    yield live
    await live.close()


def _event(identifier: str = "", value: str = "2", **changes: Any) -> dict[str, Any]:
    event = {"event_name": "tokens", "payload": {"stripe_customer_id": "cus_one", "value": value}, **changes}
    return {**event, "identifier": identifier} if identifier else event


async def _total(sdk: Sdk) -> float:
    meter = (await sdk("v1.billing.meters.list"))["data"][-1]
    span = {"customer": "cus_one", "start_time": NOW_S - 40 * DAY_S, "end_time": NOW_S + DAY_S}
    rows = await sdk("v1.billing.meters.event_summaries.list", meter["id"], span)
    return float(sum(row["aggregated_value"] for row in rows["data"]))


async def _stream(sdk: Sdk, *events: dict[str, Any]) -> None:
    session = await sdk("v2.billing.meter_event_session.create")
    options = {"api_key": session["authentication_token"]}
    assert await sdk("v2.billing.meter_event_stream.create", {"events": list(events)}, options) is None


async def test_streamed_events_are_added_up(live: Sdk) -> None:
    """A taken identifier is dropped, without an identifier each event counts."""
    await _stream(live, _event("a"), _event("a", "7"), _event("b", "0.5"), _event(), _event())
    await _stream(live, _event("b"), _event(timestamp="2026-11-20T12:00:00Z"))

    assert await _total(live) == 2 + 0.5 + 2 + 2 + 2


async def test_streamed_events_are_validated_later(live: Sdk) -> None:
    """Every mistake that API v1 refuses at once is a code in a thin report."""
    old = await live("v1.billing.meters.create", {**METER, "event_name": "old"})
    await live("v1.billing.meters.deactivate", old["id"])
    await _stream(
        live,
        _event(value="1234567890123456"),
        _event(event_name="none"),
        _event(event_name="old"),
        _event(timestamp="2026-01-01T00:00:00Z"),
        _event(timestamp="2027-01-01T00:00:00Z"),
        _event(value="cat"),
        _event(payload={"value": "1"}),
        _event(),
    )
    live.clock.advance(10_000)

    reports = (await live("v2.core.events.list"))["data"]
    codes = {kind["code"] for report in reports for kind in report["data"]["reason"]["error_types"]}
    assert codes == {
        "meter_event_value_too_many_digits",
        "no_meter",
        "archived_meter",
        "timestamp_too_far_in_past",
        "timestamp_in_future",
        "meter_event_invalid_value",
        "meter_event_no_customer_defined",
    }
    assert {report["type"].rpartition(".")[2] for report in reports} == {"error_report_triggered", "no_meter_found"}
    assert await _total(live) == 2


async def test_session_lasts_15_minutes(live: Sdk) -> None:
    """Then, and for any other token, 401 with the code at which a sender opens another session."""
    session = await live("v2.billing.meter_event_session.create")
    options = {"api_key": session["authentication_token"]}
    for minutes, works in ((14, True), (1, False)):
        live.clock.advance(minutes * MINUTE_MS)
        if works:
            await live("v2.billing.meter_event_stream.create", {"events": [_event()]}, options)
            continue
        for key in (options, {"api_key": "sk_live_one"}):
            error = await live.error("v2.billing.meter_event_stream.create", {"events": [_event()]}, key)
            assert (error["status"], error["type"]) == (401, "temporary_session_expired")
            assert error["code"] == "billing_meter_event_session_expired"


async def test_stream_is_bounded(live: Sdk) -> None:
    """100 events for each request."""
    session = await live("v2.billing.meter_event_session.create")
    options = {"api_key": session["authentication_token"]}
    events = [_event() for _ in range(101)]
    error = await live.error("v2.billing.meter_event_stream.create", {"events": events}, options)
    assert (error["status"], error["param"]) == (400, "events")
    await live("v2.billing.meter_event_stream.create", {"events": events[1:]}, options)
    assert await _total(live) == 200


async def test_stream_is_not_in_a_sandbox(sdk: Sdk) -> None:
    """Live mode only, as documented."""
    assert (await sdk.error("v2.billing.meter_event_session.create"))["status"] == 400


@pytest.mark.parametrize("is_added", [True, False], ids=["added up", "waiting"])
async def test_adjustment_cancels_an_event(is_added: bool) -> None:
    """The sums are as if the event had not been sent, whether they contained it or not."""
    clock = ManualClock(NOW_MS)
    simulator = Simulator(clock, SimulatorSettings(summary_lag_s=60), check=problems)
    sdk = Sdk(simulator, clock)
    simulator.create_customer(False, {}, "cus_one")
    await sdk("v1.billing.meters.create", METER)
    for identifier, value in (("a", "5"), ("b", "7"), ("c", "11")):
        await sdk("v1.billing.meter_events.create", _event(identifier, value))
        clock.advance(1_000)
    clock.advance(is_added * 61_000)
    adjustment = {"event_name": "tokens", "type": "cancel", "cancel": {"identifier": "c"}}
    answer = await sdk("v1.billing.meter_event_adjustments.create", adjustment)
    clock.advance(61_000)

    assert (answer["status"], answer["cancel"]) == ("pending", {"identifier": "c"})
    assert await _total(sdk) == 12
    check_shapes(simulator.violations, simulator.checked)
    await sdk.close()


@pytest.mark.parametrize(
    ("change", "wait_ms", "error"),
    [
        ({"cancel": {"identifier": "none"}}, 0, ("resource_missing", "cancel[identifier]")),
        ({"event_name": "other"}, 0, ("resource_missing", "cancel[identifier]")),
        ({}, DAY_S * 1_000, ("resource_missing", "cancel[identifier]")),
        ({"cancel": {}}, 0, ("parameter_missing", "cancel[identifier]")),
    ],
    ids=["unknown identifier", "another meter", "after 24 hours", "no identifier"],
)
async def test_bad_adjustments(sdk: Sdk, change: dict[str, Any], wait_ms: int, error: tuple[str, str]) -> None:
    """400, and the event stays."""
    sdk.simulator.create_customer(False, {}, "cus_one")
    await sdk("v1.billing.meters.create", METER)
    await sdk("v1.billing.meter_events.create", _event("a"))
    sdk.clock.advance(wait_ms)
    adjustment = {"event_name": "tokens", "type": "cancel", "cancel": {"identifier": "a"}, **change}
    body = await sdk.error("v1.billing.meter_event_adjustments.create", adjustment)

    assert (body["status"], body["code"], body["param"]) == (400, *error)
    assert await _total(sdk) == 2


async def test_stream_keeps_up() -> None:
    """Events per CPU second until the sums contain them, against a bare answer to the same requests."""
    simulator = Simulator(ManualClock(NOW_MS), SimulatorSettings(summary_lag_s=0))
    customers = [simulator.create_customer(True, {})["id"] for _ in range(1_000)]
    sdk = Sdk(simulator, ManualClock(NOW_MS), key="sk_live_one")
    await sdk("v1.billing.meters.create", METER)
    token = (await sdk("v2.billing.meter_event_session.create"))["authentication_token"]
    await sdk.close()
    bodies = [
        msgspec.json.encode(
            {
                "events": [
                    {
                        "event_name": "tokens",
                        "identifier": f"id-{number:09}",
                        "timestamp": f"2026-11-20T12:{number % 60:02}:00Z",
                        "payload": {"stripe_customer_id": customers[number % 1_000], "value": "2.5"},
                    }
                    for number in range(first, first + 100)
                ]
            }
        )
        for first in range(0, REQUESTS * 100, 100)
    ]

    async def bare(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})

    spent_s = []
    for app in (bare, create_app(simulator)):
        begun_s = time.process_time()
        for body in bodies:
            assert await _status(app, body, token) == 200
        if app is not bare:
            simulator.catch_up()
        spent_s.append(time.process_time() - begun_s)

    assert len(simulator.live.usage.events) == REQUESTS * 100
    assert {event.status for event in simulator.live.usage.events} == {"accepted"}
    ratio, events_per_s = spent_s[1] / spent_s[0] / 100, REQUESTS * 100 / spent_s[1]
    print(f"{events_per_s:,.0f} events/s; an event costs {ratio:.0f} bare answers")
    assert events_per_s > EVENTS_PER_S_MIN
    assert ratio < RATIO_MAX


async def _status(app: Any, body: bytes, token: str) -> int:
    statuses = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    headers = [(b"authorization", f"Bearer {token}".encode())]
    path = "/v2/billing/meter_event_stream"
    await app({"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}, receive, send)
    return int(statuses[0])


async def test_restart_keeps_the_stream_and_what_was_canceled(tmp_path: Path) -> None:
    """The journal has the session, the events and the cancellation."""
    clock, settings = ManualClock(NOW_MS), SimulatorSettings(summary_lag_s=0)
    totals, token = [], ""
    for run in range(2):
        simulator = Simulator(clock, settings, tmp_path / "journal")
        sdk = Sdk(simulator, clock, key="sk_live_one")
        if run == 0:
            simulator.create_customer(True, {}, "cus_one")
            await sdk("v1.billing.meters.create", METER)
            token = (await sdk("v2.billing.meter_event_session.create"))["authentication_token"]
        events = [_event(f"{name}{run}", value) for name, value in (("a", "3"), ("b", "10"))]
        await sdk("v2.billing.meter_event_stream.create", {"events": events}, {"api_key": token})
        totals.append(await _total(sdk))
        cancel = {"event_name": "tokens", "type": "cancel", "cancel": {"identifier": f"b{run}"}}
        await sdk("v1.billing.meter_event_adjustments.create", cancel)
        totals.append(await _total(sdk))
        await sdk.close()
        simulator.close()

    assert totals == [13, 3, 16, 6]
