"""Webhook deliveries over HTTP: signatures, retries, faults and secrets, read with stripe-python."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import stripe

from stripe_simulator import Simulator, SimulatorSettings, create_app
from stripe_simulator.deliveries import new_secret
from stripe_simulator.faults import Fault, FaultKind
from tests.services.stripe import TEST_KEY, running, serve_simulator, simulator_process
from tests.services.stripe_sdk import Sdk
from tests.services.stripe_wire import NOW_MS
from tests.worlds.clock import ManualClock

HOUR_MS = 3_600_000
METER = {"display_name": "Tokens", "event_name": "tokens", "default_aggregation": {"formula": "sum"}}


@dataclass
class Receiver:
    """An endpoint that keeps what it receives. `status` is its answer, 0 cuts the connection, -1 does not answer."""

    url: str = ""
    status: int = 200
    received: list[tuple[bytes, str]] = field(default_factory=list)
    first: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = dict(line.split(": ", 1) for line in head[1:] if line)
                body = await reader.readexactly(int(headers["Content-Length"]))
                if self.status > 0:
                    self.received.append((body, headers["Stripe-Signature"]))
                    self.first.set()
                    writer.write(f"HTTP/1.1 {self.status} x\r\nContent-Length: 2\r\n\r\nok".encode())
                elif self.status == 0:
                    break
                else:
                    await asyncio.sleep(60)
        writer.close()

    def events(self, secret: str) -> list[Any]:
        """What was received, verified with the SDK. The simulator has a clock of its own, so the age is not checked."""
        return [stripe.Webhook.construct_event(body, header, secret, 0) for body, header in self.received]

    def ids(self) -> list[str]:
        """The ids of the events in the order of their arrival."""
        return [json.loads(body)["id"] for body, _ in self.received]


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver on a free port."""
    receiver = Receiver()
    server = await asyncio.start_server(receiver.handle, "127.0.0.1", 0)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?a=1"
    yield receiver
    server.close()


async def _later(sdk: Sdk, hours: float) -> None:
    """Deliver what is due, move the clock, deliver again."""
    await sdk.simulator.delivered()
    sdk.clock.advance(round(hours * HOUR_MS))
    await sdk.simulator.delivered()


async def _endpoint(sdk: Sdk, receiver: Receiver, *types: str) -> Any:
    return await sdk("v1.webhook_endpoints.create", {"url": receiver.url, "enabled_events": list(types) or ["*"]})


async def test_events_arrive_signed_and_in_order(sdk: Sdk, receiver: Receiver) -> None:
    """The payload of the events list, under the endpoint's secret alone."""
    endpoint = await _endpoint(sdk, receiver)
    customer = await sdk("v1.customers.create", {"name": "Ada"})
    await sdk("v1.customers.update", customer["id"], {"name": "Eve"})
    await sdk.simulator.delivered()

    created, updated = receiver.events(endpoint["secret"])
    assert [created.type, updated.type] == ["customer.created", "customer.updated"]
    assert updated.data.previous_attributes.to_dict() == {"name": "Ada"}
    assert (updated.pending_webhooks, created.data.object.id) == (1, customer["id"])
    with pytest.raises(stripe.SignatureVerificationError):
        receiver.events("whsec_other")
    stored = await sdk("v1.events.retrieve", updated.id)
    assert stored == {**updated.to_dict(), "pending_webhooks": 0}


SANDBOX_H = [0.0, 0.5, 1.5, 3.5]
LIVE_H = [0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 63.5]


