"""Stripe's products, prices, features and meters, for the catalog (`CatalogObjects`)."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import quote

from schemas.catalog import PlanId, PriceTerms, PriceTier
from schemas.catalog_changes import AtStripe, CatalogKind, StripeFeature, StripeMeter, StripePrice, StripeProduct
from schemas.errors import InvalidInput, Transient
from sinks.stripe.answers import meter_of
from sinks.stripe.connection import connected, json_of, read
from sinks.stripe.listing import list_of, listed

PAGES_MAX: Final = 500
ATTEMPTS_MAX: Final = 5
_PATHS: Final = {CatalogKind.PRODUCT: "/v1/products", CatalogKind.PRICE: "/v1/prices"}
_FEATURES: Final = "/v1/entitlements/features"
# The metadata of a price: what it is the price of.
PLAN_KEY: Final = "tidemark_plan"
COMPONENT_KEY: Final = "tidemark_component"
_TIERS: Final = {"expand": ["data.tiers"]}

Sleep = Callable[[float], Awaitable[None]]


class StripeClientCatalog:
    """Reads and makes the objects of the catalog with one API key. For use in one event loop.

    A creation is repeated up to `ATTEMPTS_MAX` times while Stripe does not answer. Each object has a key of ours that
    Stripe keeps unique, so a creation whose answer was lost finds its object.
    """

    def __init__(
        self,
        api_key: str,
        api_base: str | None = None,
        *,
        scope: str,
        nonce: str,
        timeout_s: float = 20.0,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """`scope` is `test:acct_…` or `live:acct_…`. `nonce` is a text that no other process uses. `api_base` is the
        URL of a simulator; None means Stripe."""
        self._stripe, self._transport = connected(api_key, api_base, timeout_s)
        self._scope = scope
        self._nonce = nonce
        self._sleep = sleep

    async def read(self) -> AtStripe:
        """See `CatalogObjects`."""
        meters: dict[str, StripeMeter] = {}
        async for row in self._rows("/v1/billing/meters"):
            meter = meter_of(json.loads(json.dumps(row), object_hook=lambda fields: SimpleNamespace(**fields)))
            if meter.event_name not in meters or meter.is_active:
                meters[meter.event_name] = StripeMeter(meter.id, meter.event_name, meter.fault)
        # A price of a meter that another one has replaced has other terms: it bills nothing.
        names = {meter.id: meter.event_name for meter in meters.values()}
        products = {row["id"]: _product(row) async for row in self._rows(_PATHS[CatalogKind.PRODUCT])}
        features = {
            row["lookup_key"]: StripeFeature(row["id"], row["lookup_key"], row["name"])
            async for row in self._rows(_FEATURES)
        }
        prices = {row["id"]: _price(row, names) async for row in self._rows(_PATHS[CatalogKind.PRICE], _TIERS)}
        return AtStripe(meters, products, features, prices)

    async def attached(self, product: str) -> frozenset[str]:
        """See `CatalogObjects`."""
        path = f"{_PATHS[CatalogKind.PRODUCT]}/{quote(product, safe='')}/features"
        return frozenset([row["entitlement_feature"]["lookup_key"] async for row in self._rows(path)])

    async def create_product(self, product: StripeProduct) -> str:
        """See `CatalogObjects`."""

        async def find() -> str | None:
            try:
                await self._get(f"{_PATHS[CatalogKind.PRODUCT]}/{quote(product.id, safe='')}", {})
            except InvalidInput as error:
                if error.field == "resource_missing":
                    return None
                raise
            return product.id

        return await self._create(
            _PATHS[CatalogKind.PRODUCT], product.id, {"id": product.id, **_product_fields(product)}, find
        )

    async def update_product(self, product: StripeProduct) -> None:
        """See `CatalogObjects`."""
        fields = {"description": "", "tax_code": "", **_product_fields(product), "active": product.is_active}
        await self._post(f"{_PATHS[CatalogKind.PRODUCT]}/{quote(product.id, safe='')}", fields)

    async def create_feature(self, key: str, name: str) -> str:
        """See `CatalogObjects`."""

        async def find() -> str | None:
            found = [row async for row in self._rows(_FEATURES, {"lookup_key": key})]
            return str(found[0]["id"]) if found else None

        return await self._create(_FEATURES, key, {"lookup_key": key, "name": name}, find)

    async def attach(self, product: str, feature_id: str) -> None:
        """See `CatalogObjects`."""
        path = f"{_PATHS[CatalogKind.PRODUCT]}/{quote(product, safe='')}/features"

        async def find() -> str | None:
            rows = [row async for row in self._rows(path)]
            return next((str(row["id"]) for row in rows if row["entitlement_feature"]["id"] == feature_id), None)

        await self._create(path, f"{product} {feature_id}", {"entitlement_feature": feature_id}, find)

    async def create_price(self, key: str, terms: PriceTerms, meter_id: str, plan: PlanId, component: str) -> str:
        """See `CatalogObjects`."""

        async def find() -> str | None:
            found = [row async for row in self._rows(_PATHS[CatalogKind.PRICE], {"lookup_keys": [key], **_TIERS})]
            if not found:
                return None
            price = _price(found[0], {meter_id: terms.event_name} if meter_id else {})
            if price.terms != terms:
                raise InvalidInput(key, f"Stripe's price {price.id} has this lookup key and other terms: plan again")
            return price.id

        metadata = {PLAN_KEY: str(plan), COMPONENT_KEY: component}
        params = {"lookup_key": key, "metadata": metadata, **price_fields(terms, meter_id)}
        return await self._create(_PATHS[CatalogKind.PRICE], key, params, find)

    async def set_active(self, kind: CatalogKind, identifier: str, is_active: bool) -> None:
        """See `CatalogObjects`."""
        await self._post(f"{_PATHS[kind]}/{quote(identifier, safe='')}", {"active": is_active})

    async def close(self) -> None:
        """Close all connections. Safe to call twice."""
        await self._transport.close_async()

    async def _create(
        self, path: str, key: str, params: Mapping[str, Any], find: Callable[[], Awaitable[str | None]]
    ) -> str:
        """Create an object, or find the one that has the key.

        Two processes have the same Idempotency-Key at their first attempts. Later attempts have keys of their own,
        because Stripe repeats a stored failure for a day.
        """
        digest = hashlib.sha256(json.dumps([self._scope, path, key, params], sort_keys=True).encode()).hexdigest()
        attempt = 1
        while True:
            idempotency_key = digest if attempt == 1 else f"{digest}.{self._nonce}.{attempt}"
            try:
                return str((await self._post(path, params, idempotency_key))["id"])
            except InvalidInput:
                # Stripe keeps the key unique: another process, or a call whose answer was lost, made the object.
                if (found := await find()) is None:
                    raise
                return found
            except Transient as error:
                if attempt == ATTEMPTS_MAX:
                    raise
                await self._sleep(error.retry_after_s)
            if (found := await find()) is not None:
                return found
            attempt += 1

    def _rows(self, path: str, options: Mapping[str, Any] | None = None) -> AsyncIterator[Any]:
        """The rows of all pages of a list."""
        return listed(self._list, path, options or {}, PAGES_MAX)

    async def _list(self, path: str, options: Mapping[str, Any]) -> dict[str, Any]:
        return await read(lambda: self._stripe.raw_request_async("get", path, **options), list_of)

    async def _get(self, path: str, options: Mapping[str, Any]) -> dict[str, Any]:
        return await read(lambda: self._stripe.raw_request_async("get", path, **options), json_of)

    async def _post(self, path: str, params: Mapping[str, Any], idempotency_key: str = "") -> dict[str, Any]:
        options = {"idempotency_key": idempotency_key} if idempotency_key else {}
        return await read(lambda: self._stripe.raw_request_async("post", path, **params, **options), json_of)


def price_fields(terms: PriceTerms, meter_id: str) -> dict[str, Any]:
    """The parameters of a price's terms (docs.stripe.com/api/prices/create)."""
    recurring: dict[str, Any] = {"interval": terms.interval, "usage_type": "licensed"}
    if terms.event_name:
        recurring |= {"usage_type": "metered", "meter": meter_id}
    fields: dict[str, Any] = {
        "currency": terms.currency, "product": terms.product, "recurring": recurring,
        "tax_behavior": terms.tax_behavior,
    }  # fmt: skip
    if terms.package > 1:
        fields["transform_quantity"] = {"divide_by": terms.package, "round": "up"}
    if not terms.tiers:
        return {**fields, "billing_scheme": "per_unit", "unit_amount_decimal": terms.unit_minor}
    tiers = [
        {"up_to": tier.up_to or "inf", "unit_amount_decimal": tier.unit_minor, "flat_amount_decimal": tier.flat_minor}
        for tier in terms.tiers
    ]
    return {**fields, "billing_scheme": "tiered", "tiers_mode": terms.mode, "tiers": tiers}


