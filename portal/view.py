"""What the customer's page shows, in words, from the facts about one account. Pure: equal facts give an equal view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Final, NamedTuple

from aggregators.account_grants import INCLUDED
from aggregators.dunning_words import banner_text
from aggregators.price_list import Terms
from aggregators.rating import amount_of, rounded
from aggregators.upgrade_words import date_text, money_text
from portal.account import Facts
from portal.balances import PoolView, pool_views
from portal.balances import banners as credit_banners
from portal.subscribed import Seen, card_expires_ms, method_of, renews_ms, seen_of
from portal.timeline import future, is_told, past
from portal.words import number_text, paid_for, plan_name, price_words, signed_money, terms_of
from schemas.catalog import Plan
from schemas.clock import DAY_MS
from schemas.entitlements import UNLIMITED, Resolved
from schemas.meters import Meter
from schemas.seats import Seat, SeatState
from schemas.side_tables import Row
from schemas.upgrades import Money

# Days before its end at which a trial and a card are spoken of.
NOTICE_DAYS: Final = 30
# How much of the timeline is shown, and how far ahead.
TOLD_MAX: Final = 6
TOLD_MS: Final = 366 * DAY_MS
_STATES: Final = {
    "": "", "active": "active", "trialing": "trial", "past_due": "payment failed", "unpaid": "payment failed",
    "paused": "paused", "incomplete": "first payment open", "canceled": "ended", "incomplete_expired": "ended",
}  # fmt: skip


class PlanView(NamedTuple):
    """The plan in words. `prices`: what is paid ahead and by usage; `next`: what happens next, and when."""

    name: str
    state: str
    description: str
    prices: tuple[str, ...]
    next: str
    may_undo: bool = False
    may_cancel: bool = False


class MeterView(NamedTuple):
    """The usage of a meter. `percent`: of the limit, or else of what is included; None without either. `more`: what is
    beyond, in words, or ""."""

    slug: str
    name: str
    unit: str
    used: str
    included: str
    limit: str
    percent: int | None
    more: str


class Projected(NamedTuple):
    """The next invoice: what is paid ahead, with the usage so far, and with usage that goes on at the present pace; the
    last two are "" if no usage is billed. `stripe`: Stripe's own preview, "" without one."""

    day: str
    base: str
    so_far: str
    at_pace: str
    stripe: str
    stripe_at_ms: int | None
    notes: tuple[str, ...]


class Banner(NamedTuple):
    """Something that the customer should hear now. `kind`: `bad`, `wait` or `good`. `url`: where it is mended."""

    kind: str
    text: str
    url: str = ""
    action: str = ""


class InvoiceView(NamedTuple):
    """An invoice in the list. `pay_url`: Stripe's page of an open one, or ""."""

    id: str
    day: str
    state: str
    amount: str
    pay_url: str


class ChartView(NamedTuple):
    """The usage of a meter by day, oldest first: the day in words and the units."""

    name: str
    unit: str
    days: tuple[tuple[str, Decimal], ...]


class SeatView(NamedTuple):
    """The seats of a feature in words, and who holds them: the holder and what is to say of the seat. `more`: how many
    holders are left out."""

    name: str
    words: str
    holders: tuple[tuple[str, str], ...]
    more: int


class PageView(NamedTuple):
    """The whole page. `complete_up_to_ms` None: the usage is not known at the moment. `coming` and `happened`: days
    with what happens then, in words; the next first, and the last first."""

    account: str
    now_ms: int
    plan: PlanView
    banners: tuple[Banner, ...]
    meters: tuple[MeterView, ...]
    complete_up_to_ms: int | None
    projected: Projected | None
    charts: tuple[ChartView, ...]
    invoices: tuple[InvoiceView, ...]
    card: str
    coming: tuple[tuple[str, str], ...] = ()
    happened: tuple[tuple[str, str], ...] = ()
    seats: tuple[SeatView, ...] = ()
    may_store_card: bool = False
    pools: tuple[PoolView, ...] = ()