@pytest.mark.parametrize(
    ("key", "status", "expected_h"),
    [
        (TEST_KEY, 500, SANDBOX_H),
        (TEST_KEY, 302, SANDBOX_H),
        (TEST_KEY, 0, SANDBOX_H),
        (TEST_KEY, -1, SANDBOX_H),
        ("sk_live_one", 400, LIVE_H),
    ],
    ids=["server error", "redirection", "cut connection", "no answer", "live mode"],
)
async def test_failed_delivery_is_retried_until_given_up(
    receiver: Receiver, key: str, status: int, expected_h: list[float]
) -> None:
    """Three retries over some hours in a sandbox, backoff below three days in live mode; the event stays listed."""
    async with serve_simulator(ManualClock(NOW_MS), SimulatorSettings(delivery_timeout_s=0.1)) as served:
        sdk = Sdk(served.simulator, served.clock, served.url, key=key)
        await _endpoint(sdk, receiver, "customer.created")
        receiver.status = status
        await sdk("v1.customers.create")
        for _ in range(160):
            await _later(sdk, 0.5)
        mode = served.simulator.mode(key != TEST_KEY)
        (delivery,) = mode.store.newest("simulator.delivery")
        assert [(attempt["at_ms"] - NOW_MS) / HOUR_MS for attempt in delivery["attempts"]] == expected_h
        assert {attempt["status"] for attempt in delivery["attempts"]} == {max(status, 0)}
        assert delivery["status"] == "failed"
        failed = await sdk("v1.events.list", {"delivery_success": False})
        assert [event["pending_webhooks"] for event in failed["data"]] == [1]
        assert (await sdk("v1.events.list", {"delivery_success": True}))["data"] == []
        await sdk.close()


async def test_delivery_succeeds_on_a_retry(sdk: Sdk, receiver: Receiver) -> None:
    """And is listed as a success only then. A receiver sees one signature time for each attempt."""
    endpoint = await _endpoint(sdk, receiver)
    receiver.status = 503
    await sdk("v1.customers.create")
    await sdk.simulator.delivered()
    receiver.status = 204
    assert len((await sdk("v1.events.list", {"delivery_success": False}))["data"]) == 1
    await _later(sdk, 0.5)

    assert [event.type for event in receiver.events(endpoint["secret"])] == ["customer.created"] * 2
    assert (await sdk("v1.events.list", {"delivery_success": False}))["data"] == []
    times = [int(header.partition(",")[0].removeprefix("t=")) for _, header in receiver.received]
    assert times[1] - times[0] == 1_800


@pytest.mark.parametrize(
    ("fault", "counts"),
    [
        (Fault(FaultKind.DELIVERY_DROPPED), [2, 3, 3]),
        (Fault(FaultKind.DELIVERY_DROPPED, -1, until_ms=NOW_MS + HOUR_MS), [0, 0, 3]),
        (Fault(FaultKind.DELIVERY_DROPPED, -1, contains="customer.updated"), [1, 1, 1]),
        (Fault(FaultKind.DELIVERY_DUPLICATED, -1, reason="3"), [9, 9, 9]),
        (Fault(FaultKind.DELIVERY_DELAYED, reason="1800"), [2, 3, 3]),
        (Fault(FaultKind.DELIVERY_DELAYED, -1, reason="3600"), [0, 0, 3]),
    ],
    ids=["dropped until retried", "outage window", "dropped by type", "duplicated", "one delayed", "all delayed"],
)
async def test_delivery_faults(sdk: Sdk, receiver: Receiver, fault: Fault, counts: list[int]) -> None:
    """How many of three events arrived at once, half an hour later and an hour after that."""
    await _endpoint(sdk, receiver)
    sdk.simulator.faults.add(fault)
    customer = await sdk("v1.customers.create", {"name": "a"})
    for name in "bc":
        await sdk("v1.customers.update", customer["id"], {"name": name})
    seen = []
    for hours in (0, 0.5, 1):
        await _later(sdk, hours)
        seen.append(len(receiver.received))

    assert seen == counts


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"kind": "delivery_dropped", "count": -1, "until_ms": NOW_MS + 1, "contains": "invoice."}, 200),
        ({"kind": "delivery_duplicated", "reason": "3"}, 200),
        ({"kind": "delivery_delayed", "reason": "5-600", "probability": 0.5}, 200),
        ({"kind": "delivery_delayed", "reason": "soon"}, 400),
        ({"kind": "delivery_delayed", "reason": "9-5"}, 400),
        ({"kind": "delivery_duplicated", "reason": "x"}, 400),
        ({"kind": "delivery_lost"}, 400),
    ],
)
async def test_delivery_faults_by_the_admin_route(body: dict[str, Any], status: int) -> None:
    """A fault that could not be applied is refused at once."""
    simulator = Simulator(ManualClock(NOW_MS))
    transport = httpx.ASGITransport(create_app(simulator))
    async with httpx.AsyncClient(transport=transport, base_url="http://stripe.test") as http:
        assert (await http.post("/_simulator/faults", json=body)).status_code == status
    assert len(simulator.faults.waiting) == (status == 200)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("key", [TEST_KEY, "sk_live_one"], ids=["test", "live"])
