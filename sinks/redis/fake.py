"""The in-memory fake of the live view: the same answers and errors without a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from operator import itemgetter

import msgspec

from aggregators.marks import lookups
from schemas.clock import HOUR_MS
from schemas.errors import Fenced, OperatorNeeded
from schemas.measures import MeasuredTo
from schemas.periods import AccountState
from schemas.rollup import (
    BucketField,
    Changes,
    Checkpoint,
    Deferred,
    DirtyCell,
    Dropped,
    Duplicate,
    RankingKey,
    ReadRequest,
    TotalKey,
    View,
    Waiting,
)
from sinks.redis.fake_state import CHUNK_PAIRS, Claim, HeldPartition, Notes, decode_chunk


class FakeServer:
    """The server as one process sees it: the partitions of one generation, and the process's claim if it rebuilds."""

    def __init__(self, claim: Claim | None = None) -> None:
        self.partitions: dict[int, HeldPartition] = {}
        self.built: dict[int, dict[int, HeldPartition]] = {}
        self.live: dict[int, int] = {}
        self.notes = Notes()
        self.claim = claim

    def at(self, partition: int) -> HeldPartition:
        """The state of a partition; an empty one if there is none."""
        return self.partitions.setdefault(partition, HeldPartition())

    def believe(self, partition: int, believed: Checkpoint) -> HeldPartition:
        """The state of a partition that is at this checkpoint. Errors as `CheckpointedState.read`."""
        state = self.at(partition)
        if state.checkpoint is None:
            raise OperatorNeeded(f"the checkpoint of partition {partition} is gone: the store was emptied or replaced")
        if state.checkpoint != believed:
            raise Fenced(f"partition {partition}: another process committed")
        return state

    def check_claim(self) -> None:
        """Raise `Fenced` if another rebuild command has claimed since."""
        if self.claim is not None:
            self.claim.check()

    def another(self, claim: Claim | None) -> FakeServer:
        """The same server, as another process sees it."""
        other = FakeServer(claim)
        other.partitions, other.built, other.live, other.notes = self.partitions, self.built, self.live, self.notes
        return other

    def of_generation(self, generation: int) -> FakeServer:
        """The server as seen by the view of a generation that is being built, under the same claim."""
        other = FakeServer(self.claim)
        other.partitions = self.built.setdefault(generation, {})
        return other

    def empty(self) -> None:
        """Lose all data, as a server without persistence does at a restart."""
        self.partitions.clear()
        self.built.clear()
        self.live.clear()
        self.notes.rebuilding = self.notes.rebuilder = None
        self.notes.measured.clear()


