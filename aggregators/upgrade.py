"""Finds the cheapest plan or add-on that would allow what a check denied, and what it costs today.

What an account can buy: more seats of its plan, a plan of at least the same rank, and add-ons for its plan, in the
currency that it pays in. The interval stays, unless nothing is sold for it: then a longer one is offered, and the
period begins anew. It begins anew too for who paid nothing before. A trial goes on, and nothing is due before its end.
If the trial itself is what denies, it ends now. If `changes.upgrade` is `full_price`, the period begins anew with
another plan, and what is left of the old one is not credited.

What is compared is what a period costs: what is paid ahead, and of a denied limit the usage of its meter so far in the
period with what was asked. Usage of other meters is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import ROUND_CEILING, Decimal
from fractions import Fraction
from typing import Final, NamedTuple

from aggregators.account_grants import Commerce, addon_grant, meaning
from aggregators.billed import INTERVALS, Buyer, Paid, buyers_of, paid_of
from aggregators.catalog_prices import ADDON_COMPONENT, minor_text, usage_interval_of
from aggregators.entitlements import resolved_of
from aggregators.overage import Tariff
from aggregators.periods import anchored_period
from aggregators.price_list import PriceList, Sale, Terms
from aggregators.proration import prorated
from aggregators.rating import amount_of, rounded
from aggregators.upgrade_words import upgrade_words, usage_words
from schemas.catalog import Add, AddOn, GrantValue, Plan, PlanId
from schemas.clock import SECOND_MS
from schemas.entitlements import Feature, Grant, Resolved, SourceKind, Span
from schemas.periods import Interval
from schemas.upgrades import Billed, Money, Recurring, Upgrade

# Nobody buys more seats than this by their number.
_SEATS_MAX: Final = 10**9
# What the default plan gives ends with the first plan that is bought.
_REPLACED: Final = frozenset({SourceKind.DEFAULT, SourceKind.FALLBACK})
_ALWAYS: Final = Span(0)
# Days of an interval, so that a year has twelve months.
_DAYS: Final = {
    Interval.DAY: Fraction(1), Interval.WEEK: Fraction(7), Interval.MONTH: Fraction(365, 12),
    Interval.YEAR: Fraction(365),
}  # fmt: skip


class Denied(NamedTuple):
    """What a check denied. `wanted` is the whole quantity, with what is taken already. `soft`: the limit only warns, so
    every plan with the feature allows the check."""

    feature: Feature
    resolved: Resolved
    wanted: Decimal
    soft: bool = False


class _Usage(NamedTuple):
    """What the usage of the denied meter costs in one of its intervals, and in as long a time as the offer's."""

    minor: int
    interval: Interval
    share: Fraction


class _Offer(NamedTuple):
    """What would be paid after a change. `quantity`: how many of the add-on or of the seats that are asked for."""

    id: PlanId
    what: str
    interval: Interval
    after: tuple[Paid, ...]
    quantity: int | None = None
    rank: int = 0
    ends_trial: bool = False
    usage: _Usage | None = None


def upgrade_of(commerce: Commerce, prices: PriceList, billed: Billed, denied: Denied, now_ms: int) -> Upgrade | None:
    """The cheapest change that would allow what was denied: the one after which a period costs least.

    None if nothing on sale would allow it, if a person took it away, or if the account owes something.
    """
    if denied.resolved.is_denied:
        return None
    now_ms -= now_ms % SECOND_MS
    for buyer in buyers_of(commerce, prices, billed, now_ms):
        for interval in _intervals(commerce, buyer):
            offers = [*_plan_offers(commerce, prices, buyer, denied, interval)]
            if interval == buyer.interval:
                offers += _addon_offers(commerce, prices, buyer, denied)
            offers = [each for offer in offers if (each := _with_usage(commerce, buyer, denied, offer)) is not None]
            if offers:
                offer = min(offers, key=_by_price)
                due_now, words = _priced(buyer, offer, now_ms, in_full=_in_full(commerce, buyer, offer))
                return Upgrade(offer.id, offer.id.name in commerce.catalog.addons, offer.quantity, due_now, words)
    return None


