"""The proof is proven: defects that the simulation must catch at once. `make mutants` tries all of them."""

from __future__ import annotations

import pytest

from tests.simulation.mutant import Mutant, runs_to_catch
from tests.simulation.mutants import MUTANTS

QUICK = {
    "router commits its offset before its appends",
    "skip the checkpoint",
    "write marks before the commit",
    "dedup key with timestamp",
    "archive: the last arrival wins",
    "archive: position before rows",
    "a fresh identifier each send",
    "the ledger survives its checkpoint",
    "a binding that comes again counts",
    "another payer pays before the cut",
    "another payer cuts no period",
    "flush: publishes and keeps the base",
    "closing: usage between two subscriptions is not seen",
    "mirror: payload trusted",
    "mirror: only the first page of items",
    "measurer: forgets what was told",
    "corrector: a correction counts again after a crash",
    "access: what was taken back still gives",
}


@pytest.mark.parametrize("mutant", [each for each in MUTANTS if each.name in QUICK], ids=lambda each: each.name)
def test_a_deliberate_defect_is_caught(mutant: Mutant) -> None:
    """Within a few seeds."""
    runs, outcome = runs_to_catch(mutant, 10)

    assert outcome is not None, f"{mutant.name}: not caught in {runs} runs"


def test_there_are_enough_defects_and_each_has_a_name_of_its_own() -> None:
    """A table that shrinks unnoticed would prove less and less."""
    assert len({each.name for each in MUTANTS}) == len(MUTANTS) >= 30
    assert {each.name for each in MUTANTS} >= QUICK
