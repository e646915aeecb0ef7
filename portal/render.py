"""The customer's page as markup: the account at a glance."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from aggregators.instants import format_instant_ms
from portal.chart import chart
from portal.markup import Html, badge, h, join, link, notice, table, template
from portal.view import Banner, InvoiceView, MeterView, PageView, Projected
from portal.words import minute_text

TEMPLATES: Final = Path(__file__).parent / "templates"
_NOTHING: Final = Html()
_STATES: Final = {"open": "to pay", "paid": "paid", "void": "void", "uncollectible": "not paid"}


def frame(title: str, root: str, *children: object) -> Html:
    """A whole page. `root`: the way from the page's address to that of the account's page, such as `../`."""
    return template(TEMPLATES, "page", title=title, root=root, body=join(*children))


def overview(view: PageView, changed: str = "", problem: str = "", *, credits_card: Html = _NOTHING) -> Html:
    """The account's page. `changed` and `problem`: what became of a change, in words. `credits_card`: "" without."""
    first = [_plan(view), credits_card, _usage(view), *([_seats(view)] if view.seats else [])]
    second = [
        *([_projected(view.projected)] if view.projected else []),
        _happenings("What comes next", view.coming, "Nothing is due."),
        _invoices(view.invoices),
        *([_happenings("What happened", view.happened, "")] if view.happened else []),
    ]
    return frame(
        f"{view.plan.name}: your plan and usage",
        "",
        h("h1", "Your plan and usage"),
        notice(problem),
        notice(changed, "good"),
        *map(_banner, view.banners),
        h("div", h("div", *first), h("div", *second), class_="columns"),
    )


def _banner(banner: Banner) -> Html:
    action = join(" ", h("a", banner.action, href=banner.url, target="_top")) if banner.url else ""
    return h("p", banner.text, action, class_=f"notice {banner.kind}", role="status")


def card(title: str, *children: object) -> Html:
    """A part of the page under a heading."""
    identifier = title.lower().replace(" ", "-")
    named = h("h2", title, id=identifier)
    return h("section", named, *children, class_="card", aria_labelledby=identifier)


def hidden_form(target: str, label: str, *, quiet: bool = False, **fields: str) -> Html:
    """A button that sends fields."""
    inputs = (h("input", type="hidden", name=name, value=value) for name, value in fields.items())
    return h("form", *inputs, h("button", label, class_="quiet" if quiet else False), method="post", action=target)


def _plan(view: PageView) -> Html:
    plan = view.plan
    actions = [h("a", "Change plan", href="plans", class_="button")]
    if plan.may_undo:
        actions.append(hidden_form("quotes", "Keep my plan as it is", quiet=True, kind="undo"))
    if plan.may_cancel:
        actions.append(hidden_form("quotes", "Cancel plan", quiet=True, kind="cancel"))
    return card(
        "Plan",
        h("p", h("strong", plan.name), " ", badge(plan.state) if plan.state else "", class_="total"),
        h("p", plan.description) if plan.description else "",
        h("ul", *(h("li", each) for each in plan.prices), class_="plain") if plan.prices else "",
        h("p", plan.next) if plan.next else "",
        _card(view),
        h("div", *actions, class_="row"),
    )


def _card(view: PageView) -> Html:
    """What pays, and the way to Stripe's page of the card, which no frame may show."""
    if not view.may_store_card:
        return Html()
    way = h("a", "Change the card" if view.card else "Store a card", href="card", target="_top", rel="nofollow")
    return h("p", f"Paid by: {view.card}. " if view.card else "No card is stored. ", way, class_="soft")


def _seats(view: PageView) -> Html:
    parts: list[object] = []
    for seats in view.seats:
        parts += [h("h3", seats.name), h("p", f"{seats.words}.")]
        items = [h("li", holder, h("span", note, class_="soft") if note else "") for holder, note in seats.holders]
        if seats.more:
            items.append(h("li", f"and {seats.more} more"))
        parts += [h("ul", *items, class_="holders")] if items else []
    return card("Seats", *parts)


def _usage(view: PageView) -> Html:
    if view.complete_up_to_ms is None:
        fresh = "The usage is not known at the moment. Please look again in a minute."
    else:
        at = format_instant_ms(view.complete_up_to_ms)
        fresh = join("Complete up to ", h("time", minute_text(view.complete_up_to_ms), datetime=at), ".")
    return card(
        "Usage in this period",
        *(_meter(each) for each in view.meters),
        "" if view.meters else h("p", "Nothing is counted for this plan yet.", class_="empty"),
        h("p", fresh, class_="soft"),
        *(chart(each) for each in view.charts),
    )


def _meter(meter: MeterView) -> Html:
    of = " of ".join(part for part in (meter.used, meter.limit if meter.limit != "unlimited" else "") if part)
    words = f"{of} {meter.unit}"
    facts = [
        f"{meter.included} included" if meter.included else "",
        "no limit" if meter.limit == "unlimited" else "",
        f"{meter.percent} %" if meter.percent is not None else "",
        meter.more,
    ]
    bar: object = ""
    if meter.percent is not None:
        kind = "full" if meter.percent >= 100 else "high" if meter.percent >= 80 else ""
        bar = h(
            "progress", f"{meter.percent} %", max=100, value=min(100, meter.percent), class_=kind or False,
            aria_label=f"{meter.name}: {meter.percent} %",
        )  # fmt: skip
    details = h("p", ", ".join(fact for fact in facts if fact), class_="soft")
    return h("div", h("h3", meter.name), h("p", words), bar, details, class_="meter")


def _projected(projected: Projected) -> Html:
    rows = [
        ("Paid ahead", projected.base),
        *([("With the usage so far", projected.so_far)] if projected.so_far else []),
        *([("If usage goes on like this", projected.at_pace)] if projected.at_pace else []),
    ]
    if projected.stripe and projected.stripe_at_ms is not None:
        rows.append((f"Stripe's preview of {minute_text(projected.stripe_at_ms)}", projected.stripe))
    return card(
        "Next invoice",
        h("p", f"On {projected.day}."),
        table(("What", "Amount"), rows, "", numbers=("Amount",)),
        h("p", " ".join(projected.notes), class_="soft"),
    )


def _happenings(title: str, told: tuple[tuple[str, str], ...], empty: str) -> Html:
    items = (h("li", h("span", day, class_="soft day"), " ", text) for day, text in told)
    return card(title, h("ul", *items, class_="plain told") if told else h("p", empty, class_="soft"))


def _invoices(invoices: tuple[InvoiceView, ...]) -> Html:
    return card("Invoices", invoice_table(invoices), h("p", link("All invoices", "invoices")) if invoices else "")


def invoice_table(invoices: tuple[InvoiceView, ...], root: str = "") -> Html:
    """Invoices with links to what they bill."""
    rows = [
        (
            link(each.day, f"{root}invoices/{each.id}"),
            join(
                h("span", _STATES.get(each.state, each.state), class_=f"badge is-{each.state}"),
                join(" ", h("a", "Pay", href=each.pay_url, target="_top")) if each.pay_url else "",
            ),
            each.amount,
        )
        for each in invoices
    ]
    return table(("Date", "State", "Amount"), rows, "No invoice yet.", numbers=("Amount",))
