"""What prices, coupons and the customer portal are at Stripe, where prices and coupons never change."""

from __future__ import annotations

from typing import NamedTuple


class PriceTier(NamedTuple):
    """A tier in minor units. `up_to` is the last unit of the tier, None for the last tier."""

    up_to: int | None
    unit_minor: str
    flat_minor: str = "0"


class PriceTerms(NamedTuple):
    """What a price is at Stripe. Two prices with equal terms are the same price.

    Amounts are exact decimal text in minor units, without needless zeros. A price has `unit_minor` or `tiers`. A price
    of Stripe that is not ours may have an `interval` such as `3 month`. What is paid
    once has the interval "".
    `event_name` is that of the meter; "" for a price that is billed ahead.
    """

    product: str
    currency: str
    interval: str
    event_name: str
    tax_behavior: str
    unit_minor: str | None
    tiers: tuple[PriceTier, ...] = ()
    mode: str = ""
    package: int = 1


class PackPrice(NamedTuple):
    """The price of a pack of credits in a currency, which is paid once. `key` is its lookup key, for ever."""

    key: str
    pool: str
    pack: str
    version: int
    credits: int
    exponent: int
    terms: PriceTerms

    @property
    def component(self) -> str:
        """The pool and the pack."""
        return f"{self.pool}.{self.pack}"

    @property
    def made_for(self) -> str:
        """What Stripe's price says in its metadata."""
        return f"{self.component}@{self.version} {self.credits}"


class CouponTerms(NamedTuple):
    """What a coupon takes off. `percent` is decimal text, "" if an amount is taken off; then `amount_minor` is above 0.
    `duration` is Stripe's word, and `months` is above 0 if it is `repeating`."""

    percent: str
    amount_minor: int
    currency: str
    duration: str
    months: int


class PortalTerms(NamedTuple):
    """What Stripe's customer portal lets a customer do.

    `cancel` is `period_end`, `never`, or what somebody chose at Stripe. `upgrade` is that of the catalog's changes, ""
    if no plan can be chosen. `products` are those to choose from, each with the lookup keys of its prices.
    """

    cancel: str
    payment_method: bool
    upgrade: str
    products: tuple[tuple[str, tuple[str, ...]], ...]
