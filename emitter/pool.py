"""Connections to one gateway that threads share, each used by one thread at a time."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from emitter.transport import Answer, HttpTransport


class Pool:
    """Keeps up to `idle_max` connections open. Opens as many as callers need at a time."""

    def __init__(self, gateway_url: str, timeout_s: float, idle_max: int) -> None:
        """Raises `ValueError` for an address that is none."""
        # A wrong address must fail here: later, it would look like a gateway that does not answer.
        HttpTransport(gateway_url, timeout_s)
        self._gateway_url, self._timeout_s, self._idle_max = gateway_url, timeout_s, idle_max
        self._lock = threading.Lock()
        self._idle: list[HttpTransport] = []

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Post a body that may be posted twice. Blocks for a bounded time. Raises as `emitter.transport.Transport`."""
        with self._lock:
            transport = self._idle.pop() if self._idle else None
        transport = transport or HttpTransport(self._gateway_url, self._timeout_s)
        # After an exception the transport has closed its connection.
        answer = transport.post(path, body, headers)
        with self._lock:
            is_kept = len(self._idle) < self._idle_max
            if is_kept:
                self._idle.append(transport)
        if not is_kept:
            transport.close()
        return answer

    def forget(self) -> None:
        """Forget the connections without closing them. After a fork they belong to the parent."""
        idle, self._idle = self._idle, []
        self._lock = threading.Lock()
        for transport in idle:
            transport.forget()

    def close(self) -> None:
        """Close the idle connections. Safe to call twice; a later post connects again."""
        with self._lock:
            idle, self._idle = self._idle, []
        for transport in idle:
            transport.close()
