"""Export and import of state, and the store of snapshots: the same tests for the fakes and the real services."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence

import msgspec
import pytest

from pipeline.local.valkey import LocalValkey
from schemas.errors import Fenced
from schemas.live_view import LiveView
from schemas.periods import AccountState
from schemas.rollup import (
    BucketField,
    Changes,
    Checkpoint,
    Deferred,
    DirtyCell,
    Duplicate,
    MarkKey,
    RankingKey,
    ReadRequest,
    TotalKey,
    UniqueKey,
)
from schemas.snapshots import Snapshot, SnapshotStore
from sinks.clickhouse.fake_snapshots import FakeSnapshots
from sinks.clickhouse.snapshots import ClickHouseSnapshots
from sinks.redis import copies
from sinks.redis.client import Command, Connection
from sinks.redis.copies import CHUNK_CHARACTERS
from sinks.redis.fake import FakeLiveView
from sinks.redis.view import RedisLiveView
from tests.conformance.rollup_states import checkpoint

NAMES = ["acme", "ä ö", "a:b*c?[d]\\", "\U0001f600", 'quo"te']
HOUR = 3_600_000
DEFERRED = Deferred(9 << 16, 5, "acme", "p", "t", "s", 1, '{"id":"p"}', False, (("tokens", 1, "", "{}"),))


@pytest.fixture
def store(rollup_store: LiveView) -> LiveView:
    """An empty store: the fake, then the real server."""
    assert isinstance(rollup_store, FakeLiveView | RedisLiveView)
    return rollup_store


@pytest.fixture(params=["fake", "service"])
def kept(request: pytest.FixtureRequest) -> SnapshotStore:
    if request.param == "fake":
        return FakeSnapshots()
    return ClickHouseSnapshots(request.getfixturevalue("clickhouse"))


def at(next_offset: int, generation: int) -> Checkpoint:
    return msgspec.structs.replace(checkpoint(next_offset), generation=generation)


def everything(many: int) -> Changes:
    """Changes with every kind of state, and enough of some kinds to fill several chunks."""
    cells = {
        BucketField(HOUR * (number % 2), f"cell {number} {name}"): f"{number}" for number, name in enumerate(NAMES)
    }
    return Changes(
        checkpoint=at(5, 1),
        marks={MarkKey(0, 1): list(range(many)), MarkKey(0, 2): [-(1 << 63), (1 << 63) - 1]},
        totals={TotalKey(name, 0): {"tokens": str(10**30), "last": "1:2:3"} for name in NAMES},
        rankings={RankingKey("tokens", 0): {name: 7 + number for number, name in enumerate(NAMES)}},
        cells=cells,
        dirty={key: 1 << 56 | number for number, key in enumerate(cells)},
        reports={BucketField(0, f"report {name}"): "1:2:3:4:e" for name in NAMES},
        uniques={UniqueKey("acme", "users", 0): [1, 2, 3]},
        accounts={name: AccountState() for name in NAMES},
        duplicates=[Duplicate(number, "acme", "d", "t", "s", 1, "{}", 2) for number in range(many // 2)],
        deferred=[DEFERRED],
    )


async def filled(store: LiveView, many: int = 12_000) -> tuple[Checkpoint, list[str]]:
    """A live state, and its copy."""
    await store.state.create_checkpoint(0, at(0, 1))
    await store.state.commit(0, at(0, 1), everything(many))
    return at(5, 1), [chunk async for chunk in store.copies.snapshot(0, at(5, 1))]


async def seen(store: LiveView, generation: int) -> tuple[object, ...]:
    """Everything that the store returns."""
    changes = everything(12_000)
    request = ReadRequest(
        marks=changes.marks, totals=list(changes.totals), cells=list(changes.cells), reports=list(changes.reports),
        uniques=changes.uniques, accounts=NAMES, deferred=[DEFERRED.position],
    )  # fmt: skip
    return (
        await store.state.read(0, at(5, generation), request),
        sorted((await store.outbox.dirty(0, 100))[1]),
        await store.outbox.duplicates(0, 100_000),
        (await store.reports.report_buckets(0))[1],
        (await store.deferred.deferred(0, 10))[1],
        (await store.deferred.waiting(0, "acme"))[1],
        await store.totals.ranking(0, RankingKey("tokens", 0), 10),
        sorted((await store.totals.total_keys(0, 0, 1_000))[1]),
    )


async def test_state_that_was_copied_into_another_generation_is_equal(store: LiveView) -> None:
    live, chunks = await filled(store)
    before = await seen(store, 1)
    await store.rebuilds.begin_rebuild(2)
    built = store.built(2)
    await built.copies.begin_restore(0, "one")
    for chunk in chunks:
        await built.copies.take_in(0, "one", [chunk])
    await built.copies.take_in(0, "one", chunks)
    assert await built.state.load_checkpoint(0) is None
    await built.copies.end_restore(0, "one", at(5, 2))
    await built.close()

    assert await seen(store, 1) == before
    assert await store.generations.swap(0, live, at(5, 2))
    assert await seen(store, 2) == before


async def test_state_that_is_imported_in_many_steps_is_equal(store: LiveView, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks may have any size, so the memory of one step is bounded."""
    monkeypatch.setattr(copies, "BYTES_AT_ONCE", 1_000)

    await test_state_that_was_copied_into_another_generation_is_equal(store)


