"""Notes of redrives of the quarantine: on the fake and on PostgreSQL."""

from __future__ import annotations

from typing import Any, cast

import pytest

from schemas.catalog_changes import NO_ACCOUNT
from schemas.errors import Fenced, InvalidInput
from schemas.redrives import REDRIVE_ENTITY, Redrive, RedriveCounts, Redrives, RedriveState, Selection
from schemas.side_tables import SideTables
from sinks.sql.side_tables import SqlSideTables
from tests.conformance.side_table_steps import NOW_MS

REDRIVE = Redrive(
    "rq_1", Selection("negative_quantity", "tokens", 5), "ann", "allowed now", [7, 9], [0, 2],
    begun_ms=NOW_MS, touched_ms=NOW_MS,
)  # fmt: skip
HALF = REDRIVE._replace(positions=[7, 2], steps=1, counts=RedriveCounts(7, 4, 1, 1, 1), touched_ms=NOW_MS + 5)
WHOLE = HALF._replace(
    positions=[7, 9], steps=2, counts=RedriveCounts(14, 9, 2, 1, 2), state=RedriveState.DONE, touched_ms=NOW_MS + 9
)  # fmt: skip


@pytest.fixture
def redrives(side_tables: SideTables) -> Redrives:
    return cast("SqlSideTables", side_tables).redrives


async def test_a_redrive_goes_on_where_it_was_noted(redrives: Redrives) -> None:
    assert await redrives.begin(REDRIVE) == REDRIVE
    await redrives.move(REDRIVE, HALF)

    assert await redrives.running(REDRIVE.selection) == HALF
    assert await redrives.running(Selection()) is None
    assert await redrives.begin(REDRIVE._replace(id="rq_2", by="bob")) == HALF
    await redrives.move(HALF, WHOLE)
    assert await redrives.running(REDRIVE.selection) is None


async def test_one_of_two_processes_goes_on(redrives: Redrives) -> None:
    """The other one's note comes too late, also if it is the last."""
    await redrives.begin(REDRIVE)
    await redrives.move(REDRIVE, HALF)
    for late in (HALF, WHOLE):
        with pytest.raises(Fenced, match="another process goes on with the redrive rq_1"):
            await redrives.move(REDRIVE, late)

    assert await redrives.running(REDRIVE.selection) == HALF


async def test_the_same_selection_is_redriven_again_after_its_end(redrives: Redrives) -> None:
    await redrives.begin(REDRIVE)
    await redrives.move(REDRIVE, HALF)
    await redrives.move(HALF, WHOLE)
    again = REDRIVE._replace(id="rq_2", begun_ms=NOW_MS + 20)

    assert await redrives.begin(again) == again
    assert await redrives.listed(10) == [again, WHOLE]
    assert await redrives.listed(1) == [again]


async def test_beginning_and_end_are_in_the_audit_once(side_tables: SideTables, redrives: Redrives) -> None:
    await redrives.begin(REDRIVE)
    await redrives.begin(REDRIVE._replace(id="rq_2", by="bob"))
    await redrives.move(REDRIVE, HALF)
    await redrives.move(HALF, WHOLE)
    with pytest.raises(Fenced):
        await redrives.move(HALF, WHOLE)

    rows = [row for row in await side_tables.audit(NO_ACCOUNT) if row.entity == REDRIVE_ENTITY]
    assert [(row.entity_id, row.actor, row.reason, row.at_ms) for row in rows] == [
        ("rq_1", "ann", "allowed now", NOW_MS), ("rq_1", "ann", "allowed now", NOW_MS + 9),
    ]  # fmt: skip
    assert '"cause":"negative_quantity"' in (rows[0].after or "")
    assert '"sent":9' in (rows[1].after or "")


@pytest.mark.parametrize(("field", "changes"), [("by", {"by": ""}), ("why", {"reason": " "})])
async def test_who_and_why_are_said(redrives: Redrives, field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as refused:
        await redrives.begin(REDRIVE._replace(**changes))

    assert (refused.value.field, await redrives.listed(1)) == (field, [])
