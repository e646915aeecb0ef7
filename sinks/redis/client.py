"""The only module that imports `redis`. A connection sends several commands at once and reads all answers.

Calls block. The stores run them in threads, so flushes of different partitions overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, cast
from urllib.parse import urlsplit

import hiredis
import redis
from redis.exceptions import ClusterDownError, MasterDownError, ReadOnlyError, ResponseError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from aggregators.marks import Members
from schemas.errors import OperatorNeeded, Transient

# The members at a command's end may be packed already.
Command = tuple[str | bytes | int | Members, ...]
SOCKET_TIMEOUT_S: Final = 30.0
CONNECT_TIMEOUT_S: Final = 5.0
# One command with very many arguments would block the single-threaded server.
ARGUMENTS_MAX: Final = 10_000
# Retryable errors, mostly of a failover. redis-py maps known prefixes to classes and strips them from the text, so
# both the class and the text are checked. redis-py treats `LOADING` as a connection error.
_RETRYABLE: Final = (ClusterDownError, MasterDownError, ReadOnlyError, TryAgainError)
_RETRYABLE_PREFIXES: Final = ("BUSY ", "LOADING", "NOREPLICAS")
_NOT_PRIMARY: Final = (MasterDownError, ReadOnlyError)


# The type stub allows one argument only.
_pack = cast("Callable[[Command], bytes]", hiredis.pack_command)


def _packed(command: Command) -> bytes:
    members = command[-1]
    if not isinstance(members, Members):
        return _pack(command)
    head = _pack(command[:-1])
    return b"*%d%b%b" % (len(command) - 1 + len(members), head[head.index(b"\r") :], members.bulk)


def with_members(*head: str, members: Sequence[int]) -> Command:
    """A command that ends with the members of a set."""
    return (*head, members) if isinstance(members, Members) else (*head, *members)


class Connection:
    """One connection with its own WATCH state. Not safe for concurrent use."""

    def __init__(self, pool: redis.ConnectionPool, where: str) -> None:
        self._pool = pool
        self._where = where
        self._connection: Any = None

    def run(self, commands: Sequence[Command]) -> list[Any]:
        """Send the commands in one write and return their answers; an error of the server is returned as a value.

        Blocks. Raises `Transient` if the connection broke: the commands may or may not have run.
        """
        try:
            if self._connection is None:
                self._connection = self._pool.get_connection()
            connection = self._connection
            # redis-py's own packing inspects every argument in Python before it calls hiredis.
            packed = b"".join(map(_packed, commands))
            connection.send_packed_command([packed], check_health=False)
            answers = [self._answer(connection) for _ in commands]
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:
            self.reset()
            raise Transient(f"{self._where} did not answer: {error}; check that it runs") from error
        if any(isinstance(answer, _NOT_PRIMARY) for answer in answers):
            # This server is now a replica. A new connection reaches the primary through DNS or the load balancer; an
            # open one would stay with the replica. Connections in use elsewhere get the same error and reset too.
            self.reset()
            self._pool.disconnect(inuse_connections=False)
        return answers

    @staticmethod
    def _answer(connection: Any) -> Any:
        try:
            return connection.read_response()
        except ResponseError as error:
            return error

    def reset(self) -> None:
        """Drop the connection, and with it any WATCH."""
        if self._connection is not None:
            self._connection.disconnect()
            self._pool.release(self._connection)
            self._connection = None

    def release(self) -> None:
        """Give the connection back to the pool."""
        if self._connection is not None:
            self._pool.release(self._connection)
            self._connection = None


class Server:
    """A Redis or Valkey server by URL: `redis://[user:password@]HOST:PORT[/DATABASE]`, `rediss://…`, `unix://PATH`."""

    def __init__(self, url: str, connections_max: int = 256, timeout_s: float = SOCKET_TIMEOUT_S) -> None:
        """`timeout_s` bounds each wait for the server."""
        parts = urlsplit(url)
        self.where = f"Redis at {parts.hostname or parts.path}:{parts.port or ''}".rstrip(":")
        self._pool = redis.ConnectionPool.from_url(
            url,
            max_connections=connections_max,
            socket_timeout=timeout_s,
            socket_connect_timeout=min(timeout_s, CONNECT_TIMEOUT_S),
            decode_responses=True,
            protocol=2,
        )

    def connection(self) -> Connection:
        """A connection that the caller alone uses; it opens at its first command."""
        return Connection(self._pool, self.where)

    def run(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands on a pooled connection. Blocks. Raises `Transient`; on an error answer errors as `checked`."""
        connection = self.connection()
        try:
            return checked(connection.run(commands), self.where)
        finally:
            connection.release()

    def close(self) -> None:
        """Close all connections."""
        self._pool.disconnect()


def checked(answers: list[Any], where: str) -> list[Any]:
    """Return the answers. Raises `Transient` or `OperatorNeeded` for the first error among them."""
    for answer in answers:
        if isinstance(answer, ResponseError):
            text = str(answer)
            if isinstance(answer, _RETRYABLE) or text.startswith(_RETRYABLE_PREFIXES):
                raise Transient(f"{where}: {text}")
            raise OperatorNeeded(
                f"{where} refused a command: {text}. Check that nothing else writes under Tidemark's keys, "
                "that memory is not exhausted, and that the server is of a supported version."
            )
    return answers


def pairs(items: Iterable[tuple[Any, Any]]) -> list[Any]:
    """Flatten (field, value) pairs into command arguments."""
    return [part for item in items for part in item]


def chunked(head: Command, arguments: Sequence[Any]) -> Iterator[Command]:
    """The command `head` with these arguments, as several commands if there are more than `ARGUMENTS_MAX`."""
    for start in range(0, len(arguments), ARGUMENTS_MAX):
        yield (*head, *arguments[start : start + ARGUMENTS_MAX])


def as_mapping(answer: Any) -> dict[str, str]:
    """The answer to HGETALL as a dictionary."""
    flat = cast("list[str]", answer)
    return dict(zip(flat[::2], flat[1::2], strict=True))
