"""What a change of the catalog will do: versions, prices that never change, who is touched, and drift."""

from __future__ import annotations

import time

import pytest

from aggregators.catalog_drift import drift_of
from aggregators.catalog_plan import (
    World,
    catalog_hash,
    plan_catalog,
)
from schemas.catalog import Catalog, PlanId
from schemas.catalog_changes import (
    AtStripe,
    CatalogKind,
    CatalogPlan,
    KnownPlan,
    PlanState,
    StripeMeter,
    Verb,
)
from tests.unit.catalog.files import SMALL, catalog_of, changed
from tests.unit.catalog.worlds import EMPTY, applied

TEAM = PlanId("team", 1)
SEAT = "tm.team.v1.seat.month.usd"


def file(text: str, *edits: tuple[str, str], version: int = 2) -> Catalog:
    """A changed file, under another version."""
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    return catalog_of(text.replace("version: 1\nmeters", f"version: {version}\nmeters"))


def done(plan: CatalogPlan) -> list[tuple[str, str]]:
    """The actions without their details."""
    return [(action.verb.value, action.key) for action in plan.actions]


def test_the_first_application_makes_everything_in_order() -> None:
    """Meters, products, features, prices, and what is sold at the end."""
    plan = plan_catalog(catalog_of(SMALL), EMPTY)

    whats = [str(action.what) for action in plan.actions]
    assert ["meter", "product", "feature", "price", "plan"] == list(dict.fromkeys(whats))
    assert ([], []) == (plan.refusals, plan.drift)
    assert ("create", SEAT) in done(plan)
    assert ("attach", "sso tm-team-v1-seat") in done(plan)
    assert [("open", "free@1"), ("open", "team@1"), ("open", "boost@1")] == done(plan)[-3:]


def test_the_same_catalog_again_does_nothing() -> None:
    catalog = catalog_of(SMALL)

    plan = plan_catalog(catalog, applied(catalog))

    assert ([], [], []) == (plan.actions, plan.refusals, plan.drift)


def test_another_price_is_another_version_and_who_has_the_old_one_keeps_it() -> None:
    """The heart of it: nothing at Stripe changes for who pays already."""
    world = applied(catalog_of(SMALL))
    world = world._replace(usage={f"price_{SEAT}": frozenset({"sub_1", "sub_2"})})
    new = file(changed("  team:\n    version: 1", "  team:\n    version: 2"), ('usd: "10.00"', 'usd: "12.00"'))

    plan = plan_catalog(new, world)

    assert ("create", "tm.team.v2.seat.month.usd") in done(plan)
    assert [("open", "team@2"), ("close", "team@1")] == done(plan)[-2:]
    assert ({"team@1": 2}, []) == (plan.touched, plan.refusals)
    after = applied(new, world)
    assert PlanState.CLOSED is after.standing.plans[TEAM].state
    assert (TEAM, "seat") == after.standing.pins()[f"price_{SEAT}"]
    assert world.standing.plans[TEAM].sold == after.standing.plans[TEAM].sold


def test_a_version_that_nobody_has_is_retired_and_its_prices_archived() -> None:
    world = applied(catalog_of(SMALL))
    new = file(changed("  team:\n    version: 1", "  team:\n    version: 2"))

    plan = plan_catalog(new, world)

    assert ("retire", "team@1") in done(plan)
    archived = [key for verb, key in done(plan) if verb == "archive"]
    assert {"tm-team-v1-seat", "tm-team-v1-tokens", SEAT} < set(archived)
    assert [Verb.ARCHIVE] * len(archived) == [action.verb for action in plan.actions[-len(archived) :]]


