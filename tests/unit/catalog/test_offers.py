"""Packs of credits, coupons, the customer portal, and what kept versions have at Stripe: plans of changes and drift."""

from __future__ import annotations

import pytest

from aggregators.catalog import read_catalog
from aggregators.catalog_drift import drift_of
from aggregators.catalog_plan import World, plan_catalog
from aggregators.catalog_prices import pack_prices
from schemas.catalog import Catalog
from schemas.catalog_changes import CatalogPlan
from schemas.prices import CouponTerms, PortalTerms
from tests.unit.catalog.files import OFFERING, SMALL, catalog_of
from tests.unit.catalog.worlds import EMPTY, applied

PACK = "tm.pack.gifts.p100.v1.usd"
SOLO = "tm.solo.v1.base.month.usd"
TEAM_SEAT = "tm.team.v1.seat.month.usd"


def offering(*edits: tuple[str, str], version: int = 2) -> Catalog:
    """The file with offers after some edits, each of which must be in it."""
    text = OFFERING.replace("version: 1\nmeters", f"version: {version}\nmeters")
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    return catalog_of(text)


def done(plan: CatalogPlan) -> list[tuple[str, str, str]]:
    """The actions."""
    return [(action.verb.value, action.key, action.detail) for action in plan.actions]


def test_offers_are_made_after_prices_and_before_what_is_sold() -> None:
    """A pack is bought once; its price says how many credits it gives."""
    catalog = catalog_of(OFFERING)
    plan = plan_catalog(catalog, EMPTY)

    whats = [str(action.what) for action in plan.actions]
    assert ["meter", "product", "feature", "price", "coupon", "portal", "plan"] == list(dict.fromkeys(whats))
    assert {
        ("create", "tm-pack-gifts-p100-v1", "gifts: 100"), ("create", PACK, "25.00 usd for 100 credits"),
        ("create", "tm.pack.gifts.p100.v1.jpy", "3800 jpy for 100 credits"),
        ("create", "tm-launch-v1", "20 % off, repeating for 3 months"),
        ("create", "tm-sorry-v1", "5.00 usd off, once"), ("create", "default", ""),
    } <= set(done(plan))  # fmt: skip
    assert ("", "2500", "gifts.p100@1 100") == (
        (price := pack_prices(catalog)[PACK]).terms.interval, price.terms.unit_minor, price.made_for
    )  # fmt: skip
    world = applied(catalog)
    assert {
        "tm-launch-v1": CouponTerms("20", 0, "", "repeating", 3),
        "tm-sorry-v1": CouponTerms("", 500, "usd", "once", 0),
    } == {key: coupon.terms for key, coupon in world.stripe.coupons.items()}
    assert world.stripe.portal
    assert PortalTerms("period_end", True, "now", (("tm-solo-v1-base", (SOLO,)),)) == world.stripe.portal.terms
    again = plan_catalog(catalog, world)
    assert ([], [], []) == (again.actions, again.refusals, drift_of(world))


@pytest.mark.parametrize(
    ("old", "new", "refusal"),
    [
        pytest.param('percent_off: "20"', 'percent_off: "30"',
                     "coupons.launch: was applied otherwise; raise its version to 2", id="percent"),
        pytest.param("duration_months: 3", "duration_months: 4", "coupons.launch: was applied otherwise", id="months"),
        pytest.param('{usd: "5.00"}, duration: once', '{jpy: 700}, duration: once', "coupons.sorry: was applied",
                     id="currency"),
        pytest.param("credits: 100", "credits: 110",
                     "credit_pools.gifts.packs.p100: was applied otherwise; raise its version to 2", id="credits"),
        pytest.param('usd: "25.00"', 'usd: "26.00"', "raise the version of gifts.p100 to 2", id="price of a pack"),
    ],
)  # fmt: skip
def test_what_was_offered_does_not_change(old: str, new: str, refusal: str) -> None:
    plan = plan_catalog(offering((old, new)), applied(catalog_of(OFFERING)))

    assert any(refusal in each for each in plan.refusals), plan.refusals


def test_a_version_of_an_offer_does_not_go_back() -> None:
    world = applied(offering(("launch: {version: 1", "launch: {version: 3")))

    plan = plan_catalog(offering(version=3), world)

    assert "coupons.launch: version 3 was applied already: take it, or a higher one" in plan.refusals


