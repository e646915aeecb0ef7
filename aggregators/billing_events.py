"""Reads what is believed of an event of `billing.events`: its id, its type, and the objects to fetch."""

from __future__ import annotations

import json
from typing import Any

from schemas.billing_events import ObjectKind, ObjectName, StripeEvent
from schemas.errors import InvalidInput


def read_event(value: bytes) -> StripeEvent:
    """A snapshot event, or a resync record. Raises `InvalidInput` for anything else."""
    try:
        body: Any = json.loads(value)
        found = body["data"]["object"]
        kind, created_s = str(found["object"]), int(body["created"])
        name = str(found["id"]) if kind in set(ObjectKind) else ""
        customer = str(found["id"] if kind == ObjectKind.CUSTOMER else found.get("customer") or "")
        key = str((body.get("request") or {}).get("idempotency_key") or "")
        objects = (ObjectName(ObjectKind(kind), name),) if name else ()
        return StripeEvent(str(body["id"]), str(body["type"]), created_s, customer, objects, key)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput("event", "is not an event of Stripe") from error
