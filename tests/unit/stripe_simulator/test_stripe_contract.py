"""Requests and responses are checked against the types of the installed stripe-python."""

from __future__ import annotations

import copy
from decimal import Decimal
from typing import Any

import pytest

from stripe_simulator import Simulator, contract
from stripe_simulator.contract.parameters import coerce, parse_form
from stripe_simulator.errors import ApiError
from stripe_simulator.registry import ROUTES
from tests import stripe_contract
from tests.services.stripe_sdk import Sdk
from tests.services.stripe_shapes import problems as problems_of
from tests.services.stripe_wire import NOW_MS
from tests.worlds.clock import ManualClock

PRICE = "POST /v1/prices"
SUBSCRIPTION = "POST /v1/subscriptions"
CUSTOMER = "POST /v1/customers/{customer}"
EVENT = "POST /v1/billing/meter_events"
EMPTY = (
    "You passed an empty string for 'customer'. We assume empty values are an attempt to unset a parameter; "
    "however 'customer' cannot be unset. You should remove 'customer' from your request or supply a non-empty value."
)
EVERYTHING = [
    "currency", "product", "unit_amount", "unit_amount_decimal", "active", "tiers", "recurring", "metadata", "customer",
    "items", "cancel_at_period_end", "billing_cycle_anchor_config", "trial_end", "address", "name", "created", "limit",
    "payload", "event_name", "timestamp", "identifier", "off_session", "cancellation_details", "days_until_due",
]  # fmt: skip


def test_files_are_those_of_the_installed_sdk() -> None:
    """After an upgrade: `python -m tests.stripe_contract`, then read the difference."""
    compiled = stripe_contract.compile_contract()

    for name, document in zip(("requests.json", "shapes.json"), compiled, strict=True):
        assert (stripe_contract.FOLDER / name).read_text() == stripe_contract.dump(document), name


def test_every_route_is_one_of_the_sdk() -> None:
    """A path that stripe-python never calls is a misspelling, as is a parameter that the route does not have."""
    assert {route.name for route in ROUTES} <= set(contract.requests()["known"])
    for route in ROUTES:
        for name in route.takes:
            with pytest.raises(ApiError) as raised:
                coerce(route.name, {name: {"nonsense": {"nonsense": "x"}}}, route.takes)
            assert raised.value.code != "parameter_unknown" or "[" in raised.value.message, (route.name, name)


@pytest.mark.parametrize(
    ("route", "form", "expected"),
    [
        (PRICE, "currency=usd&unit_amount=5", {"currency": "usd", "unit_amount": 5}),
        (PRICE, "currency=usd&unit_amount_decimal=0.001", {"unit_amount_decimal": Decimal("0.001")}),
        (PRICE, "currency=usd&active=false", {"active": False}),
        (
            PRICE,
            "currency=usd&tiers[0][up_to]=10&tiers[0][unit_amount]=3&tiers[1][up_to]=inf&tiers[1][flat_amount]=7",
            {"tiers": [{"up_to": 10, "unit_amount": 3}, {"up_to": "inf", "flat_amount": 7}]},
        ),
        (PRICE, "currency=usd&recurring[interval]=month", {"recurring": {"interval": "month"}}),
        (CUSTOMER, "metadata[a]=1&metadata[b]=", {"metadata": {"a": "1", "b": ""}}),
        (CUSTOMER, "metadata=", {"metadata": None}),
        (CUSTOMER, "address=", {"address": None}),
        (CUSTOMER, "address[city]=Ulm", {"address": {"city": "Ulm"}}),
        (CUSTOMER, "expand[]=a&expand[]=b", {"expand": ["a", "b"]}),
        (SUBSCRIPTION, "customer=c&items[0][price]=p&items[0][quantity]=2", {"items": [{"price": "p", "quantity": 2}]}),
        (SUBSCRIPTION, "customer=cus_1&trial_end=now", {"trial_end": "now"}),
        (SUBSCRIPTION, "customer=cus_1&trial_end=1800000000", {"trial_end": 1_800_000_000}),
        ("GET /v1/customers", "created=5", {"created": 5}),
        ("GET /v1/customers", "created[gte]=5&created[lt]=9", {"created": {"gte": 5, "lt": 9}}),
        (EVENT, "event_name=e&payload[value]=", {"payload": {"value": ""}}),
    ],
    ids=[
        "int", "decimal", "bool", "list of maps, number or word", "nested enum", "empty value of a map", "cleared map",
        "cleared object", "object", "appended list", "list in a request", "word of a union", "number of a union",
        "number or bounds: number", "number or bounds: bounds", "empty payload value",
    ],
)  # fmt: skip
def test_parameters_get_their_types(route: str, form: str, expected: dict[str, Any]) -> None:
    """From texts of a form to the SDK's types."""
    params = coerce(route, parse_form(form), EVERYTHING)

    assert {name: params[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("route", "form", "code", "param", "message"),
    [
        (PRICE, "currency=usd&colour=1", "parameter_unknown", "colour", "Received unknown parameter: colour"),
        (PRICE, "a=1&b=2", "parameter_unknown", "a", "Received unknown parameters: a, b"),
        (
            PRICE,
            "currency=usd&recurring[interval]=day&recurring[x]=1",
            "parameter_unknown",
            "recurring[x]",
            "Received unknown parameter: recurring[x]",
        ),
        (PRICE, "unit_amount=1", "parameter_missing", "currency", "Missing required param: currency."),
        (
            SUBSCRIPTION,
            "customer=c&billing_cycle_anchor_config[hour]=1",
            "parameter_missing",
            "billing_cycle_anchor_config[day_of_month]",
            "Missing required param: billing_cycle_anchor_config[day_of_month].",
        ),
        (PRICE, "currency=usd&unit_amount=1.5", "parameter_invalid_integer", "unit_amount", "Invalid integer: 1.5"),
        (PRICE, "currency=usd&unit_amount_decimal=x", None, "unit_amount_decimal", "Invalid decimal: x"),
        (PRICE, "currency=usd&unit_amount_decimal=NaN", None, "unit_amount_decimal", "Invalid decimal: NaN"),
        (PRICE, "currency=usd&active=yes", None, "active", "Invalid boolean: yes"),
        (
            PRICE,
            "currency=usd&recurring[interval]=hour",
            None,
            "recurring[interval]",
            "Invalid recurring[interval]: must be one of day, month, week, or year",
        ),
        (PRICE, "currency=usd&tiers=1", None, "tiers", "Invalid array: tiers"),
        (PRICE, "currency=usd&recurring=1", "parameter_invalid", "recurring", "Invalid object: recurring"),
        (PRICE, "currency[a]=usd", None, "currency", "Invalid string: currency"),
        (
            SUBSCRIPTION,
            "customer=",
            "parameter_invalid_empty",
            "customer",
            EMPTY,
        ),
    ],
    ids=[
        "unknown", "several unknown", "unknown in a map", "missing", "missing in a map", "integer", "decimal", "NaN",
        "boolean", "enum", "array", "object", "string", "empty",
    ],
)  # fmt: skip
def test_bad_parameters_are_stripes_errors(route: str, form: str, code: str | None, param: str, message: str) -> None:
    """400 with Stripe's code, parameter and text."""
    with pytest.raises(ApiError) as raised:
        coerce(route, parse_form(form), EVERYTHING)

    error = raised.value
    assert (error.status, error.code, error.param, error.message) == (400, code, param, message)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"event_name": "e", "payload": {}, "timestamp": 5}, "timestamp"),
        ({"event_name": 5, "payload": {"a": "b"}}, "event_name"),
        ({"event_name": "e", "payload": []}, "payload"),
        ({"event_name": "e", "payload": {"a": 5}}, "payload[a]"),
    ],
    ids=["a number for a time", "a number for a text", "a list for a map", "a number in a map of texts"],
)
def test_json_parameters_are_not_converted(body: dict[str, Any], param: str) -> None:
    """API v2 has types, so a value of another type is an error."""
    with pytest.raises(ApiError) as raised:
        coerce("POST /v2/billing/meter_events", body, EVERYTHING)

    assert raised.value.param == param