def test_a_coupon_of_the_same_id_that_somebody_else_made_is_refused() -> None:
    """It was made in Stripe's dashboard, before the catalog had it."""
    world = applied(catalog_of(OFFERING))
    coupon = world.stripe.coupons["tm-launch-v1"]
    other = coupon._replace(terms=coupon.terms._replace(percent="10"))

    plan = plan_catalog(catalog_of(OFFERING), EMPTY._replace(stripe=EMPTY.stripe._replace(coupons={other.id: other})))

    assert [
        "tm-launch-v1: Stripe's coupon would change: percent 10 → 20; a coupon never changes: raise its version"
    ] == list(plan.refusals)


@pytest.mark.parametrize(
    ("edits", "actions"),
    [
        pytest.param([("launch: {version: 1", "launch: {version: 2"), ('percent_off: "20"', 'percent_off: "30"')],
                     [("create", "tm-launch-v2", "30 % off, repeating for 3 months")], id="another coupon"),
        pytest.param([("With our apologies", "Sorry")],
                     [("update", "tm-sorry-v1", "name With our apologies → Sorry")], id="name of a coupon"),
        pytest.param([("cancel: period_end", "cancel: never")],
                     [("update", "default", "cancel period_end → never")], id="portal"),
        pytest.param([("cancel: period_end", "cancel: period_end, payment_method: false")],
                     [("update", "default", "payment_method yes → no")], id="payment method"),
        pytest.param([("change_to: [solo], ", "")],
                     [("update", "default", "upgrade now → none, other prices")], id="no plan to change to"),
        pytest.param([("portal: {change_to: [solo], cancel: period_end}\n", "")],
                     [("archive", "default", "")], id="no portal"),
        pytest.param([("p100: {credits: 100, usd: \"25.00\", ", "p100: {version: 2, credits: 100, usd: \"26.00\", ")],
                     [("create", "tm-pack-gifts-p100-v2", "gifts: 100"),
                      ("create", "tm.pack.gifts.p100.v2.usd", "26.00 usd for 100 credits"),
                      ("create", "tm.pack.gifts.p100.v2.jpy", "3800 jpy for 100 credits"),
                      ("archive", "tm-pack-gifts-p100-v1", ""), ("archive", PACK, ""),
                      ("archive", "tm.pack.gifts.p100.v1.jpy", "")], id="another price of a pack"),
    ],
)  # fmt: skip
def test_a_change_of_an_offer(edits: list[tuple[str, str]], actions: list[tuple[str, str, str]]) -> None:
    """The portal changes in place, and a pack of which there is a newer version is sold no more."""
    world = applied(catalog_of(OFFERING))
    plan = plan_catalog(offering(*edits), world)

    assert (actions, []) == (done(plan), plan.refusals)


def test_a_new_version_of_a_plan_is_the_one_to_change_to() -> None:
    new = offering(("solo: {version: 1", "solo: {version: 2"), ('usd: "4.00"', 'usd: "5.00"'))

    plan = plan_catalog(new, applied(catalog_of(OFFERING)))

    assert ("update", "default", "other prices") in done(plan)


def broken(kind: str) -> World:
    """The world after somebody changed something at Stripe."""
    world = applied(catalog_of(OFFERING))
    stripe, coupon, portal = world.stripe, world.stripe.coupons["tm-sorry-v1"], world.stripe.portal
    assert portal
    match kind:
        case "coupon":
            stripe = stripe._replace(coupons={key: each for key, each in stripe.coupons.items() if key != coupon.id})
        case "name":
            stripe = stripe._replace(coupons={**stripe.coupons, coupon.id: coupon._replace(name="Ha")})
        case "portal":
            stripe = stripe._replace(portal=None)
        case "portal off":
            stripe = stripe._replace(portal=portal._replace(is_active=False))
        case "pack":
            price = stripe.prices[f"price_{PACK}"]._replace(is_active=False)
            stripe = stripe._replace(prices={**stripe.prices, price.id: price})
        case "credits":
            price = stripe.prices[f"price_{PACK}"]._replace(made_for="gifts.p100@1 900")
            stripe = stripe._replace(prices={**stripe.prices, price.id: price})
        case _:
            feature = stripe.features["sso"]._replace(is_active=False)
            stripe = stripe._replace(features={"sso": feature})
    return world._replace(stripe=stripe)