class _Store:
    """A part of the live view on one server."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server


class FakeState(_Store):
    """Reads and commits for the fold (`schemas.live_view.CheckpointedState`)."""

    async def load_checkpoint(self, partition: int) -> Checkpoint | None:
        return self._server.at(partition).checkpoint

    async def create_checkpoint(self, partition: int, checkpoint: Checkpoint) -> None:
        self._server.check_claim()
        if self._server.at(partition).checkpoint is not None:
            raise Fenced(f"partition {partition} has a checkpoint already")
        self._server.at(partition).checkpoint = checkpoint

    async def read(self, partition: int, believed: Checkpoint, request: ReadRequest) -> View:
        self._server.check_claim()
        state = self._server.believe(partition, believed)
        return View(
            marks=frozenset(
                member
                for key, members in request.marks.items()
                for member in members
                if member in state.marks.get(key, ())
            ),
            totals={key: dict(state.totals.get(key, {})) for key in request.totals},
            cells={key: state.cells[key] for key in request.cells if key in state.cells},
            reports={key: state.reports[key] for key in request.reports if key in state.reports},
            uniques={
                key: frozenset(member for member in members if member in state.uniques.get(key, ()))
                for key, members in request.uniques.items()
            },
            accounts={account: state.accounts.get(account, AccountState()) for account in request.accounts},
            deferred={
                position: state.deferred[position] for position in request.deferred if position in state.deferred
            },
            due=state.due_first(request.due_max) if request.due_max else (),
            levels=state.levels_first(request.levels_max) if request.levels_max else (),
        )

    async def commit(self, partition: int, believed: Checkpoint, changes: Changes) -> None:
        self._server.check_claim()
        state = self._server.believe(partition, believed)
        state.checkpoint = changes.checkpoint
        for replaced, meters in changes.replaced.items():
            state.retire(replaced, meters)
        for mark, members in changes.marks.items():
            state.marks.setdefault(mark, set()).update(members)
        for total, fields in changes.totals.items():
            state.totals.setdefault(total, {}).update(fields)
        for ranking, scores in changes.rankings.items():
            state.rankings.setdefault(ranking, {}).update(scores)
        state.cells.update(changes.cells)
        state.dirty.update(changes.dirty)
        state.reports.update(changes.reports)
        for unique, members in changes.uniques.items():
            state.uniques.setdefault(unique, set()).update(members)
        state.accounts.update(changes.accounts)
        state.duplicates.update((duplicate.position, duplicate) for duplicate in changes.duplicates)
        for mark in changes.expired_marks:
            state.marks.pop(mark, None)
        state.deferred.update((event.position, event) for event in changes.deferred)
        for decided in changes.decided:
            state.deferred.pop(decided.position, None)
        state.due.update(changes.due)
        for total in changes.totals:
            state.due.setdefault(total, 0)
        for standing, due_ms in changes.levels.items():
            if due_ms is None:
                state.levels.pop(standing, None)
            else:
                state.levels[standing] = due_ms
        for retired, meters in changes.retired.items():
            state.retire(retired, meters)


class FakeOutbox(_Store):
    """Cells and duplicates that wait for the relay to ClickHouse (`schemas.live_view.AnalyticsOutbox`)."""

    async def dirty(self, partition: int, cells_max: int) -> tuple[Checkpoint | None, list[DirtyCell]]:
        state = self._server.at(partition)
        chosen = sorted(state.dirty)[:cells_max]
        return state.checkpoint, [DirtyCell(key, state.cells[key], state.dirty[key]) for key in chosen]

    async def confirm_dirty(self, partition: int, relayed: Sequence[DirtyCell]) -> None:
        dirty = self._server.at(partition).dirty
        for cell in relayed:
            if dirty.get(cell.key) == cell.version:
                del dirty[cell.key]

    async def drop_closed_buckets(self, partition: int) -> None:
        state = self._server.at(partition)
        stream_time_ms = state.checkpoint.stream_time_ms if state.checkpoint else 0
        kept = {key.bucket_ms for key in state.dirty}
        for key in list(state.cells):
            if key.bucket_ms + HOUR_MS <= stream_time_ms and key.bucket_ms not in kept:
                del state.cells[key]

    async def duplicates(self, partition: int, count_max: int) -> list[Duplicate]:
        return sorted(self._server.at(partition).duplicates.values())[:count_max]

    async def confirm_duplicates(self, partition: int, positions: Sequence[int]) -> None:
        for position in positions:
            self._server.at(partition).duplicates.pop(position, None)


class FakeDrops(_Store):
    """The limit of the outbox, and the record of dropped entries (`schemas.live_view.OutboxDrops`)."""

    async def drop_excess(self, partition: int, entries_max: int) -> int:
        state = self._server.at(partition)
        dropped, stream_time_ms = 0, state.checkpoint.stream_time_ms if state.checkpoint else 0
        if len(state.duplicates) > entries_max:
            dropped = len(state.duplicates)
            state.dropped_duplicates += dropped
            state.duplicates.clear()
        for bucket in sorted({key.bucket_ms for key in state.dirty}):
            if len(state.dirty) <= entries_max or bucket + HOUR_MS > stream_time_ms:
                break
            count = sum(key.bucket_ms == bucket for key in state.dirty)
            state.dropped_cells[bucket] = count
            dropped += count
            for cells in (state.dirty, state.cells):
                for key in [key for key in cells if key.bucket_ms == bucket]:
                    del cells[key]
        return dropped

    async def dropped(self, partition: int) -> Dropped:
        state = self._server.at(partition)
        return Dropped(dict(sorted(state.dropped_cells.items())), state.dropped_duplicates)

    async def backfilled(self, partition: int, dropped: Dropped) -> None:
        self._server.check_claim()
        state = self._server.at(partition)
        for bucket in dropped.cells:
            state.dropped_cells.pop(bucket, None)
        state.dropped_duplicates -= dropped.duplicates


class FakeReports(_Store):
    """Report entries that wait for the relay to `billing.reports` (`schemas.live_view.ReportOutbox`)."""

    async def report_buckets(self, partition: int) -> tuple[Checkpoint | None, list[int]]:
        state = self._server.at(partition)
        return state.checkpoint, sorted({key.bucket_ms for key in state.reports})

    async def reports(self, partition: int, bucket_ms: int, count_max: int) -> tuple[Checkpoint | None, dict[str, str]]:
        state = self._server.at(partition)
        entries = [(key.field, text) for key, text in sorted(state.reports.items()) if key.bucket_ms == bucket_ms]
        return state.checkpoint, dict(entries[:count_max])

    async def reports_of(
        self, partition: int, bucket_ms: int, account: str
    ) -> tuple[Checkpoint | None, dict[str, str]]:
        checkpoint, entries = await self.reports(partition, bucket_ms, len(self._server.at(partition).reports))
        return checkpoint, {name: text for name, text in entries.items() if name.split("\x1f", 1)[-1] == account}

    async def confirm_reports(self, partition: int, bucket_ms: int, published: Mapping[str, str]) -> None:
        reports = self._server.at(partition).reports
        for name, text in published.items():
            if reports.get(BucketField(bucket_ms, name)) == text:
                del reports[BucketField(bucket_ms, name)]


class FakeDeferred(_Store):
    """Far-late events that wait for their dedup decision (`schemas.live_view.DeferredEvents`)."""

    async def deferred(
        self, partition: int, count_max: int, skipped: Collection[int] = ()
    ) -> tuple[Checkpoint | None, list[Deferred]]:
        state = self._server.at(partition)
        events = sorted(event for event in state.deferred.values() if event.position not in skipped)
        return state.checkpoint, events[:count_max]

    async def waiting(self, partition: int, account: str | None = None) -> tuple[Checkpoint | None, Waiting]:
        state = self._server.at(partition)
        times = [event.stream_time_ms for event in state.deferred.values() if account in (None, event.account)]
        return state.checkpoint, Waiting(len(times), min(times, default=None))


class FakeMarks(_Store):
    """Marks of identities that arrived before (`schemas.live_view.DedupMarks`)."""

    async def marked(self, partition: int, marks: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
        state = self._server.at(partition)
        wanted = lookups(state.checkpoint, marks) if state.checkpoint else {}
        found = (state.marks.get(key, set()).intersection(members) for key, members in wanted.items())
        present = set[int]().union(*found)
        return {(bucket_hash, member) for bucket_hash, member in marks if member in present}


class FakeAccounts(_Store):
    """Bindings and closings, and accounts that wait for a restatement (`schemas.live_view.AccountDirectory`)."""

    async def account(self, partition: int, account: str) -> AccountState:
        return self._server.at(partition).accounts.get(account, AccountState())

    async def accounts(
        self, partition: int, accounts: Sequence[str]
    ) -> tuple[Checkpoint | None, dict[str, AccountState]]:
        state = self._server.at(partition)
        return state.checkpoint, {account: state.accounts.get(account, AccountState()) for account in accounts}

    async def restating(self, partition: int, count_max: int) -> tuple[Checkpoint | None, dict[str, AccountState]]:
        state = self._server.at(partition)
        waiting = [
            (account_state.pending.until_ms is None, account.encode(), account, account_state)
            for account, account_state in state.accounts.items()
            if account_state.pending is not None
        ]
        return state.checkpoint, {account: waits for _, _, account, waits in sorted(waiting)[:count_max]}

    async def restating_among(self, partition: int, accounts: Sequence[str]) -> dict[str, AccountState]:
        states = self._server.at(partition).accounts
        return {name: states[name] for name in accounts if name in states and states[name].pending is not None}


class FakeTotals(_Store):
    """Current period totals and rankings (`schemas.live_view.LiveTotals`)."""

    async def account_totals(
        self, partition: int, keys: Sequence[TotalKey]
    ) -> tuple[Checkpoint | None, dict[TotalKey, dict[str, str]]]:
        state = self._server.at(partition)
        return state.checkpoint, {key: dict(state.totals.get(key, {})) for key in keys}

    async def account_total(
        self, partition: int, key: TotalKey
    ) -> tuple[Checkpoint | None, AccountState, dict[str, str]]:
        state = self._server.at(partition)
        return state.checkpoint, state.accounts.get(key.account, AccountState()), dict(state.totals.get(key, {}))

    async def total_keys(self, partition: int, cursor: int, count: int) -> tuple[int, list[TotalKey]]:
        keys = sorted(self._server.at(partition).totals)
        after = cursor + count
        return (after if after < len(keys) else 0), keys[cursor:after]

    async def ranking(self, partition: int, key: RankingKey, count: int) -> list[tuple[str, int]]:
        scores = self._server.at(partition).rankings.get(key, {})
        return sorted(scores.items(), key=lambda item: (-item[1], item[0].encode()))[:count]


class FakeMeasured(_Store):
    """How far each partition's measured meters are told (`schemas.live_view.MeasuredInstants`)."""

    async def measured_to(self, partition: int) -> MeasuredTo | None:
        return self._server.notes.measured.get(partition)

    async def note_measured(self, partition: int, reached: MeasuredTo) -> None:
        self._server.notes.measured[partition] = reached


