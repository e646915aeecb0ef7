"""The layers that every route passes: routing, idempotency, limits, expansion, pagination."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from stripe_simulator import Simulator, contract, create_app
from stripe_simulator.errors import ApiError
from stripe_simulator.expansion import expand
from stripe_simulator.mode import Call, Mode, Route
from stripe_simulator.registry import ROUTES, Router
from stripe_simulator.store import Object
from tests.services.stripe_sdk import Sdk
from tests.services.stripe_wire import DAY_S, METER, NOW_MS, NOW_S, Wire
from tests.worlds.clock import ManualClock

EVENT = {"event_name": "tokens", "payload": {"stripe_customer_id": "cus_one", "value": "2"}}
SDK_METER = {"display_name": "Tokens", "event_name": "tokens", "default_aggregation": {"formula": "sum"}}


CURSORS = ("starting_after", "ending_before")


def _nothing(_mode: Mode, _call: Call) -> Object:
    return {}


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/v1/customers/cus_1", ("/v1/customers/{customer}", ("cus_1",))),
        ("GET", "/v1/customers/cus_1/sources/src_1", ("/v1/customers/{customer}/sources/{id}", ("cus_1", "src_1"))),
        ("POST", "/v1/invoices/create_preview", ("/v1/invoices/create_preview", ())),
        ("POST", "/v1/invoices/in_1", ("/v1/invoices/{invoice}", ("in_1",))),
        ("DELETE", "/v1/invoices/in_1", ("/v1/invoices/{invoice}", ("in_1",))),
        ("PUT", "/v1/customers/cus_1", 404),
        ("GET", "/v1/customers/", 404),
        ("GET", "/v1/no_such_thing", 404),
        ("GET", "/", 404),
    ],
    ids=[
        "an id", "two ids", "a word wins over an id", "an id beside a word", "delete", "a method without a route",
        "an empty id", "unknown", "root",
    ],
)  # fmt: skip
def test_routes_are_found_by_their_segments(method: str, path: str, expected: Any) -> None:
    """All routes of the SDK, as if each were implemented."""
    split = [name.partition(" ") for name in contract.requests()["known"]]
    router = Router(Route(known, template, _nothing) for known, _, template in split)
    if isinstance(expected, int):
        with pytest.raises(ApiError) as raised:
            router.find(method, path)
        assert raised.value.status == expected
        return
    route, ids = router.find(method, path)

    assert (route.path, ids) == expected


def test_route_that_the_sdk_does_not_have_is_a_mistake() -> None:
    """A misspelt path would never be called."""
    with pytest.raises(LookupError):
        Router([Route("GET", "/v1/customer", _nothing)])


async def test_route_that_is_not_simulated_is_loud(sdk: Sdk) -> None:
    """501 with the route's name; Stripe itself answers such a call."""
    error = await sdk.error("v1.climate.orders.list")

    assert (error["status"], error["message"]) == (
        501,
        "The Stripe simulator does not implement GET /v1/climate/orders.",
    )


async def test_parameter_that_is_not_simulated_is_loud(sdk: Sdk) -> None:
    """501 with the route and the parameter."""
    error = await sdk.error("v1.customers.create", {"source": "tok_visa"})

    assert error["status"] == 501
    assert "POST /v1/customers with the parameter source" in error["message"]


async def test_executed_4xx_is_stored_under_its_key(sdk: Sdk) -> None:
    """The endpoint ran, so its answer is repeated even if it would be another one now."""
    options = {"idempotency_key": "one"}
    first = await sdk.error("v1.billing.meter_events.create", EVENT, options)
    await sdk("v1.billing.meters.create", SDK_METER)
    again = await sdk.error("v1.billing.meter_events.create", EVENT, options)
    other = await sdk("v1.billing.meter_events.create", EVENT, {"idempotency_key": "two"})

    assert (first["status"], first["replayed"]) == (400, False)
    assert again == {**first, "replayed": True}
    assert other["event_name"] == "tokens"