async def test_everything_at_once(receiver: Receiver, key: str, seed: int) -> None:
    """Each delivery three times, shuffled, an outage of six hours, and a secret rolled in its middle.

    In live mode every event arrives. A sandbox gives up before the outage ends; the events list has what is missing.
    """
    clock, is_live = ManualClock(NOW_MS), key != TEST_KEY
    async with serve_simulator(clock, SimulatorSettings(seed=seed)) as served:
        simulator, sdk = served.simulator, Sdk(served.simulator, clock, served.url, key=key)
        endpoint = await _endpoint(sdk, receiver)
        outage = Fault(FaultKind.DELIVERY_DROPPED, -1, until_ms=NOW_MS + 9 * HOUR_MS)
        simulator.faults.add(Fault(FaultKind.DELIVERY_DUPLICATED, -1, reason="3"))
        simulator.faults.add(Fault(FaultKind.DELIVERY_DELAYED, -1, reason="0-1800"))
        new = ""
        for hour in range(12):
            if hour == 3:
                simulator.faults.add(outage)
            if hour == 6:
                new = new_secret(simulator.mode(is_live), endpoint["id"], 86_400)
            await sdk("v1.customers.create")
            for _ in range(4):
                await _later(sdk, 0.25)
        for _ in range(160):
            await _later(sdk, 0.5)

        listed = {event["id"] for event in (await sdk("v1.events.list", {"limit": 100}))["data"]}
        missing = {event["id"] for event in (await sdk("v1.events.list", {"delivery_success": False}))["data"]}
        assert len(listed) == 12
        assert set(receiver.ids()) | missing == listed
        assert bool(missing) != is_live
        assert max(receiver.ids().count(identifier) for identifier in listed) == 3
        for body, header in receiver.received:
            at_ms = int(header.partition(",")[0].removeprefix("t=")) * 1_000
            rolled_ms = NOW_MS + 6 * HOUR_MS
            secrets = [endpoint["secret"]] * (at_ms < rolled_ms + 24 * HOUR_MS) + [new] * (at_ms >= rolled_ms)
            assert header.count("v1=") == len(secrets)
            for secret in secrets:
                stripe.Webhook.construct_event(body, header, secret, 0)
        await sdk.close()


async def test_reordered_deliveries_all_arrive(sdk: Sdk, receiver: Receiver) -> None:
    """Every event once, in another order."""
    await _endpoint(sdk, receiver)
    sdk.simulator.faults.add(Fault(FaultKind.DELIVERY_DELAYED, -1, reason="0-600"))
    for _ in range(12):
        await sdk("v1.customers.create")
    for _ in range(20):
        await _later(sdk, 1 / 60)

    listed = [event["id"] for event in (await sdk("v1.events.list", {"limit": 20}))["data"]][::-1]
    assert sorted(receiver.ids()) == sorted(listed)
    assert receiver.ids() != listed


