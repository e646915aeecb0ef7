"""What the ASGI and the WSGI middleware share: from a request and its status to one event."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

from emitter.emitter import Emitter
from emitter.notices import Notices


class Request(NamedTuple):
    """A request that was answered. `path` and `query` are as the server received them, header names in lower case.

    `scope` is the ASGI scope or the WSGI environment, with what the application added while it answered.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    scope: MutableMapping[str, Any]


Usage = tuple[str, str, Mapping[str, Any] | None]
UsageOf = Callable[[Request, int], Usage | None]


class RequestEvents:
    """Emits the event of a request. Never raises and never waits for room in the queue."""

    def __init__(self, emitter: Emitter, usage: UsageOf, id_headers: Sequence[str]) -> None:
        self._emitter = emitter
        self._usage = usage
        self._id_headers = [name.lower() for name in id_headers]
        self._notices = Notices(None, None)

    def emit(self, request: Request, status: int) -> None:
        """Emit what the application's function says, if anything. Problems go to the logger `tidemark.emitter`."""
        try:
            usage = self._usage(request, status)
            if usage is not None:
                event_type, account, data = usage
                self._emitter.emit(event_type, account, data, id=self._id(request), when_full="drop")
        except Exception as error:  # noqa: BLE001  # the application's own function; the request must not fail
            self._notices.warn(f"{request.method} {request.path} is not counted: {error!r}")

    def _id(self, request: Request) -> str | None:
        """The id that a repetition of the request has too, if a header names the request.

        Clients use a key for one operation only within a path, so the path is part of the id. A hash, because paths
        are long and queries are private.
        """
        for name in self._id_headers:
            if value := request.headers.get(name, "").strip():
                parts = (name, request.method, request.path, request.query, value)
                text = "".join(f"{len(part)}:{part}" for part in parts)
                return f"request-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:40]}"
        return None


def joined(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers as a dict with lower-case names; the values of a repeated header stand after each other."""
    found: dict[str, str] = {}
    for name, value in headers:
        lower = name.lower()
        found[lower] = f"{found[lower]}, {value}" if lower in found else value
    return found
