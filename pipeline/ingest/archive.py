"""The archive: every accepted event of `usage.events` into ClickHouse, by identity; decisions and control records
beside them. An event later than the dedup window is accepted here at once, so that there is a first arrival of its
identity; whether it counts, its decision says.

It reads the same topic as the rollup in a group of its own and dedups by another mechanism (the table's identity),
so that comparing the two is a real check. A crash after the rows and before the position writes the same rows again:
the first arrival still wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from aggregators.bindings import apply
from aggregators.decode import normalised
from aggregators.flush_plan import PlacedDedupDecision, place
from aggregators.meters import in_force_after
from aggregators.scan import LogState, scan
from aggregators.steps import Arrival
from pipeline.ingest.start_position import check_fresh, check_position
from pipeline.logs.control_records import find_genesis
from schemas.analytics import ArchivePosition, ArchiveStore, ControlRow, DedupDecisionRow, DedupOutcome, EventRow
from schemas.control import CONTROL_CLASSES, AccountControlRecord, ControlKind, MeterSetRecord
from schemas.errors import OperatorNeeded
from schemas.log import EVENTS_TOPIC, Log, Record, position
from schemas.meters import MeterSet, Policy
from schemas.periods import AccountState

ARCHIVE_GROUP: Final = "tidemark-archive"
REMEDY: Final = (
    "Restore ClickHouse's tables, or replay the log from its start with `tidemark archive --replay-from-start`."
)


class _Partition(NamedTuple):
    """Where reading a partition stands: the log state and the states of accounts that have any."""

    next_offset: int
    state: LogState
    accounts: dict[str, AccountState]


class ArchiveProcessor:
    """See `schemas.processing.Processor`. Account states are kept for accounts with bindings or closings only."""

    def __init__(
        self, log: Log, store: ArchiveStore, secret: bytes, *, events_max: int = 20_000, replay_from_start: bool = False
    ) -> None:
        self._log = log
        self._store = store
        self._secret = secret
        self._events_max = events_max
        self._replay_from_start = replay_from_start
        self._partitions: dict[int, _Partition] = {}

    @property
    def topic(self) -> str:
        """`usage.events`."""
        return EVENTS_TOPIC

    async def start_offset(self, partition: int) -> int:
        """The archive's own position, after checking that log and archive belong together."""
        committed = await self._log.committed(ARCHIVE_GROUP, EVENTS_TOPIC, partition)
        held = await self._store.load_position(partition)
        bounds = await self._log.bounds(EVENTS_TOPIC, partition)
        genesis = await find_genesis(self._log, self._secret, partition, held.log_id if held else None, bounds)
        if held is None:
            if not self._replay_from_start:
                check_fresh(EVENTS_TOPIC, partition, ARCHIVE_GROUP, committed, bounds, REMEDY)
            if genesis is None:
                raise OperatorNeeded(f"{EVENTS_TOPIC}-{partition} has no genesis record at its start. {REMEDY}")
            held = ArchivePosition(partition, 0, 0, genesis.log_id)
        if genesis is not None and genesis.log_id != held.log_id:
            raise OperatorNeeded(
                f"partition {partition}: the archive belongs to log {held.log_id}, this log is {genesis.log_id}. "
                "Point TIDEMARK_CLICKHOUSE_URL or TIDEMARK_LOG_URL at the pair that belongs together."
            )
        check_position(EVENTS_TOPIC, partition, held.next_offset, bounds, REMEDY)
        rows = await self._store.load_controls(partition, position(held.next_offset))
        meter_set, accounts = _replayed(rows)
        partitions = await self._log.partition_count(EVENTS_TOPIC)
        state = LogState(held.log_id, partitions, held.stream_time_ms, meter_set)
        self._partitions[partition] = _Partition(held.next_offset, state, accounts)
        return held.next_offset

    async def step(self, partition: int, records: Sequence[Record]) -> None:
        """Insert the records' events, then their decisions and control records, then the position."""
        left = [record for record in records if record.offset >= self._partitions[partition].next_offset]
        while left:
            held = self._partitions[partition]
            scanned = scan(partition, held.state, self._secret, left, events_max=self._events_max)
            placement = place(scanned, held.accounts)
            arrivals = (placed.arrival for placed in placement.placed if not placed.kept_out)
            rows = [_row(arrival, partition) for arrival in arrivals if arrival.decision is None]
            if rows:
                await self._store.insert_events(rows)
            if placement.decisions:
                await self._store.insert_dedup_decisions(
                    [_decision_row(each, partition) for each in placement.decisions]
                )
            controls = [
                ControlRow(partition, entry.position, entry.kind, entry.account, entry.stream_time_ms, entry.value)
                for entry in scanned.controls
                if entry.kind is not ControlKind.TICK
            ]
            if controls:
                await self._store.insert_controls(controls)
            await self._store.save_position(
                ArchivePosition(partition, scanned.next_offset, scanned.state.stream_time_ms, scanned.state.log_id)
            )
            held.accounts.update(placement.accounts)
            self._partitions[partition] = _Partition(scanned.next_offset, scanned.state, held.accounts)
            left = [record for record in left if record.offset >= scanned.next_offset]

    async def revoked(self, partition: int) -> None:
        """Forget the partition's state."""
        self._partitions.pop(partition, None)

    async def idle(self, partition: int) -> None:
        """Nothing to do."""


def _row(arrival: Arrival, partition: int) -> EventRow:
    return EventRow(
        arrival.account, arrival.id, arrival.type, arrival.source, arrival.time_us,
        normalised(arrival.data), partition, arrival.position, arrival.stream_time_ms, arrival.deferred is not None,
    )  # fmt: skip


def _decision_row(placed: PlacedDedupDecision, partition: int) -> DedupDecisionRow:
    step, decision = placed.step, placed.step.decision
    outcome = DedupOutcome.LATE if placed.closed and decision.quarantine else DedupOutcome.COUNTED
    return DedupDecisionRow(
        partition, decision.position, decision.account, step.position, step.stream_time_ms,
        outcome if decision.new else DedupOutcome.DUPLICATE,
    )  # fmt: skip


def _replayed(rows: Sequence[ControlRow]) -> tuple[MeterSet | None, dict[str, AccountState]]:
    """The meter set and the account states after the control records of the archive."""
    meter_set: MeterSet | None = None
    accounts: dict[str, AccountState] = {}
    for row in rows:
        record = CONTROL_CLASSES[ControlKind(row.kind)].model_validate_json(row.value)
        if isinstance(record, MeterSetRecord):
            meter_set = in_force_after(meter_set, record.meter_set)
        elif isinstance(record, AccountControlRecord):
            policy = meter_set.policy if meter_set else Policy()
            before = accounts.get(row.account, AccountState())
            accounts[row.account] = apply(before, record, row.position, policy, row.stream_time_ms)
    return meter_set, accounts