async def test_rolled_secret_signs_for_its_time(sdk: Sdk, receiver: Receiver) -> None:
    """Both secrets for 24 hours, then the new one alone."""
    endpoint = await _endpoint(sdk, receiver)
    simulator = sdk.simulator
    transport = httpx.ASGITransport(create_app(simulator))
    async with httpx.AsyncClient(transport=transport, base_url="http://stripe.test") as http:
        body = {"target": endpoint["id"], "keep_s": 86_400}
        new = (await http.post("/_simulator/secrets", json=body)).json()["secret"]
        assert (await http.post("/_simulator/secrets", json={**body, "keep_s": 86_401})).status_code == 400
        assert (await http.post("/_simulator/secrets", json={"target": "we_none"})).status_code == 400
    await sdk("v1.customers.create")
    await _later(sdk, 23.9)
    await sdk("v1.customers.create")
    await _later(sdk, 0.1)
    assert receiver.events(new) == receiver.events(endpoint["secret"])
    receiver.received.clear()
    await sdk("v1.customers.create")
    await sdk.simulator.delivered()

    assert len(receiver.events(new)) == 1
    with pytest.raises(stripe.SignatureVerificationError):
        receiver.events(endpoint["secret"])


@pytest.mark.parametrize("way", ["disabled", "deleted"])
async def test_no_retry_to_an_endpoint_that_is_gone(sdk: Sdk, receiver: Receiver, way: str) -> None:
    """At the time of the retry; new events are not delivered either."""
    endpoint = await _endpoint(sdk, receiver)
    receiver.status = 500
    await sdk("v1.customers.create")
    await sdk.simulator.delivered()
    if way == "deleted":
        deleted = await sdk("v1.webhook_endpoints.delete", endpoint["id"])
        assert deleted == {"id": endpoint["id"], "object": "webhook_endpoint", "deleted": True}
    else:
        updated = await sdk("v1.webhook_endpoints.update", endpoint["id"], {"disabled": True})
        assert updated["status"] == "disabled"
    await sdk("v1.customers.create")
    await _later(sdk, 5)

    assert len(receiver.received) == 1
    (delivery,) = sdk.simulator.test.store.newest("simulator.delivery")
    assert delivery["status"] == "failed"


async def test_thin_events_arrive_at_event_destinations(sdk: Sdk, receiver: Receiver) -> None:
    """The report of a rejected meter event, as a notification from which the SDK fetches the event."""
    meter = await sdk("v1.billing.meters.create", METER)
    destination = await sdk(
        "v2.core.event_destinations.create",
        {
            "name": "reports",
            "type": "webhook_endpoint",
            "event_payload": "thin",
            "enabled_events": ["v1.billing.meter.error_report_triggered"],
            "webhook_endpoint": {"url": receiver.url},
            "include": ["webhook_endpoint.signing_secret"],
        },
    )
    secret = destination["webhook_endpoint"]["signing_secret"]
    assert destination["webhook_endpoint"]["url"] is None
    await sdk("v1.billing.meter_events.create", {"event_name": "tokens", "payload": {"value": "1"}})
    sdk.clock.advance(10_000)
    await sdk.simulator.delivered()

    ((body, header),) = receiver.received
    client = stripe.StripeClient(TEST_KEY)
    notification: Any = client.parse_event_notification(body, header, secret, 0)
    assert notification.type == "v1.billing.meter.error_report_triggered"
    assert (notification.related_object.id, "data" in json.loads(body)) == (meter["id"], False)
    event = await sdk("v2.core.events.retrieve", notification.id)
    assert event["data"]["reason"]["error_types"][0]["code"] == "meter_event_no_customer_defined"
    with pytest.raises(ValueError, match="thin event notification"):
        stripe.Webhook.construct_event(body, header, secret, 0)


async def test_destination_takes_snapshot_events_too(sdk: Sdk, receiver: Receiver) -> None:
    """Beside an endpoint that does not want the type."""
    await _endpoint(sdk, receiver, "invoice.paid")
    fields = {"name": "all", "type": "webhook_endpoint", "event_payload": "snapshot", "enabled_events": ["*"]}
    included = {"webhook_endpoint": {"url": receiver.url}, "include": ["webhook_endpoint.signing_secret"]}
    destination = await sdk("v2.core.event_destinations.create", {**fields, **included})
    await sdk("v1.customers.create")
    await sdk.simulator.delivered()

    (event,) = receiver.events(destination["webhook_endpoint"]["signing_secret"])
    assert event.type == "customer.created"