@pytest.mark.parametrize(
    ("old", "new", "refusal"),
    [
        pytest.param('usd: "10.00"', 'usd: "12.00"', "team@1: prices were applied otherwise; raise the version to 2",
                     id="amount"),
        pytest.param("{up_to: inf,", "{up_to: 90000, price: {usd: 1, jpy: 1}}\n          - {up_to: inf,",
                     "team@1: prices were", id="tiers"),
        pytest.param("tokens: 9000", "tokens: 8000", "tokens would fall: raise the version to 2", id="lower grant"),
        pytest.param("sso: true, ", "", "sso would fall: raise the version to 2", id="grant taken away"),
        pytest.param("tokens: 9000", "tokens: 9500", "add --in-place", id="higher grant"),
        pytest.param("days: 14", "days: 30", "team@1: trial was applied otherwise", id="trial"),
        pytest.param("{plan: free}", "{plan: free, tax_behavior: inclusive}",
                     "would change: tax_behavior exclusive → inclusive; a price never changes", id="tax behavior"),
        pytest.param("stripe_event_name: tm_tokens", "stripe_event_name: tm_other",
                     "event_name tm_tokens → tm_other", id="meter at Stripe"),
        pytest.param("  boost: {version: 1, for: [team], ", "  boost: {version: 1, for: [team], stack: 5, ",
                     "boost@1: stack was applied otherwise", id="add-on"),
    ],
)  # fmt: skip
def test_terms_of_a_version_do_not_change(old: str, new: str, refusal: str) -> None:
    plan = plan_catalog(file(changed(old, new)), applied(catalog_of(SMALL)))

    assert any(refusal in each for each in plan.refusals), plan.refusals


@pytest.mark.parametrize(
    ("old", "new", "actions"),
    [
        pytest.param("rank: 10", "rank: 20", [("update", "team@1")], id="rank"),
        pytest.param("rank: 10", "name: The Team",
                     [("update", "tm-team-v1-seat"), ("update", "tm-team-v1-tokens"), ("update", "team@1")], id="name"),
        pytest.param("{component: seat,", "{component: seat, name: People,",
                     [("update", "tm-team-v1-seat"), ("update", "team@1")], id="component's name"),
        pytest.param("{plan: free}", "{plan: free, tax_code: txcd_10103001}",
                     [("update", "tm-team-v1-seat"), ("update", "tm-team-v1-tokens"), ("update", "tm-boost-v1-addon")],
                     id="tax code"),
    ],
)  # fmt: skip
def test_words_and_the_tax_code_change_in_place(old: str, new: str, actions: list[tuple[str, str]]) -> None:
    plan = plan_catalog(file(changed(old, new)), applied(catalog_of(SMALL)))

    assert (actions, []) == (done(plan), plan.refusals)


def test_a_grant_that_rises_may_change_in_place() -> None:
    new = file(changed("tokens: 9000", "tokens: unlimited"))

    plan = plan_catalog(new, applied(catalog_of(SMALL)), in_place=True)

    assert ([("update", "team@1")], []) == (done(plan), plan.refusals)
    fallen = plan_catalog(file(changed("tokens: 9000", "tokens: 8000")), applied(catalog_of(SMALL)), in_place=True)
    assert 1 == len(fallen.refusals)


@pytest.mark.parametrize(
    ("edits", "version", "refusal"),
    [
        pytest.param([("rank: 10", "rank: 11")], 1,
                     "version: must be above 1, the version that is active: write `version: 2`", id="catalog version"),
        pytest.param([("  sso: {type: flag, stripe_feature: sso}\n", ""), ("sso: true, ", ""),
                      ("  team:\n    version: 1", "  team:\n    version: 2")], 2,
                     "features.sso: team@1 grants it, so it must stay", id="feature in use"),
    ],
)  # fmt: skip
def test_what_somebody_has_stays_known(edits: list[tuple[str, str]], version: int, refusal: str) -> None:
    plan = plan_catalog(file(SMALL, *edits, version=version), applied(catalog_of(SMALL)))

    assert any(refusal in each for each in plan.refusals), plan.refusals


def test_a_version_below_the_newest_is_refused() -> None:
    first = applied(catalog_of(SMALL))
    second = applied(file(changed("  team:\n    version: 1", "  team:\n    version: 2")), first)

    plan = plan_catalog(file(SMALL, version=3), second)

    assert ["team@1: version 2 was applied already, so the version must be 2 or above"] == plan.refusals


def test_a_price_with_other_terms_under_our_lookup_key_is_refused() -> None:
    """What a killed application of another file left, or a person made."""
    world = applied(catalog_of(SMALL))
    price = world.stripe.prices[f"price_{SEAT}"]
    other = price._replace(terms=price.terms._replace(currency="eur"))

    plan = plan_catalog(catalog_of(SMALL), EMPTY._replace(stripe=AtStripe(prices={other.id: other})))

    (refusal,) = plan.refusals
    assert f"{SEAT}: Stripe's price price_{SEAT} would change: currency eur → usd" in refusal
    assert "raise the version of team to 2" in refusal