@pytest.mark.parametrize(
    ("service", "days", "is_replayed"),
    [
        ("v1.billing.meter_events.create", 0.9, True),
        ("v1.billing.meter_events.create", 1, False),
        ("v2.billing.meter_events.create", 29, True),
        ("v2.billing.meter_events.create", 30, False),
    ],
    ids=["v1 kept", "v1 forgotten", "v2 kept", "v2 forgotten"],
)
async def test_keys_are_kept_as_long_as_each_api_says(sdk: Sdk, service: str, days: float, is_replayed: bool) -> None:
    """A day for API v1, 30 days for API v2; afterwards the request is executed again."""
    await sdk("v1.billing.meters.create", SDK_METER)
    first = await sdk(service, EVENT, {"idempotency_key": "one"})
    sdk.clock.advance(round(days * DAY_S * 1_000))
    again = await sdk(service, EVENT, {"idempotency_key": "one"})

    assert (first == again) is is_replayed
    assert len(sdk.simulator.test.usage.events) == (1 if is_replayed else 2)


async def test_key_in_execution_is_a_conflict(wire: Wire) -> None:
    """409 for the second request while the first is being executed."""
    wire.simulator.test.running.add("key")
    answer = await wire.send("key")
    wire.simulator.test.running.clear()

    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "idempotency_key_in_use")
    assert (await wire.send("key")).status_code == 200


async def test_same_key_with_fields_in_another_order_is_the_same_request(wire: Wire) -> None:
    """The parameters count, not the bytes."""
    first = await wire.post("/v1/customers", {"name": "Ada", "email": "a@b.c"}, "key")
    again = await wire.post("/v1/customers", {"email": "a@b.c", "name": "Ada"}, "key")

    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize(
    ("rates", "calls", "expected"),
    [
        ((0, 0), ["event"] * 5, [200] * 5),
        ((2, 0), ["event", "read", "event"], [200, 200, "global-rate"]),
        ((2, 3), ["event", "event", "event", "event", "read"], [200, 200, 200, "endpoint-rate", 200]),
        ((1, 0), ["read", "wait", "read", "read"], [200, 0, 200, "global-rate"]),
    ],
    ids=["no limit", "a sandbox counts all together", "live counts meter events apart", "a second later"],
)
async def test_rates_are_limited(wire: Wire, rates: tuple[int, int], calls: list[str], expected: list[Any]) -> None:
    """429 with the header that names the limit, and nothing stored under the key."""
    wire.simulator.limits.set(*rates)
    results: list[Any] = []
    for number, call in enumerate(calls):
        if call == "wait":
            wire.clock.advance(1_000)
            results.append(0)
            continue
        answer = await (wire.send(f"k{number}") if call == "event" else wire.http.get("/v1/account"))
        limited = answer.headers.get("stripe-rate-limited-reason")
        results.append(limited or answer.status_code)
        assert (answer.status_code == 429) is bool(limited)

    assert results == expected


def _customer_with_method(simulator: Simulator) -> Object:
    """A customer, and a payment method as far as an expansion needs one."""
    customer = simulator.create_customer(False, {})
    simulator.test.store.put({"id": "pm_1", "object": "payment_method", "customer": customer["id"]})
    customer["invoice_settings"]["default_payment_method"] = "pm_1"
    return simulator.test.store.put(customer)


