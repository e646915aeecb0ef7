"""Deliberate defects of late bindings: of what is counted again, and of what the old cut left behind."""

from __future__ import annotations

from typing import Any, Final

import aggregators.plan
import pipeline.processors.customers
import pipeline.processors.recutter
import pipeline.processors.rollup
from aggregators.bindings import recut
from schemas.meters import Policy
from tests.simulation.mutant import Mutant


def _cut_without_counting_again(original: Any) -> Any:
    def bound(state: Any, binding: Any, position: int, policy: Policy, log_time_ms: int) -> Any:
        after = original(state, binding, position, policy, log_time_ms)
        return recut(after, position, policy, log_time_ms, declined=False)

    return bound


def _old_cells_stay(original: Any) -> Any:
    return lambda old, new: [cell for cell in original(old, new) if cell.period_end_ms > cell.period_start_ms]


LATE_BINDINGS: Final = (
    Mutant("late binding: cut without counting again", aggregators.plan, "bound", _cut_without_counting_again),
    Mutant("late binding: cells of the old cut stay", pipeline.processors.recutter, "_changed", _old_cells_stay),
    Mutant(
        "late binding: totals of the old cut stay", pipeline.processors.rollup, "recut_changes",
        lambda made: lambda *arguments: made(*arguments)._replace(replaced={}),
    ),
    Mutant(
        "late binding: open reports of the old cut stay", pipeline.processors.rollup, "replaced_reports",
        lambda _made: lambda *_arguments: [],
    ),
    Mutant(
        "late binding: send reports of the old cut", pipeline.processors.customers, "is_replaced",
        lambda _made: lambda *_arguments: False,
    ),
    Mutant(
        "late binding: answered before the archive has passed", pipeline.processors.recutter, "position",
        lambda _made: lambda _offset: 1 << 60,
    ),
)  # fmt: skip
