"""`doctor` ends with a finding, whatever a dependency answers."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.doctor import diagnose
from pipeline.commands.operations import create_at_stripe
from pipeline.open import read_meter_set
from pipeline.settings import load_settings
from sinks.stripe.client import StripeClientMeters
from stripe_simulator import SimulatorSettings
from tests.services.stripe import TEST_KEY, serve_simulator
from tests.worlds.clock import ManualClock
from tests.worlds.hostile_answers import FOREIGN, LISTS, STATUSES, error
from tests.worlds.sender import ACCOUNT, NOW_MS


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


@pytest.mark.parametrize(("key", "status"), [(TEST_KEY, "note"), ("sk_live_tidemark", "wrong")])
async def test_meters_that_no_price_bills_are_named(
    key: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stripe takes their usage, and the reconciliation finds it equal, but nobody pays for it. Names that Stripe does
    not know are among them."""
    async with serve_simulator(ManualClock(NOW_MS), SimulatorSettings(account=ACCOUNT)) as served:
        settings = load_settings(
            log_url=f"embedded://{tmp_path}/log.db", redis_url="redis://127.0.0.1:9", secret="x" * 32,
            stripe_api_key=key, stripe_api_base=served.url, stripe_account=ACCOUNT, data_dir=str(tmp_path),
        )  # fmt: skip
        monkeypatch.setattr("pipeline.commands.doctor._clickhouse", _nothing)
        monkeypatch.setattr("pipeline.commands.doctor._redis", _nothing)
        names = [meter.stripe_event_name for meter in read_meter_set(None).meters if meter.stripe_event_name]
        lines = await create_at_stripe(settings, read_meter_set(None))
        again = await create_at_stripe(settings, read_meter_set(None))
        client = StripeClientMeters(key, served.url, nonce="test")
        product = await client._stripe.v1.products.create_async({"name": names[0]})
        meter = await client.find_meter(names[0])
        await client._stripe.v1.prices.create_async(
            {
                "product": product.id,
                "currency": "usd",
                "unit_amount": 5,
                "recurring": {"interval": "month", "usage_type": "metered", "meter": meter},
            }
        )
        await client.close()

        findings = {finding.what: finding for finding in await diagnose(settings)}

    assert lines == [f"{name}: created at Stripe" for name in names]
    assert again == [f"{name}: Stripe has the meter" for name in names]
    assert findings["prices"].status == status
    assert findings["prices"].detail.endswith(", ".join(names[1:]))


async def _nothing(_settings: object) -> list[Any]:
    return []