def _by_price(offer: _Offer) -> tuple[Fraction, int, PlanId]:
    usage = offer.usage.share if offer.usage else Fraction(0)
    return sum((each.amount for each in offer.after), usage), offer.rank, offer.id


def _with_usage(commerce: Commerce, buyer: Buyer, denied: Denied, offer: _Offer) -> _Offer | None:
    """An offer with what the usage of the denied meter would cost; None if that is above the plan's spend cap."""
    meter = commerce.catalog.features[denied.feature.name].meter
    billed = next((each for each in offer.after if meter and each.terms.meter == meter), None)
    if meter is None or billed is None:
        return offer
    sold = commerce.sold[billed.id]
    assert isinstance(sold, Plan), "an add-on bills no usage"  # noqa: S101  # for the type checker
    cap = sold.spend_cap.get(meter, {}).get(buyer.currency)
    tariff = Tariff(
        billed.terms.rating,
        Decimal(sold.included.meters.get(meter, 0)),
        billed.terms.exponent,
        None if cap is None else int(Decimal(minor_text(cap, billed.terms.exponent))),
    )
    if tariff.cap_minor is not None and tariff.cost_minor(denied.wanted) > tariff.cap_minor:
        return None
    minor, interval = amount_of(billed.terms.rating, denied.wanted), usage_interval_of(sold)
    share = minor * Fraction(_DAYS[offer.interval]) / _DAYS[interval]
    return offer._replace(usage=_Usage(minor, interval, share))


def _intervals(commerce: Commerce, buyer: Buyer) -> Sequence[Interval]:
    if buyer.plan is None or commerce.catalog.changes.interval_longer != "now":
        return (buyer.interval,)
    return INTERVALS[INTERVALS.index(buyer.interval) :]


def _plan_offers(
    commerce: Commerce, prices: PriceList, buyer: Buyer, denied: Denied, interval: Interval
) -> Iterator[_Offer]:
    """The plans that allow it, among them the account's own with more seats."""
    plans = {PlanId(name, plan.version): plan for name, plan in commerce.catalog.plans.items()}
    own = commerce.sold.get(buyer.plan) if buyer.plan else None
    if buyer.plan and isinstance(own, Plan):
        plans[buyer.plan] = own
    for plan, sold in plans.items():
        sale = prices.get(Sale(plan, interval, buyer.currency))
        if sale is None or sold.rank < buyer.rank or not _may_allow(commerce, buyer, denied, plan, sold):
            continue
        if denied.wanted > _SEATS_MAX and any(terms.feature == denied.feature.name for terms in sale.values()):
            continue
        bought = [_bought(plan, interval, component, terms, buyer, denied) for component, terms in sale.items()]
        addons = [_moved(each, prices, interval, buyer) for each in buyer.paid if _stays(commerce, each, plan)]
        if None not in addons:
            after = tuple(each for each in (*bought, *addons) if each)
            yield from _allowing(commerce, buyer, denied, _Offer(plan, sold.name or plan.name, interval, after))


def _may_allow(commerce: Commerce, buyer: Buyer, denied: Denied, plan: PlanId, sold: Plan) -> bool:
    """Whether a plan grants the feature at all, or leaves grants that allow it; most plans need no price."""
    granted = (sold.grants, sold.trial.grants) if sold.trial else (sold.grants,)
    is_granted = any(denied.feature.name in grants for grants in granted)
    return is_granted or _allows(denied, _kept(commerce, denied, buyer, plan))


def _allowing(commerce: Commerce, buyer: Buyer, denied: Denied, offer: _Offer) -> Iterator[_Offer]:
    """The plan of an offer, if the plan allows it: within the trial that goes on, or else as soon as that ends."""
    feature, sold = denied.feature.name, commerce.sold[offer.id]
    seats = {each.terms.feature: each.quantity for each in offer.after if each.terms.feature}
    quantity = seats.get(feature)
    what = offer.what if (quantity or 0) < 2 else f"{offer.what} with {quantity} {feature.replace('_', ' ')}"
    offer = offer._replace(what=f"{what} includes it", quantity=quantity)
    grants, in_trial = _kept(commerce, denied, buyer, offer.id), list[Grant]()
    if isinstance(sold, Plan):
        offer = offer._replace(rank=sold.rank)
        grants += _granted(SourceKind.PLAN, offer.id, sold.grants, feature, quantity)
        if buyer.in_trial and sold.trial:
            in_trial = _granted(SourceKind.TRIAL, offer.id, sold.trial.grants, feature, None)
    is_other = offer.interval != buyer.interval or _quantities(offer.after) != _quantities(buyer.paid)
    if is_other and _allows(denied, [*grants, *in_trial]):
        yield offer
    elif buyer.in_trial and _allows(denied, grants):
        yield offer._replace(what=f"{what} includes it as soon as the trial ends", ends_trial=True)


