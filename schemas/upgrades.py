"""What an account pays now, and what it could buy so that a denied check is allowed."""

from __future__ import annotations

from typing import NamedTuple

from schemas.catalog import PlanId
from schemas.periods import Interval


class Money(NamedTuple):
    """An amount in minor units; `exponent` is the number of decimals of the currency at Stripe."""

    minor: int
    currency: str
    exponent: int


class BilledItem(NamedTuple):
    """An item of a subscription with the period that the mirror saw last. `quantity` is None if usage is billed."""

    price: str
    quantity: int | None
    interval: Interval
    start_ms: int
    end_ms: int


class BilledSubscription(NamedTuple):
    """A subscription that has not ended. `anchor_ms`: from when its periods are counted. `cancel_at_ms`: when it will
    end; None if nobody canceled it. `is_update_pending`: a change waits for its payment."""

    id: str
    status: str
    currency: str
    anchor_ms: int
    cancel_at_ms: int | None
    items: tuple[BilledItem, ...]
    is_update_pending: bool = False


class Billed(NamedTuple):
    """What an account's customers pay now. `currency`: that of the customer, "" before the first subscription."""

    currency: str = ""
    subscriptions: tuple[BilledSubscription, ...] = ()


class Upgrade(NamedTuple):
    """The cheapest plan or add-on that would allow what was denied.

    `quantity`: how many of the add-on or of the seats there would be then; None if none are counted. `due_now`: what
    the next invoice charges at once, before tax and discounts; a negative amount is a credit. `words` says the same.
    """

    offer: PlanId
    is_addon: bool
    quantity: int | None
    due_now: Money
    words: str


class Recurring(NamedTuple):
    """What is paid ahead after an upgrade: an amount every interval, from an instant on. `has_usage`: usage is billed
    beside it."""

    amount: Money
    interval: Interval
    from_ms: int
    has_usage: bool
