"""What an account has at Stripe and what it wants, in the terms of `aggregators.plan_change`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Final, NamedTuple

from aggregators.account_grants import Commerce, addon_grant, meaning
from aggregators.billed import INTERVALS, paid_of
from aggregators.catalog_prices import ADDON_COMPONENT
from aggregators.entitlements import resolved_of
from aggregators.periods import anchored_period
from aggregators.plan_change import ENDED
from aggregators.price_list import PriceList, Sale, Terms
from aggregators.proration import Licensed, prorated
from aggregators.trials import early_percent, terms_of
from schemas.catalog import AddOn, FeatureType, OverLimit, Plan, PlanId
from schemas.catalog_changes import CatalogKind, Standing
from schemas.clock import SECOND_MS
from schemas.entitlements import UNLIMITED, Feature, Grant, Resolved, SourceKind, Span
from schemas.errors import InvalidInput
from schemas.periods import Interval, Period
from schemas.plan_changes import (
    ChangeKind,
    ChangeRequest,
    Excess,
    HeldItem,
    Owner,
    Pending,
    SubscriptionView,
    Wanted,
    WantedItem,
)
from schemas.stripe_changes import Charges, StripeSubscription

# The mark of a schedule that an operation made begins so.
OPERATION_PREFIX: Final = "op_"
QUANTITY_MAX: Final = 1_000_000
_KEPT: Final = frozenset({SourceKind.CONTRACT, SourceKind.OVERRIDE, SourceKind.PROMOTION})
_NAMED_MAX: Final = 100
_ALWAYS: Final = Span(0)


class Shop(NamedTuple):
    """What is sold: the catalog, its price list, and the price ids by plan, component, interval and currency."""

    commerce: Commerce
    prices: PriceList
    ids: Mapping[tuple[PlanId, str, str, str], str]

    def price_id(self, plan: PlanId, component: str, interval: str, currency: str) -> str | None:
        """The price of a component; "" for usage that is billed by another interval than the rest of the plan."""
        exact = self.ids.get((plan, component, interval, currency))
        if exact is not None:
            return exact
        others = [key for key in self.ids if (key[0], key[1], key[3]) == (plan, component, currency)]
        return self.ids[others[0]] if len(others) == 1 else None


def price_ids(standing: Standing) -> Mapping[tuple[PlanId, str, str, str], str]:
    """The ids of all prices that catalogs made."""
    return {
        (record.plan, record.component, record.interval, record.currency): record.stripe_id
        for record in standing.records.values()
        if record.kind is CatalogKind.PRICE and record.plan is not None
    }


def followed(shop: Shop, found: Sequence[StripeSubscription]) -> StripeSubscription | None:
    """The subscription that a change is about: the one with the plan of the highest rank. None without one: what no
    catalog made stays beside a plan."""
    plans = [(-shop_rank(shop, plan), each.id, each) for each in found if (plan := _plan_of(shop, each)) is not None]
    return min(plans, default=(0, "", None))[2]


def shop_rank(shop: Shop, plan: PlanId) -> int:
    """The rank of a plan."""
    sold = shop.commerce.sold.get(plan)
    return sold.rank if isinstance(sold, Plan) else 0


def _plan_of(shop: Shop, found: StripeSubscription) -> PlanId | None:
    pins = (shop.commerce.pins.get(item.price) for item in found.items)
    plans = [pin.plan for pin in pins if pin and isinstance(shop.commerce.sold.get(pin.plan), Plan)]
    return plans[0] if plans else None


def view_of(
    shop: Shop,
    customer: str,
    found: StripeSubscription | None,
    now_ms: int,
    *,
    has_card: bool,
    is_contract: bool,
    pay_url: str = "",
) -> SubscriptionView:
    """What an account has at an instant."""
    view = SubscriptionView(customer, has_card, is_contract)
    if found is None:
        return view
    plan = _plan_of(shop, found)
    items = tuple(
        HeldItem(
            item.id, _component(shop, item.price), item.price, item.quantity, item.interval, item.start_ms, item.end_ms
        )
        for item in found.items
    )
    mine = [item for item in found.items if (pin := shop.commerce.pins.get(item.price)) and pin.plan == plan]
    licensed = [item for item in mine if item.quantity is not None] or mine
    sold = shop.commerce.sold.get(plan) if plan else None
    return view._replace(
        has_card=has_card or found.has_card,
        id=found.id,
        status=found.status,
        currency=found.currency,
        collection=found.collection,
        plan=plan,
        rank=shop_rank(shop, plan) if plan else 0,
        interval=Interval(licensed[0].interval) if licensed else None,
        family=sold.trial.family if isinstance(sold, Plan) and sold.trial else "",
        items=items,
        pending=_pending(shop, found),
        cancel_at_ms=found.cancel_at_ms,
        ends_with_period=found.ends_with_period,
        is_update_pending=found.is_update_pending,
        pay_url=pay_url,
        anchor_ms=found.anchor_ms,
        is_discounted=found.is_discounted,
        has_item_discounts=found.has_item_discounts,
        is_taxed=found.is_taxed,
        latest_invoice=found.latest_invoice,
        early_percent=_early_percent(sold, found, now_ms),
        discounts=found.discounts,
    )


def _early_percent(sold: Plan | AddOn | None, found: StripeSubscription, now_ms: int) -> str:
    if found.status != "trialing" or not isinstance(sold, Plan):
        return ""
    starts, ends = min(item.start_ms for item in found.items), max(item.end_ms for item in found.items)
    return early_percent(sold, starts, ends, now_ms)


def _pending(shop: Shop, found: StripeSubscription) -> Pending | None:
    if found.schedule is None:
        return None
    mark = found.schedule.mark
    owner = Owner.OPERATION if mark.startswith(OPERATION_PREFIX) else Owner.MOVE if mark else Owner.OTHER
    end_s = min((item.end_ms for item in found.items), default=0) // SECOND_MS
    later = [phase["items"] for phase in found.schedule.phases if phase["start_date"] >= end_s]
    items = later[0] if len(later) == 1 else ()
    prices = [(str(item["price"]), item.get("quantity")) for item in items]
    return Pending(
        found.schedule.id,
        owner,
        found.ends,
        tuple(WantedItem(_component(shop, price), price, quantity) for price, quantity in prices),
        is_over=not later and not found.ends,
    )


def with_paid(view: SubscriptionView, charges: Charges) -> SubscriptionView:
    """A view that knows how many of each item are billed for the present period: as many as the last charge says."""
    paid = {(each.item, each.end_ms): each.quantity for each in charges.items}
    items = tuple(item._replace(paid=paid.get((item.id, item.end_ms))) for item in view.items)
    return view._replace(items=items, pending_minor=charges.pending_minor)


def _component(shop: Shop, price: str) -> str:
    pin = shop.commerce.pins.get(price)
    if pin is None:
        return price
    return f"addon {pin.plan.name}" if isinstance(shop.commerce.sold.get(pin.plan), AddOn) else pin.component


def changed_field(before: SubscriptionView, after: SubscriptionView) -> str:
    """What differs between two views such that a quote for the first is none for the second; "" if nothing does."""

    def bought(view: SubscriptionView) -> list[tuple[str, str, int | None]]:
        return sorted((item.id, item.price, item.quantity) for item in view.items)

    def spans(view: SubscriptionView) -> list[tuple[int, int]]:
        return sorted((item.start_ms, item.end_ms) for item in view.items)

    compared = {
        "customer": (before.customer, after.customer),
        "subscription": (before.id, after.id),
        "status": (before.status, after.status),
        "items": (bought(before), bought(after)),
        "period": (spans(before), spans(after)),
        "schedule": (before.pending, after.pending),
        "cancellation": (before.cancel_at_ms, after.cancel_at_ms),
        "pending_update": (before.is_update_pending, after.is_update_pending),
        "discount": (before.is_discounted, after.is_discounted),
        "collection": (before.collection, after.collection),
        "contract": (before.is_contract, after.is_contract),
    }
    return next((field for field, (was, will_be) in compared.items() if was != will_be), "")


def wanted_of(shop: Shop, now: SubscriptionView, request: ChangeRequest, gives: Mapping[str, Resolved]) -> Wanted:
    """What a request wants. `gives`: the present value of each feature with its grants.

    Raises `InvalidInput` with the field for a plan, interval, currency or quantity that is not sold. A plan without
    prices is what an account has without a subscription, so it is wanted by a cancellation.
    """
    if request.kind not in (ChangeKind.PLAN, ChangeKind.TRIAL):
        return Wanted(request.kind, currency=now.currency, by_operator=request.by_operator)
    plan, sold = _sold(shop, now, request.plan)
    if not sold.prices:
        wanted = Wanted(ChangeKind.CANCEL, plan, sold.rank, currency=now.currency, by_operator=request.by_operator)
        return wanted._replace(excess=tuple(_excess(shop, now, plan, sold, (), request, gives)))
    interval = request.interval or now.interval or _first_interval(shop, plan)
    currency = request.currency or now.currency or next(iter(shop.commerce.catalog.currencies))
    _check_quantities(sold, request)
    _check_held(request)
    items = (
        *_bought(shop, now, request, Sale(plan, interval, currency)),
        *_staying(shop, now, plan, interval, currency),
    )
    if request.kind is ChangeKind.TRIAL and sold.trial is None:
        raise InvalidInput("trial", f"{plan} has no trial")
    return Wanted(
        request.kind,
        plan,
        sold.rank,
        interval,
        currency,
        sold.trial.family if sold.trial else "",
        items,
        tuple(_excess(shop, now, plan, sold, items, request, gives)),
        terms_of(plan, sold) if request.kind is ChangeKind.TRIAL else None,
        request.by_operator,
        request.by_page,
        tuple(_later(shop, now, request)),
    )


def _later(shop: Shop, now: SubscriptionView, request: ChangeRequest) -> Iterator[WantedItem]:
    """The items of a pending change, with the quantities that are asked for."""
    for item in now.pending.later if now.pending else ():
        asked = request.quantities.get(seat_feature(shop, item.price))
        yield item if asked is None or item.quantity is None else item._replace(quantity=asked)


def seat_feature(shop: Shop, price: str) -> str:
    """The seat feature whose number is paid by a price; "" without one."""
    pin = shop.commerce.pins.get(price)
    sold = shop.commerce.sold.get(pin.plan) if pin else None
    lines = sold.prices if isinstance(sold, Plan) else ()
    return next((line.quantity or "" for line in lines if pin and line.component == pin.component), "")


def _check_held(request: ChangeRequest) -> None:
    """Raise `InvalidInput` if fewer seats would be paid than are held."""
    for feature, quantity in request.quantities.items():
        held = request.held.get(feature, 0)
        if quantity < held:
            message = f"{held} {feature} are held and to be paid, so no fewer can be: release some first"
            raise InvalidInput("quantities", message)


def _sold(shop: Shop, now: SubscriptionView, text: str) -> tuple[PlanId, Plan]:
    """The plan of a text. Without a version: the version that the account has, or else the newest one."""
    name, _, version = text.partition("@")
    newest = shop.commerce.catalog.plans.get(name)
    if newest is None:
        names = ", ".join(shop.commerce.catalog.plans)
        raise InvalidInput("plan", f"there is no plan {text[:_NAMED_MAX]!r}: the plans are {names}")
    current = PlanId(name, newest.version)
    plan = now.plan if not version and now.plan and now.plan.name == name else current
    if version and version not in {str(current.version), str(now.plan.version) if now.plan else ""}:
        message = f"version {version[:_NAMED_MAX]} of {name} is not sold: write {current}, or {name} alone"
        raise InvalidInput("plan", message)
    if version and now.plan and f"{name}@{version}" == str(now.plan):
        plan = now.plan
    sold = shop.commerce.sold.get(plan)
    return (plan, sold) if isinstance(sold, Plan) else (current, newest)


def _first_interval(shop: Shop, plan: PlanId) -> Interval:
    """A month if the plan is sold for one, or else the longest interval."""
    found = {sale.interval for sale in shop.prices if sale.id == plan}
    return Interval.MONTH if Interval.MONTH in found or not found else max(found, key=INTERVALS.index)


def _check_quantities(sold: Plan, request: ChangeRequest) -> None:
    seats = {line.quantity for line in sold.prices if line.quantity}
    for feature, quantity in request.quantities.items():
        if feature not in seats:
            can = f"of {', '.join(sorted(seats))}" if seats else "of nothing"
            message = f"{feature[:_NAMED_MAX]!r} is not paid by its number in this plan: give quantities {can}"
            raise InvalidInput("quantities", message)
        if not 1 <= quantity <= QUANTITY_MAX:
            raise InvalidInput("quantities", f"{feature} must be a whole number from 1 to {QUANTITY_MAX}")


def _bought(shop: Shop, now: SubscriptionView, request: ChangeRequest, sale: Sale) -> Iterator[WantedItem]:
    """The items of the plan itself."""
    terms = shop.prices.get(sale)
    if terms is None:
        raise _not_sold(shop, sale)
    held = {item.component: item for item in now.items} if now.status not in ENDED else {}
    is_own = sale.id == now.plan
    for component, each in terms.items():
        asked = request.quantities.get(each.feature) if each.feature else None
        if is_own and component not in held and asked is None:
            # The account does not pay this part of its plan.
            continue
        price = shop.price_id(sale.id, component, sale.interval, sale.currency)
        if price is None:
            raise _not_sold(shop, sale)
        if each.is_metered:
            yield WantedItem(component, price, None)
        elif is_own and component in held:
            yield WantedItem(component, price, asked or held[component].quantity)
        else:
            yield WantedItem(component, price, asked or _carried(shop, now, each, request.held))


def _carried(shop: Shop, now: SubscriptionView, terms: Terms, held: Mapping[str, int]) -> int:
    """How many seats another plan begins with: those that are held, and if nobody keeps the holders here, those that
    are paid now; at least what its price includes."""
    if not terms.feature:
        return 1
    if terms.feature in held:
        return max(1, terms.included, held[terms.feature])
    paid = sum(item.quantity or 0 for item in now.items if seat_feature(shop, item.price) == terms.feature)
    return max(1, terms.included, paid)


def _not_sold(shop: Shop, sale: Sale) -> InvalidInput:
    offers = [each for each in shop.prices if each.id == sale.id]
    currencies = sorted({each.currency for each in offers})
    if sale.currency not in currencies:
        known = f"use {' or '.join(currencies)}" if currencies else "it has no prices"
        return InvalidInput("currency", f"{sale.id} is not sold in {sale.currency[:_NAMED_MAX]!r}: {known}")
    intervals = [each for each in INTERVALS if any((o.interval, o.currency) == (each, sale.currency) for o in offers)]
    known = " or ".join(intervals)
    return InvalidInput("interval", f"{sale.id} is not sold by the {sale.interval} in {sale.currency}: use {known}")


def _staying(
    shop: Shop, now: SubscriptionView, plan: PlanId, interval: Interval, currency: str
) -> Iterator[WantedItem]:
    """The items that are not of the plan and stay beside the wanted one: add-ons that are sold for that plan and
    interval, and what no catalog made."""
    for item in now.items if now.status not in ENDED else ():
        pin = shop.commerce.pins.get(item.price)
        sold = shop.commerce.sold.get(pin.plan) if pin else None
        if pin is None:
            yield WantedItem(item.component, item.price, item.quantity)
        elif isinstance(sold, AddOn) and plan.name in sold.plans:
            price = (
                item.price
                if item.interval == interval
                else shop.ids.get((pin.plan, ADDON_COMPONENT, interval, currency))
            )
            if price:
                yield WantedItem(item.component, price, item.quantity)


def _excess(
    shop: Shop,
    now: SubscriptionView,
    plan: PlanId,
    sold: Plan,
    items: Sequence[WantedItem],
    request: ChangeRequest,
    gives: Mapping[str, Resolved],
) -> Iterator[Excess]:
    """The features of which more is in use than the account will be allowed.

    Raises `InvalidInput` if the plan forbids the change then, gives less, and nobody said how much is in use.
    """
    terms = {line.component: line.quantity for line in sold.prices}
    paid = {terms.get(item.component): item.quantity for item in items if item.quantity is not None}
    for name, feature in shop.commerce.catalog.features.items():
        if feature.type not in (FeatureType.LIMIT, FeatureType.SEAT):
            continue
        before = gives.get(name)
        grants = [] if before is None else [grant for grant in before.gives if grant.kind in _KEPT]
        if name in sold.grants:
            operation, value = meaning(sold.grants[name], paid.get(name))
            grants.append(Grant(name, SourceKind.PLAN, str(plan), operation, value, 0))
        grants += _addon_grants(shop, items, name)
        after = resolved_of(Feature(name, feature.type, feature.merged_by), grants).value
        if after is UNLIMITED:
            continue
        allowed = after if isinstance(after, Decimal) else Decimal(0)
        policy, used = sold.over_limit.get(name, OverLimit.ALLOW_UNTIL_PERIOD_END), request.used.get(name)
        is_less = before is not None and (before.value is UNLIMITED or _number(before) > allowed)
        if used is None and is_less and policy is OverLimit.BLOCK_DOWNGRADE and now.status not in ENDED:
            message = f'{plan} allows {allowed:f} {name}: say how many are in use, as {{"used": {{"{name}": "1"}}}}'
            raise InvalidInput("used", message)
        if used is not None and used > allowed:
            yield Excess(name, f"{used:f}", f"{allowed:f}", policy)


def _number(found: Resolved) -> Decimal:
    return found.value if isinstance(found.value, Decimal) else Decimal(0)


def _addon_grants(shop: Shop, items: Sequence[WantedItem], feature: str) -> Iterator[Grant]:
    for item in items:
        pin = shop.commerce.pins.get(item.price)
        sold = shop.commerce.sold.get(pin.plan) if pin else None
        if pin and isinstance(sold, AddOn) and feature in sold.grants:
            yield addon_grant(pin.plan, sold, feature, _ALWAYS, item.quantity or 1)


def our_lines(
    shop: Shop, now: SubscriptionView, wanted: Sequence[WantedItem], at_ms: int, *, restarts: bool
) -> int | None:
    """The sum of the lines of a change at an instant by our own rating, in minor units without discount and tax. None
    if something is not of the catalog. `restarts`: all periods begin anew."""
    before: dict[str, Licensed] = {}
    after: dict[str, Licensed] = {}
    periods: dict[str, Period] = {}
    for item in now.items:
        period = anchored_period(now.anchor_ms, Interval(item.interval), 1, item.end_ms - 1)
        periods[item.interval] = period
        if item.quantity is not None:
            found = _licensed(shop, item.price, item.quantity, now.currency, period)
            if found is None:
                return None
            before[item.component] = found
    for each in wanted:
        if each.quantity is None:
            continue
        interval = interval_of(shop, each.price)
        if interval is None:
            return None
        anchor_ms = at_ms if restarts else now.anchor_ms
        period = (
            anchored_period(anchor_ms, interval, 1, at_ms)
            if restarts
            else periods.get(interval, anchored_period(anchor_ms, interval, 1, at_ms))
        )
        found = _licensed(shop, each.price, each.quantity, now.currency, period)
        if found is None:
            return None
        after[each.component] = found
    return sum(line.amount_minor for line in prorated(before, after, at_ms))


def interval_of(shop: Shop, price: str) -> Interval | None:
    """The interval of a price that the catalog made."""
    for (_, _, interval, _), identifier in shop.ids.items():
        if identifier == price:
            return Interval(interval)
    return None


def amount_of(shop: Shop, price: str, quantity: int, currency: str) -> Fraction | None:
    """What so many of a licensed price cost for its whole period, in minor units. None if no catalog made the price."""
    pin, interval = shop.commerce.pins.get(price), interval_of(shop, price)
    if pin is None or interval is None:
        return None
    terms = shop.prices.get(Sale(pin.plan, interval, currency), {}).get(pin.component)
    return None if terms is None else paid_of(pin.plan, pin.component, interval, quantity, terms).amount


def _licensed(shop: Shop, price: str, quantity: int, currency: str, period: Period) -> Licensed | None:
    amount = amount_of(shop, price, quantity, currency)
    return None if amount is None else Licensed(price, quantity, amount, *period)
