"""The in-memory fake of the live view: same answers, same refusals, no server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence

import msgspec

from schemas.clock import HOUR_MS
from schemas.errors import Fenced, OperatorNeeded
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
from sinks.redis.fake_state import Chunk, Claim, HeldPartition, Notes


class FakeServer:
    """What one process sees of the server: all partitions of a generation, and its claim on rebuilds, if any."""

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
        """The state of a partition, if it is at this checkpoint. Errors as `CheckpointedState.read`."""
        held = self.at(partition)
        if held.checkpoint is None:
            raise OperatorNeeded(f"the checkpoint of partition {partition} is gone: the store was emptied or replaced")
        if held.checkpoint != believed:
            raise Fenced(f"partition {partition}: another process committed")
        return held

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
        """A generation that is being built, under the same claim."""
        other = FakeServer(self.claim)
        other.partitions = self.built.setdefault(generation, {})
        return other

    def empty(self) -> None:
        """Lose everything, as a server without persistence does."""
        self.partitions.clear()
        self.built.clear()
        self.live.clear()
        self.notes.rebuilding = self.notes.rebuilder = None


class FakeState:
    """`schemas.live_view.CheckpointedState`."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server

    async def load_checkpoint(self, partition: int) -> Checkpoint | None:
        return self._server.at(partition).checkpoint

    async def create_checkpoint(self, partition: int, checkpoint: Checkpoint) -> None:
        self._server.check_claim()
        if self._server.at(partition).checkpoint is not None:
            raise Fenced(f"partition {partition} has a checkpoint already")
        self._server.at(partition).checkpoint = checkpoint

    async def read(self, partition: int, believed: Checkpoint, request: ReadRequest) -> View:
        self._server.check_claim()
        held = self._server.believe(partition, believed)
        return View(
            marks=frozenset(
                member
                for key, members in request.marks.items()
                for member in members
                if member in held.marks.get(key, ())
            ),
            totals={key: dict(held.totals.get(key, {})) for key in request.totals},
            cells={key: held.cells[key] for key in request.cells if key in held.cells},
            reports={key: held.reports[key] for key in request.reports if key in held.reports},
            uniques={
                key: frozenset(member for member in members if member in held.uniques.get(key, ()))
                for key, members in request.uniques.items()
            },
            accounts={account: held.accounts.get(account, AccountState()) for account in request.accounts},
            deferred={position: held.deferred[position] for position in request.deferred if position in held.deferred},
            due=held.due_first(request.due_max) if request.due_max else (),
        )

    async def commit(self, partition: int, believed: Checkpoint, changes: Changes) -> None:
        self._server.check_claim()
        held = self._server.believe(partition, believed)
        held.checkpoint = changes.checkpoint
        for replaced, meters in changes.replaced.items():
            held.retire(replaced, meters)
        for mark, members in changes.marks.items():
            held.marks.setdefault(mark, set()).update(members)
        for total, fields in changes.totals.items():
            held.totals.setdefault(total, {}).update(fields)
        for ranking, scores in changes.rankings.items():
            held.rankings.setdefault(ranking, {}).update(scores)
        held.cells.update(changes.cells)
        held.dirty.update(changes.dirty)
        held.reports.update(changes.reports)
        for unique, members in changes.uniques.items():
            held.uniques.setdefault(unique, set()).update(members)
        held.accounts.update(changes.accounts)
        held.duplicates.update((each.position, each) for each in changes.duplicates)
        for mark in changes.expired_marks:
            held.marks.pop(mark, None)
        held.deferred.update((each.position, each) for each in changes.deferred)
        for judged in changes.judged:
            held.deferred.pop(judged.position, None)
        held.due.update(changes.due)
        for total in changes.totals:
            held.due.setdefault(total, 0)
        for retired, meters in changes.retired.items():
            held.retire(retired, meters)