@pytest.mark.parametrize(
    ("route", "paths", "expected"),
    [
        ("GET /v1/customers/{customer}", ["invoice_settings.default_payment_method"], {}),
        ("GET /v1/customers/{customer}", ["invoice_settings.default_payment_method.customer"], {"customer": "cus_1"}),
        ("GET /v1/customers", ["data.invoice_settings.default_payment_method"], {}),
        ("GET /v1/customers/{customer}", ["test_clock"], {}),
        ("GET /v1/customers/{customer}", ["colour"], "This property cannot be expanded (colour)."),
        ("GET /v1/customers/{customer}", ["name"], "This property cannot be expanded (name)."),
        ("GET /v1/customers/{customer}", ["metadata.a"], "This property cannot be expanded (metadata.a)."),
        ("GET /v1/customers/{customer}", ["invoice_settings"], "This property cannot be expanded (invoice_settings)."),
        (
            "GET /v1/customers",
            ["test_clock"],
            "This property cannot be expanded (test_clock). You may want to try expanding 'data.test_clock' instead.",
        ),
        ("GET /v1/customers/{customer}", ["a.b.c.d.e"], "You cannot expand more than 4 levels of a property"),
        ("GET /v1/customers/{customer}", ["subscriptions"], "The Stripe simulator does not implement the expansion"),
    ],
    ids=[
        "an id in a map", "through an object", "in a list", "null", "unknown", "no id", "in metadata", "a map",
        "without data", "too deep", "a list that is not simulated",
    ],
)  # fmt: skip
def test_expansion(route: str, paths: list[str], expected: Any) -> None:
    """An id becomes its object, and a field that holds no id is refused with Stripe's text."""
    simulator = Simulator(ManualClock(NOW_MS))
    customer = _customer_with_method(simulator)
    body = customer if "{" in route else {"object": "list", "data": [customer], "has_more": False, "url": "/"}
    if isinstance(expected, str):
        with pytest.raises(ApiError) as raised:
            expand(route, body, paths, simulator.test.store.find)
        assert raised.value.message.startswith(expected)
        return
    expanded = expand(route, body, paths, simulator.test.store.find)

    found = expanded["data"][0] if "{" not in route else expanded
    if "method" in paths[0]:
        method = found["invoice_settings"]["default_payment_method"]
        assert method["id"] == "pm_1"
        owner = method["customer"]
        assert (owner["id"] if expected else owner) == customer["id"]
    assert customer["invoice_settings"]["default_payment_method"] == "pm_1"


async def test_expand_is_a_parameter_of_every_route(sdk: Sdk) -> None:
    """Reads, lists and writes; 400 for what cannot be expanded, and nothing is changed."""
    error = await sdk.error("v1.customers.create", {"name": "Ada", "expand": ["name"]})

    assert (error["status"], error["param"]) == (400, "expand")
    assert (await sdk("v1.customers.list", {"expand": ["data.test_clock"]}))["data"] == []


async def _ids(sdk: Sdk, params: dict[str, Any]) -> tuple[list[str], bool]:
    page = await sdk("v1.customers.list", params)
    return [row["name"] for row in page["data"]], page["has_more"]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, ("543210", False)),
        ({"limit": 2}, ("54", True)),
        ({"limit": 2, "starting_after": "4"}, ("32", True)),
        ({"limit": 2, "starting_after": "2"}, ("10", False)),
        ({"starting_after": "0"}, ("", False)),
        ({"limit": 2, "ending_before": "1"}, ("32", True)),
        ({"limit": 3, "ending_before": "2"}, ("543", False)),
        ({"ending_before": "5"}, ("", False)),
        ({"email": "even@b.c"}, ("420", False)),
        ({"email": "even@b.c", "limit": 1, "starting_after": "4"}, ("2", True)),
        ({"email": "even@b.c", "limit": 1, "ending_before": "0"}, ("2", True)),
        ({"email": "nobody@b.c"}, ("", False)),
        ({"created": NOW_S + 3}, ("3", False)),
        ({"created": {"gte": NOW_S + 1, "lt": NOW_S + 4}}, ("321", False)),
        ({"created": {"gt": NOW_S + 1, "lte": NOW_S + 4}, "limit": 2}, ("43", True)),
    ],
    ids=[
        "all", "first page", "next page", "last page", "after the last", "back", "back to the first", "before all",
        "filter", "filter, next page", "filter, back", "filter, none", "created", "created in a span",
        "created in a span, first page",
    ],
)  # fmt: skip
async def test_lists_are_paged(sdk: Sdk, params: dict[str, Any], expected: tuple[str, bool]) -> None:
    """Newest first; cursors are ids; `has_more` speaks of the direction of the page."""
    identifiers = []
    for number in range(6):
        fields = {"name": str(number), "email": f"{'odd' if number % 2 else 'even'}@b.c"}
        identifiers.append((await sdk("v1.customers.create", fields))["id"])
        sdk.clock.advance(1_000)
    cursors: dict[str, Any] = {
        name: identifiers[int(params[name])] for name in ("starting_after", "ending_before") if name in params
    }

    assert await _ids(sdk, {**params, **cursors}) == (list(expected[0]), expected[1])


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
        ({"starting_after": "cus_none"}, "starting_after"),
        ({"ending_before": "cus_none"}, "ending_before"),
    ],
    ids=["too small", "too large", "unknown cursor", "unknown cursor back"],
)
async def test_wrong_pages_are_refused(sdk: Sdk, params: dict[str, Any], param: str) -> None:
    """400 with the parameter."""
    error = await sdk.error("v1.customers.list", params)

    assert (error["status"], error["param"]) == (400, param)


