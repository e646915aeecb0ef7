"""What an account pays now: from the mirror's rows, and in the terms of the catalog."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Final, NamedTuple

from aggregators.account_grants import Commerce
from aggregators.periods import anchored_period
from aggregators.price_list import PriceList, Sale, Terms
from aggregators.proration import Licensed
from aggregators.rating import exact_amount
from schemas.catalog import AddOn, Plan, PlanId
from schemas.periods import Interval, Period
from schemas.side_tables import Link, Row
from schemas.upgrades import Billed, BilledItem, BilledSubscription

_ENDED: Final = frozenset({"canceled", "incomplete_expired"})
# Who owes something pays that first.
_CHANGING: Final = frozenset({"active", "trialing"})
INTERVALS: Final = (Interval.DAY, Interval.WEEK, Interval.MONTH, Interval.YEAR)
_USUAL: Final = (Interval.MONTH, Interval.YEAR, Interval.WEEK, Interval.DAY)


class Paid(NamedTuple):
    """So many of one component of a plan or an add-on, paid ahead each `interval`. If usage is billed, `quantity` and
    `amount` are 0, and usage may have an interval of its own. `amount`: what a whole period costs."""

    id: PlanId
    component: str
    interval: Interval
    quantity: int
    terms: Terms
    is_addon: bool
    amount: Fraction

    @property
    def name(self) -> str:
        """An item of Stripe keeps its name if its price is replaced by that of another plan."""
        return f"addon {self.id.name}" if self.is_addon else self.component

    @property
    def is_free(self) -> bool:
        return self.terms.is_free if self.terms.is_metered else not self.amount

    def licensed(self, period: Period) -> Licensed:
        """The item for Stripe's prorations."""
        return Licensed(f"{self.id} {self.component} {self.interval}", self.quantity, self.amount, *period)


def paid_of(
    plan: PlanId, component: str, interval: Interval, quantity: int, terms: Terms, *, is_addon: bool = False
) -> Paid:
    """A component with its amount."""
    amount = Fraction(0) if terms.is_metered else exact_amount(terms.rating, quantity)
    return Paid(plan, component, interval, quantity, terms, is_addon, amount)


class Buyer(NamedTuple):
    """What an account pays, for the interval of its plan. `plan` None: it has no plan of the catalog. `periods`: the
    running period of each item by name."""

    currency: str
    interval: Interval
    plan: PlanId | None = None
    rank: int = 0
    subscription: BilledSubscription | None = None
    paid: tuple[Paid, ...] = ()
    periods: Mapping[str, Period] = {}

    @property
    def in_trial(self) -> bool:
        return self.subscription is not None and self.subscription.status == "trialing"

    def running(self, interval: Interval, now_ms: int) -> Period:
        """The period of a new item, which joins the subscription's."""
        for each in self.paid:
            if each.interval == interval:
                return self.periods[each.name]
        anchor_ms = self.subscription.anchor_ms if self.subscription else now_ms
        return anchored_period(anchor_ms, interval, 1, now_ms)


def billed_of(links: Iterable[Link], mirror: Mapping[str, Sequence[Row]], now_ms: int) -> Billed:
    """What the customers of an account's links pay now, by the mirror's rows."""
    customers = {
        link.customer
        for link in links
        if link.customer and link.starts_ms <= now_ms and (link.ends_ms is None or now_ms < link.ends_ms)
    }
    items: dict[str, list[BilledItem]] = {}
    for row in mirror.get("subscription_items", ()):
        if not row["interval"]:
            continue
        quantity = None if row["quantity"] is None else int(row["quantity"])
        span = int(row["period_start_ms"] or 0), int(row["period_end_ms"] or 0)
        item = BilledItem(str(row["price_id"]), quantity, Interval(str(row["interval"])), *span)
        items.setdefault(str(row["subscription_id"]), []).append(item)
    subscriptions = [
        BilledSubscription(
            id=str(row["id"]),
            status=str(row["status"]),
            currency=str(row["currency"]),
            anchor_ms=int(row["anchor_ms"] or 0),
            cancel_at_ms=None if row["cancel_at_ms"] is None else int(row["cancel_at_ms"]),
            is_update_pending=row.get("pending_update_until_ms") is not None,
            items=tuple(items.get(str(row["id"]), ())),
        )
        for row in mirror.get("subscriptions", ())
        if row["customer_id"] in customers and row["status"] not in _ENDED and not row["deleted"]
    ]
    currencies = [
        str(row["currency"])
        for row in mirror.get("stripe_customers", ())
        if row["id"] in customers and row["currency"] and not row["deleted"]
    ]
    return Billed(min(currencies, default=""), tuple(sorted(subscriptions, key=lambda each: each.id)))


def buyers_of(commerce: Commerce, prices: PriceList, billed: Billed, now_ms: int) -> Iterator[Buyer]:
    """The account as it may buy: with its plan; without one, for a month, or else for another interval; not at all, if
    it owes something."""
    found = [
        buyer
        for subscription in billed.subscriptions
        if (buyer := _buyer(commerce, prices, subscription, now_ms)) is not None
    ]
    if found:
        first = min(found, key=lambda buyer: (-buyer.rank, buyer.subscription.id if buyer.subscription else ""))
        if first.subscription and first.subscription.status in _CHANGING:
            yield first
        return
    currency = billed.currency or next(iter(commerce.catalog.currencies), "")
    yield from (Buyer(currency, interval) for interval in _USUAL)


def _buyer(commerce: Commerce, prices: PriceList, subscription: BilledSubscription, now_ms: int) -> Buyer | None:
    """What an account pays by a subscription; None if that has no plan of the catalog."""
    paid, periods = [], {}
    for item in subscription.items:
        pin = commerce.pins.get(item.price)
        terms = pin and _terms(prices, pin.plan, pin.component, item.interval, subscription.currency)
        if pin is None or terms is None:
            # What the catalog never made stays as it is.
            continue
        is_addon = isinstance(commerce.sold[pin.plan], AddOn)
        each = paid_of(pin.plan, pin.component, item.interval, item.quantity or 0, terms, is_addon=is_addon)
        paid.append(each)
        period = Period(item.start_ms, item.end_ms)
        if item.end_ms <= max(now_ms, item.start_ms):
            # The mirror has not seen the new period yet, or the period has no length.
            period = anchored_period(subscription.anchor_ms, item.interval, 1, now_ms)
        periods[each.name] = period
    of_plan = sorted((each for each in paid if not each.is_addon), key=lambda each: each.terms.is_metered)
    if not of_plan:
        return None
    plan, sold = of_plan[0].id, commerce.sold[of_plan[0].id]
    rank = sold.rank if isinstance(sold, Plan) else 0
    return Buyer(subscription.currency, of_plan[0].interval, plan, rank, subscription, tuple(paid), periods)


def _terms(prices: PriceList, plan: PlanId, component: str, interval: Interval, currency: str) -> Terms | None:
    """The terms of a component. Usage may be billed for another interval than the rest of the plan."""
    for each in (interval, *INTERVALS):
        terms = prices.get(Sale(plan, each, currency), {}).get(component)
        if terms and (each == interval or terms.is_metered):
            return terms
    return None