def _with_price(world: World, **fields: object) -> World:
    price = world.stripe.prices[f"price_{SEAT}"]._replace(**fields)  # type: ignore[arg-type]  # fields of the price
    return world._replace(stripe=world.stripe._replace(prices={**world.stripe.prices, f"price_{SEAT}": price}))


def _drifted(kind: str) -> World:
    world = applied(catalog_of(SMALL))
    stripe = world.stripe
    match kind:
        case "archived":
            return _with_price(world, is_active=False)
        case "lookup key moved":
            return _with_price(world, key="mine")
        case "price missing":
            prices = {key: price for key, price in stripe.prices.items() if key != f"price_{SEAT}"}
            return world._replace(stripe=stripe._replace(prices=prices))
        case "unmanaged price":
            return world._replace(usage={"price_x": frozenset({"sub_1", "sub_2"})})
        case "never applied":
            price = stripe.prices[f"price_{SEAT}"]._replace(id="price_y", key="tm.gold.v1.base.month.usd")
            return world._replace(stripe=stripe._replace(prices={**stripe.prices, "price_y": price}))
        case "tax code":
            product = stripe.products["tm-team-v1-seat"]._replace(tax_code="txcd_99999999")
            return world._replace(stripe=stripe._replace(products={**stripe.products, product.id: product}))
        case "meter":
            meter = StripeMeter("mtr", "tm_calls", "the Stripe meter of tm_calls (mtr) is deactivated")
            return world._replace(stripe=stripe._replace(meters={**stripe.meters, "tm_calls": meter}))
        case "meter made again":
            meter = StripeMeter("mtr_2", "tm_calls")
            return world._replace(stripe=stripe._replace(meters={**stripe.meters, "tm_calls": meter}))
        case "metadata":
            return _with_price(world, made_for="gold@1 seat")
        case "no metadata":
            return _with_price(world, made_for=" ")
        case "feature":
            return world._replace(stripe=stripe._replace(features={}))
        case _:
            return world._replace(stripe=stripe._replace(attached={"tm-team-v1-seat": frozenset({"other"})}))


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("archived", f"price price_{SEAT} ({SEAT}) is archived; its plan has 0 subscriptions"),
        ("lookup key moved", f"price price_{SEAT} was changed: lookup key {SEAT} → mine"),
        ("price missing", f"price price_{SEAT} ({SEAT}) is not at Stripe"),
        ("unmanaged price", "price price_x is in 2 subscriptions and no plan of the catalog has it"),
        ("never applied", "price price_y has the lookup key tm.gold.v1.base.month.usd and was never applied"),
        ("tax code", "product tm-team-v1-seat was changed: tax_code none → txcd_99999999"),
        ("meter", "meter tm_calls: the Stripe meter of tm_calls (mtr) is deactivated"),
        ("meter made again", "meter tm_calls is mtr_2, and was mtr_tm_calls: the prices of the old one bill no usage"),
        ("metadata", f"price price_{SEAT} ({SEAT}) was changed: metadata team@1 seat → gold@1 seat"),
        ("no metadata", f"price price_{SEAT} ({SEAT}) was changed: metadata team@1 seat → none"),
        ("feature", "feature sso is not at Stripe"),
        ("attached", "product tm-team-v1-seat was changed: features sso → other"),
    ],
)
def test_drift_is_named(kind: str, line: str) -> None:
    assert [] == drift_of(applied(catalog_of(SMALL)))

    assert [line] == drift_of(_drifted(kind))


def _superseded(*, is_kept: bool) -> World:
    """Version 2 of the plan is sold, and version 1 is kept by a subscription, or by nobody."""
    usage = {f"price_{SEAT}": frozenset({"sub_1"})} if is_kept else {}
    world = applied(catalog_of(SMALL))._replace(usage=usage)
    new = file(changed("  team:\n    version: 1", "  team:\n    version: 2"))
    after = applied(new, world)
    return after._replace(stripe=after.stripe._replace(attached={}))


def test_a_kept_version_drifts_like_one_that_is_sold() -> None:
    """Its customers pay its prices, and have its features."""
    world = _superseded(is_kept=True)
    product = world.stripe.products["tm-team-v1-seat"]
    products = {**world.stripe.products, product.id: product._replace(is_active=False)}
    broken = _with_price(world._replace(stripe=world.stripe._replace(products=products)), is_active=False)
    attached = {product.id: frozenset[str](), "tm-team-v2-seat": frozenset({"sso"})}

    assert [] == drift_of(world)
    found = drift_of(broken._replace(stripe=broken.stripe._replace(attached=attached)))
    assert {
        f"price price_{SEAT} ({SEAT}) is archived; its plan has 1 subscription",
        "product tm-team-v1-seat is archived; its plan has 1 subscription",
        "product tm-team-v1-seat was changed: features sso → none",
    } == set(found)
    assert 3 == len(found)


