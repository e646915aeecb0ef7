"""Recounts `usage_hourly` from `usage_events` and `control_log`, by SQL that shares no code with the fold.

For a log that no longer has its first record. The archive keeps the first arrival of each identity, so the result
equals the fold's only if the archive holds as many events as the fold counted; otherwise the recount refuses to run.

1. Note each partition's live checkpoint and wait until the archive has passed it. Count accounts in chunks up to the
   checkpoint into a staging table. The accounts in the table record the progress: an interrupted recount continues one
   chunk before the last of them.
2. Exchange the tables. Copy the cells that took events since the noted checkpoint from the old table.
3. Note the live checkpoints again, and count the cells that took events since the first checkpoints. A relay that began
   before the exchange wrote into the old table; all its rows are below the new checkpoints.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from pipeline.rebuild.hourly import Note, begun, noted
from pipeline.rebuild.shadow_copy import check_live
from reconciler.recount import PartitionState, request_at
from reconciler.views import Behind, PartitionStates
from schemas.analytics import HourlyRow
from schemas.clock import Clock
from schemas.errors import OperatorNeeded, Transient
from schemas.live_view import LiveView
from schemas.log import EVENTS_TOPIC, POSITION_MAX, Log, offset_of, position
from schemas.rebuild import AnalyticalStore, GenerationsSeen, Progress, RowRecounts, TableStaging
from schemas.rollup import Checkpoint

HOURLY: Final = "usage_hourly"
SOURCE: Final = "clickhouse"
ACCOUNTS_AT_ONCE: Final = 1_000
ARCHIVE_WAIT_S: Final = 60.0


@dataclass
class HourlyRecount:
    """Recounts `usage_hourly`. An interrupted recount continues when it is run again."""

    log: Log
    live: LiveView
    hourly: AnalyticalStore
    reader: RowRecounts
    staging: TableStaging
    clock: Clock
    secret: bytes
    accounts_at_once: int = ACCOUNTS_AT_ONCE
    progress: Callable[[Progress], None] = lambda _: None

    def __post_init__(self) -> None:
        self._partition_states = PartitionStates(self.reader, self.clock, ARCHIVE_WAIT_S)

    async def run(self) -> None:
        """Recount the table.

        Raises `OperatorNeeded` if there is no live view to compare the archive with, or if the archive does not hold
        the events that the live view counted; `Transient` if a store does not answer or the archive is behind.
        """
        staging = self.staging
        partitions = await self.log.partition_count(EVENTS_TOPIC)
        rebuilt = await self._events_rebuilt()
        started = await begun(staging, SOURCE)
        if started is not None and HOURLY not in started[1].swapped and started[0].events_rebuilt != rebuilt:
            # usage_events was rebuilt since, so the staged counts are outdated.
            await staging.drop((HOURLY,))
            started = None
        if started is None:
            checkpoints = [(await self._whole(partition)).checkpoint for partition in range(partitions)]
            note = Note(
                SOURCE,
                uuid.uuid4().hex[:16],
                tuple(checkpoint.generation for checkpoint in checkpoints),
                tuple(checkpoint.next_offset for checkpoint in checkpoints),
                tuple(checkpoint.stream_time_ms for checkpoint in checkpoints),
                rebuilt,
            )
        else:
            note = started[0]
        building = await staging.begin((HOURLY,), msgspec.json.encode(note).decode())
        # The rows in the table belong to the note stored with it, even if another command wrote both.
        note = noted(building, SOURCE)
        if HOURLY not in building.swapped:
            for partition in range(partitions):
                await self._fill(partition, note)
            await self._events_rebuilt(note.events_rebuilt)
            await staging.swap(HOURLY)
        for partition in range(partitions):
            await staging.carry_over(partition, position(note.offsets[partition]))
        for partition in range(partitions):
            # Everything dropped from the outbox so far is below the checkpoint that is noted next.
            dropped = await self.live.drops.dropped(partition)
            partition_state = await self._whole(partition)
            await self._count(partition_state, "", self.hourly, from_position=position(note.offsets[partition]))
            await self._events_rebuilt(rebuilt)
            await self.live.drops.backfilled(partition, dropped._replace(duplicates=0))
            self._report(partition_state.checkpoint, partition, swapped=True)
        await staging.drop((HOURLY,))

    async def _events_rebuilt(self, expected: int | None = None) -> int:
        """The number of the rebuild that made `usage_events`.

        Raises `Transient` if that rebuild has not caught up yet, or if the number differs from `expected`: counts that
        were read in between may be incomplete.
        """
        rebuilt = await self.hourly.events_rebuilt()
        if rebuilt is None:
            raise Transient(
                "usage_events was exchanged and has not caught up yet: finish `tidemark rebuild archive`, and then run "
                "this again"
            )
        if expected is not None and rebuilt != expected:
            raise Transient("usage_events was rebuilt while it was counted; run it again: it counts anew")
        return rebuilt

    async def _whole(self, partition: int) -> PartitionState:
        """The state at the live checkpoint, after waiting until the archive has passed that checkpoint.

        Raises `OperatorNeeded` if the archive does not hold exactly the events that the live view counted.
        """
        live = await self.live.state.load_checkpoint(partition)
        check_live(partition, live, self.secret)
        if live is None:
            raise OperatorNeeded(
                f"partition {partition} has no live view, so nothing says whether usage_events holds all that was "
                "counted. Nothing was changed. Run `tidemark rebuild redis` first, or rebuild `--from log`."
            )
        partition_state = await self._partition_states.at(partition, live)
        if isinstance(partition_state, Behind):
            raise Transient(
                f"partition {partition}: {partition_state.detail}; run it again when the archive has caught up"
            )
        wanted = live.meter_set.meters if live.meter_set else ()
        unknown = [meter.slug for meter in wanted if meter.slug not in partition_state.history.definitions]
        if unknown:
            raise OperatorNeeded(
                f"partition {partition}: control_log holds no meter set with the meter {unknown[0]}, which the live "
                "view counts. Nothing was changed. Fill control_log first (`tidemark rebuild archive`), or rebuild "
                "`--from log`."
            )
        counted = live.counters.counted + live.counters.unmetered
        archived = await self.reader.archived_events(partition, partition_state.before_position)
        if archived != counted:
            first = await self.reader.first_archived(partition)
            since = f"what it holds begins at offset {offset_of(first[0])}" if first else "it holds none"
            raise OperatorNeeded(
                f"partition {partition}: the live view counted {counted} events at offsets 0 to "
                f"{live.next_offset - 1}, usage_events holds {archived} of them; {since}. Nothing was changed. Fill "
                "usage_events first (`tidemark rebuild archive`), or rebuild `--from log`."
            )
        return partition_state

    async def _fill(self, partition: int, note: Note) -> None:
        live = await self.live.state.load_checkpoint(partition)
        check_live(partition, live, self.secret)
        if live is None:
            raise OperatorNeeded(
                f"partition {partition}: the live view was lost while usage_hourly was counted again. Run "
                "`tidemark rebuild redis` first, and then this again."
            )
        checkpoint: Checkpoint = msgspec.structs.replace(
            live,
            generation=note.generations[partition],
            next_offset=note.offsets[partition],
            stream_time_ms=note.stream_times_ms[partition],
        )
        partition_state = await self._partition_states.at(partition, checkpoint)
        if isinstance(partition_state, Behind):
            raise Transient(f"partition {partition}: {partition_state.detail}")
        # One chunk back: an interrupted insert may have stored a chunk's rows of one month but not of another.
        reached = await self.staging.account_before_last(partition, self.accounts_at_once)
        await self._count(partition_state, reached, self.staging.beside((HOURLY,)))
        self._report(checkpoint, partition, swapped=False)

    async def _count(
        self, partition_state: PartitionState, from_account: str, store: GenerationsSeen, *, from_position: int = 0
    ) -> None:
        """Insert the rows of `from_account` and all later accounts that took an event at `from_position` or later."""
        partition, generation = partition_state.partition, partition_state.checkpoint.generation
        while accounts := await self.reader.archived_accounts(partition, from_account, self.accounts_at_once):
            request = request_at(partition_state, frozenset(accounts))
            rows = await self.reader.recount_rows(request, generation) if request.meters else []
            wanted = [row for row in rows if _position(row) >= from_position]
            if wanted:
                await store.insert_hourly(wanted)
            if len(accounts) < self.accounts_at_once:
                return
            # The next possible account name: no text sorts between.
            from_account = accounts[-1] + "\0"

    def _report(self, checkpoint: Checkpoint, partition: int, *, swapped: bool) -> None:
        offset = checkpoint.next_offset
        self.progress(Progress(partition, offset, offset, checkpoint.counters.received, swapped))


def _position(row: HourlyRow) -> int:
    return row.version & POSITION_MAX
