"""Account, customers, meters and events, through stripe-python."""

from __future__ import annotations

from typing import Any

import pytest

from stripe_simulator import Fault, FaultKind
from tests.services.stripe_sdk import Sdk
from tests.services.stripe_wire import DAY_S, NOW_S

ADDRESS = {"city": "Ulm", "country": "DE", "line1": "Weg 1", "line2": None, "postal_code": "89073", "state": None}
FULL = {
    "address": {"city": "Ulm", "country": "DE", "line1": "Weg 1", "postal_code": "89073"},
    "balance": -500,
    "description": "first",
    "email": "a@b.c",
    "metadata": {"tier": "gold", "seat": "1"},
    "name": "Ada",
    "phone": "1",
    "tax_exempt": "reverse",
}
CURSORS = ("starting_after", "ending_before")
METER = {"display_name": "Tokens", "event_name": "tokens", "default_aggregation": {"formula": "sum"}}


async def test_account_is_that_of_the_key(sdk: Sdk) -> None:
    """Its id is a setting."""
    assert (await sdk("v1.accounts.retrieve_current"))["id"] == "acct_simulator"


async def test_customer_has_what_was_given(sdk: Sdk) -> None:
    """Each parameter shows in the object, and absent parts of an address are null."""
    body = await sdk("v1.customers.create", FULL)

    expected = {**FULL, "address": ADDRESS}
    assert {name: body[name] for name in expected} == expected
    assert (body["created"], body["livemode"], body["id"][:4]) == (NOW_S, False, "cus_")
    assert await sdk("v1.customers.retrieve", body["id"]) == body


@pytest.mark.parametrize(
    ("change", "field", "expected", "previous"),
    [
        ({"name": "Eve"}, "name", "Eve", {"name": "Ada"}),
        ({"address": ""}, "address", None, {"address": ADDRESS}),
        ({"metadata": {"seat": ""}}, "metadata", {"tier": "gold"}, {"metadata": {"seat": "1"}}),
        ({"metadata": {"x": "y"}}, "metadata", {"tier": "gold", "seat": "1", "x": "y"}, {"metadata": {"x": None}}),
        ({"metadata": ""}, "metadata", {}, {"metadata": {"tier": "gold", "seat": "1"}}),
        ({"tax_exempt": ""}, "tax_exempt", "none", {"tax_exempt": "reverse"}),
    ],
    ids=["a value", "cleared map", "removed key", "new key", "cleared metadata", "cleared enum"],
)
async def test_customer_update_changes_only_what_is_given(
    sdk: Sdk, change: dict[str, Any], field: str, expected: object, previous: dict[str, Any]
) -> None:
    """And the event has the old values."""
    before = await sdk("v1.customers.create", FULL)

    after = await sdk("v1.customers.update", before["id"], change)

    assert after == {**before, field: expected}
    (event,) = (await sdk("v1.events.list", {"type": "customer.updated"}))["data"]
    assert event["data"] == {"object": after, "previous_attributes": previous}


@pytest.mark.parametrize(
    ("params", "code", "param"),
    [
        ({"email": "nobody"}, "email_invalid", "email"),
        ({"test_clock": "clock_none"}, "resource_missing", "test_clock"),
        (
            {"invoice_settings": {"default_payment_method": "pm_none"}},
            "resource_missing",
            "invoice_settings[default_payment_method]",
        ),
        ({"metadata": {"k" * 41: "v"}}, None, "metadata"),
        ({"metadata": {"k": "v" * 501}}, None, "metadata[k]"),
        ({"metadata": {str(number): "v" for number in range(51)}}, None, "metadata"),
    ],
    ids=["email", "test clock", "payment method", "long key", "long value", "many keys"],
)
async def test_wrong_customers_are_refused(sdk: Sdk, params: dict[str, Any], code: str, param: str) -> None:
    """400 with Stripe's code and parameter, and no customer."""
    error = await sdk.error("v1.customers.create", params)

    assert (error["status"], error.get("code"), error["param"]) == (400, code, param)
    assert (await sdk("v1.customers.list"))["data"] == []