def page_view(facts: Facts) -> PageView:
    """The page of an account."""
    seen = seen_of(facts)
    projected = _projected(facts, seen)
    meters = tuple(_meters(facts, seen))
    return PageView(
        facts.account,
        facts.now_ms,
        _plan(facts, seen),
        tuple(_banners(facts, seen, meters)),
        meters,
        facts.used.complete_up_to_ms if facts.used else None,
        projected,
        tuple(_charts(facts, meters)),
        tuple(invoice_view(row, facts.now_ms) for row in facts.invoices),
        _card(facts),
        tuple(_coming(facts))[:TOLD_MAX],
        tuple(dict.fromkeys(_happened(facts)))[:TOLD_MAX],
        tuple(_seats(facts)),
        any(not row["deleted"] for row in facts.mirror.get("stripe_customers", ())),
        pool_views(facts.credits, seen.view.currency),
    )


def _plan(facts: Facts, seen: Seen) -> PlanView:
    view, shop = seen.view, facts.shop
    sold = shop.commerce.sold.get(view.plan) if view.plan else None
    prices = tuple(price_words(shop, ((item.price, item.quantity) for item in view.items), view.currency))
    is_pending = seen.ends_ms is not None or bool(seen.phases)
    state = _STATES.get(view.status, view.status)
    return PlanView(
        plan_name(shop, view.plan),
        "ends" if seen.ends_ms is not None else state,
        sold.description if isinstance(sold, Plan) else "",
        prices,
        _next(facts, seen),
        may_undo=is_pending,
        may_cancel=bool(view.id) and seen.ends_ms is None,
    )


