"""Names that no path can carry, over every route of a real server, with a client that sends exactly these bytes.

HTTP libraries normalise paths before they send them, so an in-process client does not show what a server makes of them.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote_from_bytes

import pytest
from fastapi.routing import APIRoute
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.http.serving import serving
from schemas.events import NAME_CHARACTERS_MAX
from tests.worlds.gateway import Gateway, event, running
from tests.worlds.relay import relay

NAMES: Final = {
    "line feed": "a\nb", "line feed at the end": "a\n", "only a line feed": "\n", "carriage return": "a\r\nb",
    "a dot": ".", "two dots": "..", "dots and slashes": "../../v1/meters", "slash": "a/b", "encoded slash": "a%2Fb",
    "encoded twice": "a%252Fb", "slash before": "/a", "slash after": "a/", "two slashes": "a//b", "only a slash": "/",
    "hash": "customer#billing", "question mark": "a?account=b", "percent": "100%", "broken escape": "%zz",
    "ampersand": "a&account=b", "plus": "a+b", "space": "a b", "spaces around": " a ", "quotes": "a\"b'c",
    "backslash": "a\\b", "braces": "{account}", "semicolon": "a;b=c", "comma": "a,b", "colon": "1:2",
    "path of another route": "a/usage", "path of an answer to people": "a/banners",
    "path of a grant": "a/overrides/sso", "path of a quote": "a/quotes/q/accept",
    "name of another route": "current", "umlaut": "ü", "two forms": "u\u0308",
    "Japanese": "日本", "emoji": "😀", "line separator": "\u2028", "byte order mark": "\ufeffa", "NUL": "\x00",
    "escape": "\x1b[2J", "replacement character": "a\ufffdb", "longest": "x" * NAME_CHARACTERS_MAX,
    "longest in UTF-8": "😀" * NAME_CHARACTERS_MAX,
}  # fmt: skip
SPAN: Final = "from=2026-11-01T00:00:00Z&to=2026-12-01T00:00:00Z"


class Answered(NamedTuple):
    """A status and a body of JSON."""

    status: int
    body: Any


class RawClient:
    """Sends a request's bytes as they are."""

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        self._key = key

    async def get(self, target: str) -> Answered:
        """GET of a target, without any normalisation."""
        return await self._request(f"GET {target} HTTP/1.1\r\n".encode(), {}, b"")

    async def request(self, method: str, target: str) -> Answered:
        """A request without a body."""
        return await self._request(f"{method} {target} HTTP/1.1\r\n".encode(), {}, b"")

    async def post(self, body: bytes, headers: dict[str, str]) -> Answered:
        """POST /v1/events."""
        return await self._request(b"POST /v1/events HTTP/1.1\r\n", headers, body)

    async def _request(self, line: bytes, headers: dict[str, str], body: bytes) -> Answered:
        sent = {"host": "gateway", "authorization": f"Bearer {self._key}", "connection": "close", **headers}
        sent["content-length"] = str(len(body))
        head = "".join(f"{name}: {value}\r\n" for name, value in sent.items()).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(line + head + b"\r\n" + body)
            answer = await reader.read()
        finally:
            writer.close()
        head, _, content = answer.partition(b"\r\n\r\n")
        assert b"location:" not in head.lower()
        return Answered(int(head.split()[1]), json.loads(content))


def encoded(name: str) -> str:
    """Every byte of the name percent-encoded, also those that need it least: a client may."""
    return "".join(f"%{byte:02X}" for byte in name.encode())