async def test_deleted_customer_says_so(sdk: Sdk) -> None:
    """A deleted customer can be read but not changed, and is in no list."""
    body = await sdk("v1.customers.create", {"email": "a@b.c"})
    gone = {"id": body["id"], "object": "customer", "deleted": True}

    assert await sdk("v1.customers.delete", body["id"]) == gone
    assert await sdk("v1.customers.retrieve", body["id"]) == gone
    assert (await sdk.error("v1.customers.update", body["id"], {"name": "x"}))["code"] == "resource_missing"
    assert (await sdk.error("v1.customers.retrieve", "cus_none"))["status"] == 404
    assert (await sdk("v1.customers.list", {"email": "a@b.c"}))["data"] == []


async def test_meter_has_its_life(sdk: Sdk) -> None:
    """Create, deactivate, reactivate: three events, and a state that can be listed."""
    meter = await sdk("v1.billing.meters.create", METER)
    inactive = await sdk("v1.billing.meters.deactivate", meter["id"])
    again = await sdk.error("v1.billing.meters.deactivate", meter["id"])
    listed = [(await sdk("v1.billing.meters.list", {"status": name}))["data"] for name in ("active", "inactive")]
    active = await sdk("v1.billing.meters.reactivate", meter["id"])

    assert (inactive["status"], inactive["status_transitions"]) == ("inactive", {"deactivated_at": NOW_S})
    assert (again["status"], listed[0], [row["id"] for row in listed[1]]) == (400, [], [meter["id"]])
    assert (active["status"], active["status_transitions"]) == ("active", {"deactivated_at": None})
    events = (await sdk("v1.events.list", {"type": "billing.meter.*"}))["data"]
    assert [event["type"].removeprefix("billing.meter.") for event in events] == [
        "reactivated",
        "deactivated",
        "created",
    ]


async def test_reactivation_needs_a_free_event_name(sdk: Sdk) -> None:
    """One event name has one active meter."""
    first = await sdk("v1.billing.meters.create", METER)
    await sdk("v1.billing.meters.deactivate", first["id"])
    await sdk("v1.billing.meters.create", METER)

    assert (await sdk.error("v1.billing.meters.reactivate", first["id"]))["param"] == "event_name"


async def test_event_names_its_request(sdk: Sdk) -> None:
    """An ambiguous write is found again by its Idempotency-Key."""
    body = await sdk("v1.customers.create", {"name": "Ada"}, {"idempotency_key": "lost-1"})

    (event,) = (await sdk("v1.events.list"))["data"]

    assert event["request"]["idempotency_key"] == "lost-1"
    assert event["request"]["id"].startswith("req_")
    assert (event["created"], event["data"]) == (NOW_S, {"object": body})
    assert await sdk("v1.events.retrieve", event["id"]) == event


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, "dcba"),
        ({"type": "customer.created"}, "ba"),
        ({"types": ["customer.updated", "customer.deleted"]}, "dc"),
        ({"type": "customer.*"}, "dcba"),
        ({"type": "invoice.*"}, ""),
        ({"created": {"gte": NOW_S + 2}}, "dc"),
        ({"limit": 2}, "dc"),
        ({"limit": 1, "starting_after": "c"}, "b"),
        ({"limit": 1, "ending_before": "b", "types": ["customer.created", "customer.deleted"]}, "d"),
    ],
    ids=["all", "type", "types", "family", "none", "since", "first page", "next page", "back with types"],
)
async def test_events_are_listed(sdk: Sdk, params: dict[str, Any], expected: str) -> None:
    """Newest first, by type and time, with cursors: a: first created, b: second created, c: updated, d: deleted."""
    first = await sdk("v1.customers.create", {"name": "one"})
    sdk.clock.advance(1_000)
    await sdk("v1.customers.create", {"name": "two"})
    sdk.clock.advance(1_000)
    await sdk("v1.customers.update", first["id"], {"name": "three"})
    await sdk("v1.customers.delete", first["id"])
    ids = [event["id"] for event in (await sdk("v1.events.list"))["data"]][::-1]
    cursors: dict[str, Any] = {
        name: ids["abcd".index(params[name])] for name in ("starting_after", "ending_before") if name in params
    }

    listed = (await sdk("v1.events.list", {**params, **cursors}))["data"]

    assert "".join("abcd"[ids.index(event["id"])] for event in listed) == expected


