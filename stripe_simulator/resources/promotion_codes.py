"""Promotion codes (docs.stripe.com/api/promotion_codes)."""

from __future__ import annotations

from typing import Final

from stripe_simulator.errors import ApiError, missing_parameter, require_positive
from stripe_simulator.metadata import merged
from stripe_simulator.mode import Call, Mode, Route, new_object, retrieve
from stripe_simulator.pagination import LIST, listed
from stripe_simulator.store import Object

INDEXED = {"promotion_code": ("code",)}
FIELDS: Final = ("active", "customer", "expires_at", "max_redemptions")
FILTERS: Final = ("code", "active", "customer")
CREATE: Final = (*FIELDS, "code", "metadata", "promotion", "restrictions[first_time_transaction]")


def create(mode: Mode, call: Call) -> Object:
    """`POST /v1/promotion_codes`."""
    params = call.params
    require_positive(params, "max_redemptions")
    if not params["promotion"].get("coupon"):
        raise missing_parameter("promotion[coupon]")
    mode.fetch("coupon", params["promotion"]["coupon"], param="promotion[coupon]")
    if params.get("customer"):
        mode.fetch("customer", params["customer"], param="customer")
    body = new_object(mode, "promotion_code", "promo", params) | {
        **{name: params.get(name) for name in FIELDS},
        "active": params.get("active", True),
        "code": params.get("code") or mode.store.new_id("", 8)[1:].upper(),
        "promotion": params["promotion"],
        "restrictions": {"minimum_amount": None, "minimum_amount_currency": None, "first_time_transaction": False}
        | params.get("restrictions", {}),
        "times_redeemed": 0,
    }
    _check_free(mode, body)
    return mode.store.save(body)


def update(mode: Mode, call: Call) -> Object:
    """`POST /v1/promotion_codes/{promotion_code}`."""
    body, params = mode.fetch("promotion_code", call.id), call.params
    body["metadata"] = merged(body["metadata"], params.get("metadata", {}))
    body["active"] = params.get("active", body["active"])
    _check_free(mode, body)
    return mode.store.save(body)


def _check_free(mode: Mode, body: Object) -> None:
    for other in mode.store.newest("promotion_code", "code", body["code"]):
        if body["active"] and other["active"] and other["id"] != body["id"]:
            raise ApiError(400, f"An active promotion code with `code: {body['code']}` already exists.", param="code")


ROUTES = (
    Route("POST", "/v1/promotion_codes", create, CREATE),
    Route("GET", "/v1/promotion_codes", listed("promotion_code", *FILTERS), (*LIST, *FILTERS, "created")),
    Route("GET", "/v1/promotion_codes/{promotion_code}", retrieve("promotion_code")),
    Route("POST", "/v1/promotion_codes/{promotion_code}", update, ("active", "metadata")),
)
