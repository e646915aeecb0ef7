"""A name reaches the gateway, the log and the key file as it was typed, whatever characters it has."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest

from emitter import Emitter
from pipeline.open import open_base
from pipeline.settings import load_settings
from tests.unit.cli.command_lines import run

NAMES = (
    "a/b", "a%2Fb", "a%252Fb", "customer#billing", "what?", "a&b=c", "a+b", "a b", " a ", ".", "..", "../../v1/meters",
    "a;b", "a:b@c", "http://x/y",
    "ünïcode ☃ 𝟙", "Ω", "a\nb", "a\r\nX-Evil: 1", "a\tb", "\x7f", "'; DROP TABLE usage; --",
    'a"b', "a\\b", "{meter}", "%", "%zz", "$(id)", "`id`", "*", "~", "null", "0", "a" * 128,
)  # fmt: skip


class Seen(NamedTuple):
    """A request as it came over the wire."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Seen]]:
    """A gateway that only notes the requests."""
    requests: list[Seen] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            requests.append(Seen(self.command, self.path, dict(self.headers), body))
            sent = json.loads(body) if body else []
            events = [
                {"index": index, "id": event["id"], "status": "accepted"}
                for index, event in enumerate(sent if isinstance(sent, list) else [sent])
            ]
            content = json.dumps({"accepted": len(events), "rejected": 0, "events": events}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = answer  # noqa: N815  # the name that the library wants
        do_POST = answer  # noqa: N815  # as above

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIDEMARK_GATEWAY_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("TIDEMARK_API_KEY", "tm_x_y")
    yield requests
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_account_of_live_usage_is_one_parameter(gateway: list[Seen], name: str) -> None:
    """`a%2Fb` answered for another account, and `customer#billing` was 404."""
    assert run(["usage", "--account", name]).code == 0

    (seen,) = gateway
    target = urlsplit(seen.target)
    query = parse_qs(target.query, keep_blank_values=True, strict_parsing=True, max_num_fields=1)
    assert (target.path, query) == ("/v1/usage/current", {"account": [name]})


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_of_a_query_are_its_parameters(gateway: list[Seen], name: str) -> None:
    """No name adds a parameter or ends the query."""
    line = ["--meter", name, "--account", name, "--timezone", name, "--group-by", name, "--from", name, "--to", name]
    assert run(["usage", *line]).code == 0

    (seen,) = gateway
    query = parse_qs(urlsplit(seen.target).query, keep_blank_values=True, strict_parsing=True, max_num_fields=6)
    assert query == {key: [name] for key in ("meter", "account", "timezone", "group_by", "from", "to")}


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_of_an_event_are_sent_as_they_are(gateway: list[Seen], name: str) -> None:
    """By the command and by the emitter."""
    assert run(["emit", name, "--account", name, "--id", name]).code == 0
    with Emitter(os.environ["TIDEMARK_GATEWAY_URL"], "tm_x_y", source=name) as emitter:
        emitter.emit(name, name, {name: name}, id=name)

    typed, emitted = (json.loads(seen.body) for seen in gateway)
    emitted = emitted[0] if isinstance(emitted, list) else emitted
    assert (typed["type"], typed["subject"], typed["id"]) == (name, name, name)
    assert (emitted["type"], emitted["subject"], emitted["id"], emitted["source"]) == (name, name, name, name)
    assert emitted["data"] == {name: name}


@pytest.fixture
def deployment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A log, and no other store."""
    monkeypatch.chdir(tmp_path)
    for variable, value in (("LOG_URL", "embedded://log.db"), ("SECRET", "x" * 32), ("API_KEYS", "keys.json")):
        monkeypatch.setenv(f"TIDEMARK_{variable}", value)

    async def make() -> None:
        await (await open_base(load_settings())).log.close()

    asyncio.run(make())


@pytest.mark.usefixtures("deployment")
def test_names_of_keys_are_stored_as_they_are() -> None:
    """A key reaches the account that was typed, and no other."""
    for name in NAMES:
        assert run(["key", "create", "--role", "read", "--account", name]).code == 0, name

    lines = Path("keys.json").read_text().splitlines()
    assert [json.loads(line)["account"] for line in lines] == list(NAMES)


@pytest.mark.usefixtures("deployment")
def test_names_that_select_quarantined_events_select_nothing_else() -> None:
    """No name is a reason, so each is refused with the option's name."""
    for name in NAMES:
        result = run(["quarantine", "list", "--reason", name])
        assert (result.code, result.out, "--reason" in result.err) == (2, "", True), name
