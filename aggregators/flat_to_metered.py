"""Decides about migrations from a flat price to a price for usage: who may go on, what is wrong, what it costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Final, NamedTuple

from aggregators.catalog_prices import prices_of
from aggregators.plan_moves import CannotMove, Versions, check_movable
from aggregators.quantities import decimal_text
from aggregators.rating import amount_of, exact_amount, rating_of_terms, rounded
from schemas.bills import Bill
from schemas.catalog import Plan, PlanId, Price
from schemas.catalog_changes import CatalogKind, Standing
from schemas.clock import DAY_MS, MINUTE_MS
from schemas.flat_to_metered import Checked, Counted, Figures, Item, ItemState, Migration, Rated, TotalKey, WaveRule
from schemas.intent_ledger import IntentTotals
from schemas.periods import Period
from schemas.plan_moves import Subscribed, SubscribedItem

# The first waves; the last one has all others.
WAVES: Final = (1, 10, 100)
# By how much our rating and Stripe's may differ: each line of an invoice is rounded by itself.
TOLERANCE_MINOR: Final = 1
_SCALE: Final = 12
# From these the customer pays the flat price as before, and nothing is to come.
BEFORE: Final = (ItemState.PLANNED, ItemState.SHADOW, ItemState.COMPARED, ItemState.APPROVED)
OVER: Final = (ItemState.REVERTED, ItemState.LEFT)
_ORDER: Final = {
    WaveRule.SCHEDULED: (ItemState.SCHEDULED, ItemState.PROMOTED, ItemState.SETTLED),
    WaveRule.PROMOTED: (ItemState.PROMOTED, ItemState.SETTLED),
    WaveRule.SETTLED: (ItemState.SETTLED,),
}
Month = Mapping[tuple[str, int], int]


class Prices(NamedTuple):
    """The prices of a migration by id: `flat` and `future` those of its two plans, `zero` those of the shadow."""

    versions: Versions
    flat: Mapping[str, Price]
    zero: Mapping[str, Price]
    future: Mapping[str, Price]
    event_names: Mapping[str, str]

    @property
    def metered(self) -> dict[str, Price]:
        """The future prices for usage."""
        return {price_id: price for price_id, price in self.future.items() if price.meter}

    @property
    def meters(self) -> list[str]:
        """The slugs of the meters that are billed in future."""
        return sorted({price.meter for price in self.metered.values()})

    def shadows(self, currency: str) -> list[str]:
        """The zero prices in a currency, one for each meter. Raises `CannotMove` if one is missing."""
        found = {price.meter: price_id for price_id, price in self.zero.items() if price.terms.currency == currency}
        if lacking := [meter for meter in self.meters if meter not in found]:
            raise CannotMove(f"the shadow has no price of {lacking[0]} in {currency}")
        return [found[meter] for meter in self.meters]

    def future_items(self, items: Sequence[SubscribedItem]) -> tuple[SubscribedItem, ...]:
        """The items of a subscription after the migration. Raises `CannotMove`."""
        return self.versions.items_after([item for item in items if item.price not in self.zero])

    def future_rate(self, currency: str, quantities: Mapping[str, Decimal]) -> int:
        """What a period's usage by meter costs at the future prices."""
        own = [price for price in self.metered.values() if price.terms.currency == currency]
        return sum(amount_of(rating_of_terms(price.terms), quantities[price.meter]) for price in own)

    def future_fees(self, items: Iterable[SubscribedItem]) -> int:
        """What the future prices that are paid ahead cost for a period."""
        return _fees(items, self.future)

    def flat_fees(self, items: Iterable[SubscribedItem]) -> int:
        """What the flat prices of items cost for a period."""
        return _fees(items, self.flat)


def _fees(items: Iterable[SubscribedItem], prices: Mapping[str, Price]) -> int:
    return sum(
        rounded(exact_amount(rating_of_terms(prices[item.price].terms), item.quantity or 0))
        for item in items
        if item.price in prices and item.quantity is not None
    )


