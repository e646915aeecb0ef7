"""What new prices would have billed on past usage, beside what the prices in force bill. Nothing is guessed.

An invoice at an instant has the usage of the period that ends there, and the fees of the period that begins there. The
backtest adds up the invoices within a span of time. Both sides have the same periods, the subscription's quantities of
today, and neither discounts nor taxes. What cannot be known for one side is left out of both, and named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

from aggregators.catalog_prices import prices_of
from aggregators.periods import anchored_period
from aggregators.rating import amount_of, rating_of_terms
from schemas.aggregations import Aggregation
from schemas.backtest import BackBill, LeftOut, Omission, PaidItem, PaidSubscription, Payer, PeriodTotal
from schemas.catalog import Catalog, PlanId, Price
from schemas.catalog_changes import CatalogKind, Standing
from schemas.clock import MINUTE_MS
from schemas.periods import INSTANT_MIN_MS, Interval, Period


class PriceChange(NamedTuple):
    """What is compared. `before` has the prices in force by price id, `after` the new version of each plan by name.

    `components` are those that a version in force sells. `meters` has the aggregation of each meter of the file.
    """

    before: Mapping[str, Price]
    after: Mapping[str, tuple[PlanId, tuple[Price, ...]]]
    components: Mapping[PlanId, frozenset[str]]
    meters: Mapping[str, Aggregation]


class Charge(NamedTuple):
    """A price that a subscription pays; `quantity` is None for usage."""

    price: Price
    quantity: int | None


class Compared(NamedTuple):
    """A subscription with what it pays, and what it would pay."""

    subscription: PaidSubscription
    plans: str
    before: tuple[Charge, ...]
    after: tuple[Charge, ...]

    def meters(self) -> frozenset[str]:
        """The slugs of the meters that either side bills."""
        return frozenset(charge.price.meter for charge in (*self.before, *self.after) if charge.price.meter)


class Span(NamedTuple):
    """The time of the invoices, and up to when usage is complete, the grace of late usage taken off."""

    from_ms: int
    to_ms: int
    complete_up_to_ms: int


class PastUsage(NamedTuple):
    """The totals of some accounts, and when each meter was first counted."""

    by_account: Mapping[tuple[str, str], Mapping[Period, Decimal]]
    first_usage_ms: Mapping[str, int]


def price_change(standing: Standing, catalog: Catalog) -> PriceChange:
    """The prices that SQL knows, and those of a file. `catalog` must have passed `aggregators.catalog`."""
    before: dict[str, Price] = {}
    components: dict[PlanId, frozenset[str]] = {}
    # The file may have left a currency out that an old version still has.
    known = standing.catalog or catalog
    known = known.model_copy(update={"currencies": {**catalog.currencies, **known.currencies}})
    by_key: dict[str, Price] = {}
    for plan, (sold, _) in standing.plans.items():
        try:
            own = prices_of(known, plan, sold)
        except KeyError:
            # No catalog has its currency or meter any more: what it costs is not known here.
            continue
        by_key |= {price.key: price for price in own}
        components[plan] = frozenset(price.component for price in own)
    for (kind, key), record in standing.records.items():
        if kind is CatalogKind.PRICE and key in by_key:
            before[record.stripe_id] = by_key[key]
    after = {plan.name: (plan, tuple(prices_of(catalog, plan, sold))) for plan, sold in catalog.sold().items()}
    meters = {meter.slug: meter.aggregation for meter in (*catalog.retired, *catalog.meters)}
    return PriceChange(before, after, components, meters)


def compared(payer: Payer, change: PriceChange, now_ms: int) -> tuple[list[Compared], list[Omission]]:
    """The subscriptions of a payer that are on another version of a plan than the file's."""
    found: list[Compared] = []
    omitted: list[Omission] = []
    for subscription in payer.subscriptions:
        outcome = _compared(subscription, change, now_ms)
        if isinstance(outcome, Omission):
            omitted.append(outcome._replace(subject=f"{payer.customer} ({outcome.subject})"))
        elif outcome is not None:
            found.append(outcome)
            if subscription.is_discounted:
                omitted.append(Omission(LeftOut.DISCOUNTED, payer.customer))
    if not payer.account and any(each.meters() for each in found):
        return [], [*omitted, Omission(LeftOut.NO_ACCOUNT, payer.customer)]
    return found, omitted