class FakeRebuilds(_Store):
    """The claim on rebuilds, and the generation that is being built (`schemas.rebuild.RebuildLease`)."""

    async def claim_rebuild(self, token: str) -> None:
        self._server.claim = Claim(self._server.notes, token)
        self._server.notes.rebuilder = token

    async def check_claim(self) -> None:
        self._server.check_claim()

    async def rebuilding(self) -> int | None:
        return self._server.notes.rebuilding

    async def begin_rebuild(self, generation: int) -> int:
        self._server.check_claim()
        if self._server.notes.rebuilding is None:
            self._server.notes.rebuilding = generation
        return self._server.notes.rebuilding

    async def end_rebuild(self, generation: int) -> None:
        self._server.check_claim()
        if self._server.notes.rebuilding == generation:
            self._server.notes.rebuilding = None


class FakeGenerations(_Store):
    """Swaps a new generation in and removes old ones (`schemas.rebuild.Generations`)."""

    async def is_live(self, partition: int, generation: int) -> bool:
        return self._server.live.get(partition, 0) == generation

    async def swap(self, partition: int, live: Checkpoint | None, built: Checkpoint) -> bool:
        self._server.check_claim()
        if self._server.live.get(partition) == built.generation:
            return True
        if self._server.notes.rebuilding != built.generation:
            raise Fenced(f"generation {built.generation} was given up or finished by another command")
        partitions = self._server.built.get(built.generation, {})
        stored = partitions[partition].checkpoint if partition in partitions else None
        if self._server.at(partition).checkpoint != live or stored != built:
            return False
        self._server.partitions[partition] = partitions.pop(partition)
        self._server.live[partition] = built.generation
        return True

    async def sweep(self, partition: int) -> int:
        return await self._remove(
            partition,
            lambda: [built for number, built in self._server.built.items() if number != self._server.notes.rebuilding],
        )

    async def forget(self, partition: int) -> None:
        await self._remove(partition, lambda: [self._server.partitions, *self._server.built.values()])
        self._server.live.pop(partition, None)

    async def _remove(self, partition: int, generations: Callable[[], Sequence[dict[int, HeldPartition]]]) -> int:
        """Removes in steps, as a server does: between two steps the caller may die and other processes may act."""
        self._server.check_claim()
        for generation in generations():
            if partition in generation:
                generation[partition].checkpoint = None
        await asyncio.sleep(0)
        self._server.check_claim()
        for generation in generations():
            if partition in generation:
                generation[partition].marks.clear()
        await asyncio.sleep(0)
        self._server.check_claim()
        return sum(generation.pop(partition, None) is not None for generation in generations())


