"""The archive: writes all accepted events, dedup decisions and control records of `usage.events` to ClickHouse.

A far-late event is written at once, before its dedup decision. The archive reads the log in its own group and finds
duplicates by the table's identity, not by marks, so the reconciler's comparison with the rollup is a real check. After
a crash the same rows may be written again; the first arrival of an identity wins.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections import ChainMap
from collections.abc import Mapping, Sequence
from itertools import islice, takewhile
from typing import Final, NamedTuple

from aggregators.bindings import apply
from aggregators.meters import in_force_after
from aggregators.placement import PlacedDedupDecision, place
from aggregators.scan import LogState, Scan, scan
from pipeline.ingest.event_blocks import EventBlocks, event_rows, is_control
from pipeline.ingest.joint_inserts import JOINT_ROWS_MAX, JointInserts
from pipeline.ingest.step_room import StepRoom
from pipeline.logs.control_records import find_genesis
from pipeline.logs.start_position import check_fresh, check_position
from schemas.analytics import (
    ArchivePosition,
    ArchiveStore,
    ControlRow,
    DedupDecisionRow,
    DedupOutcome,
    EventBlock,
    EventRow,
)
from schemas.control import CONTROL_CLASSES, AccountControlRecord, ControlKind, MeterSetRecord
from schemas.errors import OperatorNeeded
from schemas.log import EVENTS_TOPIC, Log, Record, position
from schemas.meters import MeterSet, Policy
from schemas.periods import AccountState

ARCHIVE_GROUP: Final = "tidemark-archive"
# Two full steps fill one joint insert. While it runs, two more make rows; further steps wait.
STEP_EVENTS_MAX: Final = JOINT_ROWS_MAX // 2
STEPS_BYTES_MAX: Final = 96 * 1024 * 1024
REPLAYED_AT_ONCE_MAX: Final = 1_000
REMEDY: Final = (
    "Restore ClickHouse's tables, or replay the log from its start with `tidemark archive --replay-from-start`."
)


class _Partition(NamedTuple):
    """The next offset of a partition, its log state and its account states."""

    next_offset: int
    state: LogState
    accounts: dict[str, AccountState]


class _Rows(NamedTuple):
    """The rows of a step, and what changes after they are stored. Events are rows, or blocks that the C core made."""

    events: Sequence[EventRow]
    blocks: Sequence[EventBlock]
    decisions: list[DedupDecisionRow]
    controls: list[ControlRow]
    next_offset: int
    state: LogState
    accounts: Mapping[str, AccountState]


class ArchiveProcessor:
    """The processor of the archive. Only accounts with bindings or closings have an account state.

    The events of partitions whose steps run at the same time are inserted together.
    """

    topic: Final = EVENTS_TOPIC

    def __init__(
        self,
        log: Log,
        store: ArchiveStore,
        secret: bytes,
        *,
        events_max: int = STEP_EVENTS_MAX,
        steps_bytes_max: int = STEPS_BYTES_MAX,
        replay_from_start: bool = False,
        native: ctypes.CDLL | None = None,
    ) -> None:
        """`steps_bytes_max` limits the bytes of the records in steps that run at the same time. `native` is the C core,
        which then makes the rows of events."""
        self._log = log
        self._store = store
        self._secret = secret
        self._events_max = events_max
        self._replay_from_start = replay_from_start
        self._partitions: dict[int, _Partition] = {}
        self._events = JointInserts(store.insert_events)
        self._native = native
        self._makers: dict[int, EventBlocks] = {}
        self._joint_blocks = JointInserts(store.insert_event_blocks)
        self._room = StepRoom(steps_bytes_max)

    async def start_offset(self, partition: int) -> int:
        """The archive's position, which ClickHouse stores.

        Raises `OperatorNeeded` if the archive belongs to another log, or if the log does not have the position.
        """
        committed = await self._log.committed(ARCHIVE_GROUP, EVENTS_TOPIC, partition)
        stored = await self._store.load_position(partition)
        bounds = await self._log.bounds(EVENTS_TOPIC, partition)
        genesis = await find_genesis(self._log, self._secret, partition, stored.log_id if stored else None, bounds)
        if stored is None:
            if not self._replay_from_start:
                check_fresh(EVENTS_TOPIC, partition, ARCHIVE_GROUP, committed, bounds, REMEDY)
            if genesis is None:
                raise OperatorNeeded(f"{EVENTS_TOPIC}-{partition} has no genesis record at its start. {REMEDY}")
            stored = ArchivePosition(partition, 0, 0, genesis.log_id)
        if genesis is not None and genesis.log_id != stored.log_id:
            raise OperatorNeeded(
                f"partition {partition}: the archive belongs to log {stored.log_id}, this log is {genesis.log_id}. "
                "Point TIDEMARK_CLICKHOUSE_URL or TIDEMARK_LOG_URL at the pair that belongs together."
            )
        check_position(EVENTS_TOPIC, partition, stored.next_offset, bounds, REMEDY)
        rows = await self._store.load_controls(partition, position(stored.next_offset))
        meter_set, accounts = await _replayed(rows)
        partitions = await self._log.partition_count(EVENTS_TOPIC)
        state = LogState(stored.log_id, partitions, stored.stream_time_ms, meter_set)
        self._partitions[partition] = _Partition(stored.next_offset, state, accounts)
        return stored.next_offset

    async def step(self, partition: int, records: Sequence[Record]) -> None:
        """Insert the events, then the dedup decisions and control records, then the position.

        May wait until the steps of other partitions leave room.
        """
        async with self._room.taken(sum(len(record.value or b"") for record in records)):
            await self._step(partition, records)

    async def _step(self, partition: int, records: Sequence[Record]) -> None:
        left = [record for record in records if record.offset >= self._partitions[partition].next_offset]
        while left:
            # A step that fails is repeated with a new maker: this one knows what is not stored.
            maker = self._makers.pop(partition, None) or self._maker(partition)
            rows = self._rows(partition, left) if maker is None else self._native_rows(partition, left, maker)
            if rows.events:
                await self._events.insert(rows.events, len(rows.events))
            if rows.blocks:
                await self._joint_blocks.insert(rows.blocks, sum(block.rows for block in rows.blocks))
            if rows.decisions:
                await self._store.insert_dedup_decisions(rows.decisions)
            if rows.controls:
                await self._store.insert_controls(rows.controls)
            await self._store.save_position(
                ArchivePosition(partition, rows.next_offset, rows.state.stream_time_ms, rows.state.log_id)
            )
            accounts = self._partitions[partition].accounts
            accounts.update(rows.accounts)
            self._partitions[partition] = _Partition(rows.next_offset, rows.state, accounts)
            if maker is not None:
                self._makers[partition] = maker
            left = [record for record in left if record.offset >= rows.next_offset]

    def _rows(self, partition: int, records: Sequence[Record]) -> _Rows:
        """The rows of the first records. The decoded events are dropped here: they take more memory than the rows."""
        reached = self._partitions[partition]
        scanned = scan(partition, reached.state, self._secret, records, events_max=self._events_max)
        placement = place(scanned, reached.accounts)
        return _Rows(
            event_rows(placement, partition),
            (),
            [_decision_row(placed, partition) for placed in placement.decisions],
            _control_rows(scanned, partition),
            scanned.next_offset,
            scanned.state,
            placement.accounts,
        )

    def _native_rows(self, partition: int, records: Sequence[Record], maker: EventBlocks) -> _Rows:
        """The same rows, those of events by the C core."""
        reached = self._partitions[partition]
        state, next_offset, changed = reached.state, records[0].offset, dict[str, AccountState]()
        accounts = ChainMap(changed, reached.accounts)
        decisions, controls = list[DedupDecisionRow](), list[ControlRow]()
        at = 0
        while at < len(records) and maker.rows < self._events_max:
            if not is_control(records[at]):
                state, next_offset = maker.take(state, accounts, records[at]), records[at].next_offset
                at += 1
                continue
            run = list(takewhile(is_control, islice(records, at, None)))
            scanned = scan(partition, state, self._secret, run, events_max=self._events_max)
            placement = place(scanned, accounts)
            decisions += [_decision_row(placed, partition) for placed in placement.decisions]
            controls += _control_rows(scanned, partition)
            changed.update(placement.accounts)
            maker.changed(placement.accounts)
            state, next_offset = scanned.state, scanned.next_offset
            at += sum(record.offset < next_offset for record in run)
        return _Rows((), maker.blocks(), decisions, controls, next_offset, state, changed)

    def _maker(self, partition: int) -> EventBlocks | None:
        return None if self._native is None else EventBlocks(self._native, self._secret, partition)

    async def revoked(self, partition: int) -> None:
        self._partitions.pop(partition, None)
        self._makers.pop(partition, None)

    async def idle(self, partition: int) -> None:
        """Does nothing."""


def _control_rows(scanned: Scan, partition: int) -> list[ControlRow]:
    return [
        ControlRow(partition, entry.position, entry.kind, entry.account, entry.stream_time_ms, entry.value)
        for entry in scanned.controls
        if entry.kind is not ControlKind.TICK
    ]


def _decision_row(placed: PlacedDedupDecision, partition: int) -> DedupDecisionRow:
    step, decision = placed.step, placed.step.decision
    outcome = DedupOutcome.LATE if placed.kept_out else DedupOutcome.COUNTED
    return DedupDecisionRow(
        partition, decision.position, decision.account, step.position, step.stream_time_ms,
        outcome if decision.new else DedupOutcome.DUPLICATE,
    )  # fmt: skip


async def _replayed(rows: Sequence[ControlRow]) -> tuple[MeterSet | None, dict[str, AccountState]]:
    """The meter set and the account states that result from the archive's control records."""
    meter_set: MeterSet | None = None
    accounts: dict[str, AccountState] = {}
    for number, row in enumerate(rows):
        if number % REPLAYED_AT_ONCE_MAX == 0:
            # A partition may have 500 000 bound accounts: the watchdog must not take the start for a blocked loop.
            await asyncio.sleep(0)
        record = CONTROL_CLASSES[ControlKind(row.kind)].model_validate_json(row.value)
        if isinstance(record, MeterSetRecord):
            meter_set = in_force_after(meter_set, record.meter_set)
        elif isinstance(record, AccountControlRecord):
            policy = meter_set.policy if meter_set else Policy()
            before = accounts.get(row.account, AccountState())
            accounts[row.account] = apply(before, record, row.position, policy, row.stream_time_ms)
    return meter_set, accounts
