"""Exact prices, rounding, allocation, tiers and packages."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stripe_simulator.engine.amounts import allocated, charge_min, exact_amount, exponent, rounded
from stripe_simulator.engine.tiers import Price, Tier, TransformQuantity, charges, exact_total, total
from tests.unit.stripe_engine.catalog import MONTH, metered, tiered


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(Fraction(1, 2), 1, id="half"),
        pytest.param(Fraction(-1, 2), -1, id="negative half"),
        pytest.param(Fraction(3, 2), 2, id="no banker's rounding"),
        pytest.param(Fraction(5, 2), 3, id="no banker's rounding up"),
        pytest.param(Fraction(49, 100), 0, id="below half"),
        pytest.param(Fraction(-149, 100), -1, id="negative below half"),
        pytest.param(Fraction(10**30 * 2 + 1, 2), 10**30 + 1, id="no float on the way"),
        pytest.param(7, 7, id="whole"),
    ],
)
def test_half_is_rounded_away_from_zero(value: Fraction | int, expected: int) -> None:
    """A line and its inverse cancel."""
    assert expected == rounded(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.000000000001", Fraction(1, 10**12)),
        ("0.2", Fraction(1, 5)),
        (14900, Fraction(14900)),
        (Decimal("1E+2"), Fraction(100)),
        ("0E-999999999", Fraction(0)),
        ("-999999999999.999999999999", -Fraction(10**24 - 1, 10**12)),
        ("1.5000000000000", Fraction(3, 2)),
    ],
)
def test_unit_amounts_are_exact(text: str | int | Decimal, expected: Fraction) -> None:
    """`unit_amount_decimal` has up to 12 decimal places."""
    assert expected == exact_amount(text)


@pytest.mark.parametrize(
    "text", ["0.0000000000001", "NaN", "Infinity", "-Infinity", "ten", "", "1e12", "1e999999999", "1e-999999999"]
)
def test_other_unit_amounts_are_refused(text: str) -> None:
    """13 decimal places, 13 digits, and what is no number; a huge exponent costs nothing."""
    with pytest.raises(ValueError, match=r"12 decimal places|is not a number"):
        exact_amount(text)


@pytest.mark.parametrize(
    ("currency", "decimals", "smallest"),
    [("usd", 2, 50), ("jpy", 0, 50), ("gbp", 2, 30), ("kwd", 3, 0), ("isk", 2, 0), ("ugx", 2, 0), ("krw", 0, 0)],
)
def test_currencies(currency: str, decimals: int, smallest: int) -> None:
    """Stripe's exponents are not those of ISO 4217: isk and ugx keep two decimals."""
    assert (exponent(currency), charge_min(currency)) == (decimals, smallest)


@pytest.mark.parametrize(
    ("amount", "weights", "expected"),
    [
        pytest.param(500, [1000, 2000], (166, 334), id="documented coupon"),
        pytest.param(100, [100, 100, 100], (33, 33, 34), id="remainder on the last"),
        pytest.param(2, [1, 1, 1], (0, 1, 1), id="no part above its weight"),
        pytest.param(100, [300, 0], (100, 0), id="nothing on a line of 0"),
        pytest.param(0, [0, 0], (0, 0), id="nothing to divide"),
        pytest.param(0, [], (), id="no lines"),
    ],
)
def test_an_amount_is_divided_over_lines(amount: int, weights: list[int], expected: tuple[int, ...]) -> None:
    """ "billing/subscriptions/prorations": the last line gets the remainder."""
    assert expected == allocated(amount, weights)


@given(share=st.fractions(0, 1), weights=st.lists(st.integers(0, 10**6), min_size=1, max_size=9).filter(any))
def test_the_parts_add_up(share: Fraction, weights: list[int]) -> None:
    """No cent is lost or made, and no line gets more than it can take."""
    amount = int(share * sum(weights))
    parts = allocated(amount, weights)

    assert sum(parts) == amount
    assert all(0 <= part <= weight for part, weight in zip(parts, weights, strict=True))
    # Every part but the last is at most one unit away from its exact share, except where the last had no room.
    exact = [Fraction(amount * weight, sum(weights)) for weight in weights]
    assert all(part > wanted - 1 for part, wanted in zip(parts, exact, strict=True))


