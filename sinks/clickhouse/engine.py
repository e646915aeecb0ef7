"""Sessions of the ClickHouse engine in this process, pooled by database and settings.

The settings of a session never change after it is opened, so no request sees the settings of another request. A
session is closed after a failed statement, which may leave half of its answer in the session's buffer.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from sinks.clickhouse.client import EngineConnection, connect_engine, quoted_name, quoted_text

IDLE_SESSIONS_MAX: Final = 16
SETTING_NAME: Final = re.compile(r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")


class EngineError(Exception):
    """The engine rejected a statement. The text is ClickHouse's; `code` is its error number, 0 if the text has none."""

    def __init__(self, text: str) -> None:
        start = text.find("Code: ")
        super().__init__(text[start:] if start > 0 else text)
        match = re.search(r"Code: (\d+)", text)
        self.code = int(match[1]) if match else 0


class EngineResult(NamedTuple):
    """A statement's answer in the requested format, its duration, and the rows and bytes that it read and wrote."""

    body: bytes
    elapsed_ns: int
    rows_read: int
    bytes_read: int
    rows_written: int
    bytes_written: int


class SessionKey(NamedTuple):
    """The database and the settings of a session, in the order in which they are set."""

    database: str
    settings: tuple[tuple[str, str], ...]


class Engine:
    """The engine of the directory `path`. Thread-safe. Each call blocks its thread until the statement is complete."""

    def __init__(self, path: str) -> None:
        self.path = path
        # Never used: it stays open because the engine shuts down with its last session.
        self._anchor: EngineConnection | None = connect_engine(path)
        self._idle: list[tuple[SessionKey, EngineConnection]] = []
        self._lock = threading.Lock()

    def run(
        self,
        statement: bytes,
        *,
        rows: bytes | None = None,
        output_format: str = "TabSeparated",
        database: str = "default",
        settings: Mapping[str, str] | None = None,
        parameters: Mapping[str, str] | None = None,
    ) -> EngineResult:
        """Run one statement. Raises `EngineError`.

        The `rows` of an INSERT go through a file, whose name replaces `{file}` in the statement: the engine would
        take some semicolons in rows for the end of the statement. `settings` are set in their order, so `readonly`
        must be the last one.
        """
        key = SessionKey(database, tuple((settings or {}).items()))
        for name, _ in key.settings:
            if not SETTING_NAME.match(name):
                raise EngineError(f"Code: 115. DB::Exception: Setting {name!r} is not a name. (UNKNOWN_SETTING)")
        session = self._take(key)
        try:
            with _file_of(rows) as name:
                if name:
                    statement = statement.replace(b"{file}", quoted_text(name).encode(), 1)
                result = session.query(statement, output_format, params=dict(parameters or {}))
            answer = EngineResult(
                result.bytes() or b"",
                int(result.elapsed() * 1e9),
                result.storage_rows_read(),
                result.storage_bytes_read(),
                result.rows_written(),
                result.bytes_written(),
            )
        except (RuntimeError, ValueError, TypeError) as error:
            session.close()
            raise EngineError(str(error)) from error
        self._give(key, session)
        return answer

    def close(self) -> None:
        """Close all sessions and the engine. No call may be running. Safe to call twice."""
        with self._lock:
            idle, self._idle = self._idle, []
            anchor, self._anchor = self._anchor, None
        for _, session in idle:
            session.close()
        if anchor is not None:
            anchor.close()

    def _take(self, key: SessionKey) -> EngineConnection:
        with self._lock:
            for index in range(len(self._idle) - 1, -1, -1):
                if self._idle[index][0] == key:
                    return self._idle.pop(index)[1]
        session = connect_engine(self.path)
        try:
            if key.database != "default":
                session.query(f"USE {quoted_name(key.database)}", "TabSeparated")
            for name, value in key.settings:
                session.query(f"SET {name} = {quoted_text(value)}", "TabSeparated")
        except RuntimeError as error:
            session.close()
            raise EngineError(str(error)) from error
        return session

    def _give(self, key: SessionKey, session: EngineConnection) -> None:
        with self._lock:
            self._idle.append((key, session))
            surplus = self._idle.pop(0)[1] if len(self._idle) > IDLE_SESSIONS_MAX else None
        if surplus is not None:
            surplus.close()


@contextlib.contextmanager
def _file_of(rows: bytes | None) -> Iterator[str]:
    if rows is None:
        yield ""
        return
    with tempfile.NamedTemporaryFile(prefix="rows-") as file:
        file.write(rows)
        file.flush()
        yield file.name
