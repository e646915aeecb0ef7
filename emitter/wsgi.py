"""WSGI middleware: one event for each request, emitted after the response was sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from emitter.emitter import Emitter
from emitter.request_events import Request, RequestEvents, UsageOf, joined

Environment = dict[str, Any]
Application = Callable[[Environment, Callable[..., Any]], Iterable[bytes]]


class UsageMiddleware:
    """Wraps a WSGI application, such as one of Flask or Django. Needs no framework."""

    def __init__(self, app: Application, emitter: Emitter, usage: UsageOf, *, id_headers: Sequence[str] = ()) -> None:
        """See `emitter.asgi.UsageMiddleware`. `usage` runs in the thread of the request, after the response."""
        self._app = app
        self._events = RequestEvents(emitter, usage, id_headers)

    def __call__(self, environ: Environment, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Serve as the application does."""
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        path = path.encode("latin-1", "replace").decode("utf-8", "replace")
        method, query = environ["REQUEST_METHOD"], environ.get("QUERY_STRING", "")
        status = 500

        def starting(status_line: str, *more: Any) -> Any:
            nonlocal status
            written = start_response(status_line, *more)
            status = int(status_line[:3]) if status_line[:3].isdecimal() else 500
            return written

        def end() -> None:
            self._events.emit(Request(method, path, query, _headers(environ), environ), status)

        try:
            body = self._app(environ, starting)
        except BaseException:
            # Nothing was sent yet, whatever status the application began with.
            status = 500
            end()
            raise
        return _Body(body, end)


class _Body:
    """The response of the application, whose `close` the server calls in any case."""

    def __init__(self, body: Iterable[bytes], end: Callable[[], None]) -> None:
        self._body = body
        self._end = end

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            self._end()


def _headers(environ: Environment) -> dict[str, str]:
    names = ((name.removeprefix("HTTP_"), value) for name, value in environ.items() if name.startswith("HTTP_"))
    plain = ((name, environ[name]) for name in ("CONTENT_TYPE", "CONTENT_LENGTH") if environ.get(name))
    return joined((name.replace("_", "-"), value) for name, value in (*names, *plain))
