"""What the page says of an account: the plan, what comes next, usage, the next invoice, banners and prices."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import pytest

from aggregators.account_grants import INCLUDED, Commerce
from aggregators.catalog_prices import all_prices, prices_of
from aggregators.plan_offer import Shop
from aggregators.price_list import price_list
from portal.account import Facts, Previewed, SeatCount, Used
from portal.change import offers_of
from portal.timeline import FUTURE_MAX, future, past
from portal.view import page_view
from portal.words import number_text, price_text
from schemas.catalog import PlanId
from schemas.catalog_changes import Pin
from schemas.clock import DAY_MS
from schemas.dunning import DunningCase, DunningState, ListedCase
from schemas.entitlements import UNLIMITED, Grant, Operation, Override, Resolved, SourceKind, Value
from schemas.meters import Meter
from schemas.notices import ChannelName, Delivery, Notice, NoticeKind
from schemas.periods import Period
from schemas.plan_changes import InvoicePreview
from schemas.seats import Seat, SeatState
from schemas.side_tables import AuditRow, Row
from tests.worlds.paged import CATALOG
from tests.worlds.sold import parsed


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000


NOW_MS: Final = ms("2027-02-10")
START_MS, END_MS = ms("2027-02-01"), ms("2027-03-01")
SOLD: Final = parsed(CATALOG)
TIERED: Final = parsed(
    CATALOG.replace(
        '{component: tokens, meter: tokens, unit: tokens, month: {usd: "0.01"}}',
        '{component: tokens, meter: tokens, unit: tokens, tiers: [{up_to: included, price: {usd: "0"}}, '
        '{up_to: 1000, price: {usd: "0.0005"}}, {up_to: inf, price: {usd: "0.02"}, flat: {usd: "5.00"}}]}',
    ).replace("grants: {locations: unlimited", "included: {tokens: 10}\n    grants: {locations: unlimited")
)


def shop_of(catalog: Any) -> Shop:
    """What is sold, with the lookup keys of prices as their ids."""
    prices = all_prices(catalog)
    pins = {key: Pin(price.plan, price.component) for key, price in prices.items()}
    sold = dict(catalog.sold())
    commerce = Commerce(catalog, sold, pins)
    ids = {(p.plan, p.component, str(p.terms.interval), p.terms.currency): key for key, p in prices.items()}
    return Shop(commerce, price_list(commerce), ids)


SHOP: Final = shop_of(SOLD)


def subscribed(*keys: tuple[str, int | None], **columns: Any) -> dict[str, list[Row]]:
    """The mirror's rows of a subscription to prices."""
    row: Row = {
        "id": "sub_1", "customer_id": "cus_1", "status": "active", "collection_method": "charge_automatically",
        "currency": "usd", "anchor_ms": START_MS, "trial_end_ms": None, "cancel_at_ms": None, "ended_ms": None,
        "pending_update_until_ms": None, "latest_invoice_id": None, "default_payment_method": None,
        "discounts_json": "[]", "deleted": 0, **columns,
    }  # fmt: skip
    items: list[Row] = [
        {
            "id": f"si_{number}", "subscription_id": "sub_1", "price_id": f"tm.{key}.usd", "interval": "month",
            "quantity": quantity, "period_start_ms": START_MS, "period_end_ms": END_MS,
        }
        for number, (key, quantity) in enumerate(keys)
    ]  # fmt: skip
    return {"subscriptions": [row], "subscription_items": items}


def scheduled(*phases: tuple[int, int, str], ends: bool = False) -> dict[str, list[Row]]:
    """A schedule with phases of one price."""
    rows = [
        {"start_ms": start, "end_ms": end, "prices": [{"price": f"tm.{key}.usd", "quantity": 1}]}
        for start, end, key in phases
    ]
    schedule: Row = {
        "id": "sub_sched_1", "customer_id": "cus_1", "subscription_id": "sub_1", "status": "active", "deleted": 0,
        "end_behavior": "cancel" if ends else "release", "phases_json": json.dumps(rows),
    }  # fmt: skip
    return {"subscription_schedules": [schedule]}