@pytest.mark.parametrize(
    ("kind", "line", "action"),
    [
        ("coupon", "coupon tm-sorry-v1 is not at Stripe", ("create", "tm-sorry-v1")),
        ("name", "coupon tm-sorry-v1 was changed: name With our apologies → Ha", ("update", "tm-sorry-v1")),
        ("portal", "the portal's configuration is not at Stripe", ("create", "default")),
        ("portal off", "the portal's configuration bpc_1 was changed: archived", ("update", "default")),
        ("pack", f"price price_{PACK} ({PACK}) is archived; its plan has 0 subscriptions", ("update", PACK)),
        ("credits", f"price price_{PACK} ({PACK}) was changed: metadata gifts.p100@1 100 → gifts.p100@1 900", None),
        ("feature", "feature sso is archived", ("update", "sso")),
    ],
)  # fmt: skip
def test_drift_of_offers_is_named_and_repaired(kind: str, line: str, action: tuple[str, str] | None) -> None:
    world = broken(kind)

    assert [line] == drift_of(world)
    assert ([action] if action else []) == [each[:2] for each in done(plan_catalog(catalog_of(OFFERING), world))]


def test_products_of_a_kept_version_are_brought_in_line_and_get_their_features() -> None:
    """Who keeps a version has its name on invoices, the tax code of today, and the version's features."""
    usage = {f"price_{TEAM_SEAT}": frozenset({"sub_1"})}
    first = applied(catalog_of(SMALL))._replace(usage=usage)
    text = SMALL.replace("version: 1\nmeters", "version: 2\nmeters").replace(
        "  team:\n    version: 1", "  team:\n    version: 2"
    )
    kept = applied(catalog_of(text), first)
    product = kept.stripe.products["tm-team-v1-seat"]
    renamed = {**kept.stripe.products, product.id: product._replace(name="Other", tax_code="txcd_99999999")}
    attached = {**kept.stripe.attached, product.id: frozenset[str]()}
    world = kept._replace(stripe=kept.stripe._replace(products=renamed, attached=attached))

    assert [
        "product tm-team-v1-seat was changed: name Team: seat → Other, tax_code none → txcd_99999999",
        "product tm-team-v1-seat was changed: features sso → none",
    ] == drift_of(world)
    plan = plan_catalog(catalog_of(text), world)
    assert [("update", "tm-team-v1-seat"), ("attach", "sso tm-team-v1-seat")] == [each[:2] for each in done(plan)]
    taxed = text.replace("version: 2\nmeters", "version: 3\nmeters").replace(
        "defaults: {", "defaults: {tax_code: txcd_10103001, "
    )
    plan = plan_catalog(catalog_of(taxed), kept)
    assert ("update", "tm-team-v1-seat") in [each[:2] for each in done(plan)]


@pytest.mark.parametrize(
    ("old", "new", "field", "message"),
    [
        pytest.param('percent_off: "20"', 'percent_off: "20", amount_off: {usd: 1}', "coupons.launch",
                     "either percent_off or amount_off", id="both"),
        pytest.param('percent_off: "20", ', "", "coupons.launch", "either percent_off or amount_off", id="neither"),
        pytest.param('percent_off: "20"', 'percent_off: "0"', "coupons.launch.percent_off", "than 0", id="nothing"),
        pytest.param(", duration_months: 3", "", "coupons.launch", "which needs it", id="no months"),
        pytest.param("duration: once", "duration: once, duration_months: 2", "coupons.sorry", "duration_months is",
                     id="months of one invoice"),
        pytest.param('amount_off: {usd: "5.00"}', 'amount_off: {eur: "5.00"}', "coupons.sorry.amount_off.eur",
                     "currencies does not have eur", id="unknown currency"),
        pytest.param('amount_off: {usd: "5.00"}', 'amount_off: {usd: "5.005"}', "coupons.sorry.amount_off.usd",
                     "whole minor units", id="part of a cent"),
        pytest.param('usd: "25.00"', 'usd: "0"', "credit_pools.gifts.packs.p100.usd", "above 0", id="free pack"),
        pytest.param("change_to: [solo]", "change_to: [gold]", "portal.change_to.0", "there is no plan gold",
                     id="unknown plan"),
        pytest.param("change_to: [solo]", "change_to: [free]", "portal.change_to.0", "nothing to pay", id="free plan"),
        pytest.param("change_to: [solo]", "change_to: [team]", "portal.change_to.0", "several components",
                     id="plan with usage"),
    ],
)  # fmt: skip
def test_an_offer_that_stripe_would_refuse_is_refused(old: str, new: str, field: str, message: str) -> None:
    assert old in OFFERING
    text = OFFERING.replace(old, new)

    catalog, problems = read_catalog(text.encode(), {})

    assert catalog is None
    (problem,) = problems
    assert (field, True) == (problem.field, message in problem.message), problem
    assert new in text.splitlines()[problem.line - 1]
