"""Properties of the Redis store alone: watching, types, settings, and servers that die."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from pipeline.local.valkey import LocalValkey
from schemas.errors import Fenced, OperatorNeeded, Transient
from schemas.periods import AccountState, Binding, PendingCut
from schemas.rollup import (
    BucketField,
    Changes,
    Checkpoint,
    DirtyCell,
    MarkKey,
    ReadRequest,
    TotalKey,
)
from sinks.redis.client import Command, Connection
from sinks.redis.view import RedisLiveView
from tests.conformance.rollup_states import BUCKET, METER_SET, changes, checkpoint, started


@pytest.fixture
def redis_store(valkey: LocalValkey) -> RedisLiveView:
    """A store on the session's Valkey."""
    return RedisLiveView(valkey.url, namespace=f"test-{uuid.uuid4().hex[:12]}")


async def test_a_commit_between_read_and_commit_refuses_the_slower_worker(
    redis_store: RedisLiveView, valkey: LocalValkey
) -> None:
    """Another connection breaks the WATCH: EXEC writes nothing."""
    first = await started(redis_store)
    other = RedisLiveView(valkey.url, namespace=redis_store.keyspace.namespace)
    await redis_store.state.read(0, first, ReadRequest())
    await other.state.commit(0, first, changes(5))

    with pytest.raises(Fenced):
        await redis_store.state.commit(0, first, changes(5, "zombie"))
    assert (await other.totals.account_totals(0, [TotalKey("zombie", 0)]))[1] == {TotalKey("zombie", 0): {}}
    await other.close()
    await redis_store.close()


