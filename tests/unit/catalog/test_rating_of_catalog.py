"""What a catalog's prices cost: by hand, and any price as the simulator's engine bills what `catalog apply` sends."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import msgspec
import pytest

from aggregators.catalog_prices import all_prices
from aggregators.rating import amount_of, rating_of, rating_of_terms
from schemas.catalog import Price
from sinks.stripe.catalog import price_fields
from stripe_simulator import Simulator
from stripe_simulator.contract.parameters import coerce, parse_form
from stripe_simulator.engine.lines import Item, Usage, licensed_line, usage_lines
from stripe_simulator.engine.periods import Period
from stripe_simulator.mode import Call, Mode
from stripe_simulator.resources import prices as price_routes
from tests.unit.catalog.files import catalog_of
from tests.worlds.clock import ManualClock

SEED: Final = 20_261_130
PRICES: Final = 10_000
PLANS_OF_A_FILE: Final = 40
EXPONENTS: Final = {"usd": 2, "jpy": 0, "kwd": 3, "isk": 2}
MONTH: Final = Period(1_793_491_200, 1_796_083_200)
HEAD: Final = f"""\
version: 1
meters:
  - {{slug: calls, event_type: call, aggregation: sum, value_path: $.n, scale: 6, unit: calls, stripe_event_name: n}}
currencies: {{{", ".join(f"{currency}: {exponent}" for currency, exponent in EXPONENTS.items())}}}
features:
  seats: {{type: seat, merge: sum}}
plans:
"""

GOLDEN: Final = (
    HEAD
    + """\
  steps:
    version: 1
    prices:
      - component: volume
        meter: calls
        unit: calls
        mode: volume
        tiers:
          - {up_to: 5, price: {usd: "7", jpy: "700", kwd: "0.7"}}
          - {up_to: 10, price: {usd: "6.50", jpy: "650", kwd: "0.65"}}
          - {up_to: inf, price: {usd: "6", jpy: "600", kwd: "0.6"}}
      - component: graduated
        meter: calls
        unit: calls
        tiers:
          - {up_to: 5, price: {usd: "7", jpy: "700", kwd: "0.7"}}
          - {up_to: 10, price: {usd: "6.50", jpy: "650", kwd: "0.65"}}
          - {up_to: inf, price: {usd: "6", jpy: "600", kwd: "0.6"}}
      - {component: hours, meter: calls, unit: calls, package: 60, month: {usd: "10", jpy: "1000", kwd: "1"}}
      - {component: small, meter: calls, unit: calls, month: {usd: "0.0005", jpy: "0.05", kwd: "0.00005"}}
  api:
    version: 1
    prices:
      - {component: base, month: {usd: "49"}}
      - {component: seat, quantity: seats, included: 10, month: {usd: "15"}}
      - component: calls
        meter: calls
        unit: calls
        tiers:
          - {up_to: included, price: {usd: "0"}}
          - {up_to: 100000, price: {usd: "0.002"}}
          - {up_to: inf, price: {usd: "0.001"}}
    included: {calls: 10000}
  flat:
    version: 1
    prices:
      - component: calls
        meter: calls
        unit: calls
        tiers:
          - {up_to: 10, price: {usd: "0.02"}, flat: {usd: "3"}}
          - {up_to: inf, price: {usd: "0.01"}, flat: {usd: "3"}}
