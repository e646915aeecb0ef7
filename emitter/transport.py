"""Sends requests to the gateway over one keep-alive connection of the standard library's HTTP client."""

from __future__ import annotations

import http.client
import ipaddress
import os
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, NamedTuple, Protocol
from urllib.parse import urlsplit

ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024

# Connections of the parent of a fork, kept because their finalizers could wait for a lock of a parent's thread.
_of_parents: Final[list[http.client.HTTPConnection]] = []


class Answer(NamedTuple):
    """The gateway's answer. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """A function that sends one request. One thread at a time calls it."""

    def __call__(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Post `body` and return the answer with any status. Blocks for a bounded time.

        Raises `OSError` or `http.client.HTTPException` if no complete answer came. The gateway may have accepted the
        events, so the caller repeats the request with the same ids.
        """
        ...


def exposes_key(gateway_url: str) -> bool:
    """Whether requests carry the key unencrypted to a public host: plain `http://`, and neither loopback, a private
    address nor a name without a point, as services of one cluster have."""
    parts = urlsplit(gateway_url)
    host = parts.hostname or ""
    if parts.scheme != "http" or ("." not in host.rstrip(".") and ":" not in host):
        return False
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return not host.endswith((".localhost", ".local", ".internal", ".test"))


class HttpTransport:
    """Posts to paths behind `gateway_url`. Ignores redirects and the proxy variables of the environment."""

    def __init__(self, gateway_url: str, timeout_s: float = 10.0, tls: ssl.SSLContext | None = None) -> None:
        """Raises `ValueError` if the URL is not `http://HOST[:PORT][/PREFIX]` or `https://…`."""
        parts = urlsplit(gateway_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"gateway_url {gateway_url!r} must look like http://127.0.0.1:8080")
        self._host, self._port = parts.hostname, parts.port
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/")
        self._timeout_s = timeout_s
        self._connection: http.client.HTTPConnection | None = None

    def __call__(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """See `Transport`: posts events."""
        return self.post("/v1/events", body, headers)

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """As `Transport`, for any path and a body that may be posted twice. `timeout_s` bounds each wait on the socket.

        A gateway closes connections that were idle for some seconds, which is no failure: the body is posted again.
        """
        if self._connection is not None:
            with suppress(ConnectionError, http.client.BadStatusLine):
                return self._posted(self._connection, path, body, headers)
        return self._posted(self._connect(), path, body, headers)

    def _posted(
        self, connection: http.client.HTTPConnection, path: str, body: bytes, headers: Mapping[str, str]
    ) -> Answer:
        broken = False
        try:
            try:
                connection.request("POST", self._prefix + path, body, dict(headers))
            except BrokenPipeError:
                # A gateway that refuses a large body may answer and close the connection before it has read the body.
                broken = True
            response = connection.getresponse()
            content = response.read(ANSWER_BYTES_MAX + 1)
        except BaseException:
            # The rest of an unfinished answer must never be read as the next answer.
            self.close()
            raise
        if broken or response.will_close or len(content) > ANSWER_BYTES_MAX:
            self.close()
        return Answer(response.status, {name.lower(): text for name, text in response.getheaders()}, content)

    def forget(self) -> None:
        """Forget the connection without closing it. After a fork it belongs to the parent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            _of_parents.append(connection)
            if connection.sock is not None:
                os.close(connection.sock.detach())

    def close(self) -> None:
        """Close the connection. Safe to call twice; a later request connects again."""
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
