"""`doctor` ends with a finding, whatever a dependency answers."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.doctor import diagnose
from pipeline.settings import load_settings
from tests.worlds.hostile_answers import FOREIGN, LISTS, STATUSES, error


async def test_hostile_answers_of_stripe_are_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the other checks are made."""
    # Each check costs a new client; the tests of the sink try all answers.
    answers = [*STATUSES[::5], *FOREIGN[::3], FOREIGN[-2], *LISTS[::5], error(401), error(403)]
    current = {"answer": answers[0]}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = current["answer"]
            self.send_response_only(answer.status)
            for name, value in answer.headers:
                self.send_header(name, value)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.chdir(tmp_path)
    settings = load_settings(
        log_url="embedded://nothing/log.db", redis_url="redis://127.0.0.1:9", clickhouse_url="http://127.0.0.1:9",
        secret="x" * 32, stripe_api_key="sk_test_x", stripe_api_base=f"http://127.0.0.1:{server.server_port}",
    )  # fmt: skip
    monkeypatch.setattr("pipeline.commands.doctor._clickhouse", _nothing)
    monkeypatch.setattr("pipeline.commands.doctor._redis", _nothing)
    try:
        for answer in answers:
            current["answer"] = answer
            findings = await diagnose(settings)
            by_name = {finding.what: finding for finding in findings}
            assert by_name["stripe"].status == "wrong", answer.name
            assert by_name["meter_set"].status == "ok"
            assert len(by_name["stripe"].detail) < 1_500
            assert by_name["stripe"].detail.isprintable(), answer.name
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def _nothing(_settings: object) -> list[Any]:
    return []
