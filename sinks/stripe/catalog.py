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

from schemas.catalog import Price
from schemas.catalog_changes import (
    PORTAL_KEY,
    AtStripe,
    CatalogKind,
    StripeCoupon,
    StripeFeature,
    StripeMeter,
    StripePortal,
    StripePrice,
    StripeProduct,
)
from schemas.errors import InvalidInput, Transient
from schemas.prices import CouponTerms, PackPrice, PortalTerms, PriceTerms, PriceTier
from sinks.stripe.answers import meter_of
from sinks.stripe.connection import connected, json_of, read
from sinks.stripe.listing import list_of, listed

PAGES_MAX: Final = 500
ATTEMPTS_MAX: Final = 5
_PATHS: Final = {
    CatalogKind.PRODUCT: "/v1/products", CatalogKind.PRICE: "/v1/prices", CatalogKind.COUPON: "/v1/coupons",
    CatalogKind.FEATURE: "/v1/entitlements/features", CatalogKind.PORTAL: "/v1/billing_portal/configurations",
}  # fmt: skip
_FEATURES: Final = _PATHS[CatalogKind.FEATURE]
# The metadata of a price: what it is the price of.
PLAN_KEY: Final = "tidemark_plan"
COMPONENT_KEY: Final = "tidemark_component"
PACK_KEY: Final = "tidemark_pack"
CREDITS_KEY: Final = "tidemark_credits"
# The mark of the portal's configuration.
MARK_KEY: Final = "tidemark_portal"
# What Stripe says only if it is asked for it.
_TIERS: Final = {"expand": ["data.tiers"]}
_CHOICES: Final = {"expand": ["data.features.subscription_update.products"]}

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
        # Stripe lists archived features only if it is asked for them.
        features = {
            row["lookup_key"]: StripeFeature(row["id"], row["lookup_key"], row["name"], row["active"])
            for archived in (True, False)
            async for row in self._rows(_FEATURES, {"archived": archived})
        }
        prices = {row["id"]: _price(row, names) async for row in self._rows(_PATHS[CatalogKind.PRICE], _TIERS)}
        marked = await self._marked_portal()
        portal = _portal(marked, {price.id: price.key for price in prices.values() if price.key}) if marked else None
        return AtStripe(meters, products, features, prices, portal=portal)

    async def _marked_portal(self) -> Mapping[str, Any] | None:
        """The configuration of the portal with our mark. Of several, all of them find the same: the first one made."""
        rows = [row async for row in self._rows(_PATHS[CatalogKind.PORTAL], _CHOICES)]
        marked = [row for row in rows if (row["metadata"] or {}).get(MARK_KEY) == PORTAL_KEY]
        return min(marked, key=lambda row: (not row["active"], row["created"], row["id"]), default=None)

    async def attached(self, product: str) -> frozenset[str]:
        """See `CatalogObjects`."""
        path = f"{_PATHS[CatalogKind.PRODUCT]}/{quote(product, safe='')}/features"
        return frozenset([row["entitlement_feature"]["lookup_key"] async for row in self._rows(path)])

    async def coupon(self, identifier: str) -> StripeCoupon | None:
        """See `CatalogObjects`."""
        found = await self._found(CatalogKind.COUPON, identifier)
        return None if found is None else _coupon(found)

    async def create_product(self, product: StripeProduct) -> str:
        """See `CatalogObjects`."""

        async def find() -> str | None:
            return product.id if await self._found(CatalogKind.PRODUCT, product.id) is not None else None

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

    async def create_price(self, price: Price | PackPrice, meter_id: str) -> str:
        """See `CatalogObjects`."""
        key, terms = price.key, price.terms

        async def find() -> str | None:
            found = [row async for row in self._rows(_PATHS[CatalogKind.PRICE], {"lookup_keys": [key], **_TIERS})]
            if not found:
                return None
            at_stripe = _price(found[0], {meter_id: terms.event_name} if meter_id else {})
            if at_stripe.terms != terms:
                raise InvalidInput(
                    key, f"Stripe's price {at_stripe.id} has this lookup key and other terms: plan again"
                )
            return at_stripe.id

        params = {"lookup_key": key, "metadata": _metadata(price), **price_fields(terms, meter_id)}
        return await self._create(_PATHS[CatalogKind.PRICE], key, params, find)

    async def create_coupon(self, coupon: StripeCoupon) -> str:
        """See `CatalogObjects`."""

        async def find() -> str | None:
            found = await self.coupon(coupon.id)
            if found is not None and found.terms != coupon.terms:
                raise InvalidInput(coupon.id, "Stripe's coupon has this id and other terms: plan again")
            return coupon.id if found is not None else None

        params = {"id": coupon.id, "name": coupon.name, **_coupon_fields(coupon.terms)}
        return await self._create(_PATHS[CatalogKind.COUPON], coupon.id, params, find)

    async def rename_coupon(self, identifier: str, name: str) -> None:
        """See `CatalogObjects`."""
        await self._post(f"{_PATHS[CatalogKind.COUPON]}/{quote(identifier, safe='')}", {"name": name})

    async def create_portal(self, terms: PortalTerms, prices: Mapping[str, str]) -> str:
        """See `CatalogObjects`."""

        async def find() -> str | None:
            marked = await self._marked_portal()
            return str(marked["id"]) if marked else None

        # Nothing at Stripe keeps the mark unique: another process may have made it since the plan.
        if found := await find():
            await self.update_portal(found, terms, prices)
            return found
        params = {"metadata": {MARK_KEY: PORTAL_KEY}, "features": _portal_features(terms, prices)}
        return await self._create(_PATHS[CatalogKind.PORTAL], PORTAL_KEY, params, find)

    async def update_portal(self, identifier: str, terms: PortalTerms, prices: Mapping[str, str]) -> None:
        """See `CatalogObjects`."""
        params = {"active": True, "features": _portal_features(terms, prices)}
        await self._post(f"{_PATHS[CatalogKind.PORTAL]}/{quote(identifier, safe='')}", params)

    async def set_active(self, kind: CatalogKind, identifier: str, is_active: bool) -> None:
        """See `CatalogObjects`."""
        await self._post(f"{_PATHS[kind]}/{quote(identifier, safe='')}", {"active": is_active})

    async def close(self) -> None:
        """Close all connections. Safe to call twice."""
        await self._transport.close_async()

    async def _found(self, kind: CatalogKind, identifier: str) -> Mapping[str, Any] | None:
        try:
            return await self._get(f"{_PATHS[kind]}/{quote(identifier, safe='')}", {})
        except InvalidInput as error:
            if error.field == "resource_missing":
                return None
            raise

    async def _create(
        self, path: str, key: str, params: Mapping[str, Any], find: Callable[[], Awaitable[str | None]]
    ) -> str:
        """Create an object, or find the one that has the key.

        Two processes have the same Idempotency-Key at their first attempts. Later attempts have keys of their own,
        because Stripe repeats a stored answer for a day: a failure, and also the creation of what is deleted by now.
        """
        digest = hashlib.sha256(json.dumps([self._scope, path, key, params], sort_keys=True).encode()).hexdigest()
        attempt = 1
        while True:
            idempotency_key = digest if attempt == 1 else f"{digest}.{self._nonce}.{attempt}"
            try:
                made, is_repeated = await self._made(path, params, idempotency_key)
                if attempt > 1 or not is_repeated:
                    return made
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

    async def _made(self, path: str, params: Mapping[str, Any], idempotency_key: str) -> tuple[str, bool]:
        """The id of a new object, and whether Stripe repeats the answer of an earlier call."""
        return await read(
            lambda: self._stripe.raw_request_async("post", path, **params, idempotency_key=idempotency_key),
            lambda answer: (str(json_of(answer)["id"]), answer.headers.get("idempotent-replayed") == "true"),
        )

    def _rows(self, path: str, options: Mapping[str, Any] | None = None) -> AsyncIterator[Any]:
        """The rows of all pages of a list."""
        return listed(self._list, path, options or {}, PAGES_MAX)

    async def _list(self, path: str, options: Mapping[str, Any]) -> dict[str, Any]:
        return await read(lambda: self._stripe.raw_request_async("get", path, **options), list_of)

    async def _get(self, path: str, options: Mapping[str, Any]) -> dict[str, Any]:
        return await read(lambda: self._stripe.raw_request_async("get", path, **options), json_of)

    async def _post(self, path: str, params: Mapping[str, Any]) -> dict[str, Any]:
        return await read(lambda: self._stripe.raw_request_async("post", path, **params), json_of)


