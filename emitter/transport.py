"""How a request reaches the gateway: one kept-alive connection of the standard library's HTTP client."""

from __future__ import annotations

import http.client
import os
import ssl
from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol
from urllib.parse import urlsplit

ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024

# Kept, so that no finaliser takes a lock that a thread of the parent held: one of an emitter and fork.
_of_parents: Final[list[http.client.HTTPConnection]] = []


class Answer(NamedTuple):
    """The gateway's answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """Sends one request. Called by one thread at a time."""

    def __call__(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Post `body` and return the answer, whatever its status. Blocks for a bounded time.

        Raises `OSError` or `http.client.HTTPException` where no whole answer came; the gateway may have taken the
        events all the same, so the caller repeats the request under the same ids.
        """
        ...


class HttpTransport:
    """Posts to `gateway_url` + `/v1/events`. Redirects and proxy variables are not followed."""

    def __init__(self, gateway_url: str, timeout_s: float = 10.0, tls: ssl.SSLContext | None = None) -> None:
        """Raises `ValueError` where the URL is not `http://HOST[:PORT][/PREFIX]` or `https://…`."""
        parts = urlsplit(gateway_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"gateway_url {gateway_url!r} must look like http://127.0.0.1:8080")
        self._host, self._port = parts.hostname, parts.port
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self._path = parts.path.rstrip("/") + "/v1/events"
        self._timeout_s = timeout_s
        self._connection: http.client.HTTPConnection | None = None

    def __call__(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """See `Transport`. `timeout_s` bounds each wait on the socket."""
        connection = self._connection or self._connect()
        broken = False
        try:
            try:
                connection.request("POST", self._path, body, dict(headers))
            except BrokenPipeError:
                # A gateway that refuses a large body may answer and hang up before it has read all of it.
                broken = True
            response = connection.getresponse()
            content = response.read(ANSWER_BYTES_MAX + 1)
        except BaseException:
            # What is left of an unfinished answer must never be read as the next one.
            self.close()
            raise
        if broken or response.will_close or len(content) > ANSWER_BYTES_MAX:
            self.close()
        return Answer(response.status, {name.lower(): text for name, text in response.getheaders()}, content)

    def forget(self) -> None:
        """Leave the connection alone: after a fork it is the parent's, whose thread may have held its locks."""
        connection, self._connection = self._connection, None
        if connection is not None:
            _of_parents.append(connection)
            if connection.sock is not None:
                os.close(connection.sock.detach())

    def close(self) -> None:
        """Release the connection. Safe to call twice; a later request connects again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        if self._tls is not None:
            self._connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=self._timeout_s, context=self._tls
            )
        else:
            self._connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        return self._connection
