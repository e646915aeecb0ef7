"""What the simulator returns to readers: summaries, reports of rejections, objects and their fields."""

from __future__ import annotations

import typing
from typing import Any

import pytest
import stripe

from tests.services.stripe_wire import DAY_S, NOW_S, Wire


async def test_rejections_are_reported_as_one_thin_event_with_samples(wire: Wire) -> None:
    """Counts are complete and identifiers are samples, so only reconciliation finds the rest."""
    for number in range(8):
        await wire.send(identifier=f"lost-{number}", **{"payload[stripe_customer_id]": "cus_none"})
    await wire.send(identifier="odd", **{"payload[value]": "many"})
    assert (await wire.http.get("/v2/core/events")).json()["data"] == []

    wire.clock.advance(20_000)
    query = {"types[0]": "v1.billing.meter.error_report_triggered"}
    listed = (await wire.http.get("/v2/core/events", params=query)).json()

    (event,) = listed["data"]
    reports = {
        kind["code"]: (kind["error_count"], len(kind["sample_errors"]))
        for kind in event["data"]["reason"]["error_types"]
    }
    assert reports == {"meter_event_customer_not_found": (8, 5), "meter_event_invalid_value": (1, 1)}
    assert event["data"]["reason"]["error_count"] == 9
    assert event["related_object"]["id"] == wire.meter
    assert (await wire.http.get(f"/v2/core/events/{event['id']}")).json() == event


@pytest.mark.parametrize(
    ("window", "start_s", "end_s", "status"),
    [
        ("", 60, 120, 200),
        ("", 61, 120, 400),
        ("hour", 3_600, 7_200, 200),
        ("hour", 3_660, 7_200, 400),
        ("day", DAY_S, 2 * DAY_S, 200),
        ("day", DAY_S, 2 * DAY_S + 3_600, 400),
        ("week", DAY_S, 2 * DAY_S, 400),
        ("", 120, 120, 400),
    ],
)
async def test_summary_spans_are_aligned(wire: Wire, window: str, start_s: int, end_s: int, status: int) -> None:
    """To minutes, and to the grouping window if the request has one."""
    query = {"customer": "cus_one", "start_time": str(start_s), "end_time": str(end_s)}
    if window:
        query["value_grouping_window"] = window
    answer = await wire.http.get(f"/v1/billing/meters/{wire.meter}/event_summaries", params=query)

    assert answer.status_code == status


async def test_summaries_group_and_page(wire: Wire) -> None:
    """By UTC day, newest first, with a cursor."""
    for day in range(3):
        for _ in range(day + 1):
            await wire.send(timestamp=str(NOW_S - day * DAY_S))
    midnight = NOW_S // DAY_S * DAY_S
    span = (midnight - 3 * DAY_S, midnight + DAY_S)

    assert await wire.total(*span, value_grouping_window="day") == [2.0, 4.0, 6.0]
    query = {"customer": "cus_one", "start_time": str(span[0]), "end_time": str(span[1])}
    query |= {"value_grouping_window": "day", "limit": "2"}
    path = f"/v1/billing/meters/{wire.meter}/event_summaries"
    first = (await wire.http.get(path, params=query)).json()
    second = (await wire.http.get(path, params={**query, "starting_after": first["data"][-1]["id"]})).json()
    assert (first["has_more"], second["has_more"]) == (True, False)
    assert [row["aggregated_value"] for row in first["data"] + second["data"]] == [2.0, 4.0, 6.0]


@pytest.mark.parametrize(
    "change",
    [{"default_aggregation[formula]": "count"}, {"event_time_window": "hour"}],
    ids=["another formula", "overwritten values"],
)
async def test_meters_that_do_not_add_up_are_not_simulated(wire: Wire, change: dict[str, str]) -> None:
    """501: the product's meters add up."""
    meter = {"display_name": "M", "event_name": "m", "default_aggregation[formula]": "sum"}

    assert (await wire.post("/v1/billing/meters", {**meter, **change})).status_code == 501


def _missing_and_unknown(body: dict[str, Any], shape: type) -> tuple[set[str], set[str]]:
    names = {**shape.__annotations__}
    required = {name for name, hint in names.items() if "Optional" not in str(hint) and "ClassVar" not in str(hint)}
    known = {name for name, hint in names.items() if "ClassVar" not in str(hint)}
    return required - set(body), set(body) - known


async def test_objects_have_the_fields_of_the_pinned_api_version(wire: Wire) -> None:
    """stripe-python's own classes are the contract; no field is missing or invented."""
    customer = (await wire.post("/v1/customers", {"email": "a@b.c"})).json()
    meter = (await wire.http.get(f"/v1/billing/meters/{wire.meter}")).json()
    event = (await wire.send()).json()
    query = {"customer": "cus_one", "start_time": str(NOW_S), "end_time": str(NOW_S + 60)}
    summary = (await wire.http.get(f"/v1/billing/meters/{wire.meter}/event_summaries", params=query)).json()["data"][0]
    billing = typing.cast("Any", stripe.billing)

    for body, shape in (
        (customer, stripe.Customer),
        (meter, billing.Meter),
        (event, billing.MeterEvent),
        (summary, billing.MeterEventSummary),
    ):
        assert _missing_and_unknown(body, shape) == (set(), set()), body["object"]


async def test_core_events_page_by_url(wire: Wire) -> None:
    """The v2 API returns the next page as a path that includes the filters."""
    for number in range(3):
        await wire.send(**{"payload[stripe_customer_id]": f"cus_none_{number}"})
        wire.clock.advance(20_000)
        await wire.http.get("/_simulator/state")
    query = {"limit": "2", "created[gte]": "2026-11-21T00:00:00Z"}
    first = (await wire.http.get("/v2/core/events", params=query)).json()
    second = (await wire.http.get(first["next_page_url"])).json()

    assert (len(first["data"]), len(second["data"]), second["next_page_url"]) == (2, 1, None)
    assert len({event["id"] for event in first["data"] + second["data"]}) == 3
