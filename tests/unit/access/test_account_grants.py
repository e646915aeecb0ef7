"""What an account may do, by its subscriptions: one row for each state that Stripe may be in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import pytest

from aggregators.account_grants import Commerce, granted, resolver_of
from aggregators.entitlement_codec import decode, encode
from aggregators.entitlements import resolve, segment_at, sources_of
from schemas.catalog import PlanId
from schemas.catalog_changes import Pin
from schemas.entitlements import UNLIMITED, Grant, Operation, SourceKind
from schemas.side_tables import Link, Row
from tests.unit.catalog.files import SMALL, catalog_of

OLD = catalog_of(SMALL)
# Version 2 of the plan gives more; who has version 1 keeps that.
NEW = catalog_of(
    SMALL.replace("version: 1\n    rank: 10", "version: 2\n    rank: 10").replace("tokens: 9000", "tokens: 90000")
)
TEAM, BOOST = PlanId("team", 1), PlanId("boost", 1)
PINS = {"seat_1": Pin(TEAM, "seat"), "tokens_1": Pin(TEAM, "tokens"), "boost_1": Pin(BOOST, "boost")}
PINS |= {
    "seat_2": Pin(PlanId("team", 2), "seat"),
    "seat_1_year": Pin(TEAM, "seat"),
    "boost_1_year": Pin(BOOST, "boost"),
}
COMMERCE = Commerce(NEW, {**OLD.sold(), **NEW.sold()}, PINS)
NOW, LINKED = 5_000, [Link("acme", "cus_1", 0)]
Items = Sequence[tuple[str, int | None]]


def mirror(
    items: Items = (("seat_1", 4), ("tokens_1", None)),
    phases: Any = (),
    end_behavior: str = "release",
    **columns: Any,
) -> dict[str, list[Row]]:
    """The rows of one customer with a subscription."""
    row: Row = {
        "id": "sub_1", "customer_id": "cus_1", "status": "active", "start_ms": 1_000, "ended_ms": None,
        "cancel_at_ms": None, "trial_end_ms": None, "deleted": 0, **columns,
    }  # fmt: skip
    schedule: Row = {
        "id": "sub_sched_1", "subscription_id": "sub_1", "status": "active", "phases_json": json.dumps(phases),
        "end_behavior": end_behavior, "deleted": 0,
    }  # fmt: skip
    return {
        "subscriptions": [row],
        "subscription_items": [
            {
                "id": f"si_{price}", "subscription_id": "sub_1", "price_id": price, "quantity": quantity,
                "period_start_ms": 1_000,
            }
            for price, quantity in items
        ],
        "subscription_schedules": [schedule] if phases else [],
    }  # fmt: skip


def values(
    rows: Mapping[str, Sequence[Row]], now: int = NOW, links: Sequence[Link] = LINKED, people: Sequence[Grant] = ()
) -> dict[str, Any]:
    """The value of each feature at an instant."""
    found = granted(COMMERCE, links, rows, people)
    segments = resolve(found.features, found.entitled)
    assert decode(encode(segments)) == segments
    return {name: resolved.value for name, resolved in segment_at(segments, now).features.items()}


FREE = {"seats": 1, "sso": False, "tokens": 1000, "reporting": "null", "included:tokens": 0}
PAID = {"seats": 4, "sso": True, "tokens": 9000, "reporting": '{"days":30}', "included:tokens": 5000}
NOTHING = {"seats": 0, "sso": False, "tokens": 0, "reporting": "null", "included:tokens": 0}
PHASES: list[dict[str, Any]] = [
    {"start_ms": 1_000, "end_ms": 6_000, "prices": [{"price": "seat_1", "quantity": 4}]},
    {"start_ms": 6_000, "end_ms": None, "prices": [{"price": "seat_2", "quantity": 9}]},
]
ENDING = [PHASES[0], {**PHASES[1], "end_ms": 9_000}]
CASES: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {
    "active": ({}, NOW, PAID),
    "past due keeps its plan": ({"status": "past_due"}, NOW, PAID),
    "incomplete": ({"status": "incomplete"}, NOW, FREE),
    "incomplete expired": ({"status": "incomplete_expired"}, NOW, FREE),
    "paused": ({"status": "paused"}, NOW, FREE),
    "unpaid: the fallback plan": ({"status": "unpaid"}, NOW, FREE),
    "canceled, after its end": ({"status": "canceled", "ended_ms": 5_000}, NOW, FREE),
    "canceled, before its end": ({"status": "canceled", "ended_ms": 5_001}, NOW, PAID),
    "cancels later": ({"cancel_at_ms": 6_000}, NOW, PAID),
    "cancels later, then": ({"cancel_at_ms": 6_000}, 6_000, FREE),
    "before it starts": ({"start_ms": 6_000}, NOW, FREE),
    "deleted": ({"deleted": 1}, NOW, FREE),
    "another customer's": ({"customer_id": "cus_2"}, NOW, FREE),
    "an add-on, twice": ({"items": [("seat_1", 1), ("boost_1", 2)]}, NOW, {**PAID, "seats": 1, "tokens": 11000}),
    "an add-on, of which none is left": ({"items": [("seat_1", 4), ("boost_1", 0)]}, NOW, PAID),
    "an add-on without a plan": ({"items": [("boost_1", 1)]}, NOW, {**FREE, "tokens": 2000}),
    "seats by the month and by the year": ({"items": [("seat_1", 4), ("seat_1_year", 3)]}, NOW, {**PAID, "seats": 7}),
    "an add-on by the month and by the year": (
        {"items": [("seat_1", 4), ("boost_1", 1), ("boost_1_year", 2)]},
        NOW,
        {**PAID, "tokens": 12000},
    ),
    "a newer version": ({"items": [("seat_2", 3)]}, NOW, {**PAID, "seats": 3, "tokens": 90000}),
    "a schedule, before its phase": ({"phases": PHASES}, 5_999, PAID),
    "a schedule, from its phase on": ({"phases": PHASES}, 6_000, {**PAID, "seats": 9, "tokens": 90000}),
    "a schedule that cancels, before its end": (
        {"phases": ENDING, "end_behavior": "cancel"},
        8_999,
        {**PAID, "seats": 9, "tokens": 90000},
    ),
    "a schedule that cancels, at its end": ({"phases": ENDING, "end_behavior": "cancel"}, 9_000, FREE),
    "a schedule that goes on, at its end": ({"phases": ENDING}, 9_000, {**PAID, "seats": 9, "tokens": 90000}),
    "a schedule that was released": ({"phases": ()}, 6_000, PAID),
}


@pytest.mark.parametrize(("columns", "now", "expected"), CASES.values(), ids=CASES)
def test_a_subscription_gives_by_its_state(columns: dict[str, Any], now: int, expected: dict[str, Any]) -> None:
    assert values(mirror(**columns), now) == expected


DUNNED: dict[str, tuple[str, int | None, int, dict[str, Any]]] = {
    "past due, before the downgrade": ("past_due", 6_000, 5_999, PAID),
    "past due, from the downgrade on": ("past_due", 6_000, 6_000, FREE),
    "past due, not lost yet": ("past_due", None, NOW, PAID),
    "unpaid, before the downgrade": ("unpaid", 6_000, 5_999, PAID),
    "unpaid, from the downgrade on": ("unpaid", 6_000, 6_000, FREE),
    "unpaid, and paid by now": ("unpaid", None, NOW, PAID),
    "active, and an older invoice is open": ("active", 6_000, 6_000, FREE),
    "lost before it began": ("past_due", 500, NOW, FREE),
    "paused by a person": ("paused", None, NOW, FREE),
}


@pytest.mark.parametrize(("status", "downgrade_ms", "now", "expected"), DUNNED.values(), ids=DUNNED)
def test_a_dunning_case_decides(status: str, downgrade_ms: int | None, now: int, expected: dict[str, Any]) -> None:
    case: Row = {"subscription_id": "sub_1", "downgrade_ms": downgrade_ms}
    others: Row = {"subscription_id": "sub_2", "downgrade_ms": 0}
    rows: dict[str, Sequence[Row]] = {**mirror(status=status), "dunning_cases": [others, case]}
    assert values(rows, now) == expected


def test_a_downgrade_within_a_trial_and_a_schedule() -> None:
    """The trial's grants and the coming phase are lost like the plan."""
    rows: dict[str, Sequence[Row]] = {
        **mirror(phases=PHASES, status="trialing", trial_end_ms=5_500),
        "dunning_cases": [{"subscription_id": "sub_1", "downgrade_ms": 5_000}],
    }
    assert [values(rows, now)["tokens"] for now in (4_999, 5_000, 5_500, 6_000)] == [9_000, 1_000, 1_000, 1_000]


