"""What is believed of an event of Stripe: its ids, whose it is, and which objects must be fetched."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aggregators.billing_events import event_key, read_delivery, read_event, resync_record
from schemas.billing_events import ObjectKind, ObjectName, StripeEvent
from schemas.errors import InvalidInput

CUSTOMER = ObjectName(ObjectKind.CUSTOMER, "cus_1")
SUBSCRIPTION = ObjectName(ObjectKind.SUBSCRIPTION, "sub_1")
INVOICE = ObjectName(ObjectKind.INVOICE, "in_1")
SCHEDULE = ObjectName(ObjectKind.SCHEDULE, "sub_sched_1")


def snapshot(thing: Any, **changes: Any) -> bytes:
    """A snapshot event about an object, with changes."""
    document = {
        "object": "event", "id": "evt_1", "type": "some.type", "created": 1_800_000_000, "livemode": False,
        "data": {"object": thing}, "request": {"id": "req_1", "idempotency_key": "key_1"}, **changes,
    }  # fmt: skip
    return json.dumps(document).encode()


def thin(related: Any, **changes: Any) -> bytes:
    """A thin event about an object, with changes."""
    document = {
        "object": "v2.core.event", "id": "evt_2", "type": "v1.some.type", "created": "2027-01-15T08:00:00.000Z",
        "livemode": True, "related_object": related, **changes,
    }  # fmt: skip
    return json.dumps(document).encode()


OBJECTS = {
    "customer": ({"object": "customer", "id": "cus_1"}, (CUSTOMER,), "cus_1"),
    "subscription": ({"object": "subscription", "id": "sub_1", "customer": "cus_1"}, (SUBSCRIPTION,), "cus_1"),
    "expanded_customer": (
        {"object": "subscription", "id": "sub_1", "customer": {"id": "cus_1", "object": "customer"}},
        (SUBSCRIPTION,), "cus_1",
    ),
    "invoice_of_a_subscription": (
        {"object": "invoice", "id": "in_1", "customer": "cus_1",
         "parent": {"type": "subscription_details", "subscription_details": {"subscription": "sub_1"}}},
        (INVOICE, SUBSCRIPTION), "cus_1",
    ),
    "invoice_alone": ({"object": "invoice", "id": "in_1", "customer": "cus_1", "parent": None}, (INVOICE,), "cus_1"),
    "schedule": (
        {"object": "subscription_schedule", "id": "sub_sched_1", "customer": "cus_1", "subscription": "sub_1"},
        (SCHEDULE, SUBSCRIPTION), "cus_1",
    ),
    "schedule_without_a_subscription": (
        {"object": "subscription_schedule", "id": "sub_sched_1", "customer": "cus_1", "subscription": None},
        (SCHEDULE,), "cus_1",
    ),
    "checkout": (
        {"object": "checkout.session", "id": "cs_1", "customer": "cus_1", "subscription": "sub_1"},
        (SUBSCRIPTION, CUSTOMER), "cus_1",
    ),
    "payment_method": ({"object": "payment_method", "id": "pm_1", "customer": "cus_1"}, (CUSTOMER,), "cus_1"),
    "not_mirrored": ({"object": "price", "id": "price_1"}, (), ""),
    "without_id": ({"object": "balance"}, (), ""),
    "object_is_a_list": ({"object": [], "id": "x"}, (), ""),
    "preview": ({"object": "invoice", "customer": "cus_1"}, (), "cus_1"),
}  # fmt: skip


@pytest.mark.parametrize(("thing", "objects", "customer"), OBJECTS.values(), ids=OBJECTS)
def test_a_snapshot_event_names_what_must_be_fetched(
    thing: Any, objects: tuple[ObjectName, ...], customer: str
) -> None:
    """Another state than the event's may hold by now, so only the names count."""
    assert StripeEvent("evt_1", "some.type", 1_800_000_000, customer, objects, "key_1") == read_event(snapshot(thing))


