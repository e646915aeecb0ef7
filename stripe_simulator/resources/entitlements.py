"""Features, the features of products, and what customers are entitled to (docs.stripe.com/billing/entitlements)."""

from __future__ import annotations

from typing import Final

from stripe_simulator.mode import Call, Mode, Route, new_object, retrieve
from stripe_simulator.pagination import LIST, page
from stripe_simulator.resources.conventions import Object, changed, check

FEATURE: Final = "entitlements.feature"
SUMMARY: Final = "entitlements.active_entitlement_summary"
ACTIVE: Final = "entitlements.active_entitlement"
INDEXED = {FEATURE: ("lookup_key",), ACTIVE: ("customer",), "product_feature": ("product",)}
# Stripe documents "an active subscription". It was observed that a paused one keeps its entitlements.
ENTITLING: Final = ("active", "trialing", "past_due", "paused")


def _create(mode: Mode, call: Call) -> Object:
    """A lookup key is unique."""
    params = call.params
    is_taken = any(mode.store.newest(FEATURE, "lookup_key", params["lookup_key"]))
    message = f"A feature with the lookup key {params['lookup_key']} already exists."
    check(not is_taken, message, "lookup_key", "resource_already_exists")
    body = new_object(mode, FEATURE, "feat", params)
    del body["created"]
    return mode.store.put(body | {"active": True, "lookup_key": params["lookup_key"], "name": params["name"]})


def _update(mode: Mode, call: Call) -> Object:
    return mode.store.put(changed(mode.fetch(FEATURE, call.id, "feature"), call.params, ("active", "name")))


def _list(mode: Mode, call: Call) -> Object:
    """Archived features are listed only for who asks for them."""
    is_active = not call.params.get("archived", False)
    return page(mode, call, FEATURE, {"active": is_active, "lookup_key": call.params.get("lookup_key")})


def _attach(mode: Mode, call: Call) -> Object:
    mode.fetch("product", call.id)
    feature = mode.fetch(FEATURE, call.params["entitlement_feature"], "feature", "entitlement_feature")
    check(feature["active"], "An archived feature cannot be attached to a product.", "entitlement_feature")
    body = {"id": mode.store.new_id("prodft"), "object": "product_feature", "entitlement_feature": feature}
    return _shown(mode.store.put({**body, "livemode": mode.livemode, "product": call.id}))


def _list_attached(mode: Mode, call: Call) -> Object:
    mode.fetch("product", call.id)
    listed = page(mode, call, "product_feature", {"product": call.id})
    return {**listed, "data": [_shown(body) for body in listed["data"]]}


def _list_active(mode: Mode, call: Call) -> Object:
    mode.fetch("customer", call.params["customer"], param="customer")
    listed = page(mode, call, ACTIVE, {"customer": call.params["customer"]})
    return {**listed, "data": [_shown(body) for body in listed["data"]]}


def _shown(body: Object) -> Object:
    """Without the fields that only the store has."""
    return {name: value for name, value in body.items() if name not in ("customer", "product")}


def _follow(mode: Mode, event: Object) -> None:
    """Bring the entitlements of a customer in line with the subscriptions after a change of one of them."""
    subscription = event["data"]["object"]
    if subscription["object"] != "subscription" or not any(mode.store.newest("product_feature")):
        return
    customer = subscription["customer"]
    wanted = {
        attached["entitlement_feature"]["id"]: attached["entitlement_feature"]["lookup_key"]
        for other in mode.store.newest("subscription", "customer", customer)
        if other["status"] in ENTITLING
        for item in other["items"]["data"]
        for attached in mode.store.newest("product_feature", "product", item["price"]["product"])
    }
    active = {body["feature"]: body["id"] for body in mode.store.newest(ACTIVE, "customer", customer)}
    if active.keys() == wanted.keys():
        return
    for feature in active.keys() - wanted.keys():
        mode.store.remove(ACTIVE, active[feature])
    for feature in sorted(wanted.keys() - active.keys()):
        entitlement = {"id": mode.store.new_id("ent"), "object": ACTIVE, "customer": customer, "feature": feature}
        mode.store.put({**entitlement, "livemode": mode.livemode, "lookup_key": wanted[feature]})
    listed = _list_active(mode, Call("/v1/entitlements/active_entitlements", {"customer": customer}))
    summary = {"object": SUMMARY, "customer": customer, "entitlements": listed, "livemode": mode.livemode}
    mode.store.announce(f"{SUMMARY}.updated", summary, subscription.get("test_clock") or "")


SUBSCRIBERS = (_follow,)
ROUTES = (
    Route("POST", "/v1/entitlements/features", _create, ("lookup_key", "metadata", "name")),
    Route("GET", "/v1/entitlements/features/{id}", retrieve(FEATURE, "feature")),
    Route("GET", "/v1/entitlements/features", _list, (*LIST, "archived", "lookup_key")),
    Route("POST", "/v1/entitlements/features/{id}", _update, ("active", "metadata", "name")),
    Route("POST", "/v1/products/{product}/features", _attach, ("entitlement_feature",)),
    Route("GET", "/v1/products/{product}/features", _list_attached, LIST),
    Route("GET", "/v1/entitlements/active_entitlements", _list_active, (*LIST, "customer")),
)