def _granted(
    kind: SourceKind, plan: PlanId, grants: Mapping[str, GrantValue], feature: str, paid: int | None
) -> list[Grant]:
    """What a plan grants of one feature."""
    return [Grant(feature, kind, str(plan), *meaning(grants[feature], paid), 0)] if feature in grants else []


def _bought(
    plan: PlanId, interval: Interval, component: str, terms: Terms, buyer: Buyer, denied: Denied
) -> Paid | None:
    """A component of a plan in the quantity that the account needs. Of seats, the quantity is the greatest of what
    the account pays, what the base price includes, and what the check asks for. None: the account has the plan, and
    does not pay this part of it."""
    asked = _whole(denied.wanted) if terms.feature == denied.feature.name else 0
    if plan == buyer.plan:
        quantities = [each.quantity for each in buyer.paid if (each.id, each.component) == (plan, component)]
        if not quantities and not asked:
            return None
    elif terms.feature:
        held = sum(each.quantity for each in buyer.paid if each.terms.feature == terms.feature)
        quantities = [1, terms.included, held]
    else:
        quantities = [0 if terms.is_metered else 1]
    return paid_of(plan, component, interval, max(asked, *quantities, 0), terms)


def _stays(commerce: Commerce, paid: Paid, plan: PlanId) -> bool:
    """Whether something paid stays beside a plan: an add-on that is sold for the plan."""
    sold = commerce.sold.get(paid.id)
    return isinstance(sold, AddOn) and plan.name in sold.plans


def _moved(paid: Paid, prices: PriceList, interval: Interval, buyer: Buyer) -> Paid | None:
    """An add-on as it is paid beside a plan of the interval; None if it is not sold for that."""
    if interval == buyer.interval:
        return paid
    terms = prices.get(Sale(paid.id, interval, buyer.currency), {}).get(paid.component)
    return paid_of(paid.id, paid.component, interval, paid.quantity, terms, is_addon=True) if terms else None


def _quantities(paid: Iterable[Paid]) -> set[tuple[PlanId, str, int]]:
    return {(each.id, each.component, each.quantity) for each in paid}


def _kept(commerce: Commerce, denied: Denied, buyer: Buyer, plan: PlanId) -> list[Grant]:
    """The grants that another plan leaves: those of people, of other subscriptions, and of add-ons that stay."""
    subscription = buyer.subscription.id if buyer.subscription else None
    staying = {str(each.id) for each in buyer.paid if _stays(commerce, each, plan)}
    return [
        grant
        for grant in denied.resolved.gives
        if grant.kind not in _REPLACED
        and (grant.cause != subscription or (grant.kind is SourceKind.ADDON and grant.source in staying))
    ]


