"""Logs for the archive with everything that the archive must keep or leave out, and archives that read them."""

from __future__ import annotations

import ctypes
import random
from typing import Final

from pipeline.ingest.archive import ArchiveProcessor
from pipeline.logs.control_records import append_everywhere
from schemas.analytics import ArchiveStore
from schemas.clock import DAY_MS, MINUTE_MS
from schemas.control import BindingRecord, CloseRecord, Control, MeterSetRecord, RestatementRecord, Tick
from schemas.log import EVENTS_TOPIC
from schemas.meters import MeterSet
from schemas.periods import Binding, Interval
from tests.traffic.odd_records import ACCOUNTS, METER_SET, NOW_MS, OddRecords
from tests.worlds.deployment import SECRET, World

RECORDS: Final = 150


async def odd_log(seed: int, oddness: float = 1.0, records: int = RECORDS) -> World:
    """A log of one partition: odd records, and between them ticks, bindings, closings and another meter set."""
    chance, made = random.Random(seed), OddRecords(seed, oddness)
    world = World(NOW_MS, partitions=1)
    await world.start(METER_SET)
    for number in range(records):
        await world.log.append(EVENTS_TOPIC, 0, made.record(12))
        if chance.random() < 0.1:
            world.clock.ms += chance.choice((1, MINUTE_MS, 31 * MINUTE_MS, DAY_MS // 2))
        if chance.random() < 0.1:
            await world.control(0, Tick(log_id=world.log_id, partitions=1))
        if chance.random() < 0.15:
            await world.control(0, _account_record(world, chance))
        if number == records // 2:
            later = MeterSet.model_validate({**METER_SET, "version": 2, "meters": METER_SET["meters"][1:]})
            await append_everywhere(world.log, SECRET, MeterSetRecord(meter_set=later))
    return world


def _account_record(world: World, chance: random.Random) -> Control:
    account, now_ms = chance.choice(ACCOUNTS), world.clock.ms
    match chance.randrange(4):
        case 0:
            return CloseRecord(account=account, revision=world.revision(account), instant_ms=now_ms)
        case 1:
            return RestatementRecord(account=account, position=1, begins=True)
    anchor_ms = (now_ms // MINUTE_MS - chance.randrange(90)) * MINUTE_MS
    binding = Binding(effective_from_ms=anchor_ms - 40 * DAY_MS, anchor_ms=anchor_ms, interval=Interval.DAY)
    return BindingRecord(account=account, revision=world.revision(account), binding=binding)


async def archived(
    world: World, store: ArchiveStore, library: ctypes.CDLL | None, chance: random.Random, events_max: int = 20_000
) -> None:
    """Archive the whole log in steps of random length, some of them by another process."""
    archive: ArchiveProcessor | None = None
    records = await world.records(0)
    while True:
        if archive is None or chance.random() < 0.1:
            archive = ArchiveProcessor(
                world.log, store, SECRET, replay_from_start=True, native=library, events_max=events_max
            )
            offset = await archive.start_offset(0)
        left = [record for record in records if record.offset >= offset][: chance.randrange(1, 40)]
        if not left:
            return
        await archive.step(0, left)
        offset = left[-1].next_offset
