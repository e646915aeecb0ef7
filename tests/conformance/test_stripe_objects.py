"""Reading Stripe's objects for the side tables: stripe-python over HTTP with the simulator."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from aggregators.billing_events import read_event
from aggregators.mirror import mirror_rows
from pipeline.webhooks.linking import owned
from schemas.billing_events import MIRRORED_TYPES, ObjectKind, ObjectName, cursor_of
from schemas.errors import InvalidInput, Refused, Transient
from sinks.stripe.objects import StripeClientObjects
from stripe_simulator import Fault, FaultKind, payments
from tests.services.stripe import TEST_KEY, ServedSimulator
from tests.services.stripe_sdk import Sdk

KINDS = (ObjectKind.CUSTOMER, ObjectKind.SUBSCRIPTION, ObjectKind.SCHEDULE, ObjectKind.INVOICE)


@pytest_asyncio.fixture
async def objects(served_simulator: ServedSimulator) -> AsyncIterator[StripeClientObjects]:
    """The client, on the simulator."""
    client = StripeClientObjects(TEST_KEY, served_simulator.url, timeout_s=2)
    yield client
    await client.close()


@pytest_asyncio.fixture
async def sdk(served_simulator: ServedSimulator) -> AsyncIterator[Sdk]:
    """A second client, which does what a customer and the dashboard do."""
    sdk = Sdk(served_simulator.simulator, served_simulator.clock)
    yield sdk
    await sdk.close()


async def customer_of(sdk: Sdk, **fields: Any) -> str:
    """A customer with a card."""
    customer = (await sdk("v1.customers.create", fields))["id"]
    method = await sdk("v1.payment_methods.attach", "pm_card_visa", {"customer": customer})
    await sdk("v1.customers.update", customer, {"invoice_settings": {"default_payment_method": method["id"]}})
    return str(customer)


async def price_of(sdk: Sdk, number: int = 0) -> str:
    """A monthly price."""
    params = {"currency": "usd", "product_data": {"name": f"Plan {number}"}, "unit_amount": 100 + number}
    return str((await sdk("v1.prices.create", {**params, "recurring": {"interval": "month"}}))["id"])


async def test_every_kind_is_fetched_as_stripe_says(objects: StripeClientObjects, sdk: Sdk) -> None:
    """Texts and numbers stay what they are: the mirror must not depend on the library's types."""
    customer = await customer_of(sdk, name="Zoë")
    price = await price_of(sdk)
    made = await sdk("v1.subscriptions.create", {"customer": customer, "items": [{"price": price, "quantity": 3}]})
    schedule = await sdk("v1.subscription_schedules.create", {"from_subscription": made["id"]})

    fetched = {
        name.kind: await objects.fetch(name)
        for name in (
            ObjectName(ObjectKind.CUSTOMER, customer),
            ObjectName(ObjectKind.SUBSCRIPTION, made["id"]),
            ObjectName(ObjectKind.SCHEDULE, schedule["id"]),
            ObjectName(ObjectKind.INVOICE, made["latest_invoice"]),
        )
    }

    found = {kind: body or {} for kind, body in fetched.items()}
    assert {kind: kind.value for kind in KINDS} == {kind: body["object"] for kind, body in found.items()}
    assert "Zoë" == found[ObjectKind.CUSTOMER]["name"]
    assert "100" == found[ObjectKind.SUBSCRIPTION]["items"]["data"][0]["price"]["unit_amount_decimal"]  # type: ignore[index]  # JSON of any shape
    for kind in KINDS:
        ((name, owner),) = await objects.names(kind)
        assert (ObjectName(kind, str(found[kind]["id"])), customer) == (name, owner)
        assert [] == await objects.names(kind, name.id)


async def test_a_customer_is_fetched_with_what_pays(objects: StripeClientObjects, sdk: Sdk) -> None:
    """All pages of it, and nothing of another customer."""
    customer, other = await customer_of(sdk), await customer_of(sdk)
    cards = [
        (await sdk("v1.payment_methods.attach", "pm_card_visa", {"customer": owner}))["id"]
        for owner in (*[customer] * 101, other)
    ]
    body = await objects.fetch(ObjectName(ObjectKind.CUSTOMER, customer)) or {}
    rows = mirror_rows(ObjectName(ObjectKind.CUSTOMER, customer), body)["payment_methods"]
    assert set(cards[:-1]) <= {row["id"] for row in rows}
    assert cards[-1] not in {row["id"] for row in rows}
    assert {row["customer_id"] for row in rows} == {customer}
    assert all(row["expires_ms"] for row in rows)


