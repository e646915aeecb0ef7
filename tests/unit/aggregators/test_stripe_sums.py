"""What a sum of doubles proves: whether the sum is the expected one, and which doubtful events the sum contains."""

from __future__ import annotations

import random
from collections.abc import Sequence
from decimal import Decimal
from itertools import combinations

import pytest

from aggregators.stripe_sums import DoubtfulEvent, SumBounds, units_of


def sum_of(amounts: Sequence[Decimal]) -> SumBounds:
    """The bounds of a sum of events that Stripe has accepted, in decimal amounts."""
    units = [int(amount.scaleb(12)) for amount in amounts]
    return SumBounds(sum(units), sum(units), sum(units), sum(map(abs, units)), len(units), 0, ())


@pytest.mark.parametrize(
    ("amounts", "value", "same"),
    [
        (["0.3"], "0.30000000000000004", True),
        (["9007199254740993"], "9007199254740992", True),
        (["100"], "100.01", False),
        ([], "0.0", True),
        ([], "0.000001", False),
        (["-5"], "-5.0", True),
        (["0.1", "0.2", "-0.3"], "0.00000000000000005551115123125783", True),
        (["0.1"] * 720, "71.99999999999909", True),
        (["0.1"] * 720, "71.999999", False),
    ],
)
def test_sums_agree_within_the_precision_of_doubles(amounts: list[str], value: str, same: bool) -> None:
    """Stripe adds floats and answers with a float: each addition may be inexact."""
    bounds = sum_of(list(map(Decimal, amounts)))

    assert bounds.agrees(bounds.accepted, units_of(value)) is same


@pytest.mark.parametrize("count", [1, 2, 30, 720, 7_200])
def test_a_sum_of_doubles_agrees_and_one_that_lacks_a_minor_unit_does_not(count: int) -> None:
    """With as many reports as in an hour, a month or a year of hours."""
    for seed in range(20):
        draw = random.Random(seed)
        added = [Decimal(draw.randrange(1, 10**6)).scaleb(-3) for _ in range(count)]
        bounds, doubles = sum_of(added), 0.0
        for amount in added:
            doubles += float(amount)

        assert bounds.agrees(bounds.accepted, units_of(repr(doubles)))
        assert not bounds.agrees(bounds.accepted - 10**9, units_of(repr(doubles)))


def bounds(dead: Sequence[int], accepted: int = 1_000) -> SumBounds:
    letters = tuple(DoubtfulEvent(str(at), units) for at, units in enumerate(dead))
    gross = accepted + sum(map(abs, dead))
    events = 1 + len(dead)
    return SumBounds(accepted, accepted, accepted, gross, events, 0, letters)


@pytest.mark.parametrize("seed", range(30))
def test_contained_doubtful_events_are_those_of_all_matching_subsets(seed: int) -> None:
    """Compared with trying every subset. Amounts repeat, and some are negative."""
    draw = random.Random(seed)
    dead = [draw.choice([-7, -2, 1, 2, 3, 5, 40]) for _ in range(draw.randrange(1, 8))]
    asked = bounds(dead)
    for total in range(asked.accepted - 20, asked.accepted + 60):
        fitting = [
            frozenset(map(str, chosen))
            for size in range(len(dead) + 1)
            for chosen in combinations(range(len(dead)), size)
            if asked.accepted + sum(dead[at] for at in chosen) == total
        ]
        contained = asked.contained(Decimal(total))
        assert (contained is None) == (not fitting)
        if contained is not None:
            assert contained.certain == frozenset.intersection(*fitting)
            assert contained.certain | contained.possible == frozenset.union(*fitting)


def test_more_dead_letters_than_can_be_tried_match_any_sum_within_their_range() -> None:
    """The customer was deleted, so 700 hours of reports became dead letters."""
    asked = bounds([2 ** (at % 20) for at in range(700)], accepted=5)
    contained = asked.contained(Decimal(5 + 12_345))

    assert contained is not None
    assert (contained.certain, len(contained.possible), contained.tried) == (frozenset(), 700, False)
    assert asked.contained(Decimal(4)) is None
    assert asked.contained(Decimal(asked.gross + 1)) is None


@pytest.mark.parametrize("signs", [(1, 1), (-1, -1), (1, -1)], ids=["positive", "negative", "both"])
def test_least_and_greatest_sum_have_one_choice_of_events_however_many_there_are(signs: tuple[int, int]) -> None:
    """Forty events that Stripe refused have more than a million million sums, and Stripe has none of them."""
    units = [2**at * signs[at % 2] for at in range(40)]
    asked = bounds(units, accepted=5)
    for wanted in (1, -1):
        chosen = frozenset(event.identifier for event in asked.doubtful if event.units * wanted > 0)
        total = 5 + sum(unit for unit in units if unit * wanted > 0)
        contained = asked.contained(Decimal(total))
        assert contained is not None
        assert (contained.certain, contained.possible, contained.tried) == (chosen, frozenset(), True)
        between = asked.contained(Decimal(total) - Decimal(wanted) / 2)
        assert between is None or not between.tried