async def test_events_are_kept_for_thirty_days(sdk: Sdk) -> None:
    """Both kinds, in lists and by id."""
    await sdk("v1.billing.meters.create", METER)
    await sdk("v1.billing.meter_events.create", {"event_name": "tokens", "payload": {"value": "1"}})
    sdk.clock.advance(20_000)
    ids = [(await sdk(f"{name}.list"))["data"][0]["id"] for name in ("v1.events", "v2.core.events")]

    sdk.clock.advance(30 * DAY_S * 1_000 - 30_000)
    kept = [len((await sdk(f"{name}.list"))["data"]) for name in ("v1.events", "v2.core.events")]
    sdk.clock.advance(40_000)
    gone = [len((await sdk(f"{name}.list"))["data"]) for name in ("v1.events", "v2.core.events")]

    assert (kept, gone) == ([1, 1], [0, 0])
    for name, identifier in zip(("v1.events", "v2.core.events"), ids, strict=True):
        assert (await sdk.error(f"{name}.retrieve", identifier))["status"] == 404


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"type": "a", "types": ["b"]}, "type"),
        ({"types": [str(number) for number in range(21)]}, "types"),
    ],
    ids=["type and types", "too many"],
)
async def test_wrong_event_filters_are_refused(sdk: Sdk, params: dict[str, Any], param: str) -> None:
    """400 with the parameter."""
    error = await sdk.error("v1.events.list", params)

    assert (error["status"], error["param"]) == (400, param)


@pytest.mark.parametrize(
    ("reason", "event_type", "related"),
    [
        ("archived_meter", "v1.billing.meter.error_report_triggered", True),
        ("no_meter", "v1.billing.meter.no_meter_found", False),
    ],
    ids=["error report", "no meter found"],
)
async def test_rejected_meter_events_are_reported(sdk: Sdk, reason: str, event_type: str, related: bool) -> None:
    """The two thin types; the second belongs to no meter."""
    meter = await sdk("v1.billing.meters.create", METER)
    sdk.simulator.faults.add(Fault(FaultKind.REJECTED, reason=reason))
    await sdk(
        "v1.billing.meter_events.create", {"event_name": "tokens", "identifier": "one", "payload": {"value": "1"}}
    )
    sdk.clock.advance(20_000)

    (event,) = (await sdk("v2.core.events.list", {"types": [event_type]}))["data"]

    (report,) = event["data"]["reason"]["error_types"]
    assert (report["code"], report["error_count"]) == (reason, 1)
    assert report["sample_errors"][0]["request"] == {"identifier": "one"}
    assert event["related_object"]["id"] == meter["id"] if related else "related_object" not in event
    assert await sdk("v2.core.events.retrieve", event["id"]) == event


@pytest.mark.parametrize(
    ("bounds", "count"),
    [
        ({"gte": "2026-11-21T12:00:10Z"}, 1),
        ({"gt": "2026-11-21T12:00:10Z"}, 0),
        ({"lte": "2026-11-21T13:00:10+01:00"}, 1),
        ({"lt": "2026-11-21T12:00:10.000Z"}, 0),
    ],
    ids=["at or after", "after", "until, another offset", "before"],
)
async def test_thin_events_are_filtered_by_time(sdk: Sdk, bounds: dict[str, str], count: int) -> None:
    """The report of the window from 12:00:00 is created when the window ends."""
    await sdk("v1.billing.meters.create", METER)
    await sdk("v1.billing.meter_events.create", {"event_name": "tokens", "payload": {"value": "1"}})
    sdk.clock.advance(20_000)

    assert len((await sdk("v2.core.events.list", {"created": bounds}))["data"]) == count


@pytest.mark.parametrize("text", ["yesterday", "2026-11-21T12:00:10"], ids=["no time", "no offset"])
async def test_wrong_times_are_refused(sdk: Sdk, text: str) -> None:
    """API v2 wants RFC 3339."""
    assert (await sdk.error("v2.core.events.list", {"created": {"gte": text}}))["param"] == "created[gte]"
