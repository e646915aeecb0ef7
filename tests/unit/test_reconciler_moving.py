"""Bindings and re-cuts that are folded while the reconciler reads: no view is wrong, and none is called so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from reconciler.causes import Cause, Pair, Verdict
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from tests.unit.reconciler_world import DECEMBER_MS, NOVEMBER_MS, Deployment, named, settled

Move = Callable[[], Awaitable[None]]


def before_totals(deployment: Deployment, move: Move, account: str = "ada") -> None:
    """`move` happens once, after the snapshot and before the totals of the account's partition are read."""
    read, moved = deployment.store.account_totals, []

    async def read_after(partition: int, keys: Sequence[Any]) -> Any:
        if not moved and partition == deployment.partition(account):
            moved.append(partition)
            await move()
        return await read(partition, keys)

    deployment.store.account_totals = read_after  # type: ignore[method-assign]  # the world moves under the reader


@pytest.mark.parametrize(
    ("from_ms", "to_ms"),
    [
        pytest.param(None, None, id="everything"),
        pytest.param(NOVEMBER_MS + 20 * DAY_MS, DECEMBER_MS, id="a range that the period no longer reaches"),
    ],
)
async def test_a_binding_that_is_folded_while_totals_are_read_is_no_drift(
    from_ms: int | None, to_ms: int | None
) -> None:
    """The recount is cut by it, and so must be what Redis says."""
    deployment = await settled()

    async def bind() -> None:
        anchor_ms = NOVEMBER_MS + 14 * DAY_MS
        await deployment.bind("ada", stripe_customer="cus_ada", effective_from_ms=NOVEMBER_MS, anchor_ms=anchor_ms)
        await deployment.fold()
        await deployment.archive()

    before_totals(deployment, bind)
    report = await deployment.reconcile(from_ms=from_ms, to_ms=to_ms)

    assert report.differences == 0
    assert next(s for s in report.summaries if s.pair is Pair.REDIS).equal == (20 if from_ms is None else 15)
    await deployment.settle()
    assert (await deployment.reconcile()).verdict is Verdict.EQUAL
