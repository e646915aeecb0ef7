"""Reads the records of `billing.events`: Stripe's snapshot events, thin events, and our resync records.

A snapshot event has the object as it was (docs.stripe.com/api/events/object); a thin event names the object
(docs.stripe.com/api/v2/core/events/object). Both are read for ids only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from aggregators.instants import parse_instant_us
from schemas.billing_events import RESYNC_TYPE, ObjectKind, ObjectName, StripeEvent
from schemas.clock import SECOND_US
from schemas.errors import InvalidInput

ID_CHARACTERS_MAX: Final = 255
_KINDS: Final = {kind.value: kind for kind in ObjectKind}
# Thin events name a type of the API's v1 objects, such as `billing.customer`.
_THIN_KINDS: Final = _KINDS | {f"billing.{kind}": kind for kind in ObjectKind}
_decode: Final = msgspec.json.Decoder().decode


class Origin(NamedTuple):
    """The mode and the Stripe account of an event. `account` is "" if the event does not name one."""

    livemode: bool
    account: str


def read_event(value: bytes) -> StripeEvent:
    """The event of a record. Raises `InvalidInput` with the field."""
    return _event(_document(value))


def read_delivery(value: bytes) -> tuple[StripeEvent, Origin]:
    """The event of a delivery, and whose event it is. Raises `InvalidInput` with the field."""
    document = _document(value)
    livemode, account = document.get("livemode"), document.get("account") or document.get("context") or ""
    if not isinstance(livemode, bool):
        raise InvalidInput("livemode", "is not true or false")
    if not isinstance(account, str):
        raise InvalidInput("account", "is not text")
    return _event(document), Origin(livemode, account)


def event_key(event: StripeEvent) -> str:
    """The key of an event's record: the customer, else the first object, else the event itself."""
    return event.customer or (event.objects[0].id if event.objects else event.id)


def resync_record(run: str, name: ObjectName, customer: str, created_s: int) -> bytes:
    """The value of a resync record. `run` is the resync's name: another run fetches the object again."""
    document = {
        "id": f"resync_{run}_{name.id}", "object": RESYNC_TYPE, "type": RESYNC_TYPE, "created": created_s,
        "customer": customer, "name": {"kind": name.kind.value, "id": name.id},
    }  # fmt: skip
    return msgspec.json.encode(document)


def _document(value: bytes) -> dict[str, Any]:
    try:
        document = _decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidInput("body", f"is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidInput("body", "is not a JSON object")
    return document


def _event(document: Mapping[str, Any]) -> StripeEvent:
    shape = document.get("object")
    identifier, kind = _text(document, "id"), _text(document, "type")
    if shape == RESYNC_TYPE:
        name = _mapping(document, "name")
        objects = _named(_KINDS, _text(name, "kind"), _text(name, "id"))
        return StripeEvent(identifier, kind, _seconds(document), _optional(document, "customer"), objects)
    if shape == "v2.core.event":
        related = _mapping(document, "related_object") if document.get("related_object") else {}
        objects = _named(_THIN_KINDS, _text(related, "type"), _text(related, "id")) if related else ()
        customer = objects[0].id if objects and objects[0].kind is ObjectKind.CUSTOMER else ""
        return StripeEvent(identifier, kind, _seconds(document), customer, objects, _caused_by(document.get("reason")))
    if shape != "event":
        raise InvalidInput("object", "is neither event nor v2.core.event")
    thing = _mapping(_mapping(document, "data"), "object")
    objects, customer = _touched(thing)
    return StripeEvent(identifier, kind, _seconds(document), customer, objects, _caused_by(document))


def _touched(thing: Mapping[str, Any]) -> tuple[tuple[ObjectName, ...], str]:
    """The objects that an event about `thing` may have changed, and the customer."""
    kind = str(thing.get("object"))
    customer = _reference(thing, "id" if kind == "customer" else "customer")
    names = list(_named(_KINDS, kind, _reference(thing, "id"))) if kind in _KINDS else []
    parent = thing.get("parent")
    details = parent.get("subscription_details") if isinstance(parent, dict) else None
    # A change of a schedule, an invoice or a checkout may change the subscription without an event that arrives.
    for holder in (thing, details if isinstance(details, dict) else {}):
        if kind != "subscription" and (subscription := _reference(holder, "subscription")):
            names.append(ObjectName(ObjectKind.SUBSCRIPTION, subscription))
    # What an invoice takes from a grant is an entry of Stripe's ledger, which names the grant and no customer.
    if grant := _reference(thing, "credit_grant"):
        names.append(ObjectName(ObjectKind.CREDIT_GRANT, grant))
    # A credit note lowers what is left to pay, and may settle the invoice.
    if kind == ObjectKind.CREDIT_NOTE and (invoice := _reference(thing, "invoice")):
        names.append(ObjectName(ObjectKind.INVOICE, invoice))
    if customer and kind in ("checkout.session", "payment_method"):
        names.append(ObjectName(ObjectKind.CUSTOMER, customer))
    return tuple(dict.fromkeys(names)), customer


def _named(kinds: Mapping[str, ObjectKind], kind: str, identifier: str) -> tuple[ObjectName, ...]:
    return (ObjectName(kinds[kind], identifier),) if kind in kinds and identifier else ()


def _reference(holder: Mapping[str, Any], field: str) -> str:
    """The id in a field that has an id or an expanded object; "" without one."""
    value = holder.get(field)
    if isinstance(value, dict):
        value = value.get("id")
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > ID_CHARACTERS_MAX:
        raise InvalidInput(field, "is not an id")
    return value


def _text(holder: Mapping[str, Any], field: str) -> str:
    value = holder.get(field)
    if not isinstance(value, str) or not 0 < len(value) <= ID_CHARACTERS_MAX:
        raise InvalidInput(field, f"is not text of 1 to {ID_CHARACTERS_MAX} characters")
    return value


def _optional(holder: Mapping[str, Any], field: str) -> str:
    return _text(holder, field) if holder.get(field) else ""


def _mapping(holder: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    value = holder.get(field)
    if not isinstance(value, dict):
        raise InvalidInput(field, "is not an object")
    return value


def _seconds(document: Mapping[str, Any]) -> int:
    """`created`: seconds in snapshot events, text in thin events."""
    value = document.get("created")
    if isinstance(value, str):
        instant_us = parse_instant_us(value)
        value = None if instant_us is None else instant_us // SECOND_US
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 40:
        raise InvalidInput("created", "is not a time")
    return value


def _caused_by(holder: object) -> str:
    """The idempotency key of the request that caused an event; "" if there was none."""
    request = holder.get("request") if isinstance(holder, dict) else None
    key = request.get("idempotency_key") if isinstance(request, dict) else None
    return key if isinstance(key, str) and len(key) <= ID_CHARACTERS_MAX else ""