class FakeOutbox:
    """`schemas.live_view.AnalyticsOutbox`."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server

    async def dirty(self, partition: int, cells_max: int) -> tuple[Checkpoint | None, list[DirtyCell]]:
        held = self._server.at(partition)
        chosen = sorted(held.dirty)[:cells_max]
        return held.checkpoint, [DirtyCell(key, held.cells[key], held.dirty[key]) for key in chosen]

    async def confirm_dirty(self, partition: int, relayed: Sequence[DirtyCell]) -> None:
        dirty = self._server.at(partition).dirty
        for cell in relayed:
            if dirty.get(cell.key) == cell.version:
                del dirty[cell.key]

    async def drop_closed_buckets(self, partition: int) -> None:
        held = self._server.at(partition)
        stream_time_ms = held.checkpoint.stream_time_ms if held.checkpoint else 0
        kept = {key.bucket_ms for key in held.dirty}
        for key in list(held.cells):
            if key.bucket_ms + HOUR_MS <= stream_time_ms and key.bucket_ms not in kept:
                del held.cells[key]

    async def duplicates(self, partition: int, count_max: int) -> list[Duplicate]:
        return sorted(self._server.at(partition).duplicates.values())[:count_max]

    async def confirm_duplicates(self, partition: int, positions: Sequence[int]) -> None:
        for each in positions:
            self._server.at(partition).duplicates.pop(each, None)


class FakeDrops:
    """`schemas.live_view.OutboxDrops`."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server

    async def drop_excess(self, partition: int, entries_max: int) -> int:
        held = self._server.at(partition)
        dropped, stream_time_ms = 0, held.checkpoint.stream_time_ms if held.checkpoint else 0
        if len(held.duplicates) > entries_max:
            dropped = len(held.duplicates)
            held.dropped_duplicates += dropped
            held.duplicates.clear()
        for bucket in sorted({key.bucket_ms for key in held.dirty}):
            if len(held.dirty) <= entries_max or bucket + HOUR_MS > stream_time_ms:
                break
            gone = [key for key in held.dirty if key.bucket_ms == bucket]
            held.dropped_cells[bucket] = len(gone)
            dropped += len(gone)
            for cells in (held.dirty, held.cells):
                for key in [key for key in cells if key.bucket_ms == bucket]:
                    del cells[key]
        return dropped

    async def dropped(self, partition: int) -> Dropped:
        held = self._server.at(partition)
        return Dropped(dict(sorted(held.dropped_cells.items())), held.dropped_duplicates)

    async def backfilled(self, partition: int, dropped: Dropped) -> None:
        self._server.check_claim()
        held = self._server.at(partition)
        for bucket in dropped.cells:
            held.dropped_cells.pop(bucket, None)
        held.dropped_duplicates -= dropped.duplicates


class FakeReports:
    """`schemas.live_view.ReportOutbox`."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server

    async def report_buckets(self, partition: int) -> tuple[Checkpoint | None, list[int]]:
        held = self._server.at(partition)
        return held.checkpoint, sorted({key.bucket_ms for key in held.reports})

    async def reports(self, partition: int, bucket_ms: int, count_max: int) -> tuple[Checkpoint | None, dict[str, str]]:
        held = self._server.at(partition)
        found = {key.field: text for key, text in sorted(held.reports.items()) if key.bucket_ms == bucket_ms}
        return held.checkpoint, dict(list(found.items())[:count_max])

    async def confirm_reports(self, partition: int, bucket_ms: int, published: Mapping[str, str]) -> None:
        held = self._server.at(partition).reports
        for name, text in published.items():
            if held.get(BucketField(bucket_ms, name)) == text:
                del held[BucketField(bucket_ms, name)]


class FakeDeferred:
    """`schemas.live_view.DeferredEvents`."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server

    async def deferred(
        self, partition: int, count_max: int, skipped: Collection[int] = ()
    ) -> tuple[Checkpoint | None, list[Deferred]]:
        held = self._server.at(partition)
        return held.checkpoint, sorted(each for at, each in held.deferred.items() if at not in skipped)[:count_max]

    async def waiting(self, partition: int, account: str | None = None) -> tuple[Checkpoint | None, Waiting]:
        held = self._server.at(partition)
        times = [each.stream_time_ms for each in held.deferred.values() if account in (None, each.account)]
        return held.checkpoint, Waiting(len(times), min(times, default=None))


class FakeAccounts:
    """`schemas.live_view.AccountDirectory`."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server

    async def account(self, partition: int, account: str) -> AccountState:
        return self._server.at(partition).accounts.get(account, AccountState())

    async def accounts(
        self, partition: int, accounts: Sequence[str]
    ) -> tuple[Checkpoint | None, dict[str, AccountState]]:
        held = self._server.at(partition)
        return held.checkpoint, {account: held.accounts.get(account, AccountState()) for account in accounts}

    async def restating(self, partition: int, count_max: int) -> tuple[Checkpoint | None, dict[str, AccountState]]:
        held = self._server.at(partition)
        waiting = [
            (state.pending.until_ms is None, account.encode(), account, state)
            for account, state in held.accounts.items()
            if state.pending is not None
        ]
        return held.checkpoint, {account: state for _, _, account, state in sorted(waiting)[:count_max]}

    async def restating_among(self, partition: int, accounts: Sequence[str]) -> dict[str, AccountState]:
        states = self._server.at(partition).accounts
        return {each: states[each] for each in accounts if each in states and states[each].pending is not None}


class FakeTotals:
    """`schemas.live_view.LiveTotals`."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server

    async def account_totals(
        self, partition: int, keys: Sequence[TotalKey]
    ) -> tuple[Checkpoint | None, dict[TotalKey, dict[str, str]]]:
        held = self._server.at(partition)
        return held.checkpoint, {key: dict(held.totals.get(key, {})) for key in keys}

    async def total_keys(self, partition: int, cursor: int, count: int) -> tuple[int, list[TotalKey]]:
        keys = sorted(self._server.at(partition).totals)
        after = cursor + count
        return (after if after < len(keys) else 0), keys[cursor:after]

    async def ranking(self, partition: int, key: RankingKey, count: int) -> list[tuple[str, int]]:
        scores = self._server.at(partition).rankings.get(key, {})
        return sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:count]


