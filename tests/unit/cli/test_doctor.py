"""`doctor` ends with a finding, whatever a dependency answers."""

from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.commands.doctor import _final_action, _measuring, diagnose
from pipeline.commands.doctor_webhooks import check_webhooks
from pipeline.commands.operations import create_at_stripe
from pipeline.open import read_meter_set
from pipeline.settings import Settings, load_settings
from schemas.billing_events import MIRRORED_TYPES
from sinks.stripe.client import StripeClientMeters
from stripe_simulator import SimulatorSettings
from tests.services.stripe import TEST_KEY, ServedSimulator, serve_simulator
from tests.services.stripe_sdk import Sdk
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


GRACES = {
    "as shipped": ({}, "2 h", "wrong"),
    "long enough at Stripe": ({"stripe_invoice_grace_h": 3}, "", "ok"),
    "just as long": ({"stripe_invoice_grace_h": 2}, "2 h", "wrong"),
    "as shipped, in test mode": ({"stripe_api_key": TEST_KEY}, "2 h", "note"),
}


@pytest.mark.parametrize(("changes", "above", "status"), GRACES.values(), ids=GRACES)
async def test_usage_must_be_reported_before_stripe_finalizes_the_invoice(
    changes: dict[str, Any], above: str, status: str, tmp_path: Path
) -> None:
    """With a live key, everything that is reported later is lost: neither this invoice nor the next bills it."""
    given = {"stripe_api_key": "sk_live_x", **changes}
    settings = load_settings(
        log_url=f"embedded://{tmp_path}/log.db", redis_url="redis://127.0.0.1:9", secret="x" * 32,
        clickhouse_url="http://127.0.0.1:9", stripe_api_base="http://127.0.0.1:9", **given,
    )  # fmt: skip
    (finding,) = [finding for finding in await diagnose(settings) if finding.what == "grace"]
    assert finding.status == status
    assert "120 minutes after its end" in finding.detail
    assert (f"above {above}" in finding.remedy) == bool(above)


@pytest.mark.parametrize(
    ("action", "status", "said"),
    [("", "note", "not set"), ("cancel", "wrong", "before the customer had the last warning"),
     ("unpaid", "ok", "unpaid"), ("pause", "ok", "pause"), ("past_due", "ok", "past_due")],
)  # fmt: skip
async def test_what_stripe_does_after_the_last_retry(action: Any, status: str, said: str) -> None:
    settings = load_settings(secret="x" * 32, stripe_api_key="sk_test_x", stripe_final_action=action)
    (finding,) = await _final_action(settings)
    assert (finding.status, said in finding.detail, bool(finding.remedy)) == (status, True, status != "ok")
    assert await _final_action(load_settings(secret="x" * 32, stripe_final_action=action)) == []


async def test_without_a_key_no_grace_is_compared(tmp_path: Path) -> None:
    settings = load_settings(log_url=f"embedded://{tmp_path}/log.db", redis_url="redis://127.0.0.1:9", secret="x" * 32)
    assert [] == [finding for finding in await diagnose(settings) if finding.what == "grace"]


SECRETS = {
    "one": ("whsec_abc\n", "ok", "1 in "),
    "two and a comment": ("whsec_abc # new\n\nwhsec_old\n", "ok", "2 in "),
    "empty": ("# none\n", "wrong", "has no secret"),
    "no file": (None, "wrong", "is missing"),
    "only the beginning": ("whsec_\n", "wrong", "line 1: a signing secret begins with whsec_ and has no spaces"),
    "an API key": ("whsec_abc\nsk_live_secret\n", "wrong", "line 2: a signing secret"),
    "cut in two": ("whsec_abc def\n", "wrong", "line 1: a signing secret"),
}


@pytest.mark.parametrize(("content", "status", "detail"), SECRETS.values(), ids=SECRETS)
async def test_the_webhook_secrets_are_read_as_the_gateway_reads_them(
    content: str | None, status: str, detail: str, tmp_path: Path
) -> None:
    path = tmp_path / "secrets"
    if content is not None:
        path.write_text(content)
    (finding,) = await check_webhooks(Settings(stripe_webhook_secrets=path))
    assert (finding.what, finding.status, detail in finding.detail) == ("webhook_secrets", status, True), finding
    assert bool(finding.remedy) == (status == "wrong")
    assert "sk_live_secret" not in finding.detail


async def test_without_secrets_webhooks_are_a_note() -> None:
    (finding,) = await check_webhooks(Settings())
    assert (finding.what, finding.status) == ("webhook_secrets", "note")


