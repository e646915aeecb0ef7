"""Deliberate defects of late bindings: of what is counted again, and of what the old cut left behind."""

from __future__ import annotations

from typing import Any, Final
from unittest.mock import patch

import aggregators.bindings
import aggregators.exceptions
import pipeline.billing.customers
import pipeline.rollup.processor
import pipeline.rollup.restater
from aggregators.bindings import restated
from pipeline.rollup.restater import Restater
from schemas.control import RestatementRecord
from schemas.meters import Policy
from tests.simulation.mutant import Method, Mutant


def _cut_without_counting_again(original: Any) -> Any:
    def bound(state: Any, binding: Any, position: int, policy: Policy, stream_time_ms: int) -> Any:
        after = original(state, binding, position, policy, stream_time_ms)
        for begins in (True, False):
            record = RestatementRecord(account="any", position=position, begins=begins)
            after = restated(after, record, position, policy, stream_time_ms)
        return after

    return bound


async def _yes(*_arguments: Any) -> bool:
    return True


async def _no(*_arguments: Any) -> bool:
    return False


def _answers_at_once(original: Method) -> Method:
    async def restatement(self: Restater, partition: int) -> int:
        anything = 1 << 60
        with (
            patch.object(pipeline.rollup.restater, "position", lambda _offset: anything),
            patch.object(pipeline.rollup.restater, "NEAR_MS_MAX", anything),
            # Which would notice, and decline.
            patch.object(Restater, "_is_counted", _yes),
        ):
            answered: int = await original(self, partition)
        return answered

    return restatement


def _old_cells_stay(original: Any) -> Any:
    return lambda old, new: [cell for cell in original(old, new) if cell.period_end_ms > cell.period_start_ms]


LATE_BINDINGS: Final = (
    Mutant("late binding: cut without counting again", aggregators.bindings, "bound", _cut_without_counting_again),
    Mutant("late binding: cells of the old cut stay", pipeline.rollup.restater, "_changed", _old_cells_stay),
    Mutant(
        "late binding: totals of the old cut stay", pipeline.rollup.processor, "restatement_changes",
        lambda made: lambda *arguments: made(*arguments)._replace(replaced={}),
    ),
    Mutant(
        "late binding: open reports of the old cut stay", pipeline.rollup.processor, "replaced_reports",
        lambda _made: lambda *_arguments: [],
    ),
    Mutant(
        "late binding: send reports of the old cut", pipeline.billing.customers, "is_replaced",
        lambda _made: lambda *_arguments: False,
    ),
    Mutant(
        "late binding: usage counts on while it is counted again", aggregators.exceptions, "is_waiting",
        lambda _made: lambda *_arguments: False,
    ),
    Mutant("late binding: answered before the archive has passed, unseen", Restater, "restatement", _answers_at_once),
    Mutant("late binding: always declined", Restater, "_is_counted", lambda _made: _no),
)  # fmt: skip