async def test_an_invoice_is_fetched_with_why_its_payment_failed(
    objects: StripeClientObjects, sdk: Sdk, served_simulator: ServedSimulator
) -> None:
    """After each decline, and nothing once it is paid."""
    customer, price = await customer_of(sdk), await price_of(sdk)
    codes = []
    for declined in ("stolen_card", ""):
        if declined:
            payments.decline_next(served_simulator.simulator.test, customer, declined)
            card = (await sdk("v1.payment_methods.attach", "pm_card_visa", {"customer": customer}))["id"]
            made = await sdk("v1.subscriptions.create", {
                "customer": customer, "items": [{"price": price}], "default_payment_method": card,
            })  # fmt: skip
        else:
            await sdk("v1.invoices.pay", made["latest_invoice"], {"payment_method": card})
        name = ObjectName(ObjectKind.INVOICE, made["latest_invoice"])
        body = await objects.fetch(name)
        (row,) = mirror_rows(name, body)["invoices"]
        codes.append((row["status"], row["decline_code"]))
    assert codes == [("open", "stolen_card"), ("paid", None)]


async def test_all_pages_of_a_nested_list_are_read(objects: StripeClientObjects, sdk: Sdk) -> None:
    """Stripe shows ten rows of a nested list; a mirror that stops there loses the eleventh item for ever."""
    customer = await customer_of(sdk)
    items = [{"price": await price_of(sdk, number), "quantity": 1} for number in range(14)]
    made = await sdk("v1.subscriptions.create", {"customer": customer, "items": items})

    subscription = await objects.fetch(ObjectName(ObjectKind.SUBSCRIPTION, made["id"]))
    invoice = await objects.fetch(ObjectName(ObjectKind.INVOICE, made["latest_invoice"]))

    assert subscription is not None
    assert invoice is not None
    for body, part in ((subscription, "items"), (invoice, "lines")):
        listed: Any = body[part]
        assert (14, False) == (len({row["id"] for row in listed["data"]}), listed["has_more"])


async def test_what_is_gone_is_told_apart_from_no_answer(
    objects: StripeClientObjects, sdk: Sdk, served_simulator: ServedSimulator
) -> None:
    """A deleted object has its mark, an unknown one is None, and a failure is neither."""
    customer = await customer_of(sdk)
    name = ObjectName(ObjectKind.CUSTOMER, customer)
    await sdk("v1.customers.delete", customer)
    assert {"deleted": True}.items() <= (await objects.fetch(name) or {}).items()
    assert None is await objects.fetch(ObjectName(ObjectKind.INVOICE, "in_unknown"))
    with pytest.raises(InvalidInput):
        await objects.fetch(ObjectName(ObjectKind.CUSTOMER, "../charges?x=1"))
    faults = (FaultKind.SERVER_ERROR, Transient), (FaultKind.RATE_LIMITED, Transient), (FaultKind.UNAUTHORIZED, Refused)
    for fault, error in faults:
        served_simulator.simulator.faults.add(Fault(fault, method="GET", path="/v1/customers"))
        with pytest.raises(error):
            await objects.fetch(name)
    served_simulator.simulator.faults.add(Fault(FaultKind.UNAUTHORIZED, method="GET", path="/v1/refunds"))
    with pytest.raises(InvalidInput, match="the key may not read /v1/refunds"):
        await objects.fetch(ObjectName(ObjectKind.REFUND, "re_1"))


async def test_all_pages_of_lists_are_read_and_events_come_oldest_first(
    objects: StripeClientObjects, sdk: Sdk, served_simulator: ServedSimulator
) -> None:
    """The walker and the resync must see everything."""
    began_s = served_simulator.clock.now_ms() // 1000
    customers = [(await sdk("v1.customers.create", {}))["id"] for _ in range(230)]

    events = await objects.events(began_s, began_s + 1)
    names, after = [], ""
    while page := await objects.names(ObjectKind.CUSTOMER, after):
        names += [name.id for name, _ in page]
        after = names[-1]

    assert customers == [event["data"]["object"]["id"] for event in events]  # type: ignore[index]  # JSON of any shape
    assert customers == names[::-1]
    assert [] == await objects.events(began_s + 1, began_s + 2)