def price_fields(terms: PriceTerms, meter_id: str) -> dict[str, Any]:
    """The parameters of a price's terms (docs.stripe.com/api/prices/create)."""
    fields: dict[str, Any] = {
        "currency": terms.currency, "product": terms.product, "tax_behavior": terms.tax_behavior,
    }  # fmt: skip
    if terms.interval:
        fields["recurring"] = {"interval": terms.interval, "usage_type": "licensed"}
    if terms.event_name:
        fields["recurring"] |= {"usage_type": "metered", "meter": meter_id}
    if terms.package > 1:
        fields["transform_quantity"] = {"divide_by": terms.package, "round": "up"}
    if not terms.tiers:
        return {**fields, "billing_scheme": "per_unit", "unit_amount_decimal": terms.unit_minor}
    tiers = [
        {"up_to": tier.up_to or "inf", "unit_amount_decimal": tier.unit_minor, "flat_amount_decimal": tier.flat_minor}
        for tier in terms.tiers
    ]
    return {**fields, "billing_scheme": "tiered", "tiers_mode": terms.mode, "tiers": tiers}


def _metadata(price: Price | PackPrice) -> dict[str, str]:
    names = (PACK_KEY, CREDITS_KEY) if isinstance(price, PackPrice) else (PLAN_KEY, COMPONENT_KEY)
    return dict(zip(names, price.made_for.split(" "), strict=True))


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
    names = (PACK_KEY, CREDITS_KEY) if PACK_KEY in metadata else (PLAN_KEY, COMPONENT_KEY)
    made_for = " ".join(metadata.get(name, "") for name in names)
    return StripePrice(row["id"], row["lookup_key"] or "", terms, row["active"], made_for)


