"""The errors of a real Valkey during a fail-over are transient, and the next call uses the new primary."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis._parsers.base import BaseParser

from pipeline.local.valkey import LocalValkey
from schemas.errors import OperatorNeeded, Transient
from sinks.redis.client import Command, Server, checked
from sinks.redis.view import RedisLiveView
from tests.conformance.rollup_states import changes, checkpoint, started

# Nobody listens on this port: the server waits for a primary that is gone.
REPLICA: Command = ("REPLICAOF", "127.0.0.1", 9)
PRIMARY: Command = ("REPLICAOF", "NO", "ONE")


@pytest.fixture
def server(own_valkey: LocalValkey) -> Iterator[Server]:
    opened = Server(own_valkey.url)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("before", "command"),
    [
        ([REPLICA], ("SET", "key", "1")),
        ([("CONFIG", "SET", "replica-serve-stale-data", "no"), REPLICA], ("GET", "key")),
        ([("CONFIG", "SET", "min-replicas-to-write", "1")], ("SET", "key", "1")),
    ],
    ids=["READONLY", "MASTERDOWN", "NOREPLICAS"],
)
def test_fail_over_is_waited_for(server: Server, before: list[Command], command: Command) -> None:
    """An ordinary fail-over must not need an operator."""
    server.run(before)

    with pytest.raises(Transient):
        server.run([command])
    with pytest.raises(Transient):
        server.run([("MULTI",), command, ("EXEC",)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CLUSTERDOWN The cluster is down", Transient),
        ("TRYAGAIN Multiple keys request during rehashing of slot", Transient),
        ("BUSY Valkey is busy running a script.", Transient),
        ("BUSYKEY Target key name already exists.", OperatorNeeded),
        ("OOM command not allowed when used memory > 'maxmemory'.", OperatorNeeded),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", OperatorNeeded),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else value.__name__,
)
def test_errors_are_recognised_as_the_library_delivers_them(text: str, expected: type[Exception]) -> None:
    """The library removes the first word of errors for which it has a class."""
    with pytest.raises(expected):
        checked([BaseParser.parse_error(text)], "Redis")  # type: ignore[no-untyped-call]  # the library ships no types


def test_connections_to_a_server_that_became_a_replica_are_closed(server: Server) -> None:
    """The replica keeps connections open, so the client would never ask the new primary."""
    one, other = server.connection(), server.connection()
    ids = {str(each.run([("CLIENT", "ID")])) for each in (one, other)}
    other.release()
    one.run([REPLICA, ("SET", "key", "1")])

    again = {str(each.run([("CLIENT", "ID")])) for each in (one, other)}
    one.release()
    other.release()

    assert not ids & again


async def test_commit_refused_by_a_replica_is_written_once_it_is_the_primary(own_valkey: LocalValkey) -> None:
    """The refused commit wrote nothing."""
    store, server = RedisLiveView(own_valkey.url), Server(own_valkey.url)
    last = await started(store)
    server.run([REPLICA])
    for _ in range(2):
        with pytest.raises(Transient):
            await store.state.commit(0, last, changes(1))
    assert await store.state.load_checkpoint(0) == last

    server.run([PRIMARY])
    await store.state.commit(0, last, changes(1))

    assert await store.state.load_checkpoint(0) == checkpoint(1)
    await store.close()
    server.close()
