"""`usage_hourly` counted again out of `usage_events` and `control_log`, by SQL that shares no code with the fold.

For a log that no longer reaches back to its start. The archive keeps the first arrival of each identity, so this is
the fold's answer only where the archive holds as many events as the fold counted; anything else is refused.

1. note each partition's live checkpoint, and wait until the archive has passed it; count accounts in chunks up to there
   into a table beside. The accounts in it are the position: cut short, it goes on one chunk before the last of them.
2. exchange the tables; bring over the cells that took events since the noted checkpoint.
3. note the live checkpoints once more and count again: of this, the cells that took events since. A relay that had
   begun before the exchange wrote into the old table, and all it wrote lies below these checkpoints.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Final, NamedTuple

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


class _Parts(NamedTuple):
    log: Log
    live: LiveView
    hourly: AnalyticalStore
    reader: RowRecounts
    staging: TableStaging
    clock: Clock
    secret: bytes
    accounts_at_once: int
    progress: Callable[[Progress], None]


class HourlyRecount:
    """Counts the table again. Run again after any end, it goes on."""

    def __init__(
        self,
        log: Log,
        live: LiveView,
        hourly: AnalyticalStore,
        reader: RowRecounts,
        staging: TableStaging,
        clock: Clock,
        secret: bytes,
        accounts_at_once: int = ACCOUNTS_AT_ONCE,
        progress: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self._parts = _Parts(log, live, hourly, reader, staging, clock, secret, accounts_at_once, progress)
        self._partition_states = PartitionStates(reader, clock, ARCHIVE_WAIT_S)

    async def run(self) -> None:
        """Count again.

        Raises `OperatorNeeded` where there is no live view to hold the archive against, or the archive has other
        events than it counted, with the range; `Transient` where a store does not answer or the archive is behind.
        """
        parts, staging = self._parts, self._parts.staging
        partitions = await parts.log.partition_count(EVENTS_TOPIC)
        rebuilt = await self._events_rebuilt()
        found = await begun(staging, SOURCE)
        if found is not None and HOURLY not in found[1].swapped and found[0].events_rebuilt != rebuilt:
            # usage_events was put right since: what was counted of it before is not what it holds now.
            await staging.drop((HOURLY,))
            found = None
        if found is None:
            partition_states = [await self._whole(partition) for partition in range(partitions)]
            note = Note(
                SOURCE,
                uuid.uuid4().hex[:16],
                tuple(each.checkpoint.generation for each in partition_states),
                tuple(each.checkpoint.next_offset for each in partition_states),
                tuple(each.checkpoint.stream_time_ms for each in partition_states),
                rebuilt,
            )
            text = msgspec.json.encode(note).decode()
        else:
            text = found[1].note
        building = await staging.begin((HOURLY,), text)
        # What the table holds so far is of the note that it bears, whoever gave it.
        note = noted(building, SOURCE)
        if HOURLY not in building.swapped:
            for partition in range(partitions):
                await self._fill(partition, note)
            await self._events_rebuilt(note.events_rebuilt)
            await staging.swap(HOURLY)
        for partition in range(partitions):
            await staging.carry_over(partition, position(note.offsets[partition]))
        for partition in range(partitions):
            # What was dropped from the outbox by now lies below the checkpoint that is noted next.
            dropped = await parts.live.drops.dropped(partition)
            partition_state = await self._whole(partition)
            await self._count(partition_state, "", parts.hourly, from_position=position(note.offsets[partition]))
            await self._events_rebuilt(rebuilt)
            await parts.live.drops.backfilled(partition, dropped._replace(duplicates=0))
            self._report(partition_state.checkpoint, partition, swapped=True)
        await staging.drop((HOURLY,))

    async def _events_rebuilt(self, expected: int | None = None) -> int:
        """Which rebuild made `usage_events`. Raises `Transient` where it misses what was written around its exchange,
        or is no longer the expected one: what was counted in between may be short."""
        rebuilt = await self._parts.hourly.events_rebuilt()
        if rebuilt is None:
            raise Transient(
                "usage_events was exchanged and has not caught up yet: finish `tidemark rebuild archive`, and then run "
                "this again"
            )
        if expected is not None and rebuilt != expected:
            raise Transient("usage_events was rebuilt while it was counted; run it again: it counts anew")
        return rebuilt

    async def _whole(self, partition: int) -> PartitionState:
        """The live checkpoint, once the archive has passed it and holds just the events that were counted below it."""
        live = await self._parts.live.state.load_checkpoint(partition)
        check_live(partition, live, self._parts.secret)
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
        held = await self._parts.reader.archived_events(partition, partition_state.before_position)
        if held != counted:
            first = await self._parts.reader.first_archived(partition)
            since = f"what it holds begins at offset {offset_of(first[0])}" if first else "it holds none"
            raise OperatorNeeded(
                f"partition {partition}: the live view counted {counted} events at offsets 0 to "
                f"{live.next_offset - 1}, usage_events holds {held} of them; {since}. Nothing was changed. Fill "
                "usage_events first (`tidemark rebuild archive`), or rebuild `--from log`."
            )
        return partition_state

    async def _fill(self, partition: int, note: Note) -> None:
        live = await self._parts.live.state.load_checkpoint(partition)
        check_live(partition, live, self._parts.secret)
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
        # One chunk back: an insert that is cut short may have stored a chunk's rows of one month and not of another.
        reached = await self._parts.staging.account_before_last(partition, self._parts.accounts_at_once)
        await self._count(partition_state, reached, self._parts.staging.beside((HOURLY,)))
        self._report(checkpoint, partition, swapped=False)

    async def _count(
        self, partition_state: PartitionState, from_account: str, store: GenerationsSeen, *, from_position: int = 0
    ) -> None:
        """Insert the rows of all accounts from one on, as far as they took an event at or after a position."""
        parts, partition = self._parts, partition_state.partition
        while accounts := await parts.reader.archived_accounts(partition, from_account, parts.accounts_at_once):
            request = request_at(partition_state, frozenset(accounts))
            rows = (
                await parts.reader.recount_rows(request, partition_state.checkpoint.generation)
                if request.meters
                else []
            )
            wanted = [row for row in rows if _position(row) >= from_position]
            if wanted:
                await store.insert_hourly(wanted)
            if len(accounts) < parts.accounts_at_once:
                return
            # No text sorts between an account and this.
            from_account = accounts[-1] + "\0"

    def _report(self, checkpoint: Checkpoint, partition: int, *, swapped: bool) -> None:
        done = Progress(
            partition, checkpoint.next_offset, checkpoint.next_offset, checkpoint.counters.received, swapped
        )
        self._parts.progress(done)


def _position(row: HourlyRow) -> int:
    return row.version & POSITION_MAX