"""
)


def golden() -> Iterator[Any]:
    """Scenarios 1, 2 and 24 in minor units; three currencies have other exponents and equal minor units."""
    volume = {"1": 700, "5": 3_500, "6": 3_900, "20": 12_000, "25": 15_000}
    graduated = {"1": 700, "5": 3_500, "6": 4_150, "20": 12_750, "25": 15_750}
    for currency in ("usd", "jpy", "kwd"):
        for component, amounts in (("volume", volume), ("graduated", graduated)):
            for quantity, minor in amounts.items():
                name = f"{component} {quantity} {currency}"
                yield pytest.param(f"steps.v1.{component}", currency, quantity, minor, id=name)
        yield pytest.param("steps.v1.hours", currency, "61", 2_000, id=f"begun hours {currency}")
        yield pytest.param("steps.v1.small", currency, "12344", 617, id=f"617.2 {currency}")
    yield pytest.param("api.v1.base", "usd", "1", 4_900, id="base fee")
    yield pytest.param("api.v1.calls", "usd", "10000", 0, id="included calls")
    yield pytest.param("api.v1.calls", "usd", "100000", 18_000, id="calls of the second tier")
    yield pytest.param("api.v1.calls", "usd", "137510", 18_000 + 3_751, id="calls of November")
    yield pytest.param("api.v1.seat", "usd", "10", 0, id="included seats")
    yield pytest.param("api.v1.seat", "usd", "13", 4_500, id="three seats more")
    yield pytest.param("flat.v1.calls", "usd", "0", 300, id="flat amount without usage")
    yield pytest.param("flat.v1.calls", "usd", "11", 621, id="flat amounts of two tiers")


@pytest.mark.parametrize(("name", "currency", "quantity", "minor"), list(golden()))
def test_amounts_by_hand(name: str, currency: str, quantity: str, minor: int) -> None:
    price = all_prices(catalog_of(GOLDEN))[f"tm.{name}.month.{currency}"]

    assert minor == amount_of(rating_of_terms(price.terms), Decimal(quantity))


def test_an_invoice_is_the_sum_of_its_lines() -> None:
    """Scenario 1: 137 510 calls in November, billed with the base fee of December."""
    prices = all_prices(catalog_of(GOLDEN))
    base, calls = (rating_of_terms(prices[f"tm.api.v1.{name}.month.usd"].terms) for name in ("base", "calls"))

    assert 26_651 == amount_of(base, Decimal(1)) + amount_of(calls, Decimal(137_510))


def amounts(chance: random.Random, currencies: list[str]) -> str:
    """Random amounts in each currency, of any number of decimals that Stripe takes."""
    texts = []
    for currency in currencies:
        places = EXPONENTS[currency] + chance.choice((0, 0, 0, 1, 3, 6, 12))
        texts.append(f'{currency}: "{Decimal(chance.randint(0, 10 ** chance.randint(0, 7))).scaleb(-places):f}"')
    return "{" + ", ".join(texts) + "}"


def component_text(chance: random.Random, number: int, currencies: list[str], included: int | None) -> str:
    """A random component, in YAML's flow style. Of a plan with included usage each metered one includes it."""
    kind = chance.choice(("fee", "seats", "unit", "package", "tiers", "tiers", "tiers"))
    name = f"component: c{number}"
    by_month = f"month: {amounts(chance, currencies)}"
    if kind == "fee":
        package = f", package: {chance.randint(2, 90)}" if chance.random() < 0.3 else ""
        return f"{{{name}, {by_month}{package}}}"
    if kind == "seats":
        free = f", included: {chance.randint(1, 20)}" if chance.random() < 0.7 else ""
        return f"{{{name}, quantity: seats{free}, {by_month}}}"
    metered = f"{name}, meter: calls, unit: calls"
    if kind == "unit" or (kind == "package" and included):
        return f"{{{metered}, {by_month}}}"
    if kind == "package":
        return f"{{{metered}, package: {chance.choice((2, 7, 60, 1_000))}, {by_month}}}"
    below = included or 0
    bounds = [below + bound for bound in sorted(chance.sample(range(1, 300), chance.randint(0, 4)))]
    tiers = [f"{{up_to: included, price: {{{', '.join(f'{each}: 0' for each in currencies)}}}}}"] if included else []
    for bound in [*bounds, "inf"]:
        flat = f", flat: {amounts(chance, currencies)}" if chance.random() < 0.4 else ""
        tiers.append(f"{{up_to: {bound}, price: {amounts(chance, currencies)}{flat}}}")
    return f"{{{metered}, mode: {chance.choice(('graduated', 'volume'))}, tiers: [{', '.join(tiers)}]}}"