def prices_for(standing: Standing, source: PlanId, shadow: PlanId, target: PlanId) -> Prices:
    """The prices of three plans. Raises `CannotMove` if they make no migration from a flat price to usage."""
    versions = Versions(standing, source, target)
    Versions(standing, source, shadow)
    flat, zero, future = (_prices(standing, plan) for plan in (source, shadow, target))
    if metered := [price.component for price in flat.values() if price.meter]:
        raise CannotMove(f"{source} bills usage already: {metered[0]}")
    meters = {price.meter for price in future.values() if price.meter}
    if not meters:
        raise CannotMove(f"{target} bills no usage")
    for price in zero.values():
        rating = rating_of_terms(price.terms)
        costs = rating.unit_amount or any(tier.unit_amount or tier.flat_amount for tier in rating.tiers)
        if not price.meter or costs:
            raise CannotMove(f"{shadow} is no shadow: {price.component} is not usage at a price of 0")
        if price.meter not in meters:
            raise CannotMove(f"{shadow} has a price of {price.meter}, which {target} does not bill")
    pools = standing.catalog.credit_pools if standing.catalog else {}
    if paid := [name for name, pool in pools.items() if meters & pool.covers.keys()]:
        raise CannotMove(f"the credits of {paid[0]} pay for usage of {target}: less is reported than is counted")
    if lacking := meters - {price.meter for price in zero.values()}:
        raise CannotMove(f"{shadow} has no price of {min(lacking)}, which {target} bills")
    if {price.terms.interval for price in zero.values()} != {p.terms.interval for p in future.values() if p.meter}:
        raise CannotMove(f"{shadow} and {target} bill usage by different intervals")
    names = {price.meter: price.terms.event_name for price in zero.values()}
    return Prices(versions, flat, zero, future, names)


def _prices(standing: Standing, plan: PlanId) -> dict[str, Price]:
    sold, catalog = standing.sold()[plan], standing.catalog
    if not isinstance(sold, Plan) or catalog is None:
        raise CannotMove(f"{plan} is no plan")
    try:
        known = {price.key: price for price in prices_of(catalog, plan, sold)}
    except KeyError as error:
        raise CannotMove(f"{plan} has a meter or a currency that left the catalog: {error}") from error
    return {
        record.stripe_id: known[key]
        for (kind, key), record in standing.records.items()
        if kind is CatalogKind.PRICE and key in known
    }


def past_minor(prices: Prices, each: Subscribed, totals: Mapping[TotalKey, Counted], now_ms: int) -> int | None:
    """What the future prices would have billed of a subscription's last whole period; None if no usage is known."""
    own = {key: total for key, total in totals.items() if key[0] == each.account and key[2].end_ms <= now_ms}
    last = max((period for _, _, period in own), key=lambda period: period.end_ms, default=None)
    if last is None:
        return None
    none = Counted(Decimal(0), Decimal(0))
    quantities = {meter: own.get((each.account, meter, last), none).counted for meter in prices.meters}
    return prices.future_rate(_currency(prices, each), quantities)


def _currency(prices: Prices, each: Subscribed) -> str:
    return next(prices.flat[item.price].terms.currency for item in each.items if item.price in prices.flat)


def wave_of(place: int) -> int:
    """The wave, from 1, of the subscription at a place, from 0."""
    for number, size in enumerate(WAVES, 1):
        if place < size:
            return number
        place -= size
    return len(WAVES) + 1


def check_fit(prices: Prices, subscribed: Subscribed) -> None:
    """Raise `CannotMove` if a subscription cannot take part in a migration now."""
    check_movable(subscribed)
    if subscribed.status != "active":
        raise CannotMove(f"is {subscribed.status}: only a subscription that is active and paid takes part")
    if not subscribed.account:
        raise CannotMove("belongs to no account: link its customer first")
    if subscribed.schedule:
        raise CannotMove(f"has the schedule {subscribed.schedule}: release it, or let it end")
    prices.future_items(subscribed.items)


def is_mixed(prices: Prices, items: Iterable[SubscribedItem]) -> bool:
    """Whether a subscription has the flat price and a future price for usage at one instant."""
    held = {item.price for item in items}
    return bool(held & prices.flat.keys()) and bool(held & prices.metered.keys())


def is_promoted(prices: Prices, items: Iterable[SubscribedItem]) -> bool:
    """Whether a subscription has the future prices and no flat one."""
    held = {item.price for item in items}
    return prices.metered.keys() & held != set() and not held & (prices.flat.keys() | prices.zero.keys())


