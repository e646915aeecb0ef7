"""Products and their prices (docs.stripe.com/api/products, /api/prices)."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from stripe_simulator.engine.amounts import exact_amount
from stripe_simulator.engine.periods import Recurrence
from stripe_simulator.engine.tiers import Price, Tier, TransformQuantity
from stripe_simulator.errors import ApiError, require_one, require_positive
from stripe_simulator.mode import Call, Mode, Route, new_object, retrieve
from stripe_simulator.pagination import LIST, page
from stripe_simulator.resources.conventions import Object, Params, changed, check, reads, require

INDEXED = {"price": ("product", "lookup_key")}
PRODUCT: Final = ("active", "description", "name", "tax_code")
UPDATE: Final = ("active", "lookup_key", "metadata", "nickname", "transfer_lookup_key")
CREATE: Final = (
    *UPDATE, "billing_scheme", "currency", "product", "product_data", "recurring[interval]",
    "recurring[interval_count]", "recurring[meter]", "recurring[usage_type]", "tax_behavior", "tiers", "tiers_mode",
    "transform_quantity", "unit_amount", "unit_amount_decimal",
)  # fmt: skip
_DEFAULTS: Final = {
    "active": True, "billing_scheme": "per_unit", "custom_unit_amount": None, "lookup_key": None, "nickname": None,
    "tax_behavior": "unspecified", "tiers_mode": None, "transform_quantity": None,
}  # fmt: skip
FILTERS: Final = ("active", "product")
_NOT_WITH: Final = {
    "per_unit": ("tiers", "tiers_mode"), "tiered": ("unit_amount", "unit_amount_decimal", "transform_quantity"),
}  # fmt: skip


def create(mode: Mode, call: Call) -> Object:
    """A price of a product that exists, or of a new one by `product_data`."""
    params = call.params
    currency = params["currency"].lower()
    check(len(currency) == 3 and currency.isalpha(), f"Invalid currency: {currency}.", "currency")
    amounts = _amounts(params)
    recurring = _recurring(mode, params["recurring"]) if "recurring" in params else None
    if require_one(params, "product", "product_data") == "product":
        product = mode.fetch("product", params["product"], param="product")
    else:
        product = _new_product(mode, params["product_data"])
    body = {
        **{name: params.get(name, default) for name, default in _DEFAULTS.items()},
        **new_object(mode, "price", "price", params), **amounts, "currency": currency, "product": product["id"],
        "recurring": recurring, "type": "recurring" if recurring else "one_time",
    }  # fmt: skip
    return mode.store.save(_with_key(mode, body, params))


def _update(mode: Mode, call: Call) -> Object:
    """What the price costs cannot change."""
    body = changed(mode.fetch("price", call.id), call.params, ("active", "nickname"))
    return mode.store.save(_with_key(mode, body, call.params))


def _list(mode: Mode, call: Call) -> Object:
    keys, recurring = call.params.get("lookup_keys"), call.params.get("recurring", {}).items()

    def is_kept(price: Object) -> bool:
        return (not keys or price["lookup_key"] in keys) and recurring <= (price["recurring"] or {}).items()

    return page(mode, call, "price", {name: call.params.get(name) for name in FILTERS}, is_kept)


def _new_product(mode: Mode, params: Params) -> Object:
    """Store a product with the parameters of a creation, or those of a price's `product_data`."""
    nulls = (*PRODUCT, "default_price", "package_dimensions", "shippable", "statement_descriptor", "unit_label", "url")
    body: Object = dict.fromkeys(nulls) | new_object(mode, "product", "prod", params)
    body |= {"active": True, "images": [], "marketing_features": [], "type": "service", "updated": body["created"]}
    return mode.store.save(body | {name: params[name] for name in PRODUCT if name in params})


def _update_product(mode: Mode, call: Call) -> Object:
    before = mode.fetch("product", call.id)
    after = changed(before, call.params, PRODUCT)
    return before if after == before else mode.store.save({**after, "updated": mode.now_s()})


def recurrence_of(price: Object) -> Recurrence:
    """How often a price bills. A one-time price has no periods; one month stands for them."""
    recurring = price["recurring"] or {"interval": "month", "interval_count": 1}
    return Recurrence(recurring["interval"], recurring["interval_count"])


