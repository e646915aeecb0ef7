"""A small walk of random accounts in `make test`; `python -m tests.scenarios.walk` runs 200 accounts for 14 months."""

from __future__ import annotations

import pytest

from tests.scenarios.walk import Walk
from tests.scenarios.walk_mutants import ACCOUNTS, MONTHS, MUTANTS, walks_to_catch
from tests.simulation.mutant import Mutant

# The walk of this seed finds no difference, and each of these defects makes one.
SEED = 1
QUICK = {"a quote for something else is accepted", "a change that has happened stays pending"}


async def test_random_accounts_pay_and_may_do_what_the_model_says() -> None:
    """A failure prints the history of the account, and the command that replays the history."""
    walk = Walk(ACCOUNTS, MONTHS, SEED)
    await walk.run()

    assert walk.count["access plan"] > 50
    assert sum(number for name, number in walk.count.items() if name.startswith("row")) > 15


@pytest.mark.parametrize("mutant", [each for each in MUTANTS if each.name in QUICK], ids=lambda each: each.name)
async def test_a_deliberate_defect_is_caught(mutant: Mutant) -> None:
    """`python -m tests.scenarios.walk_mutants` tries all defects."""
    assert await walks_to_catch(mutant) == SEED


def test_each_quick_defect_is_in_the_table() -> None:
    """A name that changes in one place would drop a test unnoticed."""
    assert {each.name for each in MUTANTS} >= QUICK
