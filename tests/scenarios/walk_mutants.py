"""`python -m tests.scenarios.walk_mutants`: deliberate defects that the walk of accounts must find."""

from __future__ import annotations

import asyncio
from typing import Any, Final
from unittest.mock import patch

from aggregators import account_grants, plan_change, plan_offer
from pipeline.changes import operating, quoting
from sinks.sql import dunning
from stripe_simulator.engine import proration
from tests.scenarios.mutants import one_second_less
from tests.scenarios.walk import Different, Walk
from tests.simulation.mutant import Mutant

WALKS_MAX: Final = 20
ACCOUNTS: Final = 8
MONTHS: Final = 5


def _a_day_late(original: Any) -> Any:
    def advanced(case: Any, owing: Any, policy: Any, now_ms: int) -> Any:
        days = policy.downgrade_after_final_days + 1
        return original(case, owing, policy.model_copy(update={"downgrade_after_final_days": days}), now_ms)

    return advanced


def _charged_again(original: Any) -> Any:
    return lambda held, wanted: original([item._replace(paid=None) for item in held], wanted)


def _for_ever(original: Any) -> Any:
    def pending(*arguments: Any) -> Any:
        found = original(*arguments)
        return found and found._replace(is_over=False)

    return pending


MUTANTS: Final = (
    Mutant("a seat that is paid already is charged again", plan_change, "_paid_already", _charged_again),
    Mutant("a quote for something else is accepted", operating, "changed_field", lambda _: lambda *_arguments: ""),
    Mutant("an invoice is prorated to the acceptance", quoting, "_dated", lambda _: lambda call, _shop, _now_ms: call),
    Mutant("the plan is lost a day late", dunning, "advanced", _a_day_late),
    Mutant("who does not pay keeps the plan", account_grants, "_unpaid_ms", lambda _: lambda *_arguments: None),
    Mutant("a change that has happened stays pending", plan_offer, "_pending", _for_ever),
    Mutant("a proration is a second short", proration, "_proration", one_second_less),
)


async def walks_to_catch(mutant: Mutant, first: int = 1) -> int:
    """The first seed, from `first` on, whose walk fails under the defect. Raises `AssertionError` if none does."""
    with patch.object(mutant.target, mutant.attribute, mutant.made(vars(mutant.target)[mutant.attribute])):
        for seed in range(first, first + WALKS_MAX):
            try:
                await Walk(ACCOUNTS, MONTHS, seed).run()
            except Different as found:
                if found.__cause__ is not None:
                    raise  # The defect itself broke, and proves nothing.
                return seed
    raise AssertionError(f"{mutant.name}: not caught in {WALKS_MAX} walks")


async def _all() -> None:
    for mutant in MUTANTS:
        print(f"{await walks_to_catch(mutant):4}  {mutant.name}", flush=True)


if __name__ == "__main__":
    asyncio.run(_all())
