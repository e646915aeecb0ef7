"""Folds of one log: record by record, and in random cuts with a store that fails."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import fields
from typing import Any, NamedTuple

from aggregators.codec import (
    parse_cell_field,
    parse_cell_text,
    parse_report_field,
    parse_report_text,
    parse_value,
)
from aggregators.columns import MakerOf, PythonColumns
from oracle.model import Oracle
from pipeline.rollup.processor import RollupSettings
from schemas.errors import Fenced, Transient
from schemas.log import REJECTED_TOPIC, Headers, position
from schemas.rollup import Changes, Checkpoint, ReadRequest, View
from sinks.redis.fake import FakeLiveView, FakeServer, FakeState
from sinks.redis.fake_state import HeldPartition
from tests.worlds.any_log import AnyLog
from tests.worlds.deployment import World


class Stored(NamedTuple):
    """What a fold left: the state of the partition, and what it put into the quarantine."""

    state: HeldPartition
    rejected: frozenset[tuple[Headers, bytes | None]]

    def difference(self, other: Stored) -> str:
        """What differs; empty if nothing does."""
        for field in fields(HeldPartition):
            ours, theirs = getattr(self.state, field.name), getattr(other.state, field.name)
            if ours != theirs:
                return f"{field.name}: {_difference(ours, theirs)}"
        return "" if self.rejected == other.rejected else f"rejected: {self.rejected ^ other.rejected}"


def _difference(ours: Any, theirs: Any) -> str:
    if not isinstance(ours, dict):
        return f"{ours} is not {theirs}"
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    return ", ".join(f"{key}: {ours.get(key)} is not {theirs.get(key)}" for key in keys[:5])


class Failing(FakeState):
    """Fails now and then: without an effect, or after the commit was made. `chance` decides."""

    def __init__(self, server: FakeServer, chance: random.Random) -> None:
        super().__init__(server)
        self._chance = chance

    async def read(self, partition: int, believed: Checkpoint, request: ReadRequest) -> View:
        if self._chance.random() < 0.02:
            raise Transient("no answer", 0.0)
        return await super().read(partition, believed, request)

    async def commit(self, partition: int, believed: Checkpoint, changes: Changes) -> None:
        drawn = self._chance.random()
        if drawn < 0.03:
            raise Fenced("refused")
        if drawn < 0.06:
            raise Transient("no answer", 0.0)
        await super().commit(partition, believed, changes)
        if drawn < 0.09:
            raise Transient("the answer was lost", 0.0)


def _world(log: AnyLog, chance: random.Random | None = None) -> World:
    view = FakeLiveView()
    if chance is not None:
        view.state = Failing(view.server, chance)
    world = World(0, 1, view)
    world.log = log.world.log
    return world


async def _stored(world: World, rejected_from: int) -> Stored:
    assert isinstance(world.store, FakeLiveView)
    records = [record for record in await world.records(0, REJECTED_TOPIC) if record.offset >= rejected_from]
    return Stored(world.store.server.partitions[0], frozenset((record.headers, record.value) for record in records))


async def stored_record_by_record(log: AnyLog, maker_of: MakerOf = PythonColumns) -> Stored:
    """Fold every record in a flush of its own, by a worker that knows nothing."""
    world = _world(log)
    rejected_from = (await world.log.bounds(REJECTED_TOPIC, 0)).next
    for record in await world.records(0):
        worker = world.rollup(maker_of=maker_of)
        await worker.start_offset(0)
        await worker.step(0, [record])
    return await _stored(world, rejected_from)


async def stored_after_cuts(log: AnyLog, maker_of: MakerOf) -> Stored:
    """Fold random runs of records by one worker, which starts again now and then, over a store that fails."""
    chance = random.Random(log.seed)
    world = _world(log, chance)
    rejected_from = (await world.log.bounds(REJECTED_TOPIC, 0)).next
    settings = RollupSettings(
        flush_events_max=chance.choice([5, 30, 20_000]), cache_entries_max=chance.choice([20, 100, 1_000_000])
    )
    at_once = chance.choice([3, 20, 500])
    worker, records = world.rollup(settings, maker_of), await world.records(0)
    offset = await worker.start_offset(0)
    while offset <= records[-1].offset:
        run = [record for record in records if record.offset >= offset][: chance.randrange(1, at_once + 1)]
        with suppress(Fenced, Transient):
            await worker.step(0, run)
        if chance.random() < 0.05:
            worker = world.rollup(settings, maker_of)
            await worker.start_offset(0)
        offset = worker.checkpoints[0].next_offset
    return await _stored(world, rejected_from)


def disagreement(stored: Stored, oracle: Oracle) -> str:
    """Where a state differs from what an oracle has counted; empty if nowhere."""
    state = stored.state
    assert state.checkpoint is not None
    counters = state.checkpoint.counters._asdict()
    totals = {
        (key.account, meter, key.period_start_ms): parse_value(text).minor
        for key, values in state.totals.items()
        for meter, text in values.items()
    }
    cells = {}
    for cell, text in state.cells.items():
        of, value = parse_cell_field(cell.field), parse_cell_text(text)[3]
        place = of.account, of.meter, of.period_start_ms, of.hour_ms, of.dimensions, cell.bucket_ms
        cells[place] = value.minor, state.dirty[cell] - (state.checkpoint.generation << 56)
    reports = {}
    for entry, text in state.reports.items():
        # A negative key is of the flushes themselves.
        if entry.bucket_ms >= 0:
            named, reported = parse_report_field(entry.field), parse_report_text(text)
            entry_key = named.account, named.meter, named.period_start_ms, entry.bucket_ms
            reports[entry_key] = reported.base_minor, reported.current_minor, reported.event_name
    counted_totals = {
        (account, meter, start_ms): value for (account, meter, (start_ms, _)), value in oracle.totals.items()
    }
    counted_cells = {
        (key[0], key[1], key[2][0], *key[3:]): (oracle.cells[key], position(last.offset, last.event_index))
        for key, last in oracle.last.items()
    }
    counted_reports = {
        (account, meter, start_ms, bucket_ms): tuple(report)
        for ((account, meter, (start_ms, _)), bucket_ms), report in oracle.reports.items()
    }
    for name, ours, theirs in (
        ("counters", counters, oracle.counters[0]),
        ("totals", totals, counted_totals),
        ("cells", cells, counted_cells),
        ("reports", reports, counted_reports),
    ):
        if ours != theirs:
            return f"{name}: {_difference(ours, theirs)}"
    return ""