def _addon_offers(commerce: Commerce, prices: PriceList, buyer: Buyer, denied: Denied) -> Iterator[_Offer]:
    """The add-ons that allow it beside the account's plan."""
    plan = buyer.plan.name if buyer.plan else commerce.catalog.defaults.plan
    held = {each.id.name: each for each in buyer.paid if each.is_addon}
    for name, newest in commerce.catalog.addons.items():
        own = held.get(name)
        addon = own.id if own else PlanId(name, newest.version)
        sold, terms = commerce.sold.get(addon), None
        if own:
            terms = own.terms
        elif sale := prices.get(Sale(addon, buyer.interval, buyer.currency)):
            terms = sale[ADDON_COMPONENT]
        if not isinstance(sold, AddOn) or terms is None or plan not in newest.plans:
            continue
        before = own.quantity if own else 0
        times = before + _more(denied, sold)
        if not before < times <= sold.stack:
            continue
        mine = (SourceKind.ADDON, str(addon))
        others = [grant for grant in denied.resolved.gives if (grant.kind, grant.source) != mine]
        if not _allows(denied, [*others, addon_grant(addon, sold, denied.feature.name, _ALWAYS, times)]):
            continue
        title = sold.name or name
        what = f"The add-on {title} includes it" if times == 1 else f"{times} of the add-on {title} include it"
        paid = paid_of(addon, ADDON_COMPONENT, own.interval if own else buyer.interval, times, terms, is_addon=True)
        after = (*(each for each in buyer.paid if each != own), paid)
        yield _Offer(addon, what, buyer.interval, after, times, rank=-1)


def _more(denied: Denied, sold: AddOn) -> int:
    """How many more of an add-on are needed; 0 if it does not help."""
    grant = sold.grants.get(denied.feature.name)
    if isinstance(grant, Add) and isinstance(denied.resolved.value, Decimal):
        missing = Decimal(1) if denied.soft else denied.wanted - denied.resolved.value
        return max(0, _whole(missing / grant.add))
    return 0 if grant is None else 1


def _whole(quantity: Decimal) -> int:
    """The next whole number that is not less."""
    return int(quantity.to_integral_value(ROUND_CEILING))


def _allows(denied: Denied, grants: Sequence[Grant]) -> bool:
    """Whether grants would allow what was denied."""
    found = resolved_of(denied.feature, grants)
    if isinstance(found.value, Decimal):
        return found.value > 0 and (denied.soft or found.value >= denied.wanted)
    return not found.is_denied and found.value is not False and found.value != "null"


def _in_full(commerce: Commerce, buyer: Buyer, offer: _Offer) -> bool:
    """Whether an offer is another plan that is paid in full from now on."""
    is_other = buyer.plan is not None and offer.id.name in commerce.catalog.plans and offer.id != buyer.plan
    return is_other and commerce.catalog.changes.upgrade == "full_price"


def _priced(buyer: Buyer, offer: _Offer, now_ms: int, *, in_full: bool) -> tuple[Money, str]:
    """What an offer costs now, in minor units and in words."""
    subscription, exponent = buyer.subscription, offer.after[0].terms.exponent
    waits = buyer.in_trial and not offer.ends_trial
    # A trial costs nothing, so nothing of it is credited.
    is_new = subscription is None or offer.ends_trial or (in_full and not waits)
    was_free = all(each.is_free for each in buyer.paid) and not all(each.is_free for each in offer.after)
    begins_anew = is_new or (not waits and (offer.interval != buyer.interval or was_free))
    periods = {
        each.name: anchored_period(now_ms, each.interval, 1, now_ms)
        if begins_anew
        else buyer.periods.get(each.name) or buyer.running(each.interval, now_ms)
        for each in offer.after
    }
    before = {} if is_new else {each.name: each.licensed(buyer.periods[each.name]) for each in buyer.paid}
    after = {each.name: each.licensed(periods[each.name]) for each in offer.after}
    lines = () if waits else prorated(before, after, now_ms)
    due_now = Money(sum(line.amount_minor for line in lines), buyer.currency, exponent)

    regular = [each for each in offer.after if each.interval == offer.interval]
    ahead = [each for each in regular if not each.terms.is_metered] or regular
    until_ms = max(periods[each.name].end_ms for each in ahead)
    amount = Money(sum(rounded(each.amount) for each in regular), buyer.currency, exponent)
    has_usage = any(each.terms.is_metered and not each.is_free for each in offer.after)
    ends_ms = subscription.cancel_at_ms if subscription else None
    recurring = (
        Recurring(amount, offer.interval, until_ms, has_usage) if ends_ms is None or ends_ms > until_ms else None
    )
    words = upgrade_words(offer.what, due_now, None if begins_anew else until_ms, recurring, now_ms)
    if offer.usage and offer.usage.minor:
        words += usage_words(Money(offer.usage.minor, buyer.currency, exponent), offer.usage.interval)
    return due_now, words
