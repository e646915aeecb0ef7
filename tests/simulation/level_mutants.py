"""Deliberate defects of levels: of when they are carried over, to where, and of which. Runs catch most of them, and
`tests/unit/aggregators/test_cuts.py` sees all."""

from __future__ import annotations

from typing import Any, Final

from aggregators.exceptions import Exceptions
from aggregators.flush import Flush
from aggregators.fold import _Sums
from tests.simulation.mutant import Mutant


def _not_at_all(original: Any) -> Any:
    return lambda self, found: original(self, found._replace(totals=[]))


def _to_one_period_only(original: Any) -> Any:
    def carry(self: _Sums, *arguments: Any) -> None:
        due = dict(self.levels)
        original(self, *arguments)
        self.levels = due

    return carry


def _without_late_usage(_original: Any) -> Any:
    return lambda *_arguments: None


def _without_0(original: Any) -> Any:
    def carry(self: _Sums, value: Any, number: int, policy: Any) -> None:
        if self._ledger.meters[number].aggregation.rule.minor(value):
            original(self, value, number, policy)

    return carry


LEVELS_IN_RUNS: Final = (
    Mutant("level: not carried over", Flush, "_carry", _not_at_all),
    Mutant("level: carried over once only", _Sums, "_carry", _to_one_period_only),
    Mutant("level: late usage moves its own period only", Exceptions, "_carry", _without_late_usage),
)
LEVELS: Final = (*LEVELS_IN_RUNS, Mutant("level: 0 is no level", _Sums, "_carry", _without_0))