async def test_the_objects_of_one_customer_are_listed_alone(objects: StripeClientObjects, sdk: Sdk) -> None:
    """An account's resync must not read the objects of all customers."""
    price = await price_of(sdk)
    wanted, other = await customer_of(sdk), await customer_of(sdk)
    for customer in (wanted, other):
        made = await sdk("v1.subscriptions.create", {"customer": customer, "items": [{"price": price}]})
        await sdk("v1.subscription_schedules.create", {"from_subscription": made["id"]})

    for kind in KINDS:
        ((name, owner),) = await objects.names(kind, customer=wanted)
        assert (kind, wanted) == (name.kind, owner)
        assert [] == await objects.names(kind, name.id, wanted)
    assert [] == await objects.names(ObjectKind.CUSTOMER, customer="cus_unknown")


@pytest.mark.parametrize("products", [pytest.param(0, id="one page"), pytest.param(101, id="more than a page")])
async def test_only_events_that_concern_the_mirror_are_listed_and_in_the_order_of_their_times(
    objects: StripeClientObjects, sdk: Sdk, served_simulator: ServedSimulator, products: int
) -> None:
    """Stripe takes 20 types at once, so a long list is read twice; an account has many other events."""
    began_s = served_simulator.clock.now_ms() // 1000
    customer = await customer_of(sdk)
    price = await price_of(sdk)
    await sdk("v1.subscriptions.create", {"customer": customer, "items": [{"price": price}]})
    for number in range(products):
        await sdk("v1.products.create", {"name": f"Product {number}"})
    served_simulator.clock.advance(5_000)
    await sdk("v1.customers.update", customer, {"name": "Zoë"})

    events: Any = await objects.events(began_s, began_s + 60)
    types = [event["type"] for event in events]
    assert {"customer.created", "customer.subscription.created", "invoice.created", "invoice.paid"} <= set(types)
    assert set(types) <= set(MIRRORED_TYPES)
    assert "customer.updated" == types[-1]
    assert sorted(event["created"] for event in events) == [event["created"] for event in events]
    every: list[Any] = (await sdk("v1.events.list", {"limit": 100}))["data"]
    if products:
        every += (await sdk("v1.events.list", {"limit": 100, "starting_after": every[-1]["id"]}))["data"]
    concern = {event["id"] for event in every if read_event(json.dumps(event, default=str).encode()).objects}
    assert concern == {event["id"] for event in events}


async def test_a_touched_customer_makes_an_event(
    objects: StripeClientObjects, sdk: Sdk, served_simulator: ServedSimulator
) -> None:
    """The canary waits for it."""
    customer = await customer_of(sdk)
    await objects.touch(customer, "17")
    now_s = served_simulator.clock.now_ms() // 1000
    events: Any = await objects.events(now_s, now_s + 1)
    last = [event for event in events if event["type"] == "customer.updated"][-1]
    assert "17" == last["data"]["object"]["metadata"]["tidemark_beat"]
    with pytest.raises(InvalidInput):
        await objects.touch("cus_unknown", "17")


async def test_the_objects_of_one_customer_are_listed_whatever_their_status(
    objects: StripeClientObjects, sdk: Sdk
) -> None:
    """A link waits for all of them."""
    customer, other = await customer_of(sdk), await customer_of(sdk)
    price, names = await price_of(sdk), []
    for owner in (customer, customer, other):
        made = await sdk("v1.subscriptions.create", {"customer": owner, "items": [{"price": price}]})
        schedule = await sdk("v1.subscription_schedules.create", {"from_subscription": made["id"]})
        names += [ObjectName(ObjectKind.SUBSCRIPTION, made["id"]), ObjectName(ObjectKind.SCHEDULE, schedule["id"])]
    await sdk("v1.subscription_schedules.cancel", names[1].id)

    assert sorted(await owned(objects, customer)) == sorted(names[:4])
    assert sorted(await owned(objects, other)) == sorted(names[4:])
    assert await owned(objects, "cus_nobody") == []


async def test_a_page_after_an_object_that_is_gone_begins_after_the_one_before_it(
    objects: StripeClientObjects, sdk: Sdk
) -> None:
    """Stripe refuses a place that it does not know."""
    older, newer = [(await sdk("v1.customers.create", {}))["id"] for _ in range(2)]

    after = [name.id for name, _ in await objects.names(ObjectKind.CUSTOMER, cursor_of([newer, "cus_gone", "cus_1"]))]

    assert [older] == after
    with pytest.raises(Transient, match="the list must be read anew"):
        await objects.names(ObjectKind.CUSTOMER, cursor_of(["cus_gone", "cus_1"]))