class FakeCopies(_Store):
    """Copies a partition's state out of a generation and into another one (`schemas.snapshots.CopyableState`)."""

    async def snapshot(self, partition: int, believed: Checkpoint) -> AsyncIterator[str]:
        """One chunk."""
        state = self._server.believe(partition, believed)
        pairs = {name: sorted(getattr(state, name).items(), key=itemgetter(0)) for name in CHUNK_PAIRS}
        chunk = {**pairs, "dropped_duplicates": state.dropped_duplicates}
        yield msgspec.json.encode(chunk, enc_hook=AccountState.model_dump_json, order="deterministic").decode()
        self._server.believe(partition, believed)

    async def begin_restore(self, partition: int, owner: str) -> None:
        self._server.check_claim()
        if self._server.at(partition).checkpoint is not None:
            raise Fenced(f"partition {partition} has a checkpoint already")
        self._server.partitions[partition] = HeldPartition(restoring=owner)

    async def take_in(self, partition: int, owner: str, chunks: Sequence[str]) -> None:
        state = self._restoring(partition, owner)
        for text in chunks:
            chunk = decode_chunk(text)
            for name in CHUNK_PAIRS:
                getattr(state, name).update(getattr(chunk, name))
            state.dropped_duplicates += chunk.dropped_duplicates

    async def end_restore(self, partition: int, owner: str, checkpoint: Checkpoint) -> None:
        state = self._restoring(partition, owner)
        state.checkpoint, state.restoring = checkpoint, None

    def _restoring(self, partition: int, owner: str) -> HeldPartition:
        self._server.check_claim()
        if self._server.at(partition).restoring != owner or self._server.at(partition).checkpoint is not None:
            raise Fenced(f"partition {partition}: another process restores it")
        return self._server.at(partition)


