"""The items of a subscription after a move to another version of its plan, and what a schedule cannot keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from aggregators.catalog_plan import World, states_after
from aggregators.catalog_prices import all_prices
from aggregators.plan_moves import CannotMove, Versions, check_movable, phases_of
from schemas.catalog import Catalog, PlanId
from schemas.catalog_changes import AtStripe, CatalogKind, Standing, StripeRecord
from schemas.plan_moves import Subscribed, SubscribedItem
from tests.unit.catalog.files import SMALL, catalog_of

ONE, TWO = PlanId("team", 1), PlanId("team", 2)
PRICES = SMALL[SMALL.index("    prices:\n      - {component: seat") : SMALL.index("    trial:")]
SEATS = "grants: {seats: quantity}"
Items = Sequence[tuple[str, int | None]]


def second(body: str) -> Catalog:
    """The small catalog with another second version of the team's plan."""
    text = SMALL.replace("version: 1\nmeters", "version: 2\nmeters")
    text = text.replace("  team:\n    version: 1", "  team:\n    version: 2")
    return catalog_of(text.replace(PRICES, body))


def standing(*catalogs: Catalog) -> Standing:
    """What SQL has after the applications; the price id is the lookup key."""
    found = Standing()
    for catalog in catalogs:
        records = {
            (CatalogKind.PRICE, key): StripeRecord(
                key, CatalogKind.PRICE, key, price.plan, price.component, price.terms.interval, price.terms.currency
            )
            for key, price in all_prices(catalog).items()
        }
        plans = states_after(catalog, World(found, AtStripe(), {}))
        found = Standing(catalog, plans=plans, records={**found.records, **records})
    return found


def after(body: str, *items: tuple[str, int | None]) -> list[tuple[str, int | None]]:
    """The items after the move, by the part of the lookup key behind the plan."""
    versions = Versions(standing(catalog_of(SMALL), second(body)), ONE, TWO)
    moved = versions.items_after([SubscribedItem(f"tm.team.v1.{price}", quantity) for price, quantity in items])
    return [(item.price.removeprefix("tm.team."), item.quantity) for item in moved]


BOUGHT = (("seat.month.usd", 3), ("tokens.month.usd", None))
SEAT = '- {component: seat, quantity: seats, month: {usd: "9", jpy: 9}}'
CALLS = '- {component: calls, meter: calls, unit: calls, month: {usd: "1", jpy: 1}}'
CASES: dict[str, tuple[str, Items]] = {
    "the same components": (PRICES, [("v2.seat.month.usd", 3), ("v2.tokens.month.usd", None)]),
    "one less": (f"    prices:\n      {SEAT}\n    {SEATS}\n", [("v2.seat.month.usd", 3)]),
    "a base fee more": (
        f'    prices:\n      {SEAT}\n      - {{component: base, month: {{usd: "1", jpy: 1}}}}\n    {SEATS}\n',
        [("v2.seat.month.usd", 3), ("v2.base.month.usd", 1)],
    ),
    "usage more": (
        f"    prices:\n      {SEAT}\n      {CALLS}\n    {SEATS}\n",
        [("v2.seat.month.usd", 3), ("v2.calls.month.usd", None)],
    ),
    "the seats under another name": (
        f'    prices:\n      - {{component: desk, quantity: seats, month: {{usd: "9"}}}}\n    {SEATS}\n',
        [("v2.desk.month.usd", 3)],
    ),
}


@pytest.mark.parametrize(("body", "expected"), CASES.values(), ids=CASES)
def test_a_component_keeps_its_interval_currency_and_quantity(body: str, expected: Items) -> None:
    assert list(expected) == after(body, *BOUGHT)


def test_what_is_not_of_the_plan_stays() -> None:
    versions = Versions(standing(catalog_of(SMALL), second(PRICES)), ONE, TWO)
    items = (SubscribedItem("tm.boost.v1.addon.month.usd", 2), SubscribedItem("tm.team.v1.seat.month.usd", 3))

    assert items[0] == versions.items_after(items)[0]


