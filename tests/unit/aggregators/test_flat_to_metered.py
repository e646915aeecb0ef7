"""The guards and comparisons of migrations to a price for usage, as tables."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from aggregators import flat_to_metered as rules
from aggregators.catalog_prices import prices_of
from aggregators.plan_moves import CannotMove
from schemas.bills import Bill
from schemas.catalog import PlanId
from schemas.catalog_changes import CatalogKind, KnownPlan, PlanState, Standing, StripeRecord
from schemas.clock import DAY_MS
from schemas.flat_to_metered import Checked, Counted, Figures, Item, ItemState, Migration, Rated, WaveRule
from schemas.intent_ledger import IntentTotals
from schemas.periods import Period
from schemas.plan_moves import Subscribed, SubscribedItem
from tests.worlds.migrating import CATALOG
from tests.worlds.sold import parsed

FLAT, SHADOW, METERED = PlanId("flat", 1), PlanId("shadow", 1), PlanId("metered", 1)
MIGRATION = Migration("usage", FLAT, SHADOW, METERED, 30, WaveRule.SETTLED, 0, "ann", "why")
NONE = IntentTotals(Decimal(0), Decimal(0), Decimal(0), Decimal(0))


def standing(text: str = CATALOG) -> Standing:
    """A catalog whose prices are at Stripe under their lookup keys."""
    catalog = parsed(text)
    records = {}
    for plan, sold in catalog.sold().items():
        for price in prices_of(catalog, plan, sold):
            terms = price.terms
            records[CatalogKind.PRICE, price.key] = StripeRecord(
                price.key, CatalogKind.PRICE, price.key, plan, price.component, terms.interval, terms.currency
            )
    plans = {plan: KnownPlan(sold, PlanState.OPEN) for plan, sold in catalog.sold().items()}
    return Standing(catalog, "hash", plans=plans, records=records)


PRICES = rules.prices_for(standing(), FLAT, SHADOW, METERED)
FEE, ZERO, USAGE = (f"tm.{key}" for key in ("flat.v1.fee.month.usd", "shadow.v1.calls.month.usd",
                                            "metered.v1.calls.month.usd"))  # fmt: skip


def item(wave: int, state: ItemState, number: int = 1, **figures: Any) -> Item:
    """A subscription of a wave."""
    return Item("usage", f"sub_{wave}_{number}", "acme", "cus_1", wave, state,
                Figures("usd", 2, 9_900, (), **figures), 0)  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ('month: {usd: "0"}', 'month: {usd: "0.01"}', "is not usage at a price of 0"),
        ("  flat:\n    version: 1", "  flat:\n    version: 2", "there is no plan flat@1"),
    ],
    ids=["a shadow that costs", "no such version"],
)
def test_three_plans_that_make_no_migration(before: str, after: str, words: str) -> None:
    with pytest.raises(CannotMove, match=words):
        rules.prices_for(standing(CATALOG.replace(before, after)), FLAT, SHADOW, METERED)


@pytest.mark.parametrize(
    ("plans", "words"),
    [
        ((METERED, SHADOW, METERED), "bills usage already"),
        ((FLAT, SHADOW, FLAT), "bills no usage"),
        ((FLAT, FLAT, METERED), "is not usage at a price of 0"),
        ((FLAT, PlanId("free", 1), METERED), "has no price of calls, which metered@1 bills"),
    ],
    ids=["from usage", "to a fee", "a fee as shadow", "no shadow"],
)
def test_plans_that_do_not_fit(plans: tuple[PlanId, PlanId, PlanId], words: str) -> None:
    with pytest.raises(CannotMove, match=words):
        rules.prices_for(standing(), *plans)


def test_the_waves_have_1_10_100_and_all_others() -> None:
    waves = [rules.wave_of(place) for place in range(340)]
    assert [waves.count(wave) for wave in (1, 2, 3, 4)] == [1, 10, 100, 229]


@pytest.mark.parametrize(
    ("held", "mixed", "promoted", "flat"),
    [
        ([FEE], False, False, True),
        ([FEE, ZERO], False, False, True),
        ([USAGE], False, True, False),
        ([FEE, USAGE], True, False, False),
        ([ZERO, USAGE], False, False, False),
        ([FEE, ZERO, USAGE], True, False, False),
        (["other"], False, False, False),
    ],
    ids=["flat", "shadow", "usage", "both", "zero beside usage", "all", "another plan"],
)
def test_what_a_subscription_has(held: list[str], mixed: bool, promoted: bool, flat: bool) -> None:
    items = [SubscribedItem(price, 1 if price == FEE else None) for price in held]
    found = rules.is_mixed(PRICES, items), rules.is_promoted(PRICES, items), rules.is_flat(PRICES, items)
    assert found == (mixed, promoted, flat)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"status": "past_due"}, "only a subscription that is active and paid"),
        ({"status": "paused"}, "is paused"),
        ({"account": ""}, "belongs to no account"),
        ({"schedule": "sub_sched_1"}, "has the schedule sub_sched_1"),
        ({"is_ending": True}, "about to be canceled"),
        ({"is_pending": True}, "pending update"),
        ({"has_item_discounts": True}, "discount of one item"),
        ({"items": (SubscribedItem(FEE, 1), SubscribedItem(USAGE, None))}, "has prices of metered@1 already"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_who_cannot_take_part(change: dict[str, Any], words: str) -> None:
    fits = Subscribed("sub_1", "active", "", 0, False, False, False, (SubscribedItem(FEE, 1),), "acme", "cus_1")
    rules.check_fit(PRICES, fits)
    with pytest.raises(CannotMove, match=words):
        rules.check_fit(PRICES, fits._replace(**change))


@pytest.mark.parametrize(
    ("usage", "stripe", "is_right"),
    [("240000", 8_400, True), ("240000", 8_401, True), ("240000", 8_402, False), ("240000", 8_398, False),
     ("100000", 0, True), ("100001", 0, True)],
)  # fmt: skip
def test_our_rating_and_stripes_differ_by_one_at_most(usage: str, stripe: int, is_right: bool) -> None:
    found = rules.rated(PRICES, "usd", {USAGE: (Decimal(usage), stripe)}, 7)
    assert (found.quantity, found.at_ms, not rules.rating_problem(found)) == (usage, 7, is_right)


def evidence(counted: int, reported: int, recounted: int, billed: int, charged: int = 0, **more: Any) -> rules.Evidence:
    """What there is about one bill."""
    bill = Bill("cus_1", "sub_1", "in_1", "calls", ZERO, 30_000, 90_000, Decimal(billed), charged, "usd", 2, None, 1)
    totals = {"calls": Counted(Decimal(counted), Decimal(recounted))}
    return rules.Evidence({"calls": bill}, totals, {"calls": NONE._replace(accepted=Decimal(reported), **more)})


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((5, 5, 5, 5), ""),
        ((5, 5, 5, 4), "invoice in_1: we counted 5, reported 5, the reconciler counted 5, the invoice bills 4"),
        ((6, 5, 5, 5), "we counted 6"),
        ((5, 4, 5, 5), "reported 4"),
        ((5, 5, 3, 5), "the reconciler counted 3"),
    ],
    ids=["equal", "billed", "counted", "reported", "recounted"],
)
def test_four_numbers_are_one(numbers: tuple[int, int, int, int], words: str) -> None:
    found = rules.shadow_problem(rules.checked(PRICES, "usd", evidence(*numbers)))
    assert words in found
    assert bool(found) == bool(words)


def test_what_is_under_way_is_not_compared() -> None:
    assert evidence(5, 5, 5, 5).is_whole
    assert not evidence(5, 5, 5, 5, pending=Decimal(1)).is_whole
    assert not evidence(5, 5, 5, 5, dead=Decimal(1)).is_whole
    found = evidence(5, 5, 5, 5)
    assert not found._replace(totals={}).is_whole
    assert rules.period_of(found.bills["calls"]) == Period(0, 60_000)


def test_the_shadow_charges_nothing_and_the_price_for_usage_what_we_rate() -> None:
    shadow = rules.checked(PRICES, "usd", evidence(240_000, 240_000, 240_000, 240_000, charged=1))
    assert rules.shadow_problem(shadow) == "invoice in_1 charges 1 (minor units) for usage that should cost nothing"
    for charged, is_right in ((8_400, True), (8_401, True), (8_402, False)):
        found = rules.checked(PRICES, "usd", evidence(240_000, 240_000, 240_000, 240_000, charged=charged))
        assert (rules.settled_problem(found) == "") == is_right
    assert rules.settled_problem(rules.checked(PRICES, "usd", evidence(1, 2, 1, 1)))


@pytest.mark.parametrize(
    ("items", "rule", "halted", "wave", "words"),
    [
        ([item(1, ItemState.COMPARED)], WaveRule.SETTLED, "", 1, ""),
        ([item(1, ItemState.COMPARED)], WaveRule.SETTLED, "a difference", 1, "the migration is halted: a difference"),
        ([item(1, ItemState.SHADOW)], WaveRule.SETTLED, "", 1, "were not compared yet, such as sub_1_1"),
        ([item(1, ItemState.REVERTED)], WaveRule.SETTLED, "", 1, "wave 1 has no subscription"),
        ([item(1, ItemState.PROMOTED), item(2, ItemState.COMPARED)], WaveRule.SETTLED, "", 2, "is not settled yet"),
        ([item(1, ItemState.PROMOTED), item(2, ItemState.COMPARED)], WaveRule.PROMOTED, "", 2, ""),
        ([item(1, ItemState.APPROVED), item(2, ItemState.COMPARED)], WaveRule.SCHEDULED, "", 2, "is not scheduled yet"),
        ([item(1, ItemState.LEFT), item(2, ItemState.COMPARED)], WaveRule.SETTLED, "", 2, ""),
        ([item(2, ItemState.COMPARED), item(3, ItemState.SHADOW)], WaveRule.SETTLED, "", 2, ""),
    ],
)  # fmt: skip
def test_when_a_wave_can_be_approved(items: list[Item], rule: WaveRule, halted: str, wave: int, words: str) -> None:
    found = rules.approval_hindrance(MIGRATION._replace(rule=rule, halted=halted), items, wave)
    assert words in found
    assert bool(found) == bool(words)


def test_the_month_without_cash_is_what_is_no_longer_paid_ahead() -> None:
    items = [item(1, ItemState.COMPARED), item(1, ItemState.COMPARED, fees_minor=2_000),
             item(1, ItemState.COMPARED, fees_minor=12_000)]  # fmt: skip
    assert rules.month_without_cash(items) == {("usd", 2): 9_900 + 7_900}


def test_who_was_told_too_late_waits() -> None:
    told = item(1, ItemState.APPROVED)._replace(notified_ms=DAY_MS)
    assert rules.notice_hindrance(MIGRATION, told, 31 * DAY_MS) == ""
    assert "less than 30 days" in rules.notice_hindrance(MIGRATION, told, 31 * DAY_MS - 1)
    assert "nobody said" in rules.notice_hindrance(MIGRATION, item(1, ItemState.APPROVED), 99 * DAY_MS)


@pytest.mark.parametrize(
    ("previewed", "billed", "previews", "words"),
    [("5", "5", True, ""), ("0", "5", True, "no usage yet"), ("0", "0", True, ""), (None, "0", True, "no usage yet"),
     (None, "5", False, ""), ("5", None, True, "no invoice of a whole period")],
)  # fmt: skip
def test_what_a_comparison_lacks(previewed: str | None, billed: str | None, previews: bool, words: str) -> None:
    rated = None if previewed is None else Rated(previewed, 1, 1, 0)
    compared = None if billed is None else Checked("in_1", 0, 1, billed, billed, billed, billed, 0, 0)
    found = rules.comparison_hindrance(Figures("usd", 2, 1, (), rated=rated, compared=compared), previews=previews)
    assert words in found
    assert bool(found) == bool(words)


def test_the_last_whole_period_says_what_usage_would_have_cost() -> None:
    each = Subscribed("sub_1", "active", "", 0, False, False, False, (SubscribedItem(FEE, 1),), "acme", "cus_1")
    totals = {
        ("acme", "calls", Period(0, 100)): Counted(Decimal(1), Decimal(1)),
        ("acme", "calls", Period(100, 200)): Counted(Decimal(240_000), Decimal(240_000)),
        ("acme", "calls", Period(200, 300)): Counted(Decimal(9), Decimal(9)),
        ("other", "calls", Period(100, 250)): Counted(Decimal(7), Decimal(7)),
    }
    assert rules.past_minor(PRICES, each, totals, 250) == 8_400
    assert rules.past_minor(PRICES, each, {}, 250) is None


def test_a_credit_is_of_what_all_meters_of_a_period_and_the_fees_cost_together() -> None:
    """60.00 and 50.00 of two meters and a fee of 9.00 are 20.00 more than 99.00; a cheap period takes nothing off."""
    bills = [
        Bill("cus_1", "sub_1", f"in_{start}", meter, meter, start, start + 1, Decimal(1), minor, "usd", 2, None, 1)
        for start, meter, minor in ((1, "calls", 6_000), (1, "bytes", 5_000), (2, "calls", 100), (2, "bytes", 0))
    ]
    assert rules.credit_minor(Figures("usd", 2, 9_900, (), fees_minor=900), bills) == 2_000