def catalog_text(chance: random.Random) -> str:
    """A file of many random plans."""
    plans = []
    for number in range(PLANS_OF_A_FILE):
        currencies = chance.sample(list(EXPONENTS), chance.randint(1, 4))
        included = chance.randint(1, 200) if chance.random() < 0.4 else None
        lines = [component_text(chance, place, currencies, included) for place in range(chance.randint(2, 6))]
        is_used = included and any("meter: calls" in line for line in lines)
        plans.append(f"  p{number}:\n    version: 1\n    prices:\n" + "".join(f"      - {line}\n" for line in lines))
        plans.append(f"    included: {{calls: {included}}}\n" if is_used else "")
    return HEAD + "".join(plans)


class Stripe:
    """The price resource of the simulator, as a request reaches it, without HTTP."""

    def __init__(self) -> None:
        simulator = Simulator(ManualClock(MONTH.start * 1_000))
        self.mode: Mode = simulator.test
        self.mode.store.save({"id": "mtr_1", "object": "billing.meter"})

    def create(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The stored price of a request with these parameters."""
        form = "&".join(f"{name}={value}" for name, value in _flat(fields))
        params = coerce("POST /v1/prices", parse_form(form), price_routes.CREATE)
        self.mode.store.save({"id": params["product"], "object": "product"})
        return price_routes.create(self.mode, Call("/v1/prices", params))


def _flat(fields: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The names and values of Stripe's form encoding. No value here has a letter that must be quoted."""
    items = fields.items() if isinstance(fields, Mapping) else enumerate(fields)
    for key, value in items:
        path = f"{name}[{key}]" if name else str(key)
        if isinstance(value, Mapping | list):
            yield from _flat(value, path)
        else:
            yield path, str(value)


def billed(price: Price, body: dict[str, Any], quantity: Decimal) -> int:
    """What the simulator's invoice has for a quantity of one period."""
    item = Item("si_1", price_routes.engine_price(body), MONTH, int(quantity))
    if not price.meter:
        return licensed_line(item).amount
    return sum(line.amount for line in usage_lines(item, Usage(Fraction(quantity), MONTH)))


def quantities(chance: random.Random, price: Price) -> Iterator[Decimal]:
    """Nothing, the ends of the tiers and packages, and something between; seats are whole."""
    edges = [tier.up_to for tier in price.terms.tiers if tier.up_to] or [price.terms.package]
    near = chance.choice(edges) + chance.choice((-1, 0, 1))
    yield Decimal(near)
    whole = chance.randint(0, 10 ** chance.randint(0, 9))
    yield Decimal(whole) if not price.meter else Decimal(whole).scaleb(-chance.choice((0, 0, 2, 6)))


def test_any_price_of_a_catalog_costs_what_the_simulators_invoice_says() -> None:
    """The file's terms are rated here; what `catalog apply` sends is stored and rated by the simulator."""
    chance, done, kinds = random.Random(SEED), 0, set[str]()
    while done < PRICES:
        stripe = Stripe()
        for price in all_prices(catalog_of(catalog_text(chance))).values():
            body = stripe.create(price_fields(price.terms, "mtr_1" if price.meter else ""))
            ours, stripes = rating_of_terms(price.terms), rating_of(msgspec.json.encode(body).decode())
            done += 1
            kinds.add(price.terms.mode or ("package" if price.terms.package > 1 else "unit"))
            for quantity in quantities(chance, price):
                expected = billed(price, body, quantity)
                replay = f"seed {SEED}, price {done}, {price.terms}, quantity {quantity}"
                assert (expected, expected) == (amount_of(ours, quantity), amount_of(stripes, quantity)), replay
    assert {"graduated", "volume", "package", "unit"} == kinds
