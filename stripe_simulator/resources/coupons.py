"""Coupons, promotion codes, and the discounts that result (docs.stripe.com/api/coupons, …/promotion_codes)."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Final

from stripe_simulator.engine.discounts import Coupon, Discount, discount_from, remaining
from stripe_simulator.errors import require_one, require_positive
from stripe_simulator.mode import Call, Mode, Route, new_object
from stripe_simulator.resources.conventions import Object, Params, changed, check, reads, require

INDEXED = {"promotion_code": ("code",)}
FIELDS: Final = (
    "amount_off", "applies_to", "currency", "duration", "duration_in_months", "max_redemptions", "name", "percent_off",
    "redeem_by",
)  # fmt: skip
CODE: Final = ("active", "code", "customer", "expires_at", "max_redemptions")
# The field that says whether a coupon or a promotion code can be redeemed, and the field of its end.
_STATE: Final = {"coupon": ("valid", "redeem_by"), "promotion_code": ("active", "expires_at")}
_OWNERS: Final = ("checkout_session", "invoice", "invoice_item", "subscription", "subscription_item")


def _create(mode: Mode, call: Call) -> Object:
    params = call.params
    name = require_one(params, "percent_off", "amount_off")
    require_positive(params, "amount_off", "duration_in_months", "max_redemptions")
    is_percent = 0 < params.get("percent_off", 100) <= 100
    check(is_percent, "Invalid percent_off: it must be above 0 and at most 100.", "percent_off")
    if name == "amount_off":
        require(params, "currency")
    message = "`duration_in_months` must be set if `duration=repeating`, and cannot be set otherwise."
    is_repeating = params.get("duration") == "repeating"
    check(is_repeating == ("duration_in_months" in params), message, "duration_in_months")
    identifier = params.get("id") or mode.store.new_id("", 8)[1:]
    body = new_object(mode, "coupon", "", {**params, "id": identifier}) | {name: params.get(name) for name in FIELDS}
    body |= {"duration": params.get("duration", "once"), "times_redeemed": 0, "valid": True}
    return mode.store.save(body)


def _update(mode: Mode, call: Call) -> Object:
    """What a coupon takes off cannot change."""
    return mode.store.save(changed(mode.fetch("coupon", call.id), call.params, ("name",)))


def _create_code(mode: Mode, call: Call) -> Object:
    params = call.params
    require_positive(params, "max_redemptions")
    require(params["promotion"], "coupon", within="promotion")
    mode.fetch("coupon", params["promotion"]["coupon"], param="promotion[coupon]")
    if params.get("customer"):
        mode.fetch("customer", params["customer"], param="customer")
    body = new_object(mode, "promotion_code", "promo", params) | {name: params.get(name) for name in CODE}
    body |= {"active": params.get("active", True), "code": body["code"] or mode.store.new_id("", 8)[1:].upper()}
    is_taken = any(other["active"] for other in mode.store.newest("promotion_code", "code", body["code"]))
    check(not is_taken, f"An active promotion code with `code: {body['code']}` already exists.", "code")
    restrictions = {"minimum_amount": None, "minimum_amount_currency": None, "first_time_transaction": False}
    return mode.store.save(body | {"promotion": params["promotion"], "restrictions": restrictions, "times_redeemed": 0})


def redeem(mode: Mode, entry: Params, customer: str, param: str = "discounts[0]", **owner: str) -> Object:
    """Store the discount of one entry of `discounts`: a coupon, a promotion code or an existing discount.

    `param` is the entry's name in an error. `owner` is the field of the discount that names what is discounted, such as
    `subscription`. Raises `ApiError` if the coupon or the code cannot be redeemed by the customer.
    """
    key = require_one(entry, "coupon", "promotion_code", "discount")
    param = f"{param}[{key}]"
    body = mode.fetch(key, entry[key], param=param)
    if key == "discount":
        return body
    start = mode.now_s(mode.clock_of(customer))
    coupon = mode.fetch("coupon", body["promotion"]["coupon"], param=param) if key == "promotion_code" else body
    check(body.get("customer") in (None, customer), "This promotion code belongs to another customer.", param)
    for counted in [coupon] if coupon is body else [coupon, body]:
        state, end = _STATE[counted["object"]]
        is_valid = counted[state] and (counted[end] is None or counted[end] > start)
        message = f"The {key.replace('_', ' ')} {entry[key]} has expired or has been used up."
        check(is_valid, message, param, "coupon_expired")
        times = counted["times_redeemed"] + 1
        mode.store.save({**counted, "times_redeemed": times, state: times != counted["max_redemptions"]})
    discount: Object = dict.fromkeys(_OWNERS) | {
        "id": mode.store.new_id("di"), "object": "discount", "customer": customer, "start": start,
        "end": discount_from(engine_coupon(coupon), start).end,
        "promotion_code": None if coupon is body else body["id"],
        "source": {"coupon": coupon["id"], "type": "coupon"},
    }  # fmt: skip
    return mode.store.save(discount | owner)


def engine_coupon(coupon: Object) -> Coupon:
    """A stored coupon as the engine computes with it. The coupon must have its `applies_to`, as in the store."""
    percent, applies_to = coupon["percent_off"], coupon["applies_to"] or {}
    return Coupon(
        percent_off=None if percent is None else Fraction(Decimal(str(percent))),
        applies_to=frozenset(applies_to.get("products", ())),
        **{name: coupon[name] for name in ("id", "amount_off", "duration", "duration_in_months")},
    )


def discount_of(mode: Mode, identifier: str) -> Discount:
    """A stored discount as the engine computes with it."""
    body = mode.fetch("discount", identifier, param="discounts")
    return Discount(engine_coupon(mode.fetch("coupon", body["source"]["coupon"])), body["start"], body["end"])


def discounts_of(mode: Mode, body: Object, at: int) -> dict[str, Discount]:
    """By id and in order, the discounts of a subscription, item or invoice that an invoice of the instant `at` has."""
    discounts = {identifier: discount_of(mode, identifier) for identifier in body["discounts"]}
    return {identifier: discount for identifier, discount in discounts.items() if discount.active_at(at)}


def remaining_after(mode: Mode, body: Object, at: int) -> list[str]:
    """The ids of the discounts of `body` that are left after its invoice of the instant `at`. The others end."""
    left = [identifier for identifier in body["discounts"] if remaining([discount_of(mode, identifier)], at)]
    for identifier in body["discounts"]:
        if identifier not in left:
            mode.store.save(mode.fetch("discount", identifier), "customer.discount.deleted")
    return left


ROUTES = (
    Route("POST", "/v1/coupons", _create, (*FIELDS, "id", "metadata")),
    *reads("/v1/coupons/{coupon}", "coupon"),
    Route("POST", "/v1/coupons/{coupon}", _update, ("metadata", "name")),
    Route("POST", "/v1/promotion_codes", _create_code, (*CODE, "metadata", "promotion")),
    *reads("/v1/promotion_codes/{promotion_code}", "promotion_code", "code", "active"),
)