async def test_deleted_object_still_is_a_cursor(sdk: Sdk) -> None:
    """A walk over a list goes on although the last object of a page was deleted meanwhile."""
    bodies = [await sdk("v1.customers.create", {"name": str(number)}) for number in range(3)]
    await sdk("v1.customers.delete", bodies[1]["id"])

    assert await _ids(sdk, {"starting_after": bodies[1]["id"]}) == (["0"], False)


async def _post(simulator: Simulator, run: Any, times: int = 1) -> list[httpx.Response]:
    """Calls of `POST /v1/customers` with one key, answered by `run`."""
    app = create_app(simulator, [Route("POST", "/v1/customers", run)])
    headers = {"Authorization": "Bearer sk_test_one", "Idempotency-Key": "key"}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://stripe.test", headers=headers) as http:
        return [await http.post("/v1/customers") for _ in range(times)]


@pytest.mark.parametrize("kept", [False, True], ids=["undone", "kept"])
async def test_changes_before_an_error_are_undone_unless_they_belong_to_it(kept: bool) -> None:
    """A declined card leaves a payment behind; any other 4xx leaves nothing. Both answers are stored."""
    simulator = Simulator(ManualClock(NOW_MS))

    def decline(mode: Mode, _call: Call) -> Object:
        mode.store.save({"id": "pi_1", "object": "payment_intent"})
        raise ApiError(402, "Your card was declined.", kind="card_error", code="card_declined", kept=kept)

    first, again = await _post(simulator, decline, 2)

    assert (first.status_code, again.json()) == (402, first.json())
    assert again.headers["idempotent-replayed"] == "true"
    assert len(list(simulator.test.store.newest("payment_intent"))) == kept
    assert [event["type"] for event in simulator.test.store.newest("event")] == ["payment_intent.created"] * kept


async def test_defect_of_a_resource_is_recorded_and_undone() -> None:
    """A test that ends well in spite of it fails at the end of its block."""
    simulator = Simulator(ManualClock(NOW_MS))

    def fail(mode: Mode, _call: Call) -> Object:
        mode.store.save({"id": "cus_1", "object": "customer"})
        raise KeyError("nonsense")

    (answer,) = await _post(simulator, fail)

    assert answer.status_code == 500
    assert simulator.violations == ["POST /v1/customers KeyError('nonsense')"]
    assert list(simulator.test.store.newest("customer")) == []


async def test_every_route_needs_a_key(wire: Wire) -> None:
    """401 before anything else is looked at."""
    async with httpx.AsyncClient(base_url=str(wire.http.base_url), trust_env=False) as stranger:
        for route in ROUTES:
            answer = await stranger.request(route.method, route.path.replace("{", "").replace("}", ""))
            assert answer.status_code == 401, route.name
            assert answer.json()["error"]["type"] == "invalid_request_error"
    assert (await wire.post("/v1/billing/meters", METER)).status_code == 400