@pytest.mark.parametrize(
    ("takes", "form", "is_taken"),
    [
        (("currency",), "currency=usd&nickname=x", False),
        (("currency", "recurring[interval]"), "currency=usd&recurring[interval]=day", True),
        (("currency", "recurring[interval]"), "currency=usd&recurring[interval]=day&recurring[meter]=m", False),
        (("currency", "recurring"), "currency=usd&recurring[interval]=day&recurring[meter]=m", True),
    ],
    ids=["other", "part", "other part", "whole"],
)
def test_parameters_that_are_not_simulated_are_a_501(takes: tuple[str, ...], form: str, is_taken: bool) -> None:
    """Never a silent success: Stripe has the parameter, the simulator does nothing with it."""
    if is_taken:
        coerce(PRICE, parse_form(form), takes)
        return
    with pytest.raises(ApiError, match=PRICE) as raised:
        coerce(PRICE, parse_form(form), takes)
    assert raised.value.status == 501


def _set(path: str, value: object) -> Any:
    def change(body: dict[str, Any]) -> None:
        *above, last = path.split(".")
        for name in above:
            body = body[name]
        if value is KeyError:
            del body[last]
        else:
            body[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_set("email", "a@b.c"), ""),
        (_set("created", KeyError), ".created: missing"),
        (_set("created", True), ".created: want int, got True"),
        (_set("created", "now"), ".created: want int, got 'now'"),
        (_set("colour", 1), ".colour: unknown field"),
        (_set("tax_exempt", "maybe"), ".tax_exempt: 'maybe' is not one of"),
        (_set("metadata", {"a": 1}), ".metadata[a]: want str, got 1"),
        (_set("preferred_locales", "de"), ".preferred_locales: want a list, got 'de'"),
        (_set("invoice_settings.footer", 5), ".invoice_settings.footer: want str, got 5"),
        (_set("invoice_settings.default_payment_method", "pm_1"), ""),
        (_set("invoice_settings.default_payment_method", 1), ".invoice_settings.default_payment_method: want _pay"),
        (_set("deleted", True), ": a deleted object has the fields id, object and deleted"),
    ],
    ids=[
        "right", "missing", "a bool is no int", "text for int", "invented", "enum", "map", "list", "nested",
        "an id for an object", "neither id nor object", "deleted",
    ],
)  # fmt: skip
def test_responses_are_compared_strictly(change: Any, problem: str) -> None:
    """Each difference is named by its path."""
    body = copy.deepcopy(Simulator(ManualClock(NOW_MS)).create_customer(False, {"name": "Ada"}))
    change(body)

    problems = problems_of("GET /v1/customers/{customer}", body)

    assert len(problems) == bool(problem)
    assert not problem or problems[0].startswith(problem)


async def test_a_wrong_response_is_a_500(sdk: Sdk) -> None:
    """The check is in the way of the answer, so no test can miss a difference."""
    body = sdk.simulator.create_customer(False, {})
    sdk.simulator.test.store.put({**body, "created": "today"})

    error = await sdk.error("v1.customers.retrieve", body["id"])

    assert error["status"] == 500
    assert sdk.simulator.violations == ["GET /v1/customers/{customer} .created: want int, got 'today'"]
    sdk.simulator.violations.clear()
