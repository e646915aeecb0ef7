"""The simulation with the C core in every worker ends as it does with Python: to the byte."""

from __future__ import annotations

import ctypes
from functools import partial

import pytest

from aggregators.columns import Leave
from aggregators.decode import Rejected
from aggregators.native.columns import NativeColumns
from pipeline.ingest.archive import ArchiveProcessor
from pipeline.rollup.processor import RollupProcessor
from schemas.adjustments import is_reserved
from schemas.events import EventStruct
from schemas.log import Record
from simulation import roles
from simulation.run import run

STEPS = 25


@pytest.mark.parametrize("seed", [1, 2, 3, 5, 6, 7])
def test_a_run_with_the_core_ends_as_one_with_python(
    library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """The digest covers the log, all stores and Stripe."""
    python, events, left_out = run(seed, STEPS), list[int](), list[int]()

    class Counted(NativeColumns):
        def take(self, record: Record, leave: Leave) -> int:
            def left(place: int, event: EventStruct | Rejected) -> None:
                # The core hands samples and adjustments back, whatever they hold.
                is_slow = isinstance(event, EventStruct) and (event.type == "sample" or is_reserved(event.type))
                left_out.extend([] if is_slow else [place])
                leave(place, event)

            events.append(super().take(record, left))
            return events[-1]

    maker_of = partial(Counted, library)
    monkeypatch.setattr(roles, "RollupProcessor", partial(RollupProcessor, maker_of=maker_of))
    native = run(seed, STEPS)

    assert native.failures == python.failures == ()
    assert native.digest == python.digest
    assert len(left_out) < sum(events) // 2


@pytest.mark.parametrize("seed", [11, 13, 14])
def test_a_run_with_the_core_in_the_archive_holds_too(
    library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Its steps are cut elsewhere, so faults strike other calls."""
    monkeypatch.setattr(roles, "ArchiveProcessor", partial(ArchiveProcessor, native=library))

    assert run(seed, STEPS).failures == ()
