"""The in-memory fake of the rollup store: same answers, same refusals, no server."""

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
    Duplicate,
    Lost,
    RankingKey,
    ReadRequest,
    TotalKey,
    View,
    Waiting,
)
from sinks.redis.fake_state import Chunk, Claim, HeldPartition, Notes


class FakeRollupStore:
    """`schemas.rollup.RollupStore` over dictionaries."""

    def __init__(self, claim: Claim | None = None) -> None:
        self._partitions: dict[int, HeldPartition] = {}
        self._built: dict[int, dict[int, HeldPartition]] = {}
        self._live: dict[int, int] = {}
        self._notes = Notes()
        self.claim = claim

    def _at(self, partition: int) -> HeldPartition:
        return self._partitions.setdefault(partition, HeldPartition())

    def empty(self) -> None:
        """Lose everything, as a server without persistence does."""
        self._partitions.clear()
        self._built.clear()
        self._live.clear()
        self._notes.rebuilding = self._notes.rebuilder = None

    def another(self, claim: Claim | None = None) -> FakeRollupStore:
        """Another process's store on the same server; with a claim of a rebuild command, if any."""
        store = FakeRollupStore(claim)
        store._partitions, store._built, store._live = self._partitions, self._built, self._live
        store._notes = self._notes
        return store

    def claiming(self, token: str) -> FakeRollupStore:
        """The store of a rebuild command that claims now."""
        self._notes.rebuilder = token
        return self.another(Claim(self._notes, token))

    def _check_claim(self) -> None:
        if self.claim is not None:
            self.claim.check()

    async def claim_rebuild(self, token: str) -> None:
        self.claim = Claim(self._notes, token)
        self._notes.rebuilder = token

    async def check_claim(self) -> None:
        self._check_claim()

    async def rebuilding(self) -> int | None:
        return self._notes.rebuilding

    async def begin_rebuild(self, generation: int) -> int:
        self._check_claim()
        if self._notes.rebuilding is None:
            self._notes.rebuilding = generation
        return self._notes.rebuilding

    async def end_rebuild(self, generation: int) -> None:
        self._check_claim()
        if self._notes.rebuilding == generation:
            self._notes.rebuilding = None

    async def is_live(self, partition: int, generation: int) -> bool:
        return self._live.get(partition, 0) == generation

    def built(self, generation: int) -> FakeRollupStore:
        """The store of a generation that is being built; empty once it is live."""
        store = FakeRollupStore(self.claim)
        store._partitions = self._built.setdefault(generation, {})
        return store

    async def swap(self, partition: int, live: Checkpoint | None, built: Checkpoint) -> bool:
        self._check_claim()
        if self._live.get(partition) == built.generation:
            return True
        if self._notes.rebuilding != built.generation:
            raise Fenced(f"generation {built.generation} was given up or finished by another command")
        made = self._built.get(built.generation, {})
        if self._at(partition).checkpoint != live or partition not in made or made[partition].checkpoint != built:
            return False
        self._partitions[partition] = made.pop(partition)
        self._live[partition] = built.generation
        return True

    async def sweep(self, partition: int) -> int:
        return await self._remove(
            partition, lambda: [held for number, held in self._built.items() if number != self._notes.rebuilding]
        )

    async def forget(self, partition: int) -> None:
        await self._remove(partition, lambda: [self._partitions, *self._built.values()])
        self._live.pop(partition, None)

    async def _remove(self, partition: int, generations: Callable[[], Sequence[dict[int, HeldPartition]]]) -> int:
        """In steps, as a server does it: whoever calls may end between two of them, and others act."""
        self._check_claim()
        for held in generations():
            if partition in held:
                held[partition].checkpoint = None
        await asyncio.sleep(0)
        self._check_claim()
        for held in generations():
            if partition in held:
                held[partition].marks.clear()
        await asyncio.sleep(0)
        self._check_claim()
        return sum(held.pop(partition, None) is not None for held in generations())

    async def snapshot(self, partition: int, believed: Checkpoint) -> AsyncIterator[str]:
        """One chunk."""
        held = self._believe(partition, believed)
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
            lost_cells=sorted(held.lost_cells.items()),
            lost_duplicates=held.lost_duplicates,
        )
        yield msgspec.json.encode(chunk).decode()
        self._believe(partition, believed)

    async def begin_restore(self, partition: int, owner: str) -> None:
        self._check_claim()
        if self._at(partition).checkpoint is not None:
            raise Fenced(f"partition {partition} has a checkpoint already")
        self._partitions[partition] = HeldPartition(restoring=owner)

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
            held.lost_cells.update(chunk.lost_cells)
            held.lost_duplicates += chunk.lost_duplicates

    async def end_restore(self, partition: int, owner: str, checkpoint: Checkpoint) -> None:
        held = self._restoring(partition, owner)
        held.checkpoint, held.restoring = checkpoint, None

    def _restoring(self, partition: int, owner: str) -> HeldPartition:
        self._check_claim()
        if self._at(partition).restoring != owner or self._at(partition).checkpoint is not None:
            raise Fenced(f"partition {partition}: another process restores it")
        return self._at(partition)

    async def check(self) -> Sequence[str]:
        return ()

    async def load_checkpoint(self, partition: int) -> Checkpoint | None:
        return self._at(partition).checkpoint

    async def create_checkpoint(self, partition: int, checkpoint: Checkpoint) -> None:
        self._check_claim()
        if self._at(partition).checkpoint is not None:
            raise Fenced(f"partition {partition} has a checkpoint already")
        self._at(partition).checkpoint = checkpoint

    def _believe(self, partition: int, believed: Checkpoint) -> HeldPartition:
        held = self._at(partition)
        if held.checkpoint is None:
            raise OperatorNeeded(f"the checkpoint of partition {partition} is gone: the store was emptied or replaced")
        if held.checkpoint != believed:
            raise Fenced(f"partition {partition}: another process committed")
        return held

    async def read(self, partition: int, believed: Checkpoint, request: ReadRequest) -> View:
        self._check_claim()
        held = self._believe(partition, believed)
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
        self._check_claim()
        held = self._believe(partition, believed)
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

    async def dirty(self, partition: int, cells_max: int) -> tuple[Checkpoint | None, list[DirtyCell]]:
        held = self._at(partition)
        chosen = sorted(held.dirty)[:cells_max]
        return held.checkpoint, [DirtyCell(key, held.cells[key], held.dirty[key]) for key in chosen]

    async def confirm_dirty(self, partition: int, relayed: Sequence[DirtyCell]) -> None:
        dirty = self._at(partition).dirty
        for cell in relayed:
            if dirty.get(cell.key) == cell.version:
                del dirty[cell.key]

    async def drop_closed_buckets(self, partition: int) -> None:
        held = self._at(partition)
        stream_time_ms = held.checkpoint.stream_time_ms if held.checkpoint else 0
        kept = {key.bucket_ms for key in held.dirty}
        for key in list(held.cells):
            if key.bucket_ms + HOUR_MS <= stream_time_ms and key.bucket_ms not in kept:
                del held.cells[key]

    async def shed(self, partition: int, entries_max: int) -> int:
        held = self._at(partition)
        dropped, stream_time_ms = 0, held.checkpoint.stream_time_ms if held.checkpoint else 0
        if len(held.duplicates) > entries_max:
            dropped = len(held.duplicates)
            held.lost_duplicates += dropped
            held.duplicates.clear()
        for bucket in sorted({key.bucket_ms for key in held.dirty}):
            if len(held.dirty) <= entries_max or bucket + HOUR_MS > stream_time_ms:
                break
            gone = [key for key in held.dirty if key.bucket_ms == bucket]
            held.lost_cells[bucket] = len(gone)
            dropped += len(gone)
            for cells in (held.dirty, held.cells):
                for key in [key for key in cells if key.bucket_ms == bucket]:
                    del cells[key]
        return dropped

    async def lost(self, partition: int) -> Lost:
        held = self._at(partition)
        return Lost(dict(sorted(held.lost_cells.items())), held.lost_duplicates)

    async def refilled(self, partition: int, lost: Lost) -> None:
        self._check_claim()
        held = self._at(partition)
        for bucket in lost.cells:
            held.lost_cells.pop(bucket, None)
        held.lost_duplicates -= lost.duplicates

    async def duplicates(self, partition: int, count_max: int) -> list[Duplicate]:
        return sorted(self._at(partition).duplicates.values())[:count_max]

    async def confirm_duplicates(self, partition: int, positions: Sequence[int]) -> None:
        for each in positions:
            self._at(partition).duplicates.pop(each, None)

    async def reports(self, partition: int, bucket_ms: int, count_max: int) -> tuple[Checkpoint | None, dict[str, str]]:
        held = self._at(partition)
        found = {key.field: text for key, text in sorted(held.reports.items()) if key.bucket_ms == bucket_ms}
        return held.checkpoint, dict(list(found.items())[:count_max])

    async def report_buckets(self, partition: int) -> tuple[Checkpoint | None, list[int]]:
        held = self._at(partition)
        return held.checkpoint, sorted({key.bucket_ms for key in held.reports})

    async def confirm_reports(self, partition: int, bucket_ms: int, published: Mapping[str, str]) -> None:
        held = self._at(partition).reports
        for name, text in published.items():
            if held.get(BucketField(bucket_ms, name)) == text:
                del held[BucketField(bucket_ms, name)]

    async def deferred(
        self, partition: int, count_max: int, but: Collection[int] = ()
    ) -> tuple[Checkpoint | None, list[Deferred]]:
        held = self._at(partition)
        return held.checkpoint, sorted(each for at, each in held.deferred.items() if at not in but)[:count_max]

    async def waiting(self, partition: int, account: str | None = None) -> tuple[Checkpoint | None, Waiting]:
        held = self._at(partition)
        times = [each.stream_time_ms for each in held.deferred.values() if account in (None, each.account)]
        return held.checkpoint, Waiting(len(times), min(times, default=None))

    async def restating(self, partition: int, count_max: int) -> tuple[Checkpoint | None, dict[str, AccountState]]:
        held = self._at(partition)
        waiting = [
            (state.pending.until_ms is None, account.encode(), account, state)
            for account, state in held.accounts.items()
            if state.pending is not None
        ]
        return held.checkpoint, {account: state for _, _, account, state in sorted(waiting)[:count_max]}

    async def restating_among(self, partition: int, accounts: Sequence[str]) -> dict[str, AccountState]:
        states = self._at(partition).accounts
        return {each: states[each] for each in accounts if each in states and states[each].pending is not None}

    async def account(self, partition: int, account: str) -> AccountState:
        return self._at(partition).accounts.get(account, AccountState())

    async def accounts(
        self, partition: int, accounts: Sequence[str]
    ) -> tuple[Checkpoint | None, dict[str, AccountState]]:
        held = self._at(partition)
        return held.checkpoint, {account: held.accounts.get(account, AccountState()) for account in accounts}

    async def account_totals(
        self, partition: int, keys: Sequence[TotalKey]
    ) -> tuple[Checkpoint | None, dict[TotalKey, dict[str, str]]]:
        held = self._at(partition)
        return held.checkpoint, {key: dict(held.totals.get(key, {})) for key in keys}

    async def total_keys(self, partition: int, cursor: int, count: int) -> tuple[int, list[TotalKey]]:
        keys = sorted(self._at(partition).totals)
        after = cursor + count
        return (after if after < len(keys) else 0), keys[cursor:after]

    async def ranking(self, partition: int, key: RankingKey, count: int) -> list[tuple[str, int]]:
        scores = self._at(partition).rankings.get(key, {})
        return sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:count]

    async def close(self) -> None:
        """Nothing to release."""