def _next(facts: Facts, seen: Seen) -> str:
    """The next thing that happens to the plan."""
    view, now_ms = seen.view, facts.now_ms
    if not view.id:
        return "You pay nothing. You can take a plan at any time."
    if seen.ends_ms is not None and (not seen.phases or seen.ends_ms <= seen.phases[0][0]):
        default = plan_name(facts.shop, None)
        return f"Your plan ends on {date_text(seen.ends_ms, now_ms)}. You can use it until then; after it, {default}."
    if seen.phases:
        start_ms, items = seen.phases[0]
        plan = next((pin.plan for price, _ in items if (pin := facts.shop.commerce.pins.get(price))), None)
        prices = "; ".join(price_words(facts.shop, items, view.currency))
        if plan == view.plan:
            return f"On {date_text(start_ms, now_ms)} you begin to pay: {prices}."
        return f"Your plan changes to {plan_name(facts.shop, plan)} on {date_text(start_ms, now_ms)}: {prices}."
    if seen.trial_end_ms is not None:
        days = -((now_ms - seen.trial_end_ms) // DAY_MS)
        left = f"{days} days" if days > 1 else "1 day"
        return f"Your trial ends on {date_text(seen.trial_end_ms, now_ms)}, in {left}. Then you begin to pay."
    at_ms = renews_ms(seen, now_ms)
    return "" if at_ms is None else f"Renews on {date_text(at_ms, now_ms)}."


def _meters(facts: Facts, seen: Seen) -> Iterator[MeterView]:
    """The meters that the account's plan prices or limits, and those that it used."""
    for meter in facts.meters:
        limit, included = _limit(facts, meter), _included(facts, meter)
        used = facts.used.units.get(meter.slug) if facts.used else None
        is_given = included is not None or (limit is not None and limit.value != 0)
        if not (is_given or used):
            continue
        bound = limit.value if limit and isinstance(limit.value, Decimal) else included
        percent = None if not bound or used is None else int(used * 100 / bound)
        yield MeterView(
            meter.slug,
            meter.slug.replace("_", " "),
            meter.unit,
            "not known" if facts.used is None else number_text(used or Decimal(0)),
            "" if included is None else number_text(included),
            _limit_text(limit),
            percent,
            _more(facts, seen, meter, used or Decimal(0), included),
        )


def _limit(facts: Facts, meter: Meter) -> Resolved | None:
    """The tightest limit on a meter's usage."""
    named = (name for name, each in facts.shop.commerce.catalog.features.items() if each.meter == meter.slug)
    found = [facts.features[name] for name in named if name in facts.features]
    numbers = [each for each in found if isinstance(each.value, Decimal)]
    return min(numbers, key=lambda each: Decimal(str(each.value)), default=found[0] if found else None)


def _limit_text(limit: Resolved | None) -> str:
    if limit is None:
        return ""
    if limit.value is UNLIMITED:
        return "unlimited"
    return number_text(limit.value) if isinstance(limit.value, Decimal) else "0"


def _included(facts: Facts, meter: Meter) -> Decimal | None:
    """What the base price covers; None if usage of the meter is not sold to the account."""
    found = facts.features.get(f"{INCLUDED}{meter.slug}")
    return found.value if found and found.gives and isinstance(found.value, Decimal) else None


def _more(facts: Facts, seen: Seen, meter: Meter, used: Decimal, included: Decimal | None) -> str:
    """What the usage beyond the included quantity costs so far."""
    if included is None or used <= included:
        return ""
    for item in seen.view.items:
        found = terms_of(facts.shop, item.price, seen.view.currency) if item.quantity is None else None
        if found and found.terms.meter == meter.slug and seen.trial_end_ms is None:
            cost = Money(amount_of(found.terms.rating, used), seen.view.currency, found.terms.exponent)
            return f"{number_text(used - included)} beyond: {money_text(cost)} so far"
    return f"{number_text(used - included)} beyond what is included"


def _projected(facts: Facts, seen: Seen) -> Projected | None:
    """The next invoice by our own rating. None if there is no next one."""
    view, now_ms, shop = seen.view, facts.now_ms, facts.shop
    at_ms = renews_ms(seen, now_ms)
    if at_ms is None or view.status not in ("active", "trialing", "past_due"):
        return None
    zero = Money(0, view.currency, shop.commerce.catalog.currencies.get(view.currency, 2))
    due = [item for item in view.items if item.end_ms == at_ms]
    bought: Sequence[tuple[str, int | None]] = [(item.price, item.quantity) for item in due]
    if seen.ends_ms is not None and seen.ends_ms <= at_ms:
        bought = []
    elif seen.phases and seen.phases[0][0] <= at_ms:
        bought = seen.phases[0][1]
    base = sum(
        paid_for(shop, price, quantity, view.currency).minor for price, quantity in bought if quantity is not None
    )
    so_far, at_pace, notes = 0, 0, []
    is_metered = any(item.quantity is None for item in due)
    for item in due:
        found = terms_of(shop, item.price, view.currency) if item.quantity is None else None
        if found is None or seen.trial_end_ms is not None:
            continue
        cost = _usage_cost(facts, found.terms)
        if cost is None:
            notes.append(f"Without the usage of {found.terms.meter}, which is not known at the moment.")
            continue
        so_far, at_pace = so_far + cost[0], at_pace + cost[1]
    if view.is_discounted:
        notes.append("Your discount is not subtracted here; Stripe's preview has it.")
    preview = facts.preview
    stripe = "" if preview is None else signed_money(zero._replace(minor=preview.invoice.total_minor))
    return Projected(
        date_text(at_ms, now_ms),
        money_text(zero._replace(minor=base)),
        money_text(zero._replace(minor=base + so_far)) if is_metered else "",
        money_text(zero._replace(minor=base + at_pace)) if is_metered else "",
        stripe,
        preview.at_ms if preview else None,
        ("Before tax.", *notes),
    )


def _usage_cost(facts: Facts, terms: Terms) -> tuple[int, int] | None:
    """What the usage so far costs, and what it will if it goes on as until now, in minor units."""
    meter = next((each for each in facts.meters if each.slug == terms.meter), None)
    if facts.used is None or meter is None:
        return None
    units, period = facts.used.units.get(meter.slug, Decimal(0)), facts.used.period
    at_pace = units
    elapsed_ms = facts.now_ms - period.start_ms
    if meter.aggregation.rule.additive and elapsed_ms > 0:
        exact = Fraction(units) * (period.end_ms - period.start_ms) / elapsed_ms
        at_pace = Decimal(rounded(exact * 10**meter.scale)).scaleb(-meter.scale)
    return amount_of(terms.rating, units), amount_of(terms.rating, max(units, at_pace))


def _banners(facts: Facts, seen: Seen, meters: Sequence[MeterView]) -> Iterator[Banner]:
    for listed in facts.cases:
        # Nothing is due next while the customer is linked to no account, or to another one.
        if listed.case.next_ms is not None and (text := banner_text(listed, facts.now_ms)):
            yield Banner("bad", text, listed.pay_url, "Pay now" if listed.pay_url else "")
    for each in meters:
        if each.percent is not None and each.percent >= 80:
            of = "your limit" if each.limit not in ("", "unlimited") else "what is included"
            kind = "bad" if each.percent >= 100 else "wait"
            yield Banner(kind, f"You have used {each.percent} % of {of} of {each.name} in this period.")
    for kind, text in credit_banners(facts.credits):
        yield Banner(kind, text)
    expires_ms = card_expires_ms(facts)
    if expires_ms is not None and expires_ms - facts.now_ms <= NOTICE_DAYS * DAY_MS and seen.view.id:
        has = "has expired" if expires_ms <= facts.now_ms else f"expires on {date_text(expires_ms, facts.now_ms)}"
        yield Banner("wait", f"Your card {has}. Please store another one.")


def _seats(facts: Facts) -> Iterator[SeatView]:
    """The seats that are held or can be, and their holders."""
    for count in facts.seat_counts:
        holders = tuple(
            (seat.holder, _reserved(seat, facts.now_ms)) for seat in facts.seats if seat.feature == count.feature
        )
        if not (holders or count.paid):
            continue
        allowed = "as many as you like" if count.allowed is UNLIMITED else f"{count.allowed}"
        held = f"{count.held} of {allowed} held" if allowed.isdigit() else f"{count.held} held, {allowed} allowed"
        words = [held] if count.held else []
        words += [f"{count.reserved} of them by invitations"] if count.reserved else []
        words += [f"{count.paid} paid"] if count.paid else []
        yield SeatView(count.feature.replace("_", " "), ", ".join(words), holders, max(0, count.held - len(holders)))


def _reserved(seat: Seat, now_ms: int) -> str:
    if seat.state is not SeatState.RESERVED or seat.expires_ms is None:
        return ""
    return f"invited, until {date_text(seat.expires_ms, now_ms)}"


def _coming(facts: Facts) -> Iterator[tuple[str, str]]:
    """What will happen within a year, the next first."""
    for each in future(facts, facts.overrides):
        if each.at_ms <= facts.now_ms + TOLD_MS:
            yield date_text(each.at_ms, facts.now_ms), each.text


def _happened(facts: Facts) -> Iterator[tuple[str, str]]:
    """What a customer cares about of the past, the last first."""
    for row in facts.audit:
        if is_told(row):
            yield date_text(row.at_ms, facts.now_ms), past(row).text


def _card(facts: Facts) -> str:
    """The payment method in words; "" without one."""
    method, expires_ms = method_of(facts), card_expires_ms(facts)
    if method is None:
        return ""
    kind = str(method["type"] or "card").replace("_", " ").capitalize()
    return kind if expires_ms is None else f"{kind}, valid until {date_text(expires_ms - 1, facts.now_ms)}"


def invoice_view(row: Row, now_ms: int) -> InvoiceView:
    """An invoice in the list."""
    money = Money(int(row["total_minor"] or 0), str(row["currency"] or ""), int(row["exponent"] or 0))
    day_ms = int(row["finalized_ms"] or row["created_ms"] or 0)
    is_open = row["status"] == "open"
    return InvoiceView(
        str(row["id"]),
        date_text(day_ms, now_ms),
        str(row["status"]),
        signed_money(money),
        str(row["hosted_url"] or "") if is_open else "",
    )


def _charts(facts: Facts, meters: Sequence[MeterView]) -> Iterator[ChartView]:
    for each in meters:
        days = facts.days.get(each.slug, {})
        if any(days.values()):
            named = tuple((date_text(day_ms, facts.now_ms), days[day_ms]) for day_ms in sorted(days))
            yield ChartView(each.name, each.unit, named)
