"""A plan's prices: one for each component, interval and currency, with exact amounts in Stripe's minor units."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import pytest

from aggregators.catalog import read_catalog
from aggregators.catalog_prices import all_prices, minor_text
from pipeline.open import DEFAULT_CATALOG, read_meter_set
from schemas.catalog import Add, Catalog, PlanId
from schemas.prices import PriceTier
from tests.unit.catalog.files import SMALL, catalog_of, changed

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("amount", "exponent", "minor"),
    [
        pytest.param("99.00", 2, "9900", id="cents"),
        pytest.param("0.000004", 2, "0.0004", id="less than a cent"),
        pytest.param("14800", 0, "14800", id="yen"),
        pytest.param("1.5", 3, "1500", id="three decimals"),
        pytest.param("0", 2, "0", id="nothing"),
        pytest.param("0.00000000000001", 2, "0.000000000001", id="twelve decimals of a cent"),
        pytest.param("999999.99", 2, "99999999", id="the most"),
    ],
)
def test_amounts_are_exact(amount: str, exponent: int, minor: str) -> None:
    assert minor == minor_text(amount, exponent)


@pytest.mark.parametrize(("amount", "exponent"), [("0.000000000000001", 2), ("1000000", 2), ("100000000", 0)])
def test_amounts_that_stripe_does_not_take_are_refused(amount: str, exponent: int) -> None:
    with pytest.raises(ValueError, match="Stripe"):
        minor_text(amount, exponent)


def test_the_shipped_catalog_has_the_prices_of_the_example() -> None:
    """The golden values are those of the design's example, in minor units."""
    prices = all_prices(catalog_of(DEFAULT_CATALOG.read_text()))

    licensed = {key: price.terms.unit_minor for key, price in prices.items() if not price.terms.tiers}
    assert {
        "tm.essential.v1.location.month.usd": "9900", "tm.essential.v1.location.month.eur": "9500",
        "tm.essential.v1.location.month.jpy": "14800", "tm.essential.v1.location.year.usd": "94800",
        "tm.essential.v1.location.year.eur": "91200", "tm.essential.v1.location.year.jpy": "142000",
        "tm.professional.v1.location.month.usd": "14900", "tm.professional.v1.location.month.eur": "13900",
        "tm.professional.v1.location.month.jpy": "21800", "tm.professional.v1.location.year.usd": "154800",
        "tm.professional.v1.location.year.eur": "144000", "tm.professional.v1.location.year.jpy": "228000",
        "tm.scale.v1.base.month.usd": "20000", "tm.scale.v1.base.year.usd": "216000",
        "tm.extra_calls.v1.addon.month.usd": "2000", "tm.extra_calls.v1.addon.year.usd": "19200",
    } == licensed  # fmt: skip
    tokens = prices["tm.scale.v1.tokens.month.usd"]
    assert ("tokens", "tidemark_tokens", "month") == (tokens.meter, tokens.terms.event_name, tokens.terms.interval)
    tiers = (PriceTier(10_000_000, "0"), PriceTier(100_000_000, "0.0004"), PriceTier(None, "0.00025"))
    assert tiers == tokens.terms.tiers
    member = prices["tm.professional.v1.member.year.usd"]
    assert ("members", (PriceTier(5, "0"), PriceTier(None, "11520"))) == (member.feature, member.terms.tiers)


def test_a_plan_inherits_what_it_does_not_name() -> None:
    """Of maps also the entries that it does not name; its own words win."""
    professional = catalog_of(DEFAULT_CATALOG.read_text()).plans["professional"]

    assert {
        "locations": "quantity", "members": "quantity", "api_calls": 50000, "pos": True,
        "reporting": {"history_days": 730},
    } == professional.grants  # fmt: skip
    assert {"locations", "api_calls"} == professional.over_limit.keys()
    assert ["location", "member"] == [line.component for line in professional.prices]


def test_a_plan_extends_a_version_that_was_applied_before() -> None:
    """A later version of the base changes nothing, because the older one is kept."""
    before = catalog_of(SMALL).sold()
    text = changed("  team:\n    version: 1", "  team:\n    version: 2").replace(
        "reporting: {days: 30}", "sso: false", 1
    )
    text = text.replace("sso: true, ", "").replace("addons:", "  pro: {version: 1, extends: team@1, rank: 20}\naddons:")

    pro = catalog_of(text, before).plans["pro"]

    assert (True, {"days": 30}) == (pro.grants["sso"], pro.grants["reporting"])
    assert None is read_catalog(text.encode(), {})[0]
    assert None is read_catalog(text.encode(), {PlanId("team", 3): before[PlanId("team", 1)]})[0]


