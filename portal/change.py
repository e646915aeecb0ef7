"""The pages on which a customer changes the plan: what is sold, and a quote before it is confirmed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Final, NamedTuple

from aggregators.billed import INTERVALS
from aggregators.catalog_prices import prices_of
from aggregators.upgrade_words import date_text
from portal.account import Facts
from portal.markup import Html, h, join, link, notice, table
from portal.render import card, frame, hidden_form
from portal.subscribed import Seen, seen_of
from portal.words import minute_text, price_text, signed_money
from schemas.catalog import OverLimit, Plan, PlanId
from schemas.errors import InvalidInput
from schemas.periods import Interval
from schemas.plan_changes import ChangeKind, ChangeRequest, Operation, OperationState, Quote
from schemas.upgrades import Money

NUMBER_MAX: Final = 1_000_000
_KINDS: Final = {
    "plan": ChangeKind.PLAN,
    "trial": ChangeKind.TRIAL,
    "cancel": ChangeKind.CANCEL,
    "undo": ChangeKind.UNDO,
}
_PAID, _USED = "quantity.", "used."


class Offer(NamedTuple):
    """A plan on sale. `prices`: by interval, in words. `seats`: how many are paid now, by seat feature that the plan is
    paid by. `asked`: the features whose number in use decides whether the plan can be taken. `is_current`: the account
    has this plan. `trial_days`: how long the plan can be tried; 0 if it cannot be."""

    plan: str
    name: str
    description: str
    prices: Mapping[str, tuple[str, ...]]
    seats: Mapping[str, int]
    asked: tuple[str, ...]
    is_current: bool
    interval: str
    trial_days: int


def offers_of(facts: Facts) -> tuple[Offer, ...]:
    """The plans that the account can take, by rank, in its currency."""
    catalog, seen = facts.shop.commerce.catalog, seen_of(facts)
    currency = currency_of(facts, seen)
    return tuple(
        _offer(facts, seen, name, plan, currency)
        for name, plan in sorted(catalog.plans.items(), key=lambda each: (each[1].rank, each[0]))
        if any(price.terms.currency == currency for price in prices_of(catalog, PlanId(name, plan.version), plan))
    )


def currency_of(facts: Facts, seen: Seen) -> str:
    """The currency in which the account pays, or will."""
    of_customer = (str(row["currency"]) for row in facts.mirror.get("stripe_customers", ()) if row["currency"])
    return seen.view.currency or next(of_customer, "") or next(iter(facts.shop.commerce.catalog.currencies), "usd")


def _offer(facts: Facts, seen: Seen, name: str, plan: Plan, currency: str) -> Offer:
    shop, view = facts.shop, seen.view
    is_current = view.plan is not None and view.plan.name == name
    identifier = view.plan if is_current and view.plan else PlanId(name, plan.version)
    sold = shop.commerce.sold.get(identifier, plan)
    prices: dict[str, list[str]] = {}
    for price in prices_of(shop.commerce.catalog, identifier, sold):
        if price.terms.currency == currency:
            prices.setdefault(str(price.terms.interval), []).append(price_text(price))
    held = {item.component: item.quantity or 1 for item in view.items}
    seats = {
        line.quantity: max(held.get(line.component, 0), line.included or 0, 1) for line in plan.prices if line.quantity
    }
    known = {seat.feature for seat in facts.seats}
    asked = [
        feature for feature, policy in plan.over_limit.items()
        if policy is OverLimit.BLOCK_DOWNGRADE and not is_current and plan.rank < view.rank and feature not in known
    ]  # fmt: skip
    return Offer(
        name, plan.name or name, plan.description, {each: tuple(words) for each, words in prices.items()}, seats,
        tuple(asked), is_current, str(view.interval or ""), plan.trial.days if plan.trial and not view.id else 0,
    )  # fmt: skip


def plans_page(offers: tuple[Offer, ...], problem: str = "") -> Html:
    """What is sold, with a form for each plan."""
    return frame(
        "Change plan",
        "",
        h("nav", link("Back to your plan", "./"), aria_label="Way back"),
        h("h1", "Change plan"),
        notice(problem),
        h("p", "You see what a change costs before you confirm it."),
        h("div", *map(_offered, offers), class_="cards"),
    )


def _offered(offer: Offer) -> Html:
    intervals = [each for each in INTERVALS if each in offer.prices]
    chosen = offer.interval if offer.interval in offer.prices else "month" if "month" in offer.prices else ""
    prices = join(
        *(
            join(h("dt", f"By the {interval}"), *(h("dd", each) for each in offer.prices[interval]))
            for interval in intervals
        )
    )
    fields: list[object] = [h("input", type="hidden", name="plan", value=offer.plan)]
    if len(intervals) > 1:
        options = (h("option", f"by the {each}", value=each, selected=each == chosen) for each in intervals)
        fields.append(h("label", "Paid", h("select", *options, name="interval")))
    else:
        fields.append(h("input", type="hidden", name="interval", value=chosen))
    fields += (_number(f"How many {name}", f"{_PAID}{name}", count) for name, count in offer.seats.items())
    fields += (_number(f"How many {name} you use", f"{_USED}{name}", offer.seats.get(name, 1)) for name in offer.asked)
    current = h("p", h("span", "your plan", class_="badge is-active")) if offer.is_current else ""
    label = "See what this costs" if offer.is_current else f"See what {offer.name} costs"
    fields.append(h("button", label, name="kind", value="plan"))
    if offer.trial_days:
        words = f"Try {offer.name} for {offer.trial_days} days"
        fields.append(h("button", words, name="kind", value="trial", class_="quiet"))
    form = h("form", *fields, method="post", action="quotes", class_="fields")
    return card(
        offer.name,
        current,
        h("p", offer.description) if offer.description else "",
        h("dl", prices, class_="prices"),
        form,
    )


def _number(label: str, name: str, value: int) -> Html:
    return h("label", label, h("input", type="number", name=name, value=value, min=1, max=NUMBER_MAX, required=True))


def requested(sent: Mapping[str, str]) -> ChangeRequest:
    """The change that a form asks for. Raises `InvalidInput` with the field."""
    kind = _KINDS.get(sent.get("kind", ""))
    if kind is None:
        raise InvalidInput("kind", "is not a change that can be made here")
    interval = sent.get("interval", "")
    if interval not in ("", *INTERVALS):
        raise InvalidInput("interval", "is not one that is sold")
    return ChangeRequest(
        kind,
        sent.get("plan", ""),
        Interval(interval) if interval else None,
        quantities=dict(_numbers(sent, _PAID)),
        used={name: Decimal(number) for name, number in _numbers(sent, _USED)},
    )


def _numbers(sent: Mapping[str, str], prefix: str) -> Iterator[tuple[str, int]]:
    for name, text in sent.items():
        if name.startswith(prefix):
            feature = name.removeprefix(prefix)
            if not (text.isascii() and text.isdigit() and int(text[:10]) <= NUMBER_MAX and len(text) <= 10):
                raise InvalidInput(feature, f"must be a whole number from 1 to {NUMBER_MAX}")
            yield feature, int(text)


def quote_page(quote: Quote, now_ms: int, root: str, problem: str = "") -> Html:
    """A quote in words and cents, with the button that confirms it. `root`: see `frame`."""

    def money(minor: int) -> str:
        return signed_money(Money(minor, quote.total.currency, quote.total.exponent))

    lines: list[tuple[object, object]] = [(line.text, money(line.amount_minor)) for line in quote.lines]
    if quote.tax_minor:
        lines.append((h("em", "Tax"), money(quote.tax_minor)))
    if quote.lines:
        lines.append((h("strong", "Total"), h("strong", money(quote.total.minor))))
    if quote.lines and quote.due_minor != quote.total.minor:
        lines.append((h("strong", "Charged now"), h("strong", money(quote.due_minor))))
    is_over = now_ms >= quote.expires_ms
    old = notice("This offer has expired. Please ask for a new one.") if is_over else ""
    label = f"Confirm{_charge(quote, money(quote.due_minor))}"
    if quote.decided.opens_checkout:
        label = "Go on to payment"
    confirm = hidden_form(f"{root}quotes/{quote.id}/accept", label)
    life = f"The offer holds until {minute_text(quote.expires_ms)}."
    return frame(
        "Confirm the change",
        root,
        h("h1", "Confirm the change"),
        notice(problem),
        old,
        h("p", quote.words, class_="total"),
        table(("What", "Amount"), lines, "", numbers=("Amount",)) if lines else "",
        h("p", life, class_="soft") if not is_over else "",
        h("div", "" if is_over else confirm, link("No, go back", root), class_="row"),
    )


def _charge(quote: Quote, amount: str) -> str:
    return f" and pay {amount}" if quote.due_minor > 0 else ""


def payment_page(quote: Quote, url: str, root: str) -> Html:
    """The way to Stripe's page. A form may not lead to another site, and no frame may show Stripe's pages."""
    return frame(
        "Payment",
        root,
        h("h1", "Payment"),
        h("p", quote.words, class_="total"),
        h("p", "You go on at a page of Stripe, and come back here. The page is open for half an hour."),
        h("p", h("a", "Go on to Stripe", href=url, class_="button", target="_top"), " ", link("Back", root)),
    )


def outcome_words(quote: Quote, operation: Operation | None, now_ms: int) -> tuple[str, str]:
    """What became of a change: good news, and a problem; both "" if it was not confirmed."""
    if operation is None:
        return "", ""
    if operation.state is OperationState.FAILED:
        return "", f"The change was not made: {operation.detail}. Nothing more is tried."
    if operation.state is OperationState.DONE and operation.session:
        return "What you did at Stripe shows here within seconds.", ""
    if operation.state is OperationState.DONE and operation.detail:
        return "", f"The change was not paid when you confirmed it: it {operation.detail}"
    if operation.state is OperationState.DONE:
        when = "" if quote.accepted_ms is None else f" on {date_text(quote.accepted_ms, now_ms)}"
        return f"Confirmed{when}. The offer was: {quote.words}", ""
    return "The change is being made. Look again in a moment.", ""