def followed(prices: Prices, item: Item, now: Subscribed | None) -> Item:
    """A scheduled subscription as promoted, if its new prices have begun: with the end of the period in which it was
    scheduled."""
    if item.state is not ItemState.SCHEDULED or now is None or not is_promoted(prices, now.items):
        return item
    return item._replace(state=ItemState.PROMOTED, figures=item.figures._replace(promoted_ms=item.renews_ms))


def refreshed(prices: Prices, figures: Figures, items: Sequence[SubscribedItem]) -> Figures:
    """Figures of the items that a subscription has now, before its promotion. Raises `CannotMove`."""
    had = tuple(item for item in items if item.price not in prices.zero)
    fees_minor = prices.future_fees(prices.future_items(had))
    return figures._replace(had=had, flat_minor=prices.flat_fees(had), fees_minor=fees_minor)


def is_flat(prices: Prices, items: Iterable[SubscribedItem]) -> bool:
    """Whether a subscription has the flat price and no future one."""
    held = {item.price for item in items}
    return bool(held & prices.flat.keys()) and not held & prices.metered.keys()


def has_shadow(prices: Prices, items: Iterable[SubscribedItem], currency: str) -> bool:
    """Whether a subscription has all zero prices."""
    return set(prices.shadows(currency)) <= {item.price for item in items}


def rated(prices: Prices, currency: str, lines: Mapping[str, tuple[Decimal, int]], now_ms: int) -> Rated:
    """Stripe's preview of the future prices beside our rating of the same quantities. `lines`: by price, the quantity
    and what Stripe bills of it."""
    quantities = dict.fromkeys(prices.meters, Decimal(0))
    charged_minor = 0
    for price_id, (quantity, amount_minor) in lines.items():
        quantities[prices.metered[price_id].meter] += quantity
        charged_minor += amount_minor
    text = " ".join(decimal_text_of(quantities[meter]) for meter in prices.meters)
    return Rated(text, prices.future_rate(currency, quantities), charged_minor, now_ms)


def rating_problem(found: Rated) -> str:
    """How Stripe's preview differs from our rating; "" if it does not."""
    if abs(found.ours_minor - found.stripe_minor) <= TOLERANCE_MINOR:
        return ""
    return (
        f"Stripe's preview bills {found.stripe_minor} for a usage of {found.quantity}, and our rating "
        f"{found.ours_minor} (minor units)"
    )


def is_seen(found: Rated | None) -> bool:
    """Whether a preview showed usage."""
    return found is not None and _is_usage(found.quantity)


def comparison_hindrance(figures: Figures, *, previews: bool) -> str:
    """What a comparison still lacks; "" if it is whole. A preview without usage proves nothing, unless the customer
    uses nothing."""
    if figures.compared is None:
        return "no invoice of a whole period is final yet, or our totals of it are not complete"
    is_enough = is_seen(figures.rated) or (figures.rated is not None and not _is_usage(figures.compared.billed))
    if previews and not is_enough:
        return "Stripe's preview of the future price showed no usage yet: compare before the running period ends"
    return ""


def _is_usage(quantities: str) -> bool:
    return any(Decimal(each) for each in quantities.split())


def period_of(bill: Bill) -> Period:
    """Our period of a bill: ours have whole minutes."""
    return Period(bill.start_ms - bill.start_ms % MINUTE_MS, bill.end_ms - bill.end_ms % MINUTE_MS)


class Evidence(NamedTuple):
    """What there is about one finalized bill of usage: by meter, the bill, our two totals and what was reported."""

    bills: Mapping[str, Bill]
    totals: Mapping[str, Counted]
    reported: Mapping[str, IntentTotals]

    @property
    def is_whole(self) -> bool:
        """Whether nothing is still under way."""
        waits = any(each.pending or each.dead for each in self.reported.values())
        return not waits and self.bills.keys() == self.totals.keys() == self.reported.keys()


def evidence_key(account: str, meter: str, bill: Bill) -> TotalKey:
    """The name of our totals of a bill."""
    return account, meter, period_of(bill)


