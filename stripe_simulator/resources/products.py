"""Products (docs.stripe.com/api/products)."""

from __future__ import annotations

from typing import Final

from stripe_simulator.contract.parameters import Params
from stripe_simulator.metadata import merged
from stripe_simulator.mode import Call, Mode, Route, new_object, retrieve
from stripe_simulator.pagination import LIST, listed
from stripe_simulator.store import Object

FIELDS: Final = ("active", "description", "name", "statement_descriptor", "tax_code", "unit_label", "url")
_NULL: Final = (*FIELDS, "default_price", "package_dimensions", "shippable")


def create(mode: Mode, call: Call) -> Object:
    """`POST /v1/products`."""
    return new(mode, call.params)


def new(mode: Mode, params: Params) -> Object:
    """Store a product with the parameters of a creation, or those of a price's `product_data`."""
    body: Object = dict.fromkeys(_NULL) | new_object(mode, "product", "prod", params)
    body |= {"active": True, "images": [], "marketing_features": [], "type": "service", "updated": body["created"]}
    return mode.store.save(_changed(body, params))


def update(mode: Mode, call: Call) -> Object:
    """`POST /v1/products/{id}`."""
    before = mode.fetch("product", call.id)
    body = _changed(before, call.params)
    return before if body == before else mode.store.save({**body, "updated": mode.now_s()})


def _changed(body: Object, params: Params) -> Object:
    changed = body | {name: params[name] for name in FIELDS if name in params}
    return changed | {"metadata": merged(body["metadata"], params.get("metadata", {}))}


ROUTES = (
    Route("POST", "/v1/products", create, (*FIELDS, "id", "metadata")),
    Route("GET", "/v1/products", listed("product", "active"), (*LIST, "active", "created")),
    Route("GET", "/v1/products/{id}", retrieve("product")),
    Route("POST", "/v1/products/{id}", update, (*FIELDS, "metadata")),
)
