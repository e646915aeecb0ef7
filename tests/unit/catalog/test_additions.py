"""Another currency or interval of a version that is sold, what new versions give, and what is worth a warning."""

from __future__ import annotations

from typing import Final

import pytest

from aggregators.catalog import read_catalog
from aggregators.catalog_plan import plan_catalog
from tests.unit.catalog.files import OFFERING, SMALL, catalog_of, changed
from tests.unit.catalog.worlds import applied

BOOST: Final = '  boost: {version: 1, for: [team], price: {month: {usd: "5.00"}}, grants: {tokens: {add: 1000}}}'
SEAT: Final = 'month: {usd: "10.00", jpy: 1500}'
EUR: Final = (
    ("{usd: 2, jpy: 0}", "{usd: 2, jpy: 0, eur: 2}"),
    (SEAT, 'month: {usd: "10.00", jpy: 1500, eur: 9}'),
    ("{usd: 0, jpy: 0}", "{usd: 0, jpy: 0, eur: 0}"),
    ('jpy: "0.0006"', 'jpy: "0.0006", eur: "0.000003"'),
)
CAP: Final = ("    trial: {family", "    spend_cap: {tokens: {eur: 20}}\n    trial: {family")


def edited(*edits: tuple[str, str], text: str = SMALL) -> str:
    """The small file with parts replaced, each of which must be in it."""
    for old, new in edits:
        assert old in text
        text = text.replace(old, new, 1)
    return text


def second(text: str) -> str:
    """The file under the next version."""
    return text.replace("version: 1\nmeters", "version: 2\nmeters", 1)