def test_packages_and_plain_usage_are_one_amount() -> None:
    text = changed("addons:", """\
  bulk:
    version: 1
    prices:
      - {component: calls, meter: calls, unit: calls, package: 1000, month: {usd: "0.40"}}
      - {component: tokens, meter: tokens, unit: tokens, month: {usd: "0.000004"}}
    included: {tokens: 10}
addons:""")  # fmt: skip

    prices = all_prices(catalog_of(text))

    calls, tokens = prices["tm.bulk.v1.calls.month.usd"].terms, prices["tm.bulk.v1.tokens.month.usd"].terms
    assert ("40", 1000, ()) == (calls.unit_minor, calls.package, calls.tiers)
    assert (None, (PriceTier(10, "0"), PriceTier(None, "0.0004"))) == (tokens.unit_minor, tokens.tiers)


def test_a_catalog_survives_its_json() -> None:
    """SQL keeps it as JSON; what comes back must be the same, so that no version seems changed."""
    for text in (SMALL, DEFAULT_CATALOG.read_text()):
        catalog = catalog_of(text)
        again = Catalog.model_validate_json(catalog.model_dump_json())

        assert catalog == again
        assert catalog.model_dump_json() == again.model_dump_json()
    assert Add(add=1000) == catalog_of(SMALL).addons["boost"].grants["tokens"]


def test_a_meter_set_file_is_a_catalog_that_sells_nothing() -> None:
    """One file and one reader: the meters of a catalog are its meter set, under its version."""
    alone = SMALL[: SMALL.index("currencies:")]

    catalog = catalog_of(alone)

    assert {} == all_prices(catalog)
    assert catalog_of(SMALL).meter_set() == catalog.meter_set()
    assert catalog_of(DEFAULT_CATALOG.read_text()).meter_set() == read_meter_set(None)


def test_the_example_of_the_page_is_right() -> None:
    """A base fee, seats and metered overage: what a stranger copies first."""
    page = (ROOT / "docs" / "catalog.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)

    terms = {key: price.terms for key, price in all_prices(catalog_of(example)).items()}

    assert "5000" == terms["tm.team.v1.base.month.usd"].unit_minor
    assert (PriceTier(3, "0"), PriceTier(None, "12000")) == terms["tm.team.v1.member.year.usd"].tiers
    assert (PriceTier(1_000_000, "0"), PriceTier(None, "0.0004")) == terms["tm.team.v1.tokens.month.usd"].tiers
    assert 5 == len(terms)


def test_the_further_examples_of_the_page_fit_into_its_file() -> None:
    """Two currencies, tiers, a trial, a spend cap and an add-on are copied into the same file."""
    page = (ROOT / "docs" / "catalog.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    addons, business = (
        re.findall(rf"^    {name}:\n(?:      .*\n)+", page, re.MULTILINE)[0] for name in ("addons", "business")
    )
    text = example.replace("currencies: {usd: 2}", "currencies: {usd: 2, eur: 2}")
    text += textwrap.indent(textwrap.dedent(business), "  ") + textwrap.dedent(addons)

    catalog = catalog_of(text)

    terms = {key: price.terms for key, price in all_prices(catalog).items()}
    assert "2000" == terms["tm.extra_members.v1.addon.month.usd"].unit_minor
    assert (PriceTier(5_000_000, "0"), PriceTier(20_000_000, "0.00028"), PriceTier(None, "0.00018")) == (
        terms["tm.business.v1.tokens.month.eur"].tiers
    )
    assert {"usd": "500", "eur": "450"} == catalog.plans["business"].spend_cap["tokens"]


def test_the_json_schema_knows_every_field() -> None:
    """Editors complete and check a catalog file by it."""
    schema = json.dumps(Catalog.model_json_schema())

    assert all(f'"{field}"' in schema for field in ("meters", "plans", "for", "up_to", "on_upgrade", "credits"))