def _compared(subscription: PaidSubscription, change: PriceChange, now_ms: int) -> Compared | Omission | None:
    groups: dict[PlanId, list[tuple[PaidItem, Price]]] = {}
    for item in subscription.items:
        price = change.before.get(item.price)
        if price is None:
            return Omission(LeftOut.OTHER_PRICE, item.price)
        groups.setdefault(price.plan, []).append((item, price))
    changed = [plan for plan in groups if plan.name in change.after and change.after[plan.name][0] != plan]
    if not changed:
        return None
    before: list[Charge] = []
    after: list[Charge] = []
    for plan, own in groups.items():
        charges = [Charge(price, None if price.meter else item.quantity) for item, price in own]
        lacking = [charge.price.component for charge in charges if charge.quantity is None and not charge.price.meter]
        if lacking:
            return Omission(LeftOut.NO_QUANTITY, lacking[0])
        before += charges
        if plan not in changed:
            after += charges
            continue
        for charge in _new_charges(subscription.currency, charges, change, plan):
            if isinstance(charge, Omission):
                return charge
            after.append(charge)
    if len({each.price.terms.interval for each in (*before, *after) if each.price.meter}) > 1:
        return Omission(LeftOut.OTHER_INTERVAL, str(change.after[changed[0].name][0]))
    if unknown := {each.price.meter for each in (*before, *after)} - change.meters.keys() - {""}:
        return Omission(LeftOut.NO_USAGE, min(unknown))
    pairs = [pair for own in groups.values() for pair in own]
    if subscription.starts_ms <= now_ms and not all(_follows_anchor(subscription, *pair) for pair in pairs):
        return Omission(LeftOut.OTHER_PERIODS, subscription.id)
    plans = ", ".join(f"{plan} → {change.after[plan.name][0]}" for plan in changed)
    return Compared(subscription, plans, tuple(before), tuple(after))


def _new_charges(
    currency: str, charges: Sequence[Charge], change: PriceChange, plan: PlanId
) -> Iterator[Charge | Omission]:
    """What the new version of a plan charges whoever has these components of the old one.

    A component that the customer did not buy of the old version is not bought of the new one.
    """
    new_plan, prices = change.after[plan.name]
    held = {charge.price.component: charge for charge in charges}
    seats = {charge.price.feature: charge for charge in charges if charge.price.feature}
    licensed = [charge.price.terms.interval for charge in charges if not charge.price.meter]
    interval = next(iter(licensed or [charge.price.terms.interval for charge in charges]))
    for component in dict.fromkeys(price.component for price in prices):
        if component in change.components[plan] and component not in held:
            continue
        sold = [price for price in prices if price.component == component and price.terms.currency == currency]
        price = next((each for each in sold if each.meter or each.terms.interval == interval), None)
        like = held.get(component) or (seats.get(price.feature) if price else None)
        if price is None:
            yield Omission(LeftOut.NO_PRICE, f"{new_plan} {component} {interval} {currency}")
        elif price.meter:
            yield Charge(price, None)
        elif like is not None and like.quantity is not None:
            yield Charge(price, like.quantity)
        elif price.feature:
            yield Omission(LeftOut.NO_QUANTITY, f"{new_plan} {component}")
        else:
            yield Charge(price, 1)


def _follows_anchor(subscription: PaidSubscription, item: PaidItem, price: Price) -> bool:
    """Whether the period that Stripe has is one of those counted from the anchor. In a trial none is yet."""
    end_ms = _minute(item.period_end_ms)
    return _period(subscription, price.terms.interval, end_ms - 1).end_ms == end_ms


def back_bills(
    payer: Payer, subscriptions: Iterable[Compared], usage: PastUsage, span: Span
) -> tuple[list[BackBill], list[Omission]]:
    """What a payer would have been billed, by currency, and what is left out of it."""
    bills: dict[str, BackBill] = {}
    omitted: list[Omission] = []
    for each in subscriptions:
        bill = _bill(payer, each, usage, span, omitted)
        before = bills.get(bill.currency)
        if not bill.invoices:
            omitted.append(Omission(LeftOut.NOTHING_DUE, payer.customer))
        elif before is None:
            bills[bill.currency] = bill
        else:
            bills[bill.currency] = before._replace(
                plans=", ".join(dict.fromkeys((*before.plans.split(", "), *bill.plans.split(", ")))),
                invoices=before.invoices + bill.invoices,
                before_minor=before.before_minor + bill.before_minor,
                after_minor=before.after_minor + bill.after_minor,
            )
    return list(bills.values()), omitted


