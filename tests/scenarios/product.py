"""Tidemark beside a customer of a scenario: a worker, a relay and a sink, whose clock is the customer's test clock."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from aggregators.partitioning import partition_of
from pipeline.billing.customers import BindingResolver
from pipeline.billing.drawing import Drawing
from pipeline.billing.policy import policy_for
from pipeline.billing.sender import StripeSender
from pipeline.logs.bindings import AccountLog
from pipeline.logs.control_records import append_everywhere
from pipeline.logs.flushes import FlushWatch, flush_account
from pipeline.rollup.relays import ReportRelay
from schemas.control import BindingRecord, Tick
from schemas.log import EVENTS_TOPIC, REPORTS_TOPIC
from schemas.periods import Billing, Binding
from schemas.reports import MeterEventsApi
from sinks.sql.fake import FakeSideTables
from sinks.sql.fake_intents import FakeIntentLedger
from sinks.stripe.client import StripeClientMeters
from tests.scenarios.vocabulary import Account, at
from tests.services.stripe import TEST_KEY
from tests.services.stripe_requests import application
from tests.traffic.generate import rfc3339
from tests.worlds.deployment import SECRET, World

ACME = "acme"
CALLS = {
    "slug": "calls", "event_type": "call", "aggregation": "sum", "value_path": "$.calls", "stripe_event_name": "calls",
}  # fmt: skip


class _Meters(StripeClientMeters):
    """The product's client. The log was made for no Stripe account."""

    async def identity(self) -> tuple[bool, str]:
        return False, ""


class Product:
    """A worker, a relay and a sink on a log. With `tables`, credits pay first."""

    def __init__(
        self,
        account: Account,
        meters: StripeClientMeters,
        meter: Mapping[str, str] = CALLS,
        tables: FakeSideTables | None = None,
    ) -> None:
        self._meter = meter
        self._account = account
        self._world = World(at("2027-12-01") * 1000, 1)
        self._log, self._clock, self._store = self._world.log, self._world.clock, self._world.store
        payers = BindingResolver(self._store.accounts, 1)
        policy = policy_for(livemode=False, rate_per_s=None, api=MeterEventsApi.V1)
        drawing = Drawing(tables.credits, tables.catalog, self._clock) if tables else None
        ledger = tables.intents if tables else FakeIntentLedger()
        self._sender = StripeSender(
            self._log, ledger, meters, payers, self._clock, random.Random(1), policy, drawing=drawing
        )  # fmt: skip
        self._read_to = 0

    async def start(self, interval_ms: int) -> None:
        """Bind the account to the customer, whose subscription and period begin now."""
        await self._world.start({"version": 1, "meters": [self._meter], "policy": {"report_interval_ms": interval_ms}})
        await append_everywhere(self._log, SECRET, Tick(log_id=self._world.log_id, partitions=1))
        binding = Binding(effective_from_ms=0, billing=Billing.MAPPED, stripe_customer=self._account.customer)
        await self._world.control(partition_of(ACME, 1), BindingRecord(account=ACME, revision=1, binding=binding))
        self._read_to = await self._sender.start_offset(0) or 0

    async def reach(self, moment: str) -> None:
        """Let time pass for all, and let everybody work."""
        if at(moment) * 1000 > self._clock.ms:
            await self._account.advance(moment)
            self._clock.ms = at(moment) * 1000
            await append_everywhere(self._log, SECRET, Tick(log_id=self._world.log_id, partitions=1))
        await self._work()

    async def use(self, calls: int, moment: str) -> None:
        """Calls that arrive when they were made."""
        await self.reach(moment)
        body: dict[str, Any] = {
            "specversion": "1.0", "id": moment, "source": "/test", "type": self._meter["event_type"], "subject": ACME,
            "time": rfc3339(at(moment) * 1_000_000), "data": {self._meter["value_path"][2:]: calls},
        }  # fmt: skip
        await self._log.append(EVENTS_TOPIC, 0, json.dumps(body).encode())

    async def flush(self, moment: str) -> None:
        """Report the account's usage up to a moment, until Stripe has it."""
        await self.reach(moment)
        flushed = await flush_account(AccountLog(self._log, 1, SECRET, self._clock), self._store, ACME)
        await self._work()
        progress = await FlushWatch(self._log, self._store, flushed, 0).look()
        assert (progress.is_published, progress.unsettled) == (True, ())

    async def _work(self) -> None:
        await self._world.fold_all()
        await ReportRelay(self._store.reports, self._store.accounts, self._log).relay(0)
        now_ms = self._clock.ms
        for _ in range(10):
            records = await self._log.read(REPORTS_TOPIC, 0, self._read_to)
            if records:
                await self._sender.step(0, records)
                self._read_to = records[-1].next_offset
            else:
                await self._sender.idle(0)
        # The rate of the sink costs milliseconds, which the test clock does not know.
        self._clock.ms = now_ms


@asynccontextmanager
async def meters_of(account: Account) -> AsyncIterator[StripeClientMeters]:
    """The product's client of the customer's simulator."""
    meters = _Meters(TEST_KEY, "http://stripe.test", nonce="test")
    transport = httpx.ASGITransport(application(account.sdk.simulator))
    meters._transport._client = httpx.AsyncClient(transport=transport)
    yield meters
    await meters.close()