# The edits, the prices that are made, and the note on the version.
ADDITIONS = {
    "a currency of an add-on": (
        [('{usd: "5.00"}', '{usd: "5.00", jpy: 700}')], ["tm.boost.v1.addon.month.jpy"],
        "boost@1", "within the version, now also sold by month jpy",
    ),
    "an interval of an add-on": (
        [('{month: {usd: "5.00"}}', '{month: {usd: "5.00"}, year: {usd: 50}}')], ["tm.boost.v1.addon.year.usd"],
        "boost@1", "within the version, now also sold by year usd",
    ),
    "an interval of a plan": (
        [(SEAT, f"{SEAT}, year: {{usd: 100, jpy: 15000}}")],
        ["tm.team.v1.seat.year.usd", "tm.team.v1.seat.year.jpy"],
        "team@1", "within the version, now also sold by year jpy, year usd",
    ),
    "a currency of a plan with tiers": (
        [*EUR], ["tm.team.v1.seat.month.eur", "tm.team.v1.tokens.month.eur"],
        "team@1", "within the version, now also sold by month eur, usage eur",
    ),
    "a currency of a plan with a cap of its own": (
        [*EUR, CAP], ["tm.team.v1.seat.month.eur", "tm.team.v1.tokens.month.eur"],
        "team@1", "within the version, now also sold by month eur, usage eur",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("edits", "prices", "version", "note"), ADDITIONS.values(), ids=ADDITIONS.keys())
def test_another_currency_or_interval_needs_no_version(
    edits: list[tuple[str, str]], prices: list[str], version: str, note: str
) -> None:
    """Each is a price of its own at Stripe: nothing of what was sold changes."""
    plan = plan_catalog(catalog_of(second(edited(*edits))), applied(catalog_of(SMALL)))

    assert [] == plan.refusals
    found = [(action.key, action.detail) for action in plan.actions]
    assert (prices, (version, note)) == ([key for key, _ in found[:-1]], found[-1])


# Edits that are more than another currency or interval, and what the refusal says.
CHANGES = {
    "a currency less": (
        [(SEAT, 'month: {usd: "10.00"}'), ("{usd: 0, jpy: 0}", "{usd: 0}"), (', jpy: "0.0006"', "")],
        "team@1: prices were",
    ),
    "an interval instead of the other": (
        [('{month: {usd: "5.00"}}', '{year: {usd: "5.00"}}')], "boost@1: price was",
    ),
    "another amount, and a currency more": (
        [('{usd: "5.00"}', '{usd: "5.01", jpy: 700}')], "boost@1: price was",
    ),
    "a cap in a currency that is sold": (
        [("    trial: {family", "    spend_cap: {tokens: {usd: 20}}\n    trial: {family")], "team@1: spend_cap was",
    ),
    "one component more": (
        [("      - component: tokens\n", f"      - {{component: base, {SEAT}}}\n      - component: tokens\n")],
        "team@1: prices were",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("edits", "refusal"), CHANGES.values(), ids=CHANGES.keys())
def test_whatever_changes_what_was_sold_needs_a_version(edits: list[tuple[str, str]], refusal: str) -> None:
    plan = plan_catalog(catalog_of(second(edited(*edits))), applied(catalog_of(SMALL)))

    assert f"{refusal} applied otherwise; raise the version to 2" == plan.refusals[0]


# The file, the field and line of the warning, and the warning.
YEARLY = edited((SEAT, f"{SEAT}, year: {{usd: 100, jpy: 15000}}"))
WARNINGS = {
    "an add-on without a currency of its plan": (
        SMALL, "addons.boost.price", BOOST,
        "customers of team who pay in jpy by the month cannot buy the add-on: add `jpy:` to month",
    ),
    "an add-on without an interval of its plan": (
        YEARLY.replace('{usd: "5.00"}', '{usd: "5.00", jpy: 700}'), "addons.boost.price", "  boost: ",
        "customers of team who pay in jpy by the year or in usd by the year cannot buy the add-on: add `year: {",
    ),
    "an add-on without either": (
        YEARLY, "addons.boost.price", BOOST,
        "by the month, in jpy by the year or in usd by the year cannot buy the add-on: add `jpy:` to month and add",
    ),
    "a pack without a currency": (
        OFFERING.replace(", jpy: 3800", "").replace(BOOST, ""), "credit_pools.gifts.packs.p100", "  gifts: ",
        "customers who pay in jpy cannot buy the pack: add `jpy:`",
    ),
    "a coupon in a currency that nobody pays in": (
        OFFERING.replace("{usd: 2, jpy: 0}", "{usd: 2, jpy: 0, eur: 2}").replace(BOOST, "")
        .replace('amount_off: {usd: "5.00"}', "amount_off: {eur: 5}"),
        "coupons.sorry.amount_off", "  sorry: ",
        "no plan is sold in eur, so nobody can use the coupon: take jpy or usd",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "field", "line", "message"), WARNINGS.values(), ids=WARNINGS.keys())
def test_what_customers_of_some_currency_cannot_buy_is_a_warning(
    text: str, field: str, line: str, message: str
) -> None:
    """A business may mean it, so nothing is refused."""
    text = text.replace("addons:\n\n", "addons: {}\n")
    catalog, (warning,) = read_catalog(text.encode(), {})

    assert catalog is not None
    assert (field, True) == (warning.field, message in warning.message), warning
    assert text.splitlines()[warning.line - 1].startswith(line)


def test_an_add_on_that_every_customer_can_buy_is_no_warning() -> None:
    text = changed('{usd: "5.00"}', '{usd: "5.00", jpy: 700}').replace("for: [team]", "for: [team, free]")

    assert () == read_catalog(text.encode(), {})[1]
    assert () == read_catalog(OFFERING.replace('{month: {usd: "5.00"}}', "{month: {usd: 5, jpy: 7}}").encode(), {})[1]


NEW: Final = ("  team:\n    version: 1", "  team:\n    version: 2")
# The edits of the file, whether it is planned in place, and what is said of what it gives.
GIVES = {
    "nothing changes": ([], False, []),
    "a new version": (
        [NEW, ("seats: quantity, sso: true, tokens: 9000, reporting: {days: 30}", "seats: unlimited, tokens: 9000"),
         ("days: 14}", "days: 14, grants: {tokens: 5}}")],
        False,
        ["team@2 gives (before: team@1):", "  seats: as many as are paid → unlimited", "  tokens: 9000",
         "  tokens in a trial: none → 5", "  sso: yes → none", "  reporting: days 30 → none"],
    ),
    "an add-on's new version": (
        [("boost: {version: 1", "boost: {version: 2"), ("{add: 1000}", "{add: 500}")], False,
        ["boost@2 gives (before: boost@1):", "  tokens: 1000 more → 500 more"],
    ),
    "in place": (
        [("tokens: 9000", "tokens: unlimited")], True,
        ["team@1 gives:", "  seats: as many as are paid", "  sso: yes", "  tokens: 9000 → unlimited",
         "  reporting: days 30"],
    ),
    "a new plan": (
        [("addons:", "  solo: {version: 1, prices: none, grants: {seats: 1, sso: false}}\naddons:")], False,
        ["solo@1 gives:", "  seats: 1", "  sso: no"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("edits", "in_place", "lines"), GIVES.values(), ids=GIVES.keys())
def test_a_plan_says_what_new_versions_give(edits: list[tuple[str, str]], in_place: bool, lines: list[str]) -> None:
    plan = plan_catalog(catalog_of(second(edited(*edits))), applied(catalog_of(SMALL)), in_place=in_place)

    assert (lines, []) == (list(plan.gives), plan.refusals)


def test_tiers_are_words_and_amounts_in_a_refusal() -> None:
    world = applied(catalog_of(SMALL))
    dearer = changed(SEAT, 'month: {usd: "12.00", jpy: 1500}').replace("included: 2", "included: 3")

    plan = plan_catalog(catalog_of(second(dearer)), world)

    assert any("tiers 0.00 up to 2, 10.00 beyond → 0.00 up to 3, 12.00 beyond;" in each for each in plan.refusals)
    assert not any("PriceTier" in each for each in plan.refusals)
