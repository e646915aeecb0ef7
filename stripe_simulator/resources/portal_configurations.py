"""Configurations of the customer portal (docs.stripe.com/api/customer_portal/configurations).

Of a session's configuration the page follows one thing: whether a subscription can be canceled.
"""

from __future__ import annotations

from typing import Any, Final

from stripe_simulator.mode import Call, Mode, Route, new_object
from stripe_simulator.resources.conventions import Object, Params, changed, check, reads

KIND: Final = "billing_portal.configuration"
PRODUCTS_MAX: Final = 10
_FIXED: Final = {"enabled": False, "maximum": None, "minimum": 0}
_OFF: Final[dict[str, Any]] = {
    "customer_update": {"allowed_updates": [], "enabled": False},
    "invoice_history": {"enabled": False},
    "payment_method_update": {"enabled": False, "payment_method_configuration": None},
    "subscription_cancel": {
        "cancellation_reason": {"enabled": False, "options": []}, "enabled": False, "mode": "at_period_end",
        "proration_behavior": "none",
    },
    "subscription_pause": {
        "duration": {"interval_options": [{"interval": "month", "interval_count": 1}], "type": "interval_options"},
        "enabled": False,
    },
    "subscription_update": {
        "billing_cycle_anchor": "unchanged", "default_allowed_updates": [], "enabled": False, "products": [],
        "proration_behavior": "none", "schedule_at_period_end": {"conditions": []},
        "trial_update_behavior": "end_trial",
    },
}  # fmt: skip
_FEATURES: Final = tuple(f"features[{name}]" for name in _OFF if name != "subscription_pause")


def may_cancel(mode: Mode, configuration: str) -> bool:
    """Whether the page offers a cancellation; without a configuration of its own it does."""
    body = mode.store.get(KIND, configuration)
    return body is None or bool(body["features"]["subscription_cancel"]["enabled"])


def _create(mode: Mode, call: Call) -> Object:
    new = new_object(mode, KIND, "bpc", call.params)
    body = dict.fromkeys(("application", "default_return_url", "name")) | new | {
        "active": True, "is_default": False, "login_page": {"enabled": False, "url": None}, "updated": new["created"],
        "business_profile": dict.fromkeys(("headline", "privacy_policy_url", "terms_of_service_url")),
        "features": _features(mode, _OFF, call.params["features"]),
    }  # fmt: skip
    return mode.store.save(body)


def _update(mode: Mode, call: Call) -> Object:
    before = mode.fetch(KIND, call.id)
    after = changed(before, call.params, ("active",))
    after["features"] = _features(mode, before["features"], call.params.get("features", {}))
    return mode.store.save({**after, "updated": mode.now_s()})


def _features(mode: Mode, before: Object, params: Params) -> Object:
    """The features after a request. Raises `ApiError` for prices that are not those of their product."""
    after: Object = {name: {**fields, **params.get(name, {})} for name, fields in before.items()}
    update, param = after["subscription_update"], "features[subscription_update][products]"
    products = [{"adjustable_quantity": _FIXED, **each} for each in update["products"]]
    is_right = bool(products) or not update["enabled"]
    check(is_right, "You must pass `products` if subscription updates are enabled.", param)
    check(len(products) <= PRODUCTS_MAX, f"You may have at most {PRODUCTS_MAX} products.", param)
    for product in products:
        prices = [mode.fetch("price", price, param=param) for price in product["prices"]]
        is_right = all(price["product"] == product["product"] and price["recurring"] for price in prices)
        check(is_right, f"The prices of {product['product']} must be its own and recurring.", param)
    update["products"] = products
    return after


_ITEM: Final = "/v1/billing_portal/configurations/{configuration}"
ROUTES = (
    Route("POST", "/v1/billing_portal/configurations", _create, ("metadata", *_FEATURES)),
    *reads(_ITEM, KIND, "active", "is_default", label="portal configuration"),
    Route("POST", _ITEM, _update, ("active", "metadata", *_FEATURES)),
)