async def test_meter_set_is_written_and_read_only_if_it_changes(
    redis_store: RedisLiveView, valkey: LocalValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A meter set may have hundreds of kilobytes, so neither a flush nor a live answer transfers it again."""
    first = await started(redis_store)
    worker, reader = (RedisLiveView(valkey.url, namespace=redis_store.keyspace.namespace) for _ in range(2))
    moved: list[object] = []
    run = Connection.run

    def watched(connection: Connection, commands: Sequence[Command]) -> list[Any]:
        moved.extend(command[0] for command in commands if "meter_set" in command)
        return run(connection, commands)

    monkeypatch.setattr(Connection, "run", watched)

    async def looks() -> Checkpoint | None:
        seen, _ = await reader.accounts.accounts(0, ["acme"])
        assert (await reader.deferred.waiting(0, "acme"))[0] == seen
        assert (await reader.totals.account_totals(0, [TotalKey("acme", 0)]))[0] == seen
        return seen

    assert await looks() == first
    assert await worker.state.load_checkpoint(0) == first
    assert moved == ["HMGET", "HMGET"]
    await worker.state.read(0, first, ReadRequest())
    await worker.state.commit(0, first, Changes(checkpoint=checkpoint(5)))
    assert await looks() == checkpoint(5)
    assert moved == ["HMGET", "HMGET"]

    last = msgspec.structs.replace(checkpoint(5), meter_set=METER_SET.model_copy(update={"version": 4}))
    await worker.state.commit(0, checkpoint(5), Changes(checkpoint=last))
    assert await looks() == last
    assert moved == ["HMGET", "HMGET", "HSET", "HMGET"]
    with pytest.raises(Fenced):
        await redis_store.state.read(0, checkpoint(5), ReadRequest())
    for each in (redis_store, worker, reader):
        await each.close()


async def test_an_answer_between_two_reads_does_not_hide_accounts_that_still_wait(
    redis_store: RedisLiveView, valkey: LocalValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store reads the names of waiting accounts before their states."""
    first = await started(redis_store)
    other = RedisLiveView(valkey.url, namespace=redis_store.keyspace.namespace)
    pending = PendingCut(position=9, from_ms=0, requested_ms=0, binding=Binding(effective_from_ms=0))
    waits = AccountState(pending=pending)
    await redis_store.state.commit(0, first, Changes(checkpoint=checkpoint(5), accounts={"acme": waits, "zeta": waits}))
    run, names = redis_store.keyspace.server.run, []

    def answered_meanwhile(commands: list[Command]) -> list[Any]:
        answers = run(commands)
        if commands[0][0] == "ZRANGE":
            names.append(answers[0])
            if len(names) == 1:
                asyncio.run(
                    other.state.commit(
                        0, checkpoint(5), Changes(checkpoint=checkpoint(6), accounts={"acme": AccountState()})
                    )
                )
        return answers

    monkeypatch.setattr(redis_store.keyspace.server, "run", answered_meanwhile)

    assert await redis_store.accounts.restating(0, 1) == (checkpoint(6), {"zeta": waits})
    assert names == [["acme"], ["zeta"]]
    await other.close()
    await redis_store.close()


async def test_an_abandoned_read_does_not_spoil_the_next_commit(redis_store: RedisLiveView) -> None:
    """The next read drops a WATCH of a failed flush."""
    first = await started(redis_store)
    await redis_store.state.read(0, first, ReadRequest())
    await redis_store.state.commit(0, first, Changes(checkpoint=checkpoint(1)))
    await redis_store.state.read(0, checkpoint(1), ReadRequest())
    await redis_store.state.read(0, checkpoint(1), ReadRequest())
    await redis_store.state.commit(0, checkpoint(1), changes(2))

    assert await redis_store.state.load_checkpoint(0) == checkpoint(2)
    await redis_store.close()


async def test_a_key_of_another_type_stops_the_worker_in_the_read(redis_store: RedisLiveView) -> None:
    """A foreign program writes under Tidemark's keys: no half of a commit may be applied."""
    first = await started(redis_store)
    key = redis_store.keyspace.keys(0).total(TotalKey("acme", 0))
    await asyncio.to_thread(redis_store.keyspace.server.run, [("SET", key, "text")])

    with pytest.raises(OperatorNeeded, match="WRONGTYPE"):
        await redis_store.state.read(0, first, ReadRequest(totals=[TotalKey("acme", 0)]))
    await redis_store.close()


async def test_marks_stay_integer_sets(redis_store: RedisLiveView) -> None:
    """A mark takes eight bytes; a hash table would take five times that."""
    first = await started(redis_store)
    marks = {MarkKey(0, 1): list(range(-10_000, 10_000))}
    await redis_store.state.commit(0, first, changes(5)._replace(marks=marks))

    key = redis_store.keyspace.keys(0).mark(MarkKey(0, 1))
    assert await asyncio.to_thread(redis_store.keyspace.server.run, [("OBJECT", "ENCODING", key)]) == ["intset"]
    assert await redis_store.check() == []
    await redis_store.close()


async def test_settings_that_endanger_the_counts_are_reported(redis_store: RedisLiveView) -> None:
    """Evicted usage would read as zero."""
    run = redis_store.keyspace.server.run
    await asyncio.to_thread(run, [("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")])
    await asyncio.to_thread(run, [("CONFIG", "SET", "set-max-intset-entries", "512")])
    try:
        problems = await redis_store.check()
    finally:
        await asyncio.to_thread(run, [("CONFIG", "SET", "maxmemory-policy", "noeviction")])
        await asyncio.to_thread(run, [("CONFIG", "SET", "set-max-intset-entries", "65536")])

    assert [problem.split(" ")[0] for problem in problems] == ["maxmemory-policy", "set-max-intset-entries"]
    await redis_store.close()


async def test_a_killed_server_keeps_every_commit(redis_store: RedisLiveView, valkey: LocalValkey) -> None:
    """The append-only file is written before the answer. While the server is dead, the store raises."""
    first = await started(redis_store)
    await redis_store.state.commit(0, first, changes(5))
    valkey.kill()
    with pytest.raises(Transient):
        await redis_store.state.load_checkpoint(0)
    # Not in a thread: the server dies with the thread that starts it.
    valkey.start()

    assert await redis_store.state.load_checkpoint(0) == checkpoint(5)
    await redis_store.close()


async def test_a_lost_answer_leaves_a_whole_commit_or_nothing(valkey: LocalValkey) -> None:
    """The connection dies after EXEC was sent: the checkpoint shows whether the commit was applied."""
    namespace = f"test-{uuid.uuid4().hex[:12]}"
    direct = RedisLiveView(valkey.url, namespace=namespace)
    first = await started(direct)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", valkey.port)
        while data := await reader.read(65_536):
            upstream_writer.write(data)
            answer = await upstream_reader.read(65_536)
            if b"EXEC" in data:
                break
            writer.write(answer)
        upstream_writer.close()
        writer.close()

    proxy = await asyncio.start_server(forward, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    through = RedisLiveView(f"redis://127.0.0.1:{port}", namespace=namespace)
    with pytest.raises(Transient):
        await through.state.commit(0, first, changes(5))

    assert await direct.state.load_checkpoint(0) == checkpoint(5)
    assert (await direct.totals.account_totals(0, [TotalKey("acme", 0)]))[1][TotalKey("acme", 0)]["tokens"] == "7"
    await through.close()
    await direct.close()
    proxy.close()


def _one_cell(offset: int, account: str, stream_time_ms: int) -> Changes:
    name = BucketField(BUCKET, f"cell of {account}")
    return Changes(checkpoint=checkpoint(offset, stream_time_ms), cells={name: "1"}, dirty={name: offset})


async def test_a_commit_while_dirty_cells_are_listed_is_not_taken_for_relayed(
    redis_store: RedisLiveView, valkey: LocalValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint determines completeness, so it must not be ahead of the cells that were read with it."""
    other = RedisLiveView(valkey.url, namespace=redis_store.keyspace.namespace)
    first = await started(redis_store)
    await redis_store.state.commit(0, first, _one_cell(5, "acme", BUCKET + 1_000))
    run, later = redis_store.keyspace.server.run, list[Changes]()

    def committed_meanwhile(commands: list[Command]) -> list[Any]:
        answers = run(commands)
        if commands[0][0] == "HRANDFIELD" and not later:
            later.append(_one_cell(7, "zeta", BUCKET + 9_000))
            asyncio.run(other.state.commit(0, checkpoint(5, BUCKET + 1_000), later[0]))
        return answers

    monkeypatch.setattr(redis_store.keyspace.server, "run", committed_meanwhile)
    seen, cells = await redis_store.outbox.dirty(0, 10)

    assert seen == checkpoint(5, BUCKET + 1_000)
    assert [cell.key.field for cell in cells] == ["cell of acme"]
    await other.close()
    await redis_store.close()


async def test_fewer_dirty_cells_than_requested_are_all_of_them(
    redis_store: RedisLiveView, valkey: LocalValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if another process, which has just lost the partition, confirms a cell in between."""
    other = RedisLiveView(valkey.url, namespace=redis_store.keyspace.namespace)
    believed = await started(redis_store)
    for number, account in enumerate(("acme", "bob", "cyd", "dora", "eve")):
        changes_of_one = _one_cell(5 + number, account, BUCKET + number)
        await redis_store.state.commit(0, believed, changes_of_one)
        believed = changes_of_one.checkpoint
    run, confirmed = redis_store.keyspace.server.run, list[DirtyCell]()

    def confirmed_meanwhile(commands: list[Command]) -> list[Any]:
        answers = run(commands)
        if commands[0][0] == "HRANDFIELD" and not confirmed:
            _, cells = asyncio.run(other.outbox.dirty(0, 10))
            confirmed.extend(cell for cell in cells if cell.key.field in answers[0][:1])
            asyncio.run(other.outbox.confirm_dirty(0, confirmed))
        return answers

    monkeypatch.setattr(redis_store.keyspace.server, "run", confirmed_meanwhile)
    _, cells = await redis_store.outbox.dirty(0, 3)

    assert len(confirmed) == 1
    assert len(cells) == 3
    await other.close()
    await redis_store.close()