async def test_endpoints_are_kept(sdk: Sdk, receiver: Receiver) -> None:
    """Without the secret, which only the creation shows."""
    created = await sdk(
        "v1.webhook_endpoints.create",
        {"url": receiver.url, "enabled_events": ["invoice.paid"], "metadata": {"a": "b"}, "description": "x"},
    )
    secret = created.pop("secret")
    assert secret.startswith("whsec_")
    assert await sdk("v1.webhook_endpoints.retrieve", created["id"]) == created
    assert (await sdk("v1.webhook_endpoints.list"))["data"] == [created]
    changes = {"enabled_events": ["*"], "url": "https://a.b/c", "metadata": "", "description": ""}
    updated = await sdk("v1.webhook_endpoints.update", created["id"], changes)
    assert updated == {**created, **changes, "metadata": {}, "description": None}


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("create", ({"url": "a.b", "enabled_events": ["*"]},), (400, "url_invalid", "url")),
        ("create", ({"url": "ftp://a.b", "enabled_events": ["*"]},), (400, "url_invalid", "url")),
        ("create", ({"url": "http://[", "enabled_events": ["*"]},), (400, "url_invalid", "url")),
        ("create", ({"url": "http://a.b:99999", "enabled_events": ["*"]},), (400, "url_invalid", "url")),
        ("create", ({"url": "http://a.b"},), (400, "parameter_missing", "enabled_events")),
        ("create", ({"url": "http://a.b", "enabled_events": ["cat"]},), (400, None, "enabled_events[0]")),
        (
            "create",
            ({"url": "http://a.b", "enabled_events": ["*"], "api_version": "2025-03-31.basil"},),
            (501, None, None),
        ),
        ("update", ("we_none", {"url": "http://a.b"}), (404, "resource_missing", "id")),
        ("delete", ("we_none",), (404, "resource_missing", "id")),
    ],
    ids=[
        "no scheme",
        "other scheme",
        "no host",
        "no port",
        "no types",
        "unknown type",
        "other version",
        "update of none",
        "delete of none",
    ],
)
async def test_bad_endpoints(sdk: Sdk, name: str, arguments: tuple[Any, ...], error: tuple[Any, ...]) -> None:
    """Stripe's status, code and parameter; 501 for another API version."""
    body = await sdk.error(f"v1.webhook_endpoints.{name}", *arguments)

    assert (body["status"], body.get("code"), body.get("param")) == error


async def test_restart_loses_no_delivery(tmp_path: Path, receiver: Receiver) -> None:
    """One event was never attempted, one waits for a retry, and one has succeeded."""
    clock, state = ManualClock(NOW_MS), tmp_path / "journal"
    async with serve_simulator(clock, SimulatorSettings(), state) as served:
        sdk = Sdk(served.simulator, clock, served.url)
        await _endpoint(sdk, receiver)
        await sdk("v1.customers.create")
        await served.simulator.delivered()
        receiver.status = 500
        await sdk("v1.customers.create")
        await served.simulator.delivered()
        await sdk.close()
    receiver.status = 200
    unserved = Simulator(clock, SimulatorSettings(), state)
    unserved.create_customer(False, {})
    unserved.close()

    restored = Simulator(clock, SimulatorSettings(), state)
    async with running(restored):
        await restored.delivered()
        clock.advance(HOUR_MS)
        await restored.delivered()
    restored.close()
    first, second, *others = receiver.ids()
    assert (others[1:], len({first, second, others[0]})) == ([second], 3)


async def test_simulator_process_delivers(tmp_path: Path, receiver: Receiver) -> None:
    """`python -m stripe_simulator` on the machine's clock: the SDK accepts the age of the signature."""
    with simulator_process(tmp_path) as url:
        async with httpx.AsyncClient(base_url=url, auth=(TEST_KEY, ""), trust_env=False) as http:
            form = {"url": receiver.url, "enabled_events[]": "*"}
            secret = (await http.post("/v1/webhook_endpoints", data=form)).json()["secret"]
            await http.post("/v1/customers")
            async with asyncio.timeout(60):
                await receiver.first.wait()

    ((body, header),) = receiver.received
    assert stripe.Webhook.construct_event(body, header, secret).type == "customer.created"