def _bill(payer: Payer, each: Compared, usage: PastUsage, span: Span, omitted: list[Omission]) -> BackBill:
    subscription, due = each.subscription, set[int]()
    periods = _usage_periods(payer, each, usage, span, omitted)
    sides: list[int] = []
    for charges in (each.before, each.after):
        amount_minor = 0
        for price, quantity in charges:
            rating = rating_of_terms(price.terms)
            if quantity is None:
                due |= {period.end_ms for period in periods}
                totals = (_quantity(payer.account, price.meter, period, usage) for period in periods)
                amount_minor += sum(amount_of(rating, total) for total in totals)
            else:
                starts = _starts(subscription, price.terms.interval, span)
                due |= set(starts)
                amount_minor += len(starts) * amount_of(rating, Decimal(quantity))
        sides.append(amount_minor)
    intervals = {charge.price.terms.interval for charge in (*each.before, *each.after)}
    if any(_begins_within(subscription, interval, span) for interval in intervals):
        omitted.append(Omission(LeftOut.BEGUN_WITHIN, payer.customer))
    exponent = each.before[0].price.exponent
    return BackBill(
        payer.customer, payer.account, each.plans, subscription.currency, exponent, len(due), sides[0], sides[1]
    )


def _usage_periods(payer: Payer, each: Compared, usage: PastUsage, span: Span, omitted: list[Omission]) -> list[Period]:
    """The periods of usage that both sides can bill."""
    meters = each.meters()
    if not meters:
        return []
    subscription = each.subscription
    interval = next(charge.price.terms.interval for charge in (*each.before, *each.after) if charge.price.meter)
    new = meters - {charge.price.meter for charge in each.before}
    counted_ms = max((usage.first_usage_ms.get(meter, span.to_ms) for meter in new), default=INSTANT_MIN_MS)
    found: list[Period] = []
    counts: dict[LeftOut, int] = {}
    period = _period(subscription, interval, span.from_ms - 1)
    while period.start_ms < span.to_ms:
        if period.start_ms >= _minute(subscription.starts_ms):
            reason = _why_not(payer.account, meters, period, usage, span, counted_ms)
            if reason is None:
                found.append(period)
            else:
                counts[reason] = counts.get(reason, 0) + 1
        period = _period(subscription, interval, period.end_ms)
    omitted += [Omission(reason, payer.customer, count) for reason, count in counts.items()]
    return found


def _why_not(
    account: str, meters: Iterable[str], period: Period, usage: PastUsage, span: Span, counted_ms: int
) -> LeftOut | None:
    if period.end_ms >= span.to_ms or period.end_ms > span.complete_up_to_ms:
        return LeftOut.RUNNING
    if period.start_ms < counted_ms:
        return LeftOut.NO_USAGE
    counted = (other for meter in meters for other in usage.by_account.get((account, meter), ()))
    if any(other != period and other.start_ms < period.end_ms and period.start_ms < other.end_ms for other in counted):
        return LeftOut.CUT
    return None


def _quantity(account: str, meter: str, period: Period, usage: PastUsage) -> Decimal:
    """The total of a period. No row is no usage."""
    return usage.by_account.get((account, meter), {}).get(period, Decimal(0))


def past_usage(totals: Iterable[PeriodTotal], first_usage_ms: Mapping[str, int]) -> PastUsage:
    """The totals by account and meter."""
    by_account: dict[tuple[str, str], dict[Period, Decimal]] = {}
    for account, meter, period, quantity in totals:
        by_account.setdefault((account, meter), {})[period] = quantity
    return PastUsage(by_account, first_usage_ms)


def _starts(subscription: PaidSubscription, interval: str, span: Span) -> list[int]:
    """The instants of the span at which a whole period begins that is paid ahead."""
    first_ms = max(span.from_ms, _minute(subscription.starts_ms))
    start_ms = _period(subscription, interval, first_ms - 1).end_ms
    starts: list[int] = []
    while start_ms < span.to_ms:
        starts.append(start_ms)
        start_ms = _period(subscription, interval, start_ms).end_ms
    return starts


def _begins_within(subscription: PaidSubscription, interval: str, span: Span) -> bool:
    """Whether the subscription began in the span, and not where a period begins."""
    begins_ms = _minute(subscription.starts_ms)
    is_boundary = _period(subscription, interval, begins_ms).start_ms == begins_ms
    return span.from_ms <= begins_ms < span.to_ms and not is_boundary


def months_before(instant_ms: int, months: int) -> int:
    """The instant so many calendar months before another."""
    return anchored_period(instant_ms, Interval.MONTH, months, instant_ms - 1).start_ms


def _period(subscription: PaidSubscription, interval: str, instant_ms: int) -> Period:
    return anchored_period(_minute(subscription.anchor_ms), Interval(interval), 1, instant_ms)


def _minute(instant_ms: int) -> int:
    return instant_ms - instant_ms % MINUTE_MS
