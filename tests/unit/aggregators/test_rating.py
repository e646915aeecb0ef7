"""What a quantity costs: the golden examples by hand, and any price as the simulator's engine computes it."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from aggregators.rating import amount_of, billed_quantity, rating_of
from schemas.errors import InvalidInput
from stripe_simulator.engine.amounts import exact_amount
from stripe_simulator.engine.periods import Recurrence
from stripe_simulator.engine.tiers import Price, Tier, TransformQuantity, charges, total

GOLDEN: tuple[tuple[int | None, str], ...] = ((5, "700"), (10, "650"), (None, "600"))
CALLS: tuple[tuple[int | None, str], ...] = ((10_000, "0"), (100_000, "0.2"), (None, "0.1"))


def per_unit(amount: str, **fields: Any) -> dict[str, Any]:
    """A price per unit, as Stripe has it."""
    return {"currency": "usd", "billing_scheme": "per_unit", "unit_amount_decimal": amount, **fields}


def tiered(mode: str, *tiers: tuple[int | None, str], flat: str | None = None) -> dict[str, Any]:
    """A price with tiers, as Stripe has it."""
    rows = [
        {"up_to": up_to, "unit_amount_decimal": amount, "flat_amount_decimal": flat, "unit_amount": None}
        for up_to, amount in tiers
    ]
    return {"currency": "usd", "billing_scheme": "tiered", "tiers_mode": mode, "tiers": rows}


@pytest.mark.parametrize(
    ("price", "quantity", "cents"),
    [
        pytest.param(tiered("volume", *GOLDEN), "1", 700, id="volume 1"),
        pytest.param(tiered("volume", *GOLDEN), "5", 3_500, id="volume 5"),
        pytest.param(tiered("volume", *GOLDEN), "6", 3_900, id="volume 6"),
        pytest.param(tiered("volume", *GOLDEN), "20", 12_000, id="volume 20"),
        pytest.param(tiered("volume", *GOLDEN), "25", 15_000, id="volume 25"),
        pytest.param(tiered("graduated", *GOLDEN), "1", 700, id="graduated 1"),
        pytest.param(tiered("graduated", *GOLDEN), "5", 3_500, id="graduated 5"),
        pytest.param(tiered("graduated", *GOLDEN), "6", 4_150, id="graduated 6"),
        pytest.param(tiered("graduated", *GOLDEN), "20", 12_750, id="graduated 20"),
        pytest.param(tiered("graduated", *GOLDEN), "25", 15_750, id="graduated 25"),
        pytest.param(tiered("graduated", *CALLS), "137510", 18_000 + 3_751, id="calls of November"),
        pytest.param(tiered("graduated", (10, "2"), (None, "1"), flat="300"), "0", 300, id="flat amount without usage"),
        pytest.param(tiered("graduated", (10, "2"), (None, "1"), flat="300"), "11", 621, id="flat amounts"),
        pytest.param(tiered("volume", (10, "2"), (None, "1"), flat="300"), "11", 311, id="flat amount of one tier"),
        pytest.param(tiered("graduated", (5, "0.5"), (None, "0.5")), "10", 6, id="each tier is rounded by itself"),
        pytest.param(
            per_unit("1000", transform_quantity={"divide_by": 60, "round": "up"}), "61", 2_000, id="begun hours"
        ),
        pytest.param(
            per_unit("1000", transform_quantity={"divide_by": 60, "round": "down"}), "61", 1_000, id="whole hours"
        ),
        pytest.param(per_unit("0.05"), "12344", 617, id="617.2"),
        pytest.param(per_unit("0.5"), "1", 1, id="half is rounded up"),
        pytest.param(per_unit("2.5"), "-3", 0, id="a negative total bills nothing"),
        pytest.param({"currency": "jpy", "unit_amount": 7, "unit_amount_decimal": None}, "3", 21, id="whole amount"),
        pytest.param(per_unit("0.000000000001"), "123456789012345678.5", 123_457, id="more digits than a double"),
    ],
)
def test_amounts(price: dict[str, Any], quantity: str, cents: int) -> None:
    assert amount_of(rating_of(json.dumps(price)), Decimal(quantity)) == cents


@pytest.mark.parametrize("seed", range(40))
def test_any_price_costs_what_the_engine_of_the_simulator_says(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(50):
        terms, engine = _price(chance)
        quantity = Decimal(chance.randint(0, 30_000)).scaleb(-chance.choice((0, 0, 2)))
        rating = rating_of(json.dumps(terms))
        assert amount_of(rating, quantity) == total(engine, Fraction(quantity)), (terms, quantity)
        lines = charges(engine, Fraction(quantity))
        on_invoice = (
            Decimal(sum(line.quantity for line in lines).numerator) / sum(line.quantity for line in lines).denominator
        )
        billed = billed_quantity(rating, on_invoice, total(engine, Fraction(quantity)))
        assert billed is not None
        # A package is paid for as a whole, so no more usage of the same package costs anything.
        assert amount_of(rating, billed) == amount_of(rating, quantity)


def _price(chance: random.Random) -> tuple[dict[str, Any], Price]:
    def amount() -> str:
        return str(Decimal(chance.randint(0, 5_000)).scaleb(-chance.choice((0, 1, 3))))

    month = Recurrence("month")
    if chance.random() < 0.5:
        unit, package = amount(), None
        if chance.random() < 0.5:
            package = {"divide_by": chance.randint(2, 90), "round": chance.choice(("up", "down"))}
        transform = TransformQuantity(**package) if package else None  # type: ignore[arg-type]  # the values fit
        return per_unit(unit, transform_quantity=package), Price(
            "price", month, exact_amount(unit), transform_quantity=transform
        )
    mode = chance.choice(("graduated", "volume"))
    bounds: list[int | None] = [*sorted(chance.sample(range(1, 300), chance.randint(0, 4))), None]
    tiers = [(bound, amount(), chance.choice((None, amount()))) for bound in bounds]
    rows = [{"up_to": bound, "unit_amount_decimal": unit, "flat_amount_decimal": flat} for bound, unit, flat in tiers]
    terms = {"currency": "usd", "billing_scheme": "tiered", "tiers_mode": mode, "tiers": rows}
    engine_tiers = tuple(Tier(bound, exact_amount(unit), exact_amount(flat or 0)) for bound, unit, flat in tiers)
    return terms, Price("price", month, tiers=engine_tiers, tiers_mode=mode)  # type: ignore[arg-type]  # one of two


@pytest.mark.parametrize(
    ("price", "quantity", "cents", "billed"),
    [
        pytest.param(per_unit("2"), "1007", 2_014, "1007", id="per unit"),
        pytest.param(per_unit("2"), "1007", 2_000, None, id="an amount that a person changed"),
        pytest.param(
            per_unit("10", transform_quantity={"divide_by": 60, "round": "up"}), "2", 20, "120", id="packages"
        ),
        pytest.param(
            per_unit("10", transform_quantity={"divide_by": 60, "round": "up"}), "61", 20, "61", id="units of packages"
        ),
        pytest.param(tiered("graduated", *CALLS), "137510", 21_751, "137510", id="tiers"),
    ],
)
def test_the_quantity_that_an_invoice_bills(
    price: dict[str, Any], quantity: str, cents: int, billed: str | None
) -> None:
    found = billed_quantity(rating_of(json.dumps(price)), Decimal(quantity), cents)
    assert found == (None if billed is None else Decimal(billed))


@pytest.mark.parametrize(
    "price",
    [
        pytest.param(per_unit("1e400"), id="huge"),
        pytest.param(per_unit("x"), id="no number"),
        pytest.param({"currency": "usd", "unit_amount": None}, id="no amount"),
        pytest.param(per_unit("1", transform_quantity={"divide_by": 0, "round": "up"}), id="packages of nothing"),
        pytest.param(tiered("graduated", (5, "1")), id="tiers that end"),
        pytest.param(tiered("other", (None, "1")), id="another mode"),
        pytest.param(tiered("graduated"), id="no tiers"),
        pytest.param(tiered("graduated") | {"tiers": [None]}, id="tiers of nothing"),
        pytest.param({"unit_amount": 5}, id="no currency"),
    ],
)
def test_a_price_that_cannot_be_read_is_refused(price: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        rating_of(json.dumps(price))