def test_nobody_has_the_default_plan() -> None:
    assert values({}) == FREE
    assert values({}, links=[]) == FREE


def test_two_subscriptions_give_together() -> None:
    both = mirror()
    second = mirror([("seat_2", 2)], id="sub_2")
    second["subscription_items"] = [{**row, "subscription_id": "sub_2"} for row in second["subscription_items"]]
    rows = {table: [*both[table], *second[table]] for table in both}

    assert values(rows) == {**PAID, "seats": 6, "tokens": 90000, "included:tokens": 10000}


OTHERS: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {
    "paid since before": ({"start_ms": 500}, NOW, {**PAID, "seats": 2, "tokens": 90000, "included:tokens": 5000}),
    "paid, and ended": ({"status": "canceled", "ended_ms": 4_000}, NOW, FREE),
    "paid, ends later, before": ({"cancel_at_ms": 6_000}, 5_999, {**PAID, "seats": 2, "tokens": 90000}),
    "paid, ends later, then": ({"cancel_at_ms": 6_000}, 6_000, FREE),
    "paid only later": ({"start_ms": 6_000}, NOW, FREE),
    "unpaid too": ({"status": "unpaid"}, NOW, FREE),
    "an add-on alone": ({"items": [("boost_1", 1)]}, NOW, FREE),
}