ESSENTIAL, PRO = "essential.v1.location.month", "pro.v1.location.month"
BASE, TOKENS = "scale.v1.base.month", "scale.v1.tokens.month"
NEXT: Final[dict[str, tuple[dict[str, list[Row]], str, str]]] = {
    "nothing": ({}, "", "You pay nothing. You can take a plan at any time."),
    "renews": (subscribed((ESSENTIAL, 1)), "active", "Renews on March 1."),
    "ended": (subscribed((ESSENTIAL, 1), status="canceled"), "", "You pay nothing. You can take a plan at any time."),
    "cancels": (
        subscribed((ESSENTIAL, 1), cancel_at_ms=END_MS), "ends",
        "Your plan ends on March 1. You can use it until then; after it, Free.",
    ),
    "trial": (
        subscribed((PRO, 1), status="trialing", trial_end_ms=NOW_MS + 7 * DAY_MS - 1), "trial",
        "Your trial ends on February 16, in 7 days. Then you begin to pay.",
    ),
    "last day of the trial": (
        subscribed((PRO, 1), status="trialing", trial_end_ms=NOW_MS + DAY_MS), "trial",
        "Your trial ends on February 11, in 1 day. Then you begin to pay.",
    ),
    "downgrade": (
        subscribed((PRO, 1)) | scheduled((START_MS, END_MS, PRO), (END_MS, END_MS + DAY_MS, ESSENTIAL)), "active",
        "Your plan changes to Essential on March 1: 1 location: $79.00 a month.",
    ),
    "other quantities": (
        subscribed((PRO, 2)) | scheduled((START_MS, END_MS, PRO), (END_MS, END_MS + DAY_MS, PRO)), "active",
        "On March 1 you begin to pay: 1 location: $149.00 a month.",
    ),
    "a schedule that ends": (
        subscribed((PRO, 1)) | scheduled((START_MS, END_MS, PRO), ends=True), "ends",
        "Your plan ends on March 1. You can use it until then; after it, Free.",
    ),
    "unpaid": (subscribed((PRO, 1), status="past_due"), "payment failed", "Renews on March 1."),
}  # fmt: skip


@pytest.mark.parametrize(("mirror", "state", "words"), NEXT.values(), ids=NEXT)
def test_what_happens_next_to_a_plan(mirror: dict[str, list[Row]], state: str, words: str) -> None:
    plan = page_view(Facts("acme", NOW_MS, SHOP, mirror)).plan

    assert (plan.state, plan.next) == (state, words)


METERS: Final = (Meter.model_validate(
    {"slug": "api_requests", "event_type": "api.request", "aggregation": "count", "unit": "requests"}
), Meter.model_validate(
    {"slug": "tokens", "event_type": "completion.finished", "aggregation": "sum", "value_path": "$.t", "unit": "tokens"}
))  # fmt: skip


def limited(calls: Value, tokens: str | None = None) -> dict[str, Resolved]:
    found = {"calls": Resolved(calls)}
    if tokens is not None:
        grant = Grant(f"{INCLUDED}tokens", SourceKind.PLAN, "scale@1", Operation.SET, Decimal(tokens), START_MS)
        found[f"{INCLUDED}tokens"] = Resolved(Decimal(tokens), (grant,))
    return found


def used(**units: str) -> Used:
    return Used(Period(START_MS, END_MS), {name: Decimal(text) for name, text in units.items()}, NOW_MS - 4_000)


@pytest.mark.parametrize(
    ("features", "units", "shown", "banners"),
    [
        (limited(Decimal(100)), {"api_requests": "79"}, [("79", "", "100", 79, "")], []),
        (limited(Decimal(100)), {"api_requests": "80"}, [("80", "", "100", 80, "")], ["wait"]),
        (limited(Decimal(100)), {"api_requests": "100"}, [("100", "", "100", 100, "")], ["bad"]),
        (limited(Decimal(0)), {}, [], []),
        (limited(Decimal(0)), {"api_requests": "1"}, [("1", "", "0", None, "")], []),
        (limited(UNLIMITED), {"api_requests": "1234567"}, [("1,234,567", "", "unlimited", None, "")], []),
        (
            limited(UNLIMITED, "10"), {"tokens": "25"},
            [("0", "", "unlimited", None, ""), ("25", "10", "", 250, "15 beyond: $0.25 so far")], ["bad"],
        ),
        (limited(UNLIMITED, "0"), {}, [("0", "", "unlimited", None, ""), ("0", "0", "", None, "")], []),
    ],
    ids=["below", "80 percent", "limit", "not given", "used though not given", "unlimited", "beyond", "all is billed"],
)  # fmt: skip
def test_usage_against_what_is_included_and_allowed(
    features: dict[str, Resolved], units: dict[str, str], shown: list[Any], banners: list[str]
) -> None:
    mirror = subscribed((BASE, 1), (TOKENS, None))
    view = page_view(Facts("acme", NOW_MS, SHOP, mirror, features, METERS, used(**units)))

    assert [(each.used, each.included, each.limit, each.percent, each.more) for each in view.meters] == shown
    assert [banner.kind for banner in view.banners] == banners


