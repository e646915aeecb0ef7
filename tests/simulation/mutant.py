"""What a deliberate defect is, and how many runs it takes to catch one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple
from unittest.mock import patch

from simulation.run import RunResult, run

STEPS: Final = 40
RUNS_MAX: Final = 40

Method = Callable[..., Awaitable[Any]]


class Mutant(NamedTuple):
    """A defect: where it stands, and what replaces what stands there. Every `stride`-th seed can show it."""

    name: str
    target: Any
    attribute: str
    made: Callable[[Any], Any]
    stride: int = 1


def inner(reached: Any) -> Any:
    """The fake behind what a process reaches it by."""
    return reached._target


def runs_to_catch(mutant: Mutant, runs_max: int = RUNS_MAX) -> tuple[int, RunResult | None]:
    """How many seeds, from `stride` on, until a run fails under the defect; None where none of `runs_max` does."""
    replaced = mutant.made(vars(mutant.target)[mutant.attribute])
    with patch.object(mutant.target, mutant.attribute, replaced):
        for number in range(1, runs_max + 1):
            outcome = run(number * mutant.stride, STEPS)
            own = next((failure.what for failure in outcome.failures if _is_its_own(failure.what)), None)
            if own is not None:
                raise AssertionError(f"{mutant.name}: the defect itself broke, and proves nothing: {own}")
            if outcome.failures:
                return number, outcome
    return runs_max, None


def _is_its_own(what: str) -> bool:
    """Whether a failure is an error raised in this folder, instead of anything that the simulation found."""
    frames = [line for line in what.splitlines() if line.startswith('  File "')]
    return bool(frames) and "/tests/simulation/" in frames[-1]