@pytest.mark.parametrize(("columns", "now", "expected"), OTHERS.values(), ids=OTHERS)
def test_an_unpaid_subscription_beside_another(columns: dict[str, Any], now: int, expected: dict[str, Any]) -> None:
    """The paid one wins while it gives a plan."""
    unpaid = mirror(status="unpaid")
    other = mirror(**({"items": [("seat_2", 2)], "id": "sub_2"} | columns))
    other["subscription_items"] = [{**row, "subscription_id": "sub_2"} for row in other["subscription_items"]]

    assert values({table: [*unpaid[table], *other[table]] for table in unpaid}, now) == expected


def test_a_version_does_not_grow_with_the_square_of_its_subscriptions() -> None:
    """300 that overlap: each began an hour after the one before."""
    rows: dict[str, list[Row]] = {"subscriptions": [], "subscription_items": []}
    for number in range(300):
        one = mirror(id=f"sub_{number}", start_ms=number * 3_600_000)
        rows["subscriptions"] += one["subscriptions"]
        rows["subscription_items"] += [{**row, "subscription_id": f"sub_{number}"} for row in one["subscription_items"]]
    computed = resolver_of(COMMERCE)(LINKED, rows, (), 299 * 3_600_000)

    assert len(decode(computed.segments)) == 2
    assert len(computed.segments) < 1_000_000


@pytest.mark.parametrize(
    ("links", "expected"),
    [
        ([Link("acme", "cus_1", 0, 5_000), Link("acme", "", 5_000)], FREE),
        ([Link("acme", "cus_1", 0, 5_001), Link("acme", "", 5_001)], PAID),
        ([Link("acme", "cus_2", 0, 5_000), Link("acme", "cus_1", 5_000)], PAID),
    ],
    ids=["unlinked", "not yet unlinked", "linked again"],
)
def test_a_subscription_gives_while_its_customer_is_linked(links: list[Link], expected: dict[str, Any]) -> None:
    assert values(mirror(), links=links) == expected