def engine_price(price: Object) -> Price:
    """A stored price as the engine computes with it. The price must have its `tiers`, as in the store."""
    transform = price["transform_quantity"]
    return Price(
        recurrence=recurrence_of(price),
        unit_amount=exact_amount(price["unit_amount_decimal"] or 0),
        metered=(price["recurring"] or {}).get("usage_type") == "metered",
        tiers=tuple(
            Tier(tier["up_to"], *(exact_amount(tier[f"{name}_amount_decimal"] or 0) for name in ("unit", "flat")))
            for tier in price.get("tiers", ())
        ),
        transform_quantity=TransformQuantity(**transform) if transform else None,
        **{name: price[name] for name in ("id", "product", "tiers_mode")},
    )


def _amounts(params: Params) -> Object:
    """The amounts of a new price. Raises `ApiError` if they do not fit the billing scheme."""
    scheme = params.get("billing_scheme", "per_unit")
    for name in _NOT_WITH[scheme]:
        check(name not in params, f"`{name}` cannot be set if `billing_scheme={scheme}`.", name)
    if scheme == "per_unit":
        require_one(params, "unit_amount", "unit_amount_decimal")
        require_positive(params.get("transform_quantity", {}), "divide_by", within="transform_quantity")
        return _amount(params, "unit_amount")
    require(params, "recurring", "tiers_mode", "tiers")
    bounds = [tier["up_to"] for tier in params["tiers"]]
    message = "The tiers must be in ascending order of `up_to`, and the last one alone must be `inf`."
    is_last = bounds.count("inf") == 1 and bounds[-1] == "inf"
    check(is_last and bounds[:-1] == sorted({0, *bounds[:-1]})[1:], message, "tiers")
    tiers: list[Object] = [
        {"up_to": None if bound == "inf" else bound, **_amount(tier, "unit_amount"), **_amount(tier, "flat_amount")}
        for bound, tier in zip(bounds, params["tiers"], strict=True)
    ]
    return {"unit_amount": None, "unit_amount_decimal": None, "tiers": tiers}


def _amount(params: Params, name: str) -> Object:
    """An amount in both of its fields. The field for whole minor units is null for a fraction."""
    given = [key for key in (name, f"{name}_decimal") if key in params]
    if not given:
        return {name: None, f"{name}_decimal": None}
    key = require_one(params, *given)
    try:
        exact = exact_amount(params[key])
    except ValueError as error:
        raise ApiError(400, f"Invalid decimal: {error}", param=key) from error
    check(exact >= 0, "Invalid non-negative integer", key, "parameter_invalid_integer")
    whole, text = int(exact) if exact.denominator == 1 else None, f"{Decimal(params[key]):f}"
    return {name: whole, f"{name}_decimal": str(whole) if whole is not None else text.rstrip("0")}


def _recurring(mode: Mode, params: Params) -> Object:
    body = {"interval_count": 1, "meter": None, "trial_period_days": None, "usage_type": "licensed", **params}
    require_positive(params, "interval_count", within="recurring")
    message = "A price with `usage_type=metered` must have a meter, and no other price can have one."
    check((body["usage_type"] == "metered") == (body["meter"] is not None), message, "recurring[meter]")
    if body["meter"] is not None:
        mode.fetch("billing.meter", body["meter"], "billing meter", "recurring[meter]")
    return body


def _with_key(mode: Mode, body: Object, params: Params) -> Object:
    """The price with its new lookup key. `transfer_lookup_key` takes the key from its holder, even an archived one."""
    key = params.get("lookup_key", body["lookup_key"])
    holder = next(mode.store.newest("price", "lookup_key", key), body) if key else body
    if holder["id"] != body["id"]:
        is_moved = params.get("transfer_lookup_key", False)
        check(is_moved, f"A price (`{holder['id']}`) already uses that lookup key.", "lookup_key")
        mode.store.save({**holder, "lookup_key": None})
    return {**body, "lookup_key": key}


ROUTES = (
    Route("POST", "/v1/products", lambda mode, call: _new_product(mode, call.params), (*PRODUCT, "id", "metadata")),
    *reads("/v1/products/{id}", "product", "active"),
    Route("POST", "/v1/products/{id}", _update_product, (*PRODUCT, "metadata")),
    Route("POST", "/v1/prices", create, CREATE),
    Route("GET", "/v1/prices", _list, (*LIST, *FILTERS, "created", "lookup_keys", "recurring")),
    Route("GET", "/v1/prices/{price}", retrieve("price")),
    Route("POST", "/v1/prices/{price}", _update, UPDATE),
)