def checked(prices: Prices, currency: str, evidence: Evidence) -> Checked:
    """A bill beside our totals. All meters of one invoice have one span."""
    meters = sorted(evidence.bills)
    bill = evidence.bills[meters[0]]
    counted = {meter: evidence.totals[meter].counted for meter in meters}

    def text(values: Iterable[Decimal]) -> str:
        return " ".join(decimal_text_of(value) for value in values)

    return Checked(
        bill.invoice, bill.start_ms, bill.end_ms, text(counted[meter] for meter in meters),
        text(evidence.reported[meter].accepted for meter in meters),
        text(evidence.totals[meter].recounted for meter in meters),
        text(evidence.bills[meter].quantity for meter in meters),
        sum(evidence.bills[meter].amount_minor for meter in meters),
        prices.future_rate(currency, counted),
    )  # fmt: skip


def quantity_problem(found: Checked) -> str:
    """Which of the totals differ; "" if they are equal."""
    values = {
        "we counted": found.counted, "reported": found.reported, "the reconciler counted": found.recounted,
        "the invoice bills": found.billed,
    }  # fmt: skip
    if len(set(values.values())) == 1:
        return ""
    return f"invoice {found.invoice}: " + ", ".join(f"{who} {value}" for who, value in values.items())


def shadow_problem(found: Checked) -> str:
    """What is wrong with an invoice of the shadow; "" if nothing is."""
    if found.charged_minor:
        return f"invoice {found.invoice} charges {found.charged_minor} (minor units) for usage that should cost nothing"
    return quantity_problem(found)


def settled_problem(found: Checked) -> str:
    """What is wrong with the first invoice at the future price; "" if nothing is."""
    if problem := quantity_problem(found):
        return problem
    if abs(found.charged_minor - found.ours_minor) > TOLERANCE_MINOR:
        return (
            f"invoice {found.invoice} charges {found.charged_minor} for usage, and our rating says {found.ours_minor}"
        )
    return ""


def approval_hindrance(migration: Migration, items: Sequence[Item], wave: int) -> str:
    """Why a wave cannot be approved now; "" if it can."""
    if migration.halted:
        return f"the migration is halted: {migration.halted}"
    own = [item for item in items if item.wave == wave and item.state not in OVER]
    if not own:
        return f"wave {wave} has no subscription"
    if early := [item for item in own if item.state in (ItemState.PLANNED, ItemState.SHADOW)]:
        return f"{len(early)} subscriptions of wave {wave} were not compared yet, such as {early[0].subscription}"
    before = [item for item in items if item.wave < wave and item.state not in OVER]
    if behind := [item for item in before if item.state not in _ORDER[migration.rule]]:
        first = behind[0]
        return f"wave {first.wave} is not {migration.rule} yet: {first.subscription} is {first.state}"
    return ""


def month_without_cash(items: Iterable[Item]) -> Month:
    """What the flat prices bill in a period beyond what is paid ahead in future, by currency and exponent. It is not
    charged when the metered period begins: usage is billed after it."""
    found: dict[tuple[str, int], int] = {}
    for item in items:
        key = item.figures.currency, item.figures.exponent
        found[key] = found.get(key, 0) + item.figures.gap_minor
    return found


def notice_hindrance(migration: Migration, item: Item, renews_ms: int) -> str:
    """Why the customer was not told early enough for the next period; "" if it was."""
    if item.notified_ms is None:
        return "nobody said when the customer was told"
    if renews_ms < item.notified_ms + migration.notice_days * DAY_MS:
        return f"its next period begins less than {migration.notice_days} days after the customer was told"
    return ""


def credit_minor(figures: Figures, bills: Iterable[Bill]) -> int:
    """What a person should credit after a return: by how much the metered periods cost more than the flat price."""
    spans: dict[tuple[int, int], int] = {}
    for bill in bills:
        # One for each meter.
        span = bill.start_ms, bill.end_ms
        spans[span] = spans.get(span, figures.fees_minor) + bill.amount_minor
    return sum(max(0, minor - figures.flat_minor) for minor in spans.values())


def decimal_text_of(value: Decimal) -> str:
    """A quantity as exact decimal text without needless zeros."""
    return decimal_text(int(value.scaleb(_SCALE)), _SCALE)