class FakeLiveView:
    """The whole live view over dictionaries (`schemas.live_view.LiveView`)."""

    def __init__(self, server: FakeServer | None = None) -> None:
        self.server = server or FakeServer()
        self.state = FakeState(self.server)
        self.outbox = FakeOutbox(self.server)
        self.drops = FakeDrops(self.server)
        self.reports = FakeReports(self.server)
        self.deferred = FakeDeferred(self.server)
        self.marks = FakeMarks(self.server)
        self.accounts = FakeAccounts(self.server)
        self.totals = FakeTotals(self.server)
        self.measured = FakeMeasured(self.server)
        self.rebuilds = FakeRebuilds(self.server)
        self.generations = FakeGenerations(self.server)
        self.copies = FakeCopies(self.server)

    def another(self, claim: Claim | None = None) -> FakeLiveView:
        """The view of another process on the same server; with a claim, of a rebuild command."""
        return FakeLiveView(self.server.another(claim))

    def claiming(self, token: str) -> FakeLiveView:
        """The view of a new rebuild command, which takes the claim."""
        self.server.notes.rebuilder = token
        return self.another(Claim(self.server.notes, token))

    def built(self, generation: int) -> FakeLiveView:
        """The view of a generation that is being built; empty once it is live."""
        return FakeLiveView(self.server.of_generation(generation))

    async def check(self) -> Sequence[str]:
        """No problems."""
        return ()

    async def close(self) -> None:
        """Nothing to release."""