@pytest.mark.parametrize(
    ("mirror", "units", "base", "so_far", "at_pace"),
    [
        (subscribed((ESSENTIAL, 2)), {}, "$158.00", "", ""),
        # 9 of 28 days have passed: 900 tokens become 2800.
        (subscribed((BASE, 1), (TOKENS, None)), {"tokens": "900"}, "$200.00", "$209.00", "$228.00"),
        (subscribed((BASE, 1), (TOKENS, None), cancel_at_ms=END_MS), {"tokens": "900"}, "$0.00", "$9.00", "$28.00"),
        (
            subscribed((BASE, 1), (TOKENS, None), status="trialing", trial_end_ms=END_MS), {"tokens": "900"},
            "$200.00", "$200.00", "$200.00",
        ),
        (
            subscribed((PRO, 1)) | scheduled((START_MS, END_MS, PRO), (END_MS, END_MS + DAY_MS, ESSENTIAL)), {},
            "$79.00", "", "",
        ),
    ],
    ids=["no usage", "usage", "canceled", "trial", "downgrade"],
)  # fmt: skip
def test_the_next_invoice_by_our_own_rating(
    mirror: dict[str, list[Row]], units: dict[str, str], base: str, so_far: str, at_pace: str
) -> None:
    preview = Previewed(InvoicePreview("usd", 1, 20_500, 20_500, 0, ()), NOW_MS)
    facts = Facts("acme", NOW_MS, SHOP, mirror, {}, METERS, used(**units), preview=preview)

    found = page_view(facts).projected

    assert found is not None
    assert (found.day, found.base, found.so_far, found.at_pace) == ("March 1", base, so_far, at_pace)
    assert found.stripe == "$205.00"


def test_an_invoice_without_known_usage_says_so() -> None:
    found = page_view(Facts("acme", NOW_MS, SHOP, subscribed((BASE, 1), (TOKENS, None)), {}, METERS)).projected

    assert found is not None
    assert found.notes == ("Before tax.", "Without the usage of tokens, which is not known at the moment.")


@pytest.mark.parametrize("status", ["paused", "unpaid", "incomplete"])
def test_who_is_not_billed_has_no_next_invoice(status: str) -> None:
    assert page_view(Facts("acme", NOW_MS, SHOP, subscribed((PRO, 1), status=status))).projected is None


CASE: Final = DunningCase(
    "dun_1", "acme", "sub_1", START_MS, START_MS, DunningState.NOTIFIED, 14_900, "usd", 2, next_ms=NOW_MS + DAY_MS
)


def card(expires_ms: int) -> dict[str, list[Row]]:
    method: Row = {"id": "pm_1", "customer_id": "cus_1", "type": "card", "expires_ms": expires_ms}
    mine: Row = {"id": "cus_1", "currency": "usd", "default_payment_method": "pm_1", "deleted": 0}
    return {"payment_methods": [method], "stripe_customers": [mine]}


def test_banners_of_a_failed_payment_and_of_an_old_card() -> None:
    mirror = subscribed((PRO, 1)) | card(NOW_MS + 30 * DAY_MS)
    listed = ListedCase(CASE, ("in_1",), 14_900, "https://pay.example/in_1")
    unlinked = listed._replace(case=CASE._replace(next_ms=None))

    banners = page_view(Facts("acme", NOW_MS, SHOP, mirror, cases=[listed, unlinked])).banners

    assert [(each.kind, each.text, each.url) for each in banners] == [
        ("bad", "A payment of $149.00 failed. Please check your card.", "https://pay.example/in_1"),
        ("wait", "Your card expires on March 12. Please store another one.", ""),
    ]


def seat(number: int, state: SeatState = SeatState.ACTIVE) -> Seat:
    expires_ms = NOW_MS + DAY_MS if state is SeatState.RESERVED else None
    return Seat(f"seat_{number}", "acme", "locations", f"loc_{number}", state, START_MS, START_MS, expires_ms)


@pytest.mark.parametrize(
    ("count", "seats", "words", "holders", "more"),
    [
        (SeatCount("locations", 2, 0, Decimal(3), 3), [seat(1), seat(2)], "2 of 3 held, 3 paid",
         [("loc_1", ""), ("loc_2", "")], 0),
        (SeatCount("locations", 1, 1, UNLIMITED, 0), [seat(1, SeatState.RESERVED)],
         "1 held, as many as you like allowed, 1 of them by invitations",
         [("loc_1", "invited, until February 11")], 0),
        (SeatCount("locations", 60, 0, Decimal(60), 0), [seat(1)], "60 of 60 held", [("loc_1", "")], 59),
        (SeatCount("locations", 0, 0, Decimal(2), 2), [], "2 paid", [], 0),
    ],
    ids=["held and paid", "invited", "more than are shown", "nobody"],
)  # fmt: skip
def test_seats_and_who_holds_them(
    count: SeatCount, seats: list[Seat], words: str, holders: list[tuple[str, str]], more: int
) -> None:
    (found,) = page_view(Facts("acme", NOW_MS, SHOP, seat_counts=[count], seats=seats)).seats

    assert (found.name, found.words, [*found.holders], found.more) == ("locations", words, holders, more)


