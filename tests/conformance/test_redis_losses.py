"""What a Redis that goes back in time leaves, shown on a real Valkey: the state after some commit, whole.

The simulation lets its fake go back to the state before a commit: at the loss of the last second, and at a fail-over
to a replica that was behind. That is right only if a real server never comes back with a part of a commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
import pytest_asyncio

from pipeline.local.valkey import LocalValkey
from schemas.errors import Fenced, OperatorNeeded, Transient
from schemas.rollup import Changes, Checkpoint, TotalKey
from sinks.redis.client import Server, as_mapping
from sinks.redis.view import RedisLiveView
from tests.conformance.rollup_states import changes, checkpoint, started

COMMITS = 6
Contents = dict[str, object]


def contents(url: str) -> Contents:
    """Every key of a server with its value, of any type."""
    server = Server(url)
    reads = {"string": ("GET",), "hash": ("HGETALL",), "set": ("SMEMBERS",), "zset": ("ZRANGE", 0, -1, "WITHSCORES")}
    try:
        (keys,) = server.run([("KEYS", "*")])
        values: Contents = {}
        for key in sorted(keys):
            (kind,) = server.run([("TYPE", key)])
            command, *arguments = reads[kind]
            (value,) = server.run([(str(command), key, *arguments)])
            # The order of a hash's fields and a set's members is arbitrary.
            values[key] = as_mapping(value) if kind == "hash" else sorted(value) if kind == "set" else value
        return values
    finally:
        server.close()


async def committed(store: RedisLiveView, url: str, last: Checkpoint, number: int) -> tuple[Checkpoint, Contents]:
    """Makes one more commit; returns the server's contents."""
    await store.state.commit(0, last, changes(number, account=f"account {number}", total=str(number)))
    return checkpoint(number), await asyncio.to_thread(contents, url)


@pytest_asyncio.fixture
async def store(own_valkey: LocalValkey) -> AsyncIterator[RedisLiveView]:
    """A store on the server."""
    opened = RedisLiveView(own_valkey.url)
    yield opened
    await opened.close()


async def test_a_truncated_append_only_file_gives_the_state_after_a_commit_and_never_between_two(
    own_valkey: LocalValkey, store: RedisLiveView, tmp_path: Path
) -> None:
    """A power loss keeps the beginning of the file, up to the end or the middle of a commit."""
    (log,) = (tmp_path / "valkey/appendonlydir").glob("*.incr.aof")
    last = await started(store)
    states = [(log.stat().st_size, await asyncio.to_thread(contents, own_valkey.url))]
    for number in range(1, COMMITS + 1):
        last, whole = await committed(store, own_valkey.url, last, number)
        states.append((log.stat().st_size, whole))
    assert len({size for size, _ in states}) == COMMITS + 1, "the file is written with every commit"
    cuts = [
        cut for (size, _), (after, _) in pairwise(states) for cut in (size, size + 1, (size + after) // 2, after - 1)
    ]

    own_valkey.kill()
    written = log.read_bytes()
    for cut in cuts:
        log.write_bytes(written[:cut])
        own_valkey.start()

        expected = [whole for size, whole in states if size <= cut][-1]
        assert await asyncio.to_thread(contents, own_valkey.url) == expected, f"cut at {cut}"
        own_valkey.kill()


async def test_a_worker_ahead_of_a_lost_second_is_fenced_and_its_successor_continues_at_the_older_checkpoint(
    own_valkey: LocalValkey, store: RedisLiveView, tmp_path: Path
) -> None:
    """The successor folds the lost commits again from the log, on the state that was kept."""
    (log,) = (tmp_path / "valkey/appendonlydir").glob("*.incr.aof")
    first = await started(store)
    kept, _ = await committed(store, own_valkey.url, first, 1)
    size = log.stat().st_size
    lost, whole = await committed(store, own_valkey.url, kept, 2)
    own_valkey.kill()
    with log.open("r+b") as file:
        file.truncate(size)
    own_valkey.start()

    with pytest.raises(Transient):
        await store.state.commit(0, lost, changes(3))
    with pytest.raises(Fenced, match="another process committed"):
        await store.state.commit(0, lost, changes(3))
    assert await store.state.load_checkpoint(0) == kept

    await committed(store, own_valkey.url, kept, 2)
    assert await asyncio.to_thread(contents, own_valkey.url) == whole


async def test_a_replica_that_takes_over_has_the_state_after_a_commit_and_refuses_a_worker_ahead(
    own_valkey: LocalValkey, store: RedisLiveView, tmp_path: Path
) -> None:
    """Replication is asynchronous: later commits are lost, and the checkpoint shows it."""
    last = await started(store)
    with LocalValkey(tmp_path / "replica") as replica:
        server, primary = Server(replica.url), Server(own_valkey.url)
        await asyncio.to_thread(primary.run, [("CONFIG", "SET", "repl-diskless-sync-delay", "0")])
        await asyncio.to_thread(server.run, [("REPLICAOF", "127.0.0.1", own_valkey.port)])
        last, whole = await committed(store, own_valkey.url, last, 1)
        await _until_received(server, replica.url, whole)
        await asyncio.to_thread(server.run, [("REPLICAOF", "NO", "ONE")])
        ahead, _ = await committed(store, own_valkey.url, last, 2)

        after = RedisLiveView(replica.url)
        assert await asyncio.to_thread(contents, replica.url) == whole
        assert await after.state.load_checkpoint(0) == last
        with pytest.raises(Fenced):
            await after.state.commit(0, ahead, changes(3))
        await after.close()
        server.close()
        primary.close()


async def test_an_emptied_store_is_distinguished_from_one_that_lags(
    own_valkey: LocalValkey, store: RedisLiveView
) -> None:
    """A process that had counted before must not count on an empty store."""
    last, _ = await committed(store, own_valkey.url, await started(store), 1)
    server = Server(own_valkey.url)
    await asyncio.to_thread(server.run, [("FLUSHALL",)])
    server.close()

    with pytest.raises(OperatorNeeded, match="emptied or replaced"):
        await store.state.commit(0, last, changes(2))
    assert await store.state.load_checkpoint(0) is None


async def _until_received(replica: Server, url: str, expected: Contents) -> None:
    """Waits until the replica has caught up, within the test's time limit."""
    while True:
        (answer,) = await asyncio.to_thread(replica.run, [("INFO", "replication")])
        if "master_link_status:up" in answer and await asyncio.to_thread(contents, url) == expected:
            return
        await asyncio.sleep(0.02)


async def test_a_copy_across_a_restart_of_the_server_is_refused(own_valkey: LocalValkey) -> None:
    """After the restart the keys have another order: the copy would silently lack some keys."""
    store = RedisLiveView(own_valkey.url)
    first = await started(store)
    totals = {TotalKey(f"account {number}", 0): {"tokens": "7"} for number in range(20_000)}
    await store.state.commit(0, first, Changes(checkpoint=checkpoint(5), totals=totals))
    copy = store.copies.snapshot(0, checkpoint(5))
    assert await anext(copy)

    own_valkey.kill()
    own_valkey.start()

    with pytest.raises(Transient):
        async for _ in copy:
            pass
    assert await store.state.load_checkpoint(0) == checkpoint(5)
    await store.close()