def test_a_thin_event_names_its_object() -> None:
    """Thin events have no object, and their time is text."""
    reason = {"type": "request", "request": {"id": "req_1", "idempotency_key": "key_2"}}
    event = read_event(thin({"id": "sub_1", "type": "subscription", "url": "/v1/subscriptions/sub_1"}, reason=reason))
    assert StripeEvent("evt_2", "v1.some.type", 1_800_000_000, "", (SUBSCRIPTION,), "key_2") == event
    assert "cus_1" == read_event(thin({"id": "cus_1", "type": "customer"})).customer
    assert () == read_event(thin({"id": "mtr_1", "type": "billing.meter"})).objects
    assert () == read_event(thin(None)).objects


def test_a_resync_record_names_its_object_and_its_customer() -> None:
    """Two runs fetch the same object under two ids, or the second run would do nothing."""
    first, second = (read_event(resync_record(run, INVOICE, "cus_1", 1_800_000_000)) for run in ("a", "b"))
    assert StripeEvent("resync_a_in_1", "tidemark.resync", 1_800_000_000, "cus_1", (INVOICE,)) == first
    assert second.id != first.id
    assert read_event(resync_record("a", CUSTOMER, "", 1)).customer == ""


KEYS = {
    "customer": (StripeEvent("evt_1", "t", 0, "cus_1", (INVOICE,)), "cus_1"),
    "object": (StripeEvent("evt_1", "t", 0, "", (SUBSCRIPTION, CUSTOMER)), "sub_1"),
    "event": (StripeEvent("evt_1", "t", 0, "", ()), "evt_1"),
}


@pytest.mark.parametrize(("event", "key"), KEYS.values(), ids=KEYS)
def test_the_events_of_a_customer_have_one_key(event: StripeEvent, key: str) -> None:
    """So they are on one partition."""
    assert key == event_key(event)


BROKEN = {
    "no_json": (b"{", "body"),
    "not_utf8": (b'"\xff"', "body"),
    "deep": (b"[" * 100_000, "body"),
    "list": (b"[]", "body"),
    "no_object": (b"{}", "id"),
    "another_object": (json.dumps({"object": "x", "id": "evt_1", "type": "t"}).encode(), "object"),
    "no_id": (snapshot({"object": "customer", "id": "cus_1"}, id=None), "id"),
    "long_id": (snapshot({"object": "customer", "id": "c" * 256}), "id"),
    "numeric_id": (snapshot({"object": "customer", "id": 7}), "id"),
    "no_type": (snapshot({}, type=""), "type"),
    "no_data": (snapshot({}, data=None), "data"),
    "data_without_object": (snapshot([1]), "object"),
    "time_as_float": (snapshot({}, created=1.5), "created"),
    "time_as_bool": (snapshot({}, created=True), "created"),
    "negative_time": (snapshot({}, created=-1), "created"),
    "huge_time": (snapshot({}, created=1 << 60), "created"),
    "no_time": (thin(None, created="yesterday"), "created"),
    "time_without_zone": (thin(None, created="2027-01-15T08:00:00"), "created"),
    "related_is_text": (thin("cus_1"), "related_object"),
    "customer_is_a_list": (snapshot({"object": "invoice", "id": "in_1", "customer": []}), "customer"),
}


@pytest.mark.parametrize(("value", "field"), BROKEN.values(), ids=BROKEN)
def test_what_is_no_event_is_refused_with_the_field(value: bytes, field: str) -> None:
    """The processor quarantines such a record."""
    with pytest.raises(InvalidInput) as caught:
        read_event(value)
    assert field == caught.value.field


def test_a_delivery_says_whose_it_is() -> None:
    """An endpoint's secret may belong to another mode or account."""
    assert (False, "") == read_delivery(snapshot({"object": "customer", "id": "cus_1"}))[1]
    assert (True, "acct_2") == read_delivery(thin(None, context="acct_2"))[1]
    assert (False, "acct_3") == read_delivery(snapshot({}, account="acct_3"))[1]
    for changes, field in (({"livemode": None}, "livemode"), ({"account": 3}, "account")):
        with pytest.raises(InvalidInput) as caught:
            read_delivery(snapshot({}, **changes))
        assert field == caught.value.field
