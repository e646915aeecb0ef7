"""Subscription items (docs.stripe.com/api/subscription_items): a second way to change a subscription."""

from __future__ import annotations

from typing import Final

from stripe_simulator.contract.parameters import Params
from stripe_simulator.mode import Call, Mode, Route, retrieve
from stripe_simulator.pagination import LIST, page
from stripe_simulator.resources import subscription_changes as changes
from stripe_simulator.resources import subscriptions
from stripe_simulator.store import Object

_KIND: Final = changes.SUBSCRIPTION_ITEM
_OF_ITEM: Final = ("metadata", "price", "quantity")
_OF_CHANGE: Final = ("payment_behavior", "proration_behavior", "proration_date")
UPDATE: Final = (*_OF_ITEM, *_OF_CHANGE)


def create(mode: Mode, call: Call) -> Object:
    """`POST /v1/subscription_items`."""
    subscription = mode.fetch("subscription", call.params["subscription"], param="subscription")
    before = {item["id"] for item in changes.items_of(mode, subscription["id"])}
    _change(mode, subscription, call.params, {})
    return next(item for item in changes.items_of(mode, subscription["id"]) if item["id"] not in before)


def update(mode: Mode, call: Call) -> Object:
    """`POST /v1/subscription_items/{item}`."""
    _change(mode, mode.fetch("subscription", mode.fetch(_KIND, call.id)["subscription"]), call.params, {"id": call.id})
    return mode.fetch(_KIND, call.id)


def delete(mode: Mode, call: Call) -> Object:
    """`DELETE /v1/subscription_items/{item}`."""
    wanted, item = {"id": call.id, "deleted": True}, mode.fetch(_KIND, call.id)
    _change(mode, mode.fetch("subscription", item["subscription"]), call.params, wanted)
    return {"id": call.id, "object": _KIND, "deleted": True}


def list_all(mode: Mode, call: Call) -> Object:
    """`GET /v1/subscription_items`."""
    subscription = mode.fetch("subscription", call.params["subscription"], param="subscription")
    return page(mode, call, _KIND, {"subscription": subscription["id"]})


def _change(mode: Mode, subscription: Object, params: Params, wanted: Params) -> None:
    item = wanted | {name: params[name] for name in _OF_ITEM if name in params}
    shared: Params = {name: params[name] for name in _OF_CHANGE if name in params}
    subscriptions.change(mode, subscription, {**shared, "items": [item]})


ROUTES = (
    Route("POST", "/v1/subscription_items", create, (*UPDATE, "subscription")),
    Route("GET", "/v1/subscription_items", list_all, (*LIST, "subscription")),
    Route("GET", "/v1/subscription_items/{item}", retrieve(_KIND)),
    Route("POST", "/v1/subscription_items/{item}", update, UPDATE),
    Route("DELETE", "/v1/subscription_items/{item}", delete, _OF_CHANGE),
)