bounds = st.lists(st.integers(1, 60), min_size=0, max_size=4, unique=True).map(sorted)
unit_amounts = st.lists(st.integers(0, 500), min_size=5, max_size=5)


def price_of(mode: str, bounds: list[int], units: list[int], flats: list[int]) -> Price:
    """Tiers with the given upper bounds, and a last one without."""
    rows = [
        Tier(up_to, Fraction(unit, 10), Fraction(flat))
        for up_to, unit, flat in zip([*bounds, None], units, flats, strict=False)
    ]
    return Price("p", MONTH, tiers=tuple(rows), tiers_mode="volume" if mode == "volume" else "graduated")


@given(bounds=bounds, units=unit_amounts, flats=unit_amounts, quantity=st.integers(1, 80))
def test_graduated_tiers_cost_what_each_unit_costs(
    bounds: list[int], units: list[int], flats: list[int], quantity: int
) -> None:
    """Counted unit by unit; a tier's flat amount is due with its first unit."""
    price = price_of("graduated", bounds, units, flats)
    expected = Fraction(0)
    entered = set()
    for unit in range(1, quantity + 1):
        number = sum(unit > up_to for up_to in bounds)
        expected += Fraction(units[number], 10)
        entered.add(number)
    expected += sum(flats[number] for number in entered)

    assert expected == exact_total(price, quantity)
    assert quantity == sum(charge.quantity for charge in charges(price, quantity))
    assert abs(total(price, quantity) - expected) <= Fraction(len(entered), 2)


@given(bounds=bounds, units=unit_amounts, flats=unit_amounts, quantity=st.integers(1, 80))
def test_volume_tiers_cost_the_rate_of_the_last_unit(
    bounds: list[int], units: list[int], flats: list[int], quantity: int
) -> None:
    """The tier of the whole quantity prices all units."""
    number = sum(quantity > up_to for up_to in bounds)

    expected = quantity * Fraction(units[number], 10) + flats[number]
    assert expected == exact_total(price_of("volume", bounds, units, flats), quantity)


@given(bounds=bounds, units=unit_amounts, flats=unit_amounts, less=st.fractions(0, 80), more=st.fractions(0, 80))
def test_graduated_tiers_are_monotone(
    bounds: list[int], units: list[int], flats: list[int], less: Fraction, more: Fraction
) -> None:
    """More usage never costs less, also in fractions of a unit. Volume tiers have no such promise."""
    price = price_of("graduated", bounds, units, flats)

    assert exact_total(price, less) <= exact_total(price, less + more)


@pytest.mark.parametrize(
    ("round_", "quantity", "expected"),
    [("up", 60, 1000), ("up", 61, 2000), ("down", 61, 1000), ("down", 59, 0), ("up", 0, 0), ("up", "0.5", 1000)],
)
def test_packages(round_: str, quantity: int | str, expected: int) -> None:
    """`transform_quantity` divides the period's usage once, and then rounds."""
    price = metered("p", 1000)._replace(transform_quantity=TransformQuantity(60, "up" if round_ == "up" else "down"))

    assert expected == total(price, Fraction(quantity))


@pytest.mark.parametrize("quantity", [0, 1])
def test_a_fixed_fee_is_due_without_usage(quantity: int) -> None:
    """ "Fixed fee and overage": the first tier's flat amount is due in any case, and is a line of its own."""
    price = price_of("graduated", [100], [0, 1, 0, 0, 0], [200, 0, 0, 0, 0])

    assert [charge.exact for charge in charges(price, quantity)] == [0, 200]


def test_each_tier_is_a_line_that_is_rounded_by_itself() -> None:
    """0.5 + 0.5 cents in two tiers are 2 cents."""
    price = tiered("graduated", (1, "0.5"), (None, "0.5"))

    assert exact_total(price, 2) == 1
    assert total(price, 2) == 2
