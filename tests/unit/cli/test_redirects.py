"""The API key goes to the gateway that was named, and nowhere else."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from emitter import Emitter
from emitter.transport import exposes_key
from tests.unit.cli.command_lines import problems, run


@pytest.fixture(params=[301, 302, 303, 307, 308])
def redirecting(request: pytest.FixtureRequest) -> Iterator[tuple[str, list[str]]]:
    """A server that redirects each request to another host, and the requests that both got."""
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            requests.append(self.path)
            self.send_response(request.param)
            self.send_header("location", f"http://localhost:{server.server_port}/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        do_GET = answer  # noqa: N815  # the name that the library wants
        do_POST = answer  # noqa: N815  # as above

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()
    thread.join()
    server.server_close()


def test_commands_and_emitter_follow_no_redirect(
    redirecting: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command says where the redirect goes, so that a person can set the right address."""
    url, requests = redirecting
    monkeypatch.setenv("TIDEMARK_GATEWAY_URL", url)
    monkeypatch.setenv("TIDEMARK_API_KEY", "tm_x_y")

    for line in (["usage", "--account", "acme"], ["usage", "--meter", "calls"], ["emit", "call", "--account", "acme"]):
        result = run(line)
        assert (result.code, problems(result)) == (2, [])
        assert "redirects to http://localhost" in result.err
    emitter = Emitter(url, "tm_x_y", source="test")
    emitter.emit("call", "acme")
    emitter.close(0.2)

    assert "/elsewhere" not in requests
    assert len(requests) >= 4


@pytest.mark.parametrize(
    ("url", "exposed"),
    [
        ("https://gateway.example.com", False),
        ("http://gateway.example.com", True),
        ("http://203.0.113.7", False),
        ("http://8.8.8.8:8080", True),
        ("http://[2001:4860:4860::8888]", True),
        ("http://[::1]:8080", False),
        ("http://127.0.0.1:8080", False),
        ("http://10.1.2.3", False),
        ("http://localhost:8080", False),
        ("http://gateway:8080", False),
        ("http://gateway.prod.internal", False),
    ],
)
def test_plain_http_to_a_public_host_exposes_the_key(url: str, exposed: bool) -> None:
    """TLS often ends at a proxy, so a private host is not warned about."""
    assert exposes_key(url) is exposed


def test_exposed_key_is_warned_about(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """By the command on stderr, by the emitter in its log."""
    monkeypatch.setenv("TIDEMARK_GATEWAY_URL", "http://8.8.8.8:99999")
    monkeypatch.setenv("TIDEMARK_API_KEY", "tm_x_y")

    result = run(["usage", "--account", "acme"])
    Emitter("http://8.8.8.8", "tm_x_y", source="test").close(0)

    assert "is not encrypted" in result.err
    assert "is not encrypted" in caplog.text
