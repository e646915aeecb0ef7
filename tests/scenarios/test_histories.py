"""Random histories in `make test`; `python -m tests.scenarios.histories` runs 5 000."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scenarios.billing_model import Model, Span, part
from tests.scenarios.histories import live
from tests.scenarios.mutants import MUTANTS, histories_to_catch
from tests.simulation.mutant import Mutant

SEEDS = range(1, 41)
QUICK = {
    "the period after a pause is billed twice",
    "usage that arrives before the invoice is final is dropped",
    "usage of a trial is billed",
    "a retry comes a day late",
    "a retry charges the customer's card, not the subscription's",
    "a hard decline is charged again",
}


@pytest.mark.parametrize("first", SEEDS[::10])
async def test_random_histories_are_billed_by_the_second(first: int, tmp_path: Path) -> None:
    """Ten histories; a failure prints the command that replays it."""
    lines = [await live(seed, tmp_path) for seed in range(first, first + 10)]

    assert sum(lines) > 30


@pytest.mark.parametrize(
    ("start", "end"), [(0, 86_400), (43_200, 86_399), (43_201, 86_400)], ids=["billed twice", "too short", "too late"]
)
async def test_a_wrong_second_is_found(start: int, end: int) -> None:
    """The recomputation is exact to the second: it disagrees with a line that is a second off."""
    model = Model(0)
    model.change("si", 86_400 * 31, 0, prorated=True)
    exact = model.total
    model.items["si"].spans.append(Span(start, end, 86_400 * 31, 31 * 86_400))

    assert model.value() - exact == end - start
    assert part(1, 1, 2) == 1


@pytest.mark.parametrize("mutant", [each for each in MUTANTS if each.name in QUICK], ids=lambda each: each.name)
async def test_a_deliberate_defect_is_caught(mutant: Mutant, tmp_path: Path) -> None:
    """`python -m tests.scenarios.mutants` tries all defects."""
    assert await histories_to_catch(mutant, tmp_path)


def test_each_quick_defect_is_in_the_table() -> None:
    """A name that changes in one place would drop a test unnoticed."""
    assert {each.name for each in MUTANTS} >= QUICK
