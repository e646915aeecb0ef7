"""Stripe's HTTP answers over the in-memory fake: the real client talks to it, and a test replaces single answers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from urllib.parse import parse_qs

import httpx

from schemas.reports import MeterEvent, SendStatus
from sinks.stripe.client import StripeClientMeters
from sinks.stripe.fake import FakeStripe

REPORT = "v1.billing.meter.error_report_triggered"
Hostile = Callable[[httpx.Request], "httpx.Response | None"]


class StripeOverHttp:
    """Answers requests of the client as Stripe would, from the fake. `hostile` may replace the answer to a request."""

    def __init__(self, fake: FakeStripe, event_names: list[str]) -> None:
        self.fake = fake
        self.event_names = event_names
        self.hostile: Hostile = lambda _request: None
        self._nonces = itertools.count()

    def client(self) -> StripeClientMeters:
        """The product's client on this transport, as in a new process."""
        meters = StripeClientMeters("sk_test_x", "http://127.0.0.1:9", nonce=f"test{next(self._nonces)}")
        meters._transport._client = httpx.AsyncClient(transport=httpx.MockTransport(self.answer))
        return meters

    async def answer(self, request: httpx.Request) -> httpx.Response:
        """The answer to one request."""
        replaced = self.hostile(request)
        if replaced is not None:
            return replaced
        path = request.url.path
        if path == "/v1/account":
            return _json({"object": "account", "id": self.fake.account or "acct_memory"})
        if path == "/v1/billing/meters":
            rows = [self.meter(name) for name in self.event_names]
            return _json({"object": "list", "data": rows, "has_more": False, "url": path})
        if path.endswith("/event_summaries"):
            return await self._summary(request)
        if path == "/v1/billing/meter_events":
            return await self._take(request)
        return _json({"object": "list", "data": [], "next_page_url": None, "previous_page_url": None})

    def meter(self, name: str) -> dict[str, object]:
        """A meter of the list."""
        return {
            "object": "billing.meter", "id": f"mtr_{name}", "event_name": name, "display_name": name,
            "status": "inactive" if name in self.fake.inactive else "active", "event_time_window": None,
            "default_aggregation": {"formula": "sum"},
            "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
            "value_settings": {"event_payload_key": "value"},
        }  # fmt: skip

    async def _summary(self, request: httpx.Request) -> httpx.Response:
        name = request.url.path.split("/")[4].removeprefix("mtr_")
        query = request.url.params
        self.fake.add_meter(name)
        span = int(query["start_time"]), int(query["end_time"])
        found = await self.fake.summary(name, query["customer"], *span)
        rows = [{"object": "billing.meter_event_summary", "aggregated_value": float(found.value)}] * found.rows
        return _json({"object": "list", "data": rows, "has_more": False, "url": request.url.path})

    async def _take(self, request: httpx.Request) -> httpx.Response:
        event = sent(request)
        if event.event_name not in self.fake.inactive:
            self.fake.add_meter(event.event_name)
        result = await self.fake.send(event)
        if result.status is SendStatus.ACCEPTED:
            return _json({"object": "billing.meter_event", "identifier": event.identifier})
        message = result.detail.split(" · ")[-1]
        return _json({"error": {"type": "invalid_request_error", "message": message}}, 400)


def sent(request: httpx.Request) -> MeterEvent:
    """The meter event of a request."""
    form = {name: values[0] for name, values in parse_qs(request.content.decode()).items()}
    return MeterEvent(
        form["identifier"], form["event_name"], form["payload[stripe_customer_id]"], form["payload[value]"],
        int(form["timestamp"]),
    )  # fmt: skip


def _json(body: object, status: int = 200) -> httpx.Response:
    return httpx.Response(status, content=json.dumps(body).encode())
