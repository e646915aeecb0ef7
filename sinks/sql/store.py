"""The side tables in PostgreSQL. Only this module opens connections."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Final, TypeVar, cast

import psycopg
from sqlalchemy import Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import create_async_engine

from schemas.errors import InvalidInput, Transient
from schemas.side_tables import Overlaps, Timeline
from sinks.sql.entitlement_recount import SqlEntitlementRecount
from sinks.sql.schema import check, migrate
from sinks.sql.side_tables import SqlSideTables, no_overlaps

Answer = TypeVar("Answer")

# A process commits the steps of its partitions side by side. PostgreSQL allows 100 connections by default, ours 50.
CONNECTIONS_MAX: Final = 8
CONNECT_TIMEOUT_S: Final = 5.0
STORE_TIMEOUT_S: Final = 30.0
# SQLSTATEs after which the same call may succeed: connection lost (08), no resources or disk full (53), deadlock and
# serialization failure, lock not available, the server or the session ended, statement or transaction timeout. Source:
# postgresql.org/docs/current/errcodes-appendix.html.
_RETRYABLE: Final = (
    "08", "53", "40001", "40P01", "55P03", "57P01", "57P02", "57P03", "57P05", "57014",
    "25P03", "25P04",
)  # fmt: skip


class PostgresSideTables(SqlSideTables):
    """The store in PostgreSQL. Many tasks of one event loop may use it at once.

    Errors that may pass raise `Transient`: no connection, no free connection, a full disk, a deadlock, a server that
    ends or hangs. Any other error of the database is a fault of the program, and comes as it is.
    """

    def __init__(
        self,
        url: str,
        timeline: Timeline,
        timeout_s: float = STORE_TIMEOUT_S,
        connections_max: int = CONNECTIONS_MAX,
        overlaps: Overlaps = no_overlaps,
    ) -> None:
        """`url` is `postgresql://…`; `timeout_s` bounds each call. Raises `InvalidInput` if the URL is not one."""
        super().__init__(timeline, overlaps)
        try:
            address = make_url(url).set(drivername="postgresql+psycopg")
        except (ArgumentError, ValueError) as error:
            raise InvalidInput("TIDEMARK_SQL_URL", "must be postgresql://USER:PASSWORD@HOST:PORT/DATABASE") from error
        self._where = f"PostgreSQL at {address.host or 'localhost'}:{address.port or 5432}"
        self._database, self._user = address.database or address.username, address.username
        self._timeout_s = timeout_s
        timeout_ms = max(1, int(timeout_s * 1000))
        # The server ends what this process left behind, so a lost process holds no lock for longer.
        limits = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        self._engine = create_async_engine(
            address,
            pool_size=connections_max,
            max_overflow=0,
            pool_timeout=timeout_s,
            # An error goes to the log; the values of a statement have people's addresses.
            hide_parameters=True,
            connect_args={
                "connect_timeout": max(1, round(min(timeout_s, CONNECT_TIMEOUT_S))),
                "options": " ".join(f"-c {limit}={timeout_ms}" for limit in limits),
                "application_name": "tidemark",
            },
        )

    @property
    def entitlement_recount(self) -> SqlEntitlementRecount:
        """Entitlements computed from the same tables by SQL alone."""
        return SqlEntitlementRecount(self._run)

    async def migrate(self, scope: str, log_id: str) -> None:
        await self._run(lambda connection: migrate(connection, scope, log_id))

    async def check(self, scope: str, log_id: str) -> None:
        """Raise `OperatorNeeded` if the tables are not this version's, or of another scope or log. Writes nothing."""
        await self._run(lambda connection: check(connection, scope, log_id))

    async def close(self) -> None:
        await self._engine.dispose()

    async def _run(self, body: Callable[[Connection], Answer]) -> Answer:
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = await self._engine.connect()
        except (DBAPIError, PoolTimeoutError, TimeoutError) as error:
            raise self._transient(error) from error
        try:
            async with aclosing(connection):
                raw = await connection.get_raw_connection()
                with _hung_up_after(self._timeout_s, cast("psycopg.AsyncConnection", raw.driver_connection)):
                    async with connection.begin():
                        return await connection.run_sync(body)
        except (DBAPIError, TimeoutError) as error:
            if isinstance(error, DBAPIError) and not _is_retryable(error):
                raise
            raise self._transient(error) from error

    def _transient(self, error: Exception) -> Transient:
        text = str(error.orig if isinstance(error, DBAPIError) else error) or f"no answer in {self._timeout_s:g} s"
        return Transient(f"{self._where}: {text.strip()}; {self._remedy(text)}")

    def _remedy(self, text: str) -> str:
        """What to do. A refused connection has no SQLSTATE, only PostgreSQL's words."""
        if "password authentication failed" in text or "no password supplied" in text:
            return f"correct the password of the user {self._user} in TIDEMARK_SQL_URL"
        if "database" in text and "does not exist" in text:
            return f"create the database {self._database}, or correct its name in TIDEMARK_SQL_URL"
        if "role" in text and "does not exist" in text:
            return f"create the user {self._user}, or correct its name in TIDEMARK_SQL_URL"
        return "check that the server runs and has free disk and connections"


@contextmanager
def _hung_up_after(timeout_s: float, connection: psycopg.AsyncConnection) -> Iterator[None]:
    """Shut the connection's socket down after `timeout_s`; raises `TimeoutError` then.

    A server that hangs, with all its processes, neither answers nor takes a request to cancel. A statement whose socket
    is shut down fails at once.
    """
    hung_up = False

    def hang_up() -> None:
        nonlocal hung_up
        hung_up = True
        # The other end may have closed the socket before.
        if not connection.closed:
            with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as same:
                same.shutdown(socket.SHUT_RDWR)

    timer = asyncio.get_running_loop().call_later(timeout_s, hang_up)
    try:
        yield
    except DBAPIError as error:
        if hung_up:
            raise TimeoutError from error
        raise
    finally:
        timer.cancel()


def _is_retryable(error: DBAPIError) -> bool:
    cause = error.orig
    if isinstance(cause, psycopg.Error) and cause.sqlstate is not None:
        return cause.sqlstate.startswith(_RETRYABLE)
    # The client noticed by itself: the connection was refused or lost.
    return isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError)
