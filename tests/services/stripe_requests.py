"""Notes the kinds of request that a run sends to the Stripe simulator, one example each.

With the variable `STRIPE_REQUESTS=FILE`, the tests append to FILE one JSON line for each new kind of request that the
simulator carried out. Two requests are of one kind if they have the same method and route and the same parameters, each
with the same form of value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stripe_simulator import Simulator, contract, create_app
from stripe_simulator.contract.parameters import parse_form, parse_json
from stripe_simulator.registry import ROUTES, Router

VARIABLE: Final = "STRIPE_REQUESTS"
# Of these maps the caller chooses the keys.
_OWN_KEYS: Final = ("metadata", "payload")
_FORMS: Final = {"<integer>": r"-?\d+", "<decimal>": r"-?\d+\.\d+", "<text>": ".*"}
_ROUTER: Final = Router(ROUTES)
# What this process has written, in whichever test.
_NOTED: Final[set[tuple[Path, tuple[str, ...]]]] = set()


class Request(NamedTuple):
    """One request. `route` is `METHOD PATH` with the names of the ids, `content` the query or the body."""

    route: str
    path: str
    content: str

    @property
    def method(self) -> str:
        """The HTTP method."""
        return self.route.partition(" ")[0]

    @property
    def kind(self) -> tuple[str, ...]:
        """The route, and each parameter with the form of its value, sorted."""
        is_json = self.method == "POST" and self.path.startswith("/v2/")
        fields = parse_json(self.content.encode()) if is_json else parse_form(self.content)
        return self.route, *sorted(set(_parameters(fields)))


def _parameters(fields: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in fields.items():
        label = "" if key.isdigit() else "*" if prefix in _OWN_KEYS else key
        name = f"{prefix}[{label}]" if prefix else key
        below = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(below, dict):
            yield from _parameters({str(part): item for part, item in below.items()}, name)
        else:
            yield f"{name}={_form(str(value))}"


def _form(value: str) -> str:
    """A value of one of Stripe's enums is a form of its own."""
    if not value.isdigit() and (value in _enum_values() or value in ("", "true", "false")):
        return value
    return next(form for form, pattern in _FORMS.items() if re.fullmatch(pattern, value, re.DOTALL))


@cache
def _enum_values() -> frozenset[str]:
    return frozenset(_literals(contract.requests()["definitions"]))


def _literals(node: Any) -> Iterator[str]:
    match node:
        case ["enum", [*values]]:
            yield from values
        case dict():
            yield from _literals(list(node.values()))
        case list():
            for part in node:
                yield from _literals(part)


def distinct(requests: Iterable[Request]) -> list[Request]:
    """The first request of each kind, sorted by kind."""
    first: dict[tuple[str, ...], Request] = {}
    for request in requests:
        first.setdefault(request.kind, request)
    return [first[kind] for kind in sorted(first)]


def read(path: Path) -> list[Request]:
    """The distinct requests of a file."""
    return distinct(msgspec.json.decode(line, type=Request) for line in path.read_bytes().splitlines())


class Notebook:
    """An application that notes what the one below it carried out: the answers 2xx, and 402 for a declined card."""

    def __init__(self, app: ASGIApp, path: Path) -> None:
        self._app = app
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the application does."""
        body = bytearray()
        statuses: list[int] = []

        async def received() -> Message:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
            await send(message)

        await self._app(scope, received, sent)
        if scope["path"].startswith(("/v1/", "/v2/")) and statuses and (statuses[0] < 300 or statuses[0] == 402):
            route, _ = _ROUTER.find(scope["method"], scope["path"])
            content = bytes(body) if scope["method"] == "POST" else scope["query_string"]
            self._note(Request(route.name, scope["path"], content.decode()))

    def _note(self, request: Request) -> None:
        if (self._path, request.kind) not in _NOTED:
            _NOTED.add((self._path, request.kind))
            # One write in the mode "append" is not mixed with the lines of other processes.
            with self._path.open("ab", buffering=0) as file:
                file.write(msgspec.json.encode(request) + b"\n")


def application(simulator: Simulator) -> ASGIApp:
    """The simulator's application, with a notebook if the variable is set."""
    path = os.environ.get(VARIABLE)
    return Notebook(create_app(simulator), Path(path)) if path else create_app(simulator)