class FakeRebuilds:
    """`schemas.rebuild.RebuildLease`."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server

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


class FakeGenerations:
    """`schemas.rebuild.Generations`."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server

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
            lambda: [held for number, held in self._server.built.items() if number != self._server.notes.rebuilding],
        )

    async def forget(self, partition: int) -> None:
        await self._remove(partition, lambda: [self._server.partitions, *self._server.built.values()])
        self._server.live.pop(partition, None)

    async def _remove(self, partition: int, generations: Callable[[], Sequence[dict[int, HeldPartition]]]) -> int:
        """In steps, as on a server: the caller may die between two of them, and other processes act."""
        self._server.check_claim()
        for held in generations():
            if partition in held:
                held[partition].checkpoint = None
        await asyncio.sleep(0)
        self._server.check_claim()
        for held in generations():
            if partition in held:
                held[partition].marks.clear()
        await asyncio.sleep(0)
        self._server.check_claim()
        return sum(held.pop(partition, None) is not None for held in generations())


class FakeCopies:
    """`schemas.snapshots.CopyableState`."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server

    async def snapshot(self, partition: int, believed: Checkpoint) -> AsyncIterator[str]:
        """One chunk."""
        held = self._server.believe(partition, believed)
        chunk = Chunk(
            marks=[(key, sorted(members)) for key, members in sorted(held.marks.items())],
            totals=sorted(held.totals.items()),
            rankings=sorted(held.rankings.items()),
            cells=sorted(held.cells.items()),
            dirty=sorted(held.dirty.items()),
            reports=sorted(held.reports.items()),
            uniques=[(key, sorted(members)) for key, members in sorted(held.uniques.items())],
            accounts={name: state.model_dump_json() for name, state in sorted(held.accounts.items())},
            duplicates=sorted(held.duplicates.values()),
            deferred=sorted(held.deferred.values()),
            due=sorted(held.due.items()),
            dropped_cells=sorted(held.dropped_cells.items()),
            dropped_duplicates=held.dropped_duplicates,
        )
        yield msgspec.json.encode(chunk).decode()
        self._server.believe(partition, believed)

    async def begin_restore(self, partition: int, owner: str) -> None:
        self._server.check_claim()
        if self._server.at(partition).checkpoint is not None:
            raise Fenced(f"partition {partition} has a checkpoint already")
        self._server.partitions[partition] = HeldPartition(restoring=owner)

    async def take_in(self, partition: int, owner: str, chunks: Sequence[str]) -> None:
        held = self._restoring(partition, owner)
        for text in chunks:
            chunk = msgspec.json.decode(text, type=Chunk)
            held.marks.update((key, set(members)) for key, members in chunk.marks)
            held.totals.update(chunk.totals)
            held.rankings.update(chunk.rankings)
            held.cells.update(chunk.cells)
            held.dirty.update(chunk.dirty)
            held.reports.update(chunk.reports)
            held.uniques.update((key, set(members)) for key, members in chunk.uniques)
            held.accounts.update((k, AccountState.model_validate_json(v)) for k, v in chunk.accounts.items())
            held.duplicates.update((each.position, each) for each in chunk.duplicates)
            held.deferred.update((each.position, each) for each in chunk.deferred)
            held.due.update(chunk.due)
            held.dropped_cells.update(chunk.dropped_cells)
            held.dropped_duplicates += chunk.dropped_duplicates

    async def end_restore(self, partition: int, owner: str, checkpoint: Checkpoint) -> None:
        held = self._restoring(partition, owner)
        held.checkpoint, held.restoring = checkpoint, None

    def _restoring(self, partition: int, owner: str) -> HeldPartition:
        self._server.check_claim()
        if self._server.at(partition).restoring != owner or self._server.at(partition).checkpoint is not None:
            raise Fenced(f"partition {partition}: another process restores it")
        return self._server.at(partition)


class FakeLiveView:
    """`schemas.live_view.LiveView` over dictionaries."""

    def __init__(self, server: FakeServer | None = None) -> None:
        self.server = server or FakeServer()
        self.state = FakeState(self.server)
        self.outbox = FakeOutbox(self.server)
        self.drops = FakeDrops(self.server)
        self.reports = FakeReports(self.server)
        self.deferred = FakeDeferred(self.server)
        self.accounts = FakeAccounts(self.server)
        self.totals = FakeTotals(self.server)
        self.rebuilds = FakeRebuilds(self.server)
        self.generations = FakeGenerations(self.server)
        self.copies = FakeCopies(self.server)

    def another(self, claim: Claim | None = None) -> FakeLiveView:
        """Another process's view of the same server; with a claim, that of a rebuild command."""
        return FakeLiveView(self.server.another(claim))

    def claiming(self, token: str) -> FakeLiveView:
        """The view of a rebuild command that claims now."""
        self.server.notes.rebuilder = token
        return self.another(Claim(self.server.notes, token))

    def built(self, generation: int) -> FakeLiveView:
        """The view of a generation that is being built; empty once it is live."""
        return FakeLiveView(self.server.of_generation(generation))

    async def check(self) -> Sequence[str]:
        """Nothing is wrong."""
        return ()

    async def close(self) -> None:
        """Nothing to release."""