async def test_copy_of_a_state_that_changes_is_refused(store: LiveView) -> None:
    """At the start or in the middle: a mix of two states is useless."""
    live, _ = await filled(store)
    with pytest.raises(Fenced):
        [_ async for _ in store.copies.snapshot(0, at(4, 1))]

    walk = store.copies.snapshot(0, live)
    assert await anext(walk)
    await store.state.commit(0, live, Changes(checkpoint=at(6, 1)))
    with pytest.raises(Fenced):
        [_ async for _ in walk]


async def test_interrupted_restore_restarts_and_its_owner_is_fenced(store: LiveView) -> None:
    """The first restore's data is gone, and its owner can neither add to the second restore nor finish it."""
    _, chunks = await filled(store)
    built = store.built(2)
    await built.copies.begin_restore(0, "one")
    await built.copies.take_in(0, "one", chunks)
    await built.copies.begin_restore(0, "two")
    with pytest.raises(Fenced):
        await built.copies.take_in(0, "one", chunks)
    with pytest.raises(Fenced):
        await built.copies.end_restore(0, "one", at(5, 2))
    await built.copies.end_restore(0, "two", at(5, 2))

    assert (await built.outbox.dirty(0, 100)) == (at(5, 2), [])
    assert (await built.totals.total_keys(0, 0, 100))[1] == []
    with pytest.raises(Fenced):
        await built.copies.begin_restore(0, "three")
    with pytest.raises(Fenced):
        await built.copies.take_in(0, "two", chunks)
    await built.close()
    assert len((await store.outbox.dirty(0, 100))[1]) == len(NAMES)


async def test_own_staging_store_is_removed_whole(store: LiveView) -> None:
    await filled(store, 10)
    await store.generations.forget(0)
    await store.generations.forget(0)

    assert await store.state.load_checkpoint(0) is None
    assert (await store.totals.total_keys(0, 0, 100))[1] == []


async def test_only_complete_snapshots_are_visible_and_only_kept_ones_stay(kept: SnapshotStore) -> None:
    """Newest first. Older snapshots that are not kept are deleted, complete or not; a newer one is being written."""
    taken = [Snapshot(3, offset, f"n'{offset}", "log", offset * 10, 3, "{}") for offset in (5, 15, 25, 35)]
    for each in taken[:3]:
        await kept.insert_chunks(each, 0, ["a", 'b"\n'])
        await kept.insert_chunks(each, 2, ["\U0001f600"])
        await kept.complete(each)
    lacking = Snapshot(3, 20, "lacking", "log", 200, 2, "{}")
    await kept.insert_chunks(lacking, 0, ["a"])
    await kept.complete(lacking)
    await kept.insert_chunks(taken[3], 0, ["a"])
    await kept.insert_chunks(taken[0]._replace(partition=4), 0, ["other"])

    assert list(await kept.snapshots(3)) == [taken[2], taken[1], taken[0]]
    assert list(await kept.chunks(taken[1], 0, 2)) == ["a", 'b"\n']
    assert list(await kept.chunks(taken[1], 2, 2)) == ["\U0001f600"]
    assert list(await kept.chunks(taken[1], 3, 2)) == []
    assert list(await kept.snapshots(4)) == []

    await kept.keep(3, taken[1:3])
    assert list(await kept.snapshots(3)) == [taken[2], taken[1]]
    assert list(await kept.chunks(lacking, 0, 9)) == []
    assert list(await kept.chunks(taken[3], 0, 9)) == ["a"]
    assert list(await kept.chunks(taken[0]._replace(partition=4), 0, 9)) == ["other"]