def _price(row: Mapping[str, Any], event_names: Mapping[str, str]) -> StripePrice:
    """A price with its terms. An unknown meter stands for itself, so that the terms differ."""
    recurring, transform = row["recurring"] or {}, row.get("transform_quantity") or {}
    count, meter = recurring.get("interval_count", 1), recurring.get("meter")
    interval = str(recurring.get("interval", ""))
    rounded = transform.get("divide_by", 1) if transform.get("round", "up") == "up" else -1
    tiers = tuple(
        PriceTier(tier["up_to"], _minor(tier["unit_amount_decimal"]), _minor(tier["flat_amount_decimal"]))
        for tier in row.get("tiers") or ()
    )
    terms = PriceTerms(
        row["product"], row["currency"], interval if count == 1 else f"{count} {interval}",
        event_names.get(meter, meter) if meter else "", row["tax_behavior"] or "unspecified",
        None if row["billing_scheme"] == "tiered" else _minor(row["unit_amount_decimal"]), tiers,
        row["tiers_mode"] or "", rounded,
    )  # fmt: skip
    metadata = row["metadata"] or {}
    made_for = f"{metadata.get(PLAN_KEY, '')} {metadata.get(COMPONENT_KEY, '')}"
    return StripePrice(row["id"], row["lookup_key"] or "", terms, row["active"], made_for)


def _minor(text: str | None) -> str:
    return f"{Decimal(text or 0).normalize():f}"


def _product(row: Mapping[str, Any]) -> StripeProduct:
    return StripeProduct(row["id"], row["name"], row["description"] or "", row["tax_code"] or "", row["active"])


def _product_fields(product: StripeProduct) -> dict[str, str]:
    fields = {"name": product.name, "description": product.description, "tax_code": product.tax_code}
    return {name: value for name, value in fields.items() if value}