REFUSED: dict[str, tuple[str, Items, str]] = {
    "another currency": (
        f'    prices:\n      - {{component: seat, quantity: seats, month: {{usd: "9"}}}}\n    {SEATS}\n',
        [("seat.month.jpy", 3)],
        "team@2 has no price of seat by the month in jpy",
    ),
    "another interval": (
        f'    prices:\n      - {{component: seat, quantity: seats, year: {{usd: "9"}}}}\n    {SEATS}\n',
        BOUGHT,
        "team@2 has no price of seat by the month in usd",
    ),
    "a number that nobody said": (
        f'    prices:\n      {SEAT}\n    {SEATS}\n',
        BOUGHT[1:],
        "seat is new, and the subscription does not have one interval for it",
    ),
    "nothing is left": ("    prices: none\n    grants: {seats: 5}\n", BOUGHT, "cancel the subscription instead"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "items", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_bought_so_is_refused(body: str, items: Items, words: str) -> None:
    with pytest.raises(CannotMove, match=words):
        after(body, *items)


def test_who_has_both_versions_is_refused() -> None:
    versions = Versions(standing(catalog_of(SMALL), second(PRICES)), ONE, TWO)
    both = [SubscribedItem(f"tm.team.v{version}.seat.month.usd", 3) for version in (1, 2)]
    with pytest.raises(CannotMove, match="has prices of team@2 already"):
        versions.items_after(both)


def test_less_is_said_of_grants_and_of_what_is_included() -> None:
    body = PRICES.replace("tokens: 5000", "tokens: 4000").replace("sso: true, tokens: 9000", "tokens: 8000")
    versions = Versions(standing(catalog_of(SMALL), second(body)), ONE, TWO)

    assert [
        "sso: true, then nothing",
        "tokens: 9000, then 8000",
        "included tokens: 5000, then 4000",
    ] == versions.losses()
    assert [line.partition(":")[0] for line in versions.price_changes()] == ["tokens month usd", "tokens month jpy"]
    assert [] == Versions(standing(catalog_of(SMALL), second(PRICES)), ONE, TWO).losses()


FINE = Subscribed("sub_1", "active", "", 0, is_ending=False, is_pending=False, has_item_discounts=False, items=())


@pytest.mark.parametrize(
    ("subscribed", "words"),
    [
        (FINE, ""),
        (FINE._replace(status="past_due"), ""),
        (FINE._replace(status="unpaid"), "is unpaid"),
        (FINE._replace(status="paused"), "is paused"),
        (FINE._replace(is_ending=True), "about to be canceled"),
        (FINE._replace(is_pending=True), "pending update"),
        (FINE._replace(status="trialing"), ""),
        (FINE._replace(has_item_discounts=True), "discount"),
    ],
    ids=["active", "past due", "unpaid", "paused", "ending", "pending", "trialing", "discounted item"],
)
def test_who_is_moved(subscribed: Subscribed, words: str) -> None:
    if not words:
        check_movable(subscribed)
        return
    with pytest.raises(CannotMove, match=words):
        check_movable(subscribed)


PHASE: dict[str, Any] = {
    "items": [{"price": "old", "quantity": 3, "discounts": []}, {"price": {"id": "usage"}}],
    "start_date": 10, "end_date": 40, "discounts": [], "trial_end": None,
}  # fmt: skip


def test_the_present_phase_is_said_again() -> None:
    now, later = phases_of([PHASE], [SubscribedItem("new", 3), SubscribedItem("usage_2", None)])

    assert ([{"price": "old", "quantity": 3}, {"price": "usage"}], 10, 40) == (
        now["items"], now["start_date"], now["end_date"],
    )  # fmt: skip
    assert ([{"price": "new", "quantity": 3}, {"price": "usage_2"}], 40, 70) == (
        later["items"], later["start_date"], later["end_date"],
    )  # fmt: skip
    assert {"none"} == {phase["proration_behavior"] for phase in (now, later)}


def test_trial_discounts_and_automatic_tax_are_said_again() -> None:
    """The trial is that of the present phase alone. A discount goes on as it is, and does not begin again."""
    phase = {
        **PHASE,
        "trial_end": 40,
        "discounts": [
            {"coupon": "c", "discount": "di_1", "promotion_code": None},
            {"coupon": None, "discount": None, "promotion_code": {"id": "promo_1"}},
        ],
        "automatic_tax": {"enabled": True, "disabled_reason": None, "liability": {"type": "self", "account": None}},
    }
    now, later = phases_of([phase], [SubscribedItem("new", 3)])

    kept = {
        "discounts": [{"discount": "di_1"}, {"promotion_code": "promo_1"}],
        "automatic_tax": {"enabled": True, "liability": {"type": "self"}},
    }
    assert [kept, kept] == [{name: each[name] for name in kept} for each in (now, later)]
    assert (True, False) == (now.get("trial"), "trial" in later)
    plain = phases_of([PHASE], [SubscribedItem("new", 3)])
    assert not {"discounts", "automatic_tax", "trial"} & {name for each in plain for name in each}


def test_a_discount_that_cannot_be_named_leaves_the_subscription_alone() -> None:
    phase = {**PHASE, "discounts": [{"coupon": None, "discount": None, "promotion_code": None}]}
    with pytest.raises(CannotMove, match="discount that cannot be named"):
        phases_of([phase], [SubscribedItem("new", 3)])


def test_a_spend_cap_that_is_new_or_other_is_named() -> None:
    capped, raised = (f'{PRICES}    spend_cap: {{tokens: {{usd: "{amount}"}}}}\n' for amount in ("50.00", "80"))
    none = standing(catalog_of(SMALL), second(capped))
    assert ["spend cap of tokens in usd: none, then 50"] == Versions(none, ONE, TWO).losses()
    first = catalog_of(SMALL.replace(PRICES, capped))
    for body, losses, changes in (
        (raised, [], ["spend cap of tokens in usd: 50, then 80"]),
        (PRICES, [], ["spend cap of tokens in usd: 50, then none"]),
        (capped.replace("50.00", "40"), ["spend cap of tokens in usd: 50, then 40"], []),
        (capped.replace("50.00", "50.0"), [], []),
    ):
        versions = Versions(standing(first, second(body)), ONE, TWO)
        assert (losses, changes) == (versions.losses(), versions.price_changes())


@pytest.mark.parametrize(
    "phases",
    [
        [PHASE, PHASE],
        [{**PHASE, "trial_end": 30}],
        [{**PHASE, "default_tax_rates": ["txr_1"]}],
        [{**PHASE, "items": [{"price": "old", "discounts": [{"coupon": "c"}]}]}],
        [{**PHASE, "items": [{"price": "old", "tax_rates": ["txr_1"]}]}],
    ],
    ids=["two phases", "a short trial", "tax rates", "a discount of an item", "tax rates of an item"],
)
def test_what_would_be_dropped_is_refused(phases: list[dict[str, Any]]) -> None:
    with pytest.raises(CannotMove):
        phases_of(phases, [SubscribedItem("new", 3)])