# Only with the real server


async def test_every_key_of_the_state_is_in_the_copy(valkey: LocalValkey) -> None:
    """Also keys that relays removed during the copy: the rest of a dropped bucket is dropped again."""
    store = RedisLiveView(valkey.url, namespace=f"test-{uuid.uuid4().hex[:12]}")
    _, chunks = await filled(store)
    keys = store.keyspace.keys(0)
    built = store.built(2)
    await built.copies.begin_restore(0, "one")
    await built.copies.take_in(0, "one", chunks)
    there = built.keyspace.keys(0)
    await asyncio.to_thread(store.keyspace.server.run, [("UNLINK", there.cells(0))])
    await built.copies.end_restore(0, "one", at(5, 2))

    (names,) = await asyncio.to_thread(store.keyspace.server.run, [("KEYS", f"{store.keyspace.namespace}:*")])
    live = {name.removeprefix(keys.prefix) for name in names if not name.startswith(there.prefix)}
    copied = {name.removeprefix(there.prefix) for name in names if name.startswith(there.prefix)}
    assert live - copied == {"cells:0", "dirty:0"}
    assert copied <= live
    _, dirty = await built.outbox.dirty(0, 100)
    assert {cell.key.bucket_ms for cell in dirty} == {HOUR}
    assert all(isinstance(cell, DirtyCell) for cell in dirty)
    await built.close()
    await store.close()


async def test_no_chunk_exceeds_its_limit(valkey: LocalValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets of integers are read whole, a page may have many of them, and some items are whole events."""
    store = RedisLiveView(valkey.url, namespace=uuid.uuid4().hex)
    large = 3 * CHUNK_CHARACTERS
    await store.state.create_checkpoint(0, at(0, 1))
    state = Changes(
        checkpoint=at(5, 1),
        marks={MarkKey(0, bucket): range(bucket << 32, (bucket << 32) + 16_384) for bucket in range(30)},
        uniques={UniqueKey("acme", "users", 0): range(70_000)},
        totals={TotalKey(f"account {number}", 0): {"tokens": "7"} for number in range(2_000)},
        duplicates=[Duplicate(number, "acme", "d", "t", "s", 1, "x" * 1_000, 2) for number in range(1_000)]
        + [Duplicate(5_000, "acme", "d", "t", "s", 1, "x" * large, 2)],
    )
    await store.state.commit(0, at(0, 1), state)
    read: list[int] = []
    run = Connection.run

    def counting(connection: Connection, commands: Sequence[Command]) -> list[object]:
        answers = run(connection, commands)
        if commands[0][0] in ("SSCAN", "HSCAN", "ZSCAN"):
            read.append(sum(len(items) for _, items in answers))
        return answers

    monkeypatch.setattr(Connection, "run", counting)
    sizes = [len(chunk) async for chunk in store.copies.snapshot(0, at(5, 1))]
    await store.close()

    assert len(sizes) > 50
    # The limit does not count the escapes of the quotes in the duplicates.
    assert [size for size in sorted(sizes)[:-1] if size > CHUNK_CHARACTERS * 11 // 10] == []
    assert max(sizes) < large + CHUNK_CHARACTERS
    assert max(read) <= 16_384, "one such set at a time"
