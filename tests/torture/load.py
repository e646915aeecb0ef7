"""The traffic: batches straight into the log, single events through the inbox, requests to the gateway.

Each producer repeats what was not confirmed, as producers do, and remembers what was: none of that may be missing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final, NamedTuple

import httpx
from confluent_kafka import Producer

from pipeline.logs.open import kafka_servers
from schemas.errors import Transient
from schemas.log import INBOX_TOPIC
from tests.integration.producers import VALID, in_mode
from tests.torture.deployment import ACCOUNTS, PARTITIONS, Tortured
from tests.traffic.faults import EVENT_FAULTS
from tests.traffic.generate import SECOND_US, Rates, Sent, events, records

SPAN_S: Final = 1_500
BATCHED_PER_S: Final = 300
SINGLE_PER_S: Final = 30
POSTED_PER_S: Final = 70
BATCH_EVENTS_MAX: Final = 40
REQUEST_EVENTS_MAX: Final = 30
BACKLOG_RECORDS_MAX: Final = 600
RETRY_S: Final = 0.3
FLUSH_S: Final = 90.0
# A broken event of these kinds would break the request it stands in, or is none of the gateway's.
POSTED_FAULTS: Final = tuple(kind for kind in EVENT_FAULTS if kind not in ("wrong_partition", "not_an_event"))


class Rejected(NamedTuple):
    """What the gateway refused, and why it should have."""

    body: bytes
    reason: str


class Load:
    """Runs until `stop`; then everything that it sent is confirmed."""

    def __init__(self, deployment: Tortured, seed: int) -> None:
        self._deployment = deployment
        self._seed = seed
        self._stop = asyncio.Event()
        self._began_us = deployment.base.clock.now_ms() * 1000
        self._tasks: list[asyncio.Task[None]] = []
        self.confirmed: list[bytes] = []
        self.rejected: list[Rejected] = []
        self.sent: Counter[str] = Counter()
        self.repeated: Counter[str] = Counter()
        self.wrong: list[str] = []

    def start(self) -> None:
        """Begin."""
        self._tasks = [asyncio.create_task(run()) for run in (self._batches, self._singles, self._posts)]

    async def stop(self) -> None:
        """End, and return when all producers have their confirmations. Raises what a producer raised."""
        self._stop.set()
        await asyncio.gather(*self._tasks)

    def check(self) -> None:
        """Raise what ended a producer before its time."""
        for task in self._tasks:
            if task.done():
                task.result()

    def cancel(self) -> None:
        """End without confirmations."""
        for task in self._tasks:
            task.cancel()

    async def _due(self, sent_us: int) -> bool:
        """Return when it is time to send what is of this time; whether to go on."""
        while not self._stop.is_set():
            wait_s = sent_us / SECOND_US - self._deployment.base.clock.now_ms() / 1000
            if wait_s <= 0:
                return True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), wait_s)
        return False

    async def _room(self) -> None:
        """Wait while the fold is too far behind; an outage of Redis is none of a producer's business."""
        deployment = self._deployment
        while not self._stop.is_set():
            try:
                folded, ends = await deployment.folded_or_none(), await deployment.ends()
            except Transient:
                return
            if folded is None or all(ends[each] - folded[each] < BACKLOG_RECORDS_MAX for each in ends):
                return
            await asyncio.sleep(RETRY_S)

    async def _batches(self) -> None:
        rates = Rates(duplicate=0.05, retry=0.04, conflict=0.02, malformed=0.02, late=0.05, far_late=0.01)
        made = records(
            self._seed, ACCOUNTS, BATCHED_PER_S * SPAN_S, self._began_us, partitions=PARTITIONS,
            batch_events_max=BATCH_EVENTS_MAX, span_us=SPAN_S * SECOND_US, rates=rates,
        )  # fmt: skip
        for number, record in enumerate(made):
            if not await self._due(record.sent_ms * 1000):
                return
            if number % 50 == 0:
                await self._room()
            while True:
                try:
                    await self._deployment.append(record)
                    break
                except Transient:
                    # It may be in the log all the same, and then it is there twice.
                    self.repeated["in batches"] += 1
                    await asyncio.sleep(RETRY_S)
            self.sent["in batches"] += len(record.kinds)
            self.confirmed.append(record.value)

    def _events(self, seed: int, per_s: int, faults: tuple[str, ...]) -> Iterator[Sent]:
        rates = Rates(duplicate=0.05, far_late=0.01, faults=faults)
        return events(
            seed, ACCOUNTS, per_s * SPAN_S, self._began_us, span_us=SPAN_S * SECOND_US, rates=rates
        )  # fmt: skip

    async def _singles(self) -> None:
        """As librdkafka's clients send, CRC32 partitioner and all."""
        servers = ",".join(kafka_servers(self._deployment.settings.log_url))
        producer: Any = Producer(
            {"bootstrap.servers": servers, "linger.ms": 20, "message.timeout.ms": 60_000, "log_level": 0}
        )
        for number, sent in enumerate(self._events(self._seed + 1, SINGLE_PER_S, EVENT_FAULTS)):
            if not await self._due(sent.sent_us):
                break
            self._produce(producer, number, sent)
            producer.poll(0)
        left = await asyncio.to_thread(producer.flush, FLUSH_S)
        if left:
            self.wrong.append(f"{left} single events were not confirmed in {FLUSH_S:.0f} s")

    def _produce(self, producer: Any, number: int, sent: Sent) -> None:
        value, headers = in_mode(number % 4 if sent.kind in VALID else 0, sent.body)

        def told(error: Any, _message: Any) -> None:
            if error is None:
                self.sent["through the inbox"] += 1
                self.confirmed.append(sent.body)
            else:
                self.repeated["through the inbox"] += 1
                self._produce(producer, number, sent)

        producer.produce(INBOX_TOPIC, value, key=sent.account.encode(), headers=headers, on_delivery=told)

    async def _posts(self) -> None:
        made = self._events(self._seed + 2, POSTED_PER_S, POSTED_FAULTS)
        headers = {
            "authorization": f"Bearer {self._deployment.api_key}",
            "content-type": "application/cloudevents-batch+json",
        }
        async with httpx.AsyncClient(
            base_url=self._deployment.gateway_url, headers=headers, timeout=40, trust_env=False
        ) as client:
            while batch := list(islice(made, REQUEST_EVENTS_MAX)):
                if not await self._due(batch[-1].sent_us):
                    return
                await self._post(client, batch)

    async def _post(self, client: httpx.AsyncClient, batch: list[Sent]) -> None:
        """Send until every event has its verdict."""
        while batch:
            body = b"[" + b",".join(sent.body for sent in batch) + b"]"
            try:
                answer = await client.post("/v1/events", content=body)
            except httpx.TransportError:
                answer = None
            if answer is None or answer.status_code not in (202, 207, 400, 503):
                told = []
            else:
                told = answer.json().get("events", [])
            if len(told) != len(batch):
                if answer is not None and answer.status_code < 500:
                    self.wrong.append(f"the gateway answered {answer.status_code}: {answer.text[:300]}")
                    return
                self.repeated["over HTTP"] += len(batch)
                await asyncio.sleep(RETRY_S)
                continue
            batch = self._judged(batch, told)

    def _judged(self, batch: list[Sent], told: list[dict[str, Any]]) -> list[Sent]:
        """Take the verdicts; what has none yet."""
        left = []
        for sent, each in zip(batch, told, strict=True):
            match each["status"]:
                case "accepted":
                    self.sent["over HTTP"] += 1
                    self.confirmed.append(sent.body)
                case "rejected":
                    self.sent["over HTTP, refused"] += 1
                    self.rejected.append(Rejected(sent.body, each["reason"]))
                    if each["reason"] != sent.kind:
                        self.wrong.append(f"the gateway refused {sent.kind} as {each['reason']}")
                case _:
                    self.repeated["over HTTP"] += 1
                    left.append(sent)
        return left