def _minor(text: str | None) -> str:
    return f"{Decimal(text or 0).normalize():f}"


def _coupon_fields(terms: CouponTerms) -> dict[str, Any]:
    """The parameters of a coupon's terms (docs.stripe.com/api/coupons/create)."""
    fields: dict[str, Any] = {"duration": terms.duration}
    if terms.months:
        fields["duration_in_months"] = terms.months
    if terms.percent:
        return {**fields, "percent_off": terms.percent}
    return {**fields, "amount_off": terms.amount_minor, "currency": terms.currency}


def _coupon(row: Mapping[str, Any]) -> StripeCoupon:
    percent = "" if row["percent_off"] is None else f"{Decimal(str(row['percent_off'])).normalize():f}"
    terms = CouponTerms(
        percent, row["amount_off"] or 0, row["currency"] or "", row["duration"], row["duration_in_months"] or 0
    )
    return StripeCoupon(row["id"], row["name"] or "", terms)


# How a change takes effect, by `changes.upgrade`: proration behavior and billing cycle anchor. What costs less waits
# for the end of the period, as `changes.downgrade` and `changes.interval_shorter` say.
_UPGRADES: Final = {"now": ("always_invoice", "unchanged"), "full_price": ("none", "now")}
_WAITING: Final = ("decreasing_item_amount", "shortening_interval")


def _portal_features(terms: PortalTerms, prices: Mapping[str, str]) -> dict[str, Any]:
    """The parameters of the portal's features (docs.stripe.com/api/customer_portal/configurations/create)."""
    update: dict[str, Any] = {"enabled": False}
    if terms.products:
        proration, anchor = _UPGRADES[terms.upgrade]
        update = {
            "enabled": True, "default_allowed_updates": ["price"], "proration_behavior": proration,
            "billing_cycle_anchor": anchor,
            "schedule_at_period_end": {"conditions": [{"type": name} for name in _WAITING]},
            "products": [
                {"product": product, "prices": [prices[key] for key in keys]} for product, keys in terms.products
            ],
        }  # fmt: skip
    cancel = {"enabled": terms.cancel != "never"} | ({"mode": "at_period_end"} if terms.cancel != "never" else {})
    return {
        "invoice_history": {"enabled": True}, "payment_method_update": {"enabled": terms.payment_method},
        "subscription_cancel": cancel, "subscription_update": update,
    }  # fmt: skip


def _portal(row: Mapping[str, Any], keys: Mapping[str, str]) -> StripePortal:
    """The portal's configuration. A price that is not ours stands for itself, so that the terms differ."""
    features = row["features"]
    cancel, update = features["subscription_cancel"], features["subscription_update"]
    upgrade = ""
    products: list[tuple[str, tuple[str, ...]]] = []
    if update["enabled"]:
        effect = (update["proration_behavior"], update.get("billing_cycle_anchor") or "unchanged")
        upgrade = next((name for name, own in _UPGRADES.items() if own == effect), " ".join(effect))
        conditions = (update.get("schedule_at_period_end") or {}).get("conditions") or ()
        if sorted(each["type"] for each in conditions) != sorted(_WAITING):
            upgrade += ", and what costs less at once"
        products = [
            (each["product"], tuple(sorted(keys.get(price, price) for price in each["prices"])))
            for each in update.get("products") or ()
        ]
    mode = "never" if not cancel["enabled"] else cancel["mode"].removeprefix("at_")
    terms = PortalTerms(mode, features["payment_method_update"]["enabled"], upgrade, tuple(sorted(products)))
    return StripePortal(row["id"], terms, row["active"])


def _product(row: Mapping[str, Any]) -> StripeProduct:
    return StripeProduct(row["id"], row["name"], row["description"] or "", row["tax_code"] or "", row["active"])


def _product_fields(product: StripeProduct) -> dict[str, str]:
    fields = {"name": product.name, "description": product.description, "tax_code": product.tax_code}
    return {name: value for name, value in fields.items() if value}