def test_a_retired_version_is_archived_unless_somebody_subscribed_to_it_again() -> None:
    """In Stripe's dashboard, an archived price cannot be chosen; through the API of an older application it may be."""
    world = _with_price(_superseded(is_kept=False), is_active=False)

    assert [] == drift_of(world)
    again = world._replace(usage={f"price_{SEAT}": frozenset({"sub_1", "sub_2"})})
    assert [f"price price_{SEAT} ({SEAT}) is archived; its plan has 2 subscriptions"] == drift_of(again)


@pytest.mark.parametrize(
    ("kind", "actions", "refused"),
    [
        ("archived", [("update", SEAT)], False),
        ("lookup key moved", [("create", SEAT)], True),
        ("price missing", [("create", SEAT)], True),
        ("tax code", [("update", "tm-team-v1-seat")], False),
        ("feature", [("create", "sso")], False),
        ("meter", [], True),
    ],
)
def test_drift_is_repaired_by_the_next_plan_or_refused(
    kind: str, actions: list[tuple[str, str]], refused: bool
) -> None:
    plan = plan_catalog(catalog_of(SMALL), _drifted(kind))

    assert (actions, refused) == (done(plan), bool(plan.refusals))


def test_a_plan_that_was_closed_is_sold_again_under_its_version() -> None:
    """A plan that was left out of the file by mistake."""
    world = applied(catalog_of(SMALL))._replace(usage={f"price_{SEAT}": frozenset({"sub_1"})})
    without = SMALL[: SMALL.index("  team:")] + SMALL[SMALL.index("credit_pools") :]
    closed = applied(file(without), world)
    assert KnownPlan(world.standing.plans[TEAM].sold, PlanState.CLOSED) == closed.standing.plans[TEAM]

    plan = plan_catalog(file(SMALL, version=3), closed)

    assert ([("open", "team@1"), ("open", "boost@1")], []) == (done(plan), plan.refusals)


def test_fifty_plans_in_four_currencies_are_planned_in_seconds() -> None:
    """The time of this process, so that a busy machine does not fail it."""
    plans = "".join(
        f"  p{number}:\n    version: 1\n    prices:\n"
        + "".join(
            f"      - {{component: c{part}, month: {amounts}, year: {amounts}}}\n"
            for part in range(2)
            for amounts in ['{usd: "9.99", eur: "9.99", jpy: 990, gbp: "9.99"}']
        )
        + "    grants: {sso: true, tokens: 5}\n"
        for number in range(50)
    )
    text = changed("{usd: 2, jpy: 0}", "{usd: 2, jpy: 0, eur: 2, gbp: 2}").replace("addons:", f"{plans}addons:")

    began = time.process_time()
    catalog = catalog_of(text)
    world = applied(catalog)
    first, second = plan_catalog(catalog, EMPTY), plan_catalog(catalog, world)
    took_s = time.process_time() - began

    assert (800, []) == (sum(".p" in action.key for action in first.actions), second.actions)
    assert took_s < 5
    assert CatalogKind.PRICE in {action.what for action in first.actions}


@pytest.mark.parametrize("spelling", ['"10"', '"10.0"', "10", "10.000", '"10.00"'])
def test_an_equal_amount_is_the_same_price_however_it_is_written(spelling: str) -> None:
    """Nobody must raise a version because an editor took zeros away."""
    catalog = catalog_of(SMALL)

    plan = plan_catalog(catalog_of(changed('usd: "10.00"', f"usd: {spelling}")), applied(catalog))

    assert ([], [], catalog_hash(catalog)) == (plan.actions, plan.refusals, plan.sha256)


def test_a_catalog_that_was_applied_by_another_hash_is_the_same_catalog() -> None:
    """What an older release applied has a hash of the file as it was spelled."""
    catalog = catalog_of(SMALL)
    world = applied(catalog)
    world = world._replace(standing=world.standing._replace(sha256="older"))

    plan = plan_catalog(catalog, world)

    assert ([], [], "older") == (plan.actions, plan.refusals, plan.sha256)