def as_libraries_do(name: str) -> str:
    """Percent-encoded as `urllib.parse.quote(name, safe="")` and `encodeURIComponent` do."""
    return quote_from_bytes(name.encode(), safe="")


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway whose stores and log all work."""
    async with running(tmp_path) as running_gateway:
        yield running_gateway


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[RawClient]:
    """A client of the gateway behind a real server."""
    async with serving(gateway.app, "127.0.0.1", 0) as port:
        yield RawClient(port, gateway.keys["admin"])


async def send_usage(client: RawClient) -> dict[str, str]:
    """Events of each name with another number of tokens; the number by name. Half of them come in binary mode."""
    expected = {}
    for tokens, name in enumerate(NAMES.values(), start=1):
        sent = event(f"event-{tokens}", subject=name, data={"usage": {"tokens": tokens}, "model": "small"})
        if tokens % 2:
            headers = {
                f"ce-{attribute}": encoded(value) if attribute == "subject" else value
                for attribute, value in sent.items()
                if attribute != "data"
            }
            answer = await client.post(json.dumps(sent["data"]).encode(), headers)
        else:
            answer = await client.post(json.dumps(sent).encode(), {"content-type": "application/cloudevents+json"})
        assert (answer.status, answer.body["accepted"]) == (202, 1), (name, answer)
        expected[name] = str(tokens)
    return expected


def tokens_of(answer: Answered) -> str | None:
    """The live total of the meter `tokens`."""
    assert answer.status == 200, answer
    values: dict[str, str | None] = {meter["meter"]: meter["value"] for meter in answer.body["meters"]}
    return values["tokens"]


@pytest.mark.parametrize("encode", [encoded, as_libraries_do])
async def test_every_name_that_can_send_usage_can_ask_for_it(gateway: Gateway, client: RawClient, encode: Any) -> None:
    """Usage that is counted and billed must be readable under its own name, and under no other."""
    expected = await send_usage(client)
    await relay(gateway)

    for name, tokens in expected.items():
        live = await client.get(f"/v1/usage/current?account={encode(name)}")
        assert (live.body["account"], tokens_of(live)) == (name, tokens)
        over_time = await client.get(f"/v1/usage?meter=tokens&account={encode(name)}&{SPAN}")
        assert over_time.body["account"] == name
        assert [row["value"] for row in over_time.body["rows"]] == [tokens]
        by_path = await client.get(f"/v1/accounts/{encode(name)}/usage")
        assert (by_path.body["account"], tokens_of(by_path)) == (name, tokens)
    grouped = await client.get(f"/v1/usage?meter=tokens&group_by=account&{SPAN}")
    assert {row["groups"]["account"]: row["value"] for row in grouped.body["rows"]} == expected


@pytest.mark.parametrize("name", ["", "x" * (NAME_CHARACTERS_MAX + 1)], ids=["empty", "too long"])
async def test_a_name_that_no_account_can_have_is_refused_everywhere(client: RawClient, name: str) -> None:
    """Both at the door and by the reads, with the field."""
    sent = await client.post(json.dumps(event(subject=name)).encode(), {"content-type": "application/json"})
    live = await client.get(f"/v1/usage/current?account={name}")
    by_path = await client.get(f"/v1/accounts/{name}/usage")
    over_time = await client.get(f"/v1/usage?meter=tokens&account={name}&{SPAN}")

    assert (sent.status, sent.body["events"][0]["reason"], sent.body["events"][0]["field"]) == (
        400, "bad_field", "subject",
    )  # fmt: skip
    for answer in (live, by_path, over_time):
        assert (answer.status, answer.body["error"]["field"]) == (400, "account")


async def test_every_route_gets_the_names_that_were_sent(gateway: Gateway, client: RawClient) -> None:
    """Whatever a name has, its request comes to the route that was meant, with that name and no other."""
    named = [route for route in gateway.app.routes if isinstance(route, APIRoute) and "{" in route.path_format]
    for route in named:
        route.app = echo_of(route.path_format)
    found = {}
    for route in named:
        method = min(route.methods or ())
        for name in NAMES.values():
            if route.path_format.endswith("}") and name.endswith("\n"):
                continue  # No path ends with a line feed: `test_a_path_that_is_almost_right_is_not_found`.
            target = re.sub(r"\{\w+\}", encoded(name), route.path_format)
            answer = await client.request(method, target)
            got = (answer.status, answer.body.get("route"), set(answer.body.get("names", {}).values()))
            if got != (200, route.path_format, {name}):
                found[method, route.path_format, name] = answer

    assert len(named) >= 15
    assert found == {}


def echo_of(path: str) -> ASGIApp:
    """Answers with the route, and the names that the route was given."""

    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        await JSONResponse({"route": path, "names": scope["path_params"]})(scope, receive, send)

    return echo


async def test_a_name_whose_slash_is_not_encoded_is_another_path(client: RawClient) -> None:
    """`a/usage` and the usage of `a` would be the same request."""
    answers = {
        path: await client.get(f"/v1/accounts/{path}") for path in ("a/b", "a/b/usage", "a/b/overrides", "a/b/c/d")
    }

    assert {path: answer.status for path, answer in answers.items()} == dict.fromkeys(answers, 404)


BROKEN: Final = {"a byte that is not UTF-8": "a%FFb", "overlong slash": "a%C0%AFb", "half a pair": "%ED%A0%80",
                 "a percent alone": "100%", "one digit": "a%2", "no digits": "a%zzb"}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN.values(), ids=BROKEN.keys())
async def test_a_name_that_is_not_percent_encoded_utf_8_is_refused(client: RawClient, name: str) -> None:
    """A server repairs such names; the answer would then be about an account that nobody named."""
    answers = {
        "query": await client.get(f"/v1/usage/current?account={name}"),
        "path": await client.get(f"/v1/accounts/{name}/usage"),
        "over time": await client.get(f"/v1/usage?meter=tokens&account={name}&{SPAN}"),
        "name of a parameter": await client.get(f"/v1/usage?meter=tokens&{name}=1&{SPAN}"),
    }

    assert {case: answer.status for case, answer in answers.items()} == dict.fromkeys(answers, 400)
    assert [answer.body["error"]["code"] for answer in answers.values()] == [
        "bad_parameter", "bad_path", "bad_parameter", "bad_parameter",
    ]  # fmt: skip
    assert answers["query"].body["error"]["field"] == "account"


@pytest.mark.parametrize("parameter", ["account", "accoun%74"])
async def test_a_parameter_given_twice_is_refused(client: RawClient, parameter: str) -> None:
    """A proxy that checks the first `account` and a gateway that answers the last one are a hole together."""
    answer = await client.get(f"/v1/usage/current?account=mine&{parameter}=theirs")

    assert (answer.status, answer.body["error"]["message"]) == (400, "account: is given twice")


@pytest.mark.parametrize(
    "target",
    ["//", "/v1/usage%0A", "/v1/usage/current%0A?account=a", "/v1/meters/", "/V1/meters", "/v1/./meters", "/%2E"],
)
async def test_a_path_that_is_almost_right_is_not_found(client: RawClient, target: str) -> None:
    """No normalisation, no redirect: both would let a rule of a proxy be walked around."""
    answer = await client.get(target)

    assert (answer.status, answer.body["error"]["code"]) == (404, "not_found")
