"""Any log is folded to one state, whatever the flushes were and whoever made the columns; and an oracle agrees (I7).

A log that fails prints the command that makes and folds it again.
"""

from __future__ import annotations

from typing import Final
from unittest.mock import patch

import pytest

import aggregators.flush
import aggregators.levels
from aggregators.columns import PythonColumns
from schemas.log import EVENTS_TOPIC, REJECTED_TOPIC
from tests.simulation.fold_mutants import FOLD
from tests.simulation.level_mutants import LEVELS
from tests.simulation.mutant import Mutant
from tests.traffic.generate import METER_SET
from tests.worlds.any_log import MARCH_MS, AnyLog
from tests.worlds.cuts import disagreement, stored_after_cuts, stored_record_by_record
from tests.worlds.deployment import World

SEEDS: Final = range(1, 61)


async def differences(seed: int) -> str:
    """What is wrong with the folds of the log of a seed; empty if nothing is."""
    log = AnyLog(seed, checked=bool(seed % 2))
    await log.write()
    straight = await stored_record_by_record(log)
    cut = await stored_after_cuts(log, PythonColumns)
    return straight.difference(cut) or (disagreement(straight, log.oracle) if log.checked else "")


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed-{seed}-")
async def test_any_cuts_leave_the_state_of_one_record_after_another(seed: int) -> None:
    """Every second log is also compared with the oracle."""
    assert await differences(seed) == "", f"again: python -m pytest tests/unit/aggregators/test_cuts.py -k seed-{seed}-"


@pytest.mark.parametrize("seed", range(2, 22, 2))
async def test_levels_that_wait_for_the_next_record_wait_in_any_cuts(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One record carries over one level. These logs leap over months, in which totals retire too."""
    for module in (aggregators.levels, aggregators.flush):
        monkeypatch.setattr(module, "CARRIED_MAX", 1)

    assert await differences(seed) == ""


async def test_the_quarantine_has_the_entries_of_a_flush_in_log_order() -> None:
    """Refused control records stand between invalid events, as in the log."""
    world = World(MARCH_MS, 1)
    await world.start(METER_SET)
    forged = (("tidemark-control", b"flush"),)
    sent = [await world.log.append(EVENTS_TOPIC, 0, b"[1, 2]", headers=headers) for headers in ((), forged, ())]

    await world.fold_all()

    entries = [dict(record.headers) for record in await world.records(0, REJECTED_TOPIC)]
    places = [(int(entry["tidemark-offset"]), int(entry["tidemark-index"])) for entry in entries]
    assert places == [(sent[0], 0), (sent[0], 1), (sent[1], 0), (sent[2], 0), (sent[2], 1)]


@pytest.mark.parametrize("mutant", [*FOLD, *LEVELS], ids=lambda each: each.name)
async def test_a_deliberate_defect_of_the_fold_is_seen(mutant: Mutant) -> None:
    """By a difference, or because the fold breaks."""
    replaced = mutant.made(vars(mutant.target)[mutant.attribute])
    with patch.object(mutant.target, mutant.attribute, replaced):
        for seed in SEEDS:
            try:
                if await differences(seed):
                    return
            except (AssertionError, IndexError, KeyError):
                return
    pytest.fail(f"{mutant.name}: not seen in {len(SEEDS)} logs")