def test_a_trial_gives_until_its_end() -> None:
    trials = catalog_of(SMALL.replace("days: 14}", "days: 14, grants: {tokens: 50}}"))
    commerce = Commerce(trials, trials.sold(), PINS)
    found = granted(commerce, LINKED, mirror(status="trialing", trial_end_ms=6_000), ())
    segments = resolve(found.features, found.entitled)

    assert [segment_at(segments, at_ms).features["tokens"].value for at_ms in (5_999, 6_000)] == [50, 9000]


def test_a_price_of_somebody_else_gives_nothing_and_is_named() -> None:
    found = granted(COMMERCE, LINKED, mirror([("price_foreign", 1), ("seat_1", 4)]), ())

    assert found.unknown_prices == ("price_foreign",)
    assert values(mirror([("price_foreign", 1), ("seat_1", 4)])) == {**PAID}


@pytest.mark.parametrize(
    ("items", "columns", "links", "unreadable"),
    [
        ([("price_foreign", 1)], {}, LINKED, ("sub_1",)),
        ([("price_foreign", 1), ("boost_1", 1)], {}, LINKED, ("sub_1",)),
        ([("price_foreign", 1), ("seat_1", 4)], {}, LINKED, ()),
        ([("price_foreign", 1)], {"status": "canceled", "ended_ms": 5_000}, LINKED, ()),
        ([("price_foreign", 1)], {}, [Link("acme", "cus_1", 0, 5_000), Link("acme", "", 5_000)], ()),
    ],
    ids=["nothing of ours", "an add-on of ours", "beside a plan", "ended", "of a customer who left"],
)
def test_a_subscription_is_unreadable_while_it_may_be_a_plan(
    items: Items, columns: dict[str, Any], links: list[Link], unreadable: tuple[str, ...]
) -> None:
    assert granted(COMMERCE, links, mirror(items, **columns), ()).unreadable == unreadable


def test_an_unpaid_subscription_of_somebody_else_takes_no_plan_away() -> None:
    rows, foreign = mirror(), mirror([("price_foreign", 1)], id="sub_2", status="unpaid")
    rows["subscriptions"] += foreign["subscriptions"]
    rows["subscription_items"] += [{**row, "subscription_id": "sub_2"} for row in foreign["subscription_items"]]

    assert values(rows) == PAID


def test_a_person_grants_beside_the_plan() -> None:
    made = Grant("tokens", SourceKind.OVERRIDE, "ticket 7", Operation.ADD, Decimal(5), 0, cause="ann", reason="a gift")

    assert values(mirror(), people=[made]) == {**PAID, "tokens": 9005}


def test_the_answer_names_version_and_subscription() -> None:
    found = granted(COMMERCE, LINKED, mirror(), ())
    gives = segment_at(resolve(found.features, found.entitled), NOW).features["sso"].gives

    assert sources_of(gives) == ["plan:team@1"]
    assert [grant.cause for grant in gives] == ["sub_1"]


def test_the_inputs_alone_decide() -> None:
    resolver = resolver_of(COMMERCE)

    assert resolver(LINKED, mirror(), (), 0) == resolver(LINKED, mirror(), (), 0)
    assert (
        resolver(LINKED, mirror(), (), 0).inputs_sha256
        != resolver(LINKED, mirror(status="paused"), (), 0).inputs_sha256
    )


def test_unlimited_survives_the_text() -> None:
    unlimited = catalog_of(SMALL.replace("tokens: 9000", "tokens: unlimited"))
    found = granted(Commerce(unlimited, unlimited.sold(), PINS), LINKED, mirror(), ())
    (first, *_), text = resolve(found.features, found.entitled), encode(resolve(found.features, found.entitled))

    assert segment_at(decode(text), NOW).features["tokens"].value is UNLIMITED
    assert first.features["tokens"].value == 1000