HERE = "https://example.com/v1/stripe/webhook"
OTHER = "https://example.com/elsewhere"
SOME = tuple(each for each in MIRRORED_TYPES if each != "invoice.paid")
# The endpoints at Stripe: URL, types, and whether it is disabled. The setting of the address.
ENDPOINTS: dict[str, tuple[list[tuple[str, tuple[str, ...], bool]], str, str, str]] = {
    "none": ([], "", "wrong", "Stripe delivers to nobody, not to an address that ends with /v1/stripe/webhook"),
    "all types": ([(HERE, ("*",), False)], "", "ok", "gets every event"),
    "each type": ([(HERE, MIRRORED_TYPES, False)], HERE, "ok", "gets every event"),
    "a type is missing": ([(HERE, SOME, False)], "", "wrong", "does not get invoice.paid"),
    "disabled": ([(HERE, ("*",), True)], "", "wrong", "is disabled"),
    "another address": ([(OTHER, ("*",), False)], "", "wrong", f"Stripe delivers to {OTHER}, not to"),
    "not the address that is set": ([(HERE, ("*",), False)], HERE + "2", "wrong", f"not to {HERE}2"),
    "an address that is set": ([(OTHER, ("*",), False)], OTHER, "ok", "gets every event"),
    "one of two": ([(HERE, SOME, True), (HERE, ("*",), False)], "", "ok", "gets every event"),
}


@pytest.mark.parametrize(("endpoints", "url", "status", "detail"), ENDPOINTS.values(), ids=ENDPOINTS)
async def test_the_endpoint_at_stripe_is_read(
    endpoints: list[tuple[str, tuple[str, ...], bool]],
    url: str,
    status: str,
    detail: str,
    tmp_path: Path,
    served_simulator: ServedSimulator,
) -> None:
    """An endpoint that is disabled, or lacks a type, fails in silence."""
    sdk = Sdk(served_simulator.simulator, served_simulator.clock)
    for address, types, is_disabled in endpoints:
        made = await sdk("v1.webhook_endpoints.create", {"url": address, "enabled_events": list(types)})
        if is_disabled:
            await sdk("v1.webhook_endpoints.update", made["id"], {"disabled": True})
    await sdk.close()
    settings = webhook_settings(tmp_path, served_simulator.url, url)
    _, finding = await check_webhooks(settings)
    assert (finding.what, finding.status, detail in finding.detail) == ("webhook_endpoint", status, True), finding
    assert bool(finding.remedy) == (status == "wrong")


async def test_a_key_that_may_not_read_endpoints_is_a_note(tmp_path: Path, served_simulator: ServedSimulator) -> None:
    """A restricted key for usage needs no such right."""
    async with httpx.AsyncClient() as client:
        fault = {"kind": "forbidden", "method": "GET", "path": "/v1/webhook_endpoints", "count": 1}
        (await client.post(f"{served_simulator.url}/_simulator/faults", json=fault)).raise_for_status()
    _, finding = await check_webhooks(webhook_settings(tmp_path, served_simulator.url, ""))
    assert (finding.what, finding.status) == ("webhook_endpoint", "note")


def webhook_settings(folder: Path, api_base: str, url: str) -> Settings:
    """Settings with one secret."""
    path = folder / "secrets"
    path.write_text("whsec_abc\n")
    return load_settings(
        stripe_webhook_secrets=path, stripe_api_key=TEST_KEY, stripe_api_base=api_base, stripe_webhook_url=url
    )


async def _nothing(_settings: object) -> list[Any]:
    return []


MEASURED = {
    "as shipped": ({}, {}, {"measuring": "ok"}),
    "as shipped, with a key": ({"stripe_api_key": "sk_test_x"}, {}, {"measuring": "ok"}),
    "a short grace": ({}, {"grace_ms": 12 * 60_000}, {"measured grace": "note"}),
    "a grace just longer": ({}, {"grace_ms": 12 * 60_000 + 1}, {"measuring": "ok"}),
    "a long delay": ({"measure_delay_s": 600}, {"grace_ms": 20 * 60_000}, {"measured grace": "note"}),
    "a short lead": ({"stripe_api_key": "sk_test_x", "close_lead_s": 899}, {}, {"measured lead": "note"}),
    "a short lead, and no invoices": ({"close_lead_s": 899}, {}, {"measuring": "ok"}),
    "a short invoice grace": (
        {"stripe_api_key": "sk_test_x", "stripe_invoice_grace_h": 0.2}, {}, {"measured invoice": "note"},
    ),
    "no measured meter": ({"stripe_api_key": "sk_test_x", "close_lead_s": 899}, {"meters": []}, {}),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "meter_set", "expected"), MEASURED.values(), ids=MEASURED)
async def test_the_last_hours_of_measured_meters_must_be_told_in_time(
    changes: dict[str, Any], meter_set: dict[str, Any], expected: dict[str, str], tmp_path: Path
) -> None:
    gauge = {"slug": "disk", "event_type": "gauge", "aggregation": "time_weighted", "value_path": "$.gb"}
    policy = {"grace_ms": meter_set.get("grace_ms", 3_600_000)}
    content = {"version": 1, "meters": meter_set.get("meters", [gauge]), "policy": policy}
    (tmp_path / "meters.yaml").write_text(json.dumps(content))
    settings = load_settings(
        log_url=f"embedded://{tmp_path}/log.db", redis_url="redis://127.0.0.1:9", secret="x" * 32,
        meters=str(tmp_path / "meters.yaml"), **changes,
    )  # fmt: skip

    found = await _measuring(settings)

    assert {finding.what: finding.status for finding in found} == expected
    assert all(finding.remedy for finding in found if finding.status == "note")
