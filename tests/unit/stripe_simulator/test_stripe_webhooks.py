"""Webhook deliveries over HTTP: signatures, retries, faults and secrets, read with stripe-python."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
import stripe

from tests.services.stripe_sdk import Sdk

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


@dataclass
class Receiver:
    """An endpoint that keeps what it receives. `status` is its answer, 0 cuts the connection, -1 does not answer."""

    url: str = ""
    status: int = 200
    received: list[tuple[bytes, str]] = field(default_factory=list)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = dict(line.split(": ", 1) for line in head[1:] if line)
                body = await reader.readexactly(int(headers["Content-Length"]))
                if self.status > 0:
                    self.received.append((body, headers["Stripe-Signature"]))
                    writer.write(f"HTTP/1.1 {self.status} x\r\nContent-Length: 2\r\n\r\nok".encode())
                elif self.status == 0:
                    break
                else:
                    await asyncio.sleep(60)
        writer.close()

    def events(self, secret: str) -> list[Any]:
        """What was received, verified with the SDK. The simulator's clock is not the machine's, so no age is checked."""
        return [stripe.Webhook.construct_event(body, header, secret, 0) for body, header in self.received]

    def types(self) -> list[str]:
        """The types of the events in the order of their arrival."""
        return [stripe.Webhook.construct_event_without_verification(body).type for body, _ in self.received]


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver on a free port."""
    receiver = Receiver()
    server = await asyncio.start_server(receiver.handle, "127.0.0.1", 0)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?a=1"
    yield receiver
    server.close()


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
