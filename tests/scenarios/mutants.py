"""`python -m tests.scenarios.mutants`: deliberate defects of the simulator, and how many histories catch each."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from stripe_simulator import invoice_lines, invoicing
from stripe_simulator.engine import proration
from stripe_simulator.engine.collection import DAY_S
from stripe_simulator.resources import subscription_changes
from tests.scenarios.histories import live
from tests.simulation.mutant import Mutant

HISTORIES_MAX: Final = 300


def one_second_less(original: Any) -> Any:
    """Charge from a second later on."""

    def charged(debit: Any, at: int, sign: int) -> Any:
        return original(debit, at + (sign > 0), sign)._replace(period=original(debit, at, sign).period)

    return charged


def _with_swapped_usage(original: Any) -> Any:
    def plan(mode: Any, subscription: Any, *arguments: Any, **how: Any) -> Any:
        planned = original(mode, subscription, *arguments, **how)
        if any(line.metered for line in planned.lines):
            return planned
        flexible = original(mode, {**subscription, "billing_mode": {"type": "flexible"}}, *arguments, **how)
        return planned._replace(lines=(*planned.lines, *(line for line in flexible.lines if line.metered)))

    return plan


def _a_day_late(original: Any) -> Any:
    def after_failure(*arguments: Any) -> Any:
        after = original(*arguments)
        due = after.next_payment_attempt
        return after._replace(next_payment_attempt=due and due + DAY_S)

    return after_failure


MUTANTS: Final = (
    Mutant("a proration is a second short", proration, "_proration", one_second_less),
    Mutant(
        "the period after a pause is billed twice", subscription_changes, "commit_when_paid",
        lambda made: lambda mode, body, change, **how: made(mode, body, change._replace(lines=change.lines * 2), **how),
    ),
    Mutant(
        "usage that arrives before the invoice is final is dropped", invoice_lines, "with_late_usage",
        lambda _: lambda _mode, _invoice, bodies: list(bodies),
    ),
    Mutant(
        "usage of a trial is billed", subscription_changes, "renewal",
        lambda made: lambda *arguments, **_: made(*arguments, was_trial=False),
    ),
    Mutant("classic mode bills the usage before a swap", subscription_changes, "plan", _with_swapped_usage),
    Mutant(
        "a cancellation that keeps the usage drops the usage", subscription_changes, "closing_lines",
        lambda made: lambda *arguments, **how: made(*arguments, **{**how, "usage": False}),
    ),
    Mutant("a retry comes a day late", invoicing, "after_failure", _a_day_late),
    Mutant(
        "a retry charges the customer's card, not the subscription's", invoicing, "_payment_method",
        lambda _: lambda mode, invoice: mode.fetch("customer", invoice["customer"])["invoice_settings"][
            "default_payment_method"
        ],
    ),
    Mutant("a hard decline is charged again", invoicing, "HARD_DECLINE_CODES", lambda _: frozenset()),
)  # fmt: skip


async def histories_to_catch(mutant: Mutant, folder: Path) -> int:
    """The first seed, from 1 on, whose history fails under the defect. Raises `AssertionError` if none does."""
    with patch.object(mutant.target, mutant.attribute, mutant.made(vars(mutant.target)[mutant.attribute])):
        for seed in range(1, HISTORIES_MAX + 1):
            try:
                await live(seed, folder)
            except AssertionError as failure:
                if not isinstance(failure.__cause__, AssertionError):
                    raise  # The defect itself broke, and proves nothing.
                return seed
    raise AssertionError(f"{mutant.name}: not caught in {HISTORIES_MAX} histories")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        for each in MUTANTS:
            print(f"{asyncio.run(histories_to_catch(each, Path(place))):4}  {each.name}")