def test_seats_that_nobody_holds_or_pays_are_not_shown() -> None:
    count = SeatCount("locations", 0, 0, Decimal(1), 0)

    assert page_view(Facts("acme", NOW_MS, SHOP, seat_counts=[count])).seats == ()


def test_the_future_has_all_that_will_come_in_its_order() -> None:
    trial = subscribed((PRO, 1), status="trialing", trial_end_ms=END_MS) | card(END_MS + DAY_MS)
    grant = Grant("calls", SourceKind.OVERRIDE, "override", Operation.SET, Decimal(5), START_MS, NOW_MS + DAY_MS)
    overrides = [Override("acme", 1, grant, "ann", START_MS), Override("acme", 2, grant, "ann", START_MS, NOW_MS)]
    notice = Notice("ntc_1", NoticeKind.TRIAL_ENDS, "acme", "sub_1", 0, 0, 0, "{}", NOW_MS)
    waiting = [Delivery(notice, ChannelName.MAIL, due_ms=NOW_MS + 5)]
    invoice: Row = {
        "id": "in_1", "status": "open", "next_attempt_ms": NOW_MS + 9, "remaining_minor": 100, "currency": "usd",
        "exponent": 2, "total_minor": 100, "created_ms": START_MS, "finalized_ms": None, "hosted_url": None,
    }  # fmt: skip
    listed = [ListedCase(CASE, ("in_1",), 14_900)]
    facts = Facts("acme", NOW_MS, SHOP, trial, cases=listed, invoices=[invoice])

    found = future(facts, overrides, waiting)

    assert [(each.at_ms - NOW_MS) // DAY_MS for each in found] == [0, 0, 1, 12, 12, 13, 15, 18, 19, 19, 20, 22, 45]
    assert [each.kind for each in found] == [
        "notice", "payment_retry", "override", "dunning", "notice", "notice", "dunning", "notice", "charge",
        "trial_end", "card_expiry", "dunning", "dunning",
    ]  # fmt: skip


def test_the_future_is_bounded() -> None:
    grant = Grant("calls", SourceKind.CONTRACT, "c", Operation.SET, Decimal(5), NOW_MS + 1, NOW_MS + DAY_MS)
    overrides = [Override("acme", number, grant, "ann", START_MS) for number in range(FUTURE_MAX)]

    assert len(future(Facts("acme", NOW_MS, SHOP), overrides)) == FUTURE_MAX


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (("stripe", "evt_1", "invoice", "in_1", None, None, "invoice.paid"), "An invoice was paid"),
        (
            ("stripe", "evt_1", "invoice", "in_1", None,
             '{"invoices":{"in_1":{"total_minor":4750,"currency":"usd","exponent":2}}}', "invoice.paid"),
            "An invoice was paid: $47.50",
        ),
        (("ann", "account override", "override", "1", None, None, "a gift"),
         "An override was made or taken back: a gift"),
        (("stripe", "evt_2", "invoice", "in_1", None, "[]", "invoice.unheard_of"), "An invoice: invoice.unheard_of"),
        (("ann", "command", "something_new", "1", None, None, ""), "something new"),
    ],
    ids=["event", "amount", "person", "unknown event", "unknown entity"],
)  # fmt: skip
def test_the_past_in_words(row: tuple[Any, ...], text: str) -> None:
    entry = past(AuditRow("acme", 1, NOW_MS, *row))

    assert (entry.text, entry.is_future, entry.about, entry.actor) == (text, False, row[3], row[0])


def test_plans_on_sale_in_the_currency_of_the_customer() -> None:
    offers = offers_of(Facts("acme", NOW_MS, SHOP, subscribed((PRO, 3))))
    euros: list[Row] = [{"id": "cus_1", "currency": "eur", "default_payment_method": None, "deleted": 0}]

    assert [(each.plan, each.is_current, dict(each.seats)) for each in offers] == [
        ("essential", False, {"locations": 3}), ("pro", True, {"locations": 3}), ("scale", False, {}),
    ]  # fmt: skip
    assert offers_of(Facts("acme", NOW_MS, SHOP, {"stripe_customers": euros})) == ()


def test_prices_in_words() -> None:
    prices = {
        price.component: price_text(price)
        for name in ("essential", "scale")
        for price in prices_of(TIERED, PlanId(name, 1), TIERED.plans[name])
    }

    assert prices == {
        "location": "$79.00 for each location",
        "base": "$200.00",
        "tokens": "tokens: 10 included, then $0.0005 each up to 1,000, then $5.00 and $0.02 each",
    }


@pytest.mark.parametrize(
    ("number", "text"), [("0", "0"), ("1000", "1,000"), ("1234.500", "1,234.5"), ("-3", "-3"), ("1E+3", "1,000")]
)
def test_quantities_for_people(number: str, text: str) -> None:
    assert number_text(Decimal(number)) == text
