"""Emitter, HTTP, gateway and the embedded log together: what was acknowledged is in the log, once per id or more."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from emitter import Emitter
from pipeline.clock import SystemClock
from pipeline.http.api_keys import KeyFile, Role, create_key
from pipeline.http.app import GatewayDependencies, create_gateway
from pipeline.http.serving import serving
from pipeline.local.processes import free_port
from pipeline.logs.control_records import ensure_deployment
from pipeline.logs.embedded import SqliteLog
from pipeline.settings import Settings
from schemas.log import EVENTS_TOPIC
from schemas.meters import MeterSet
from tests.integration.runner_world import until
from tests.traffic.generate import METER_SET

SECRET = b"a secret of thirty-two characters"
SETTINGS = Settings(partitions=3, body_bytes_max=100_000)


class LosesAnswers:
    """The app, but some answers get lost after the work is done: the connection ends instead."""

    def __init__(self, app: Callable[[Scope, Receive, Send], object], every: int) -> None:
        self._app = app
        self._every = every
        self.requests = self.lost = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Every n-th answer ends after its first byte, upon which the server cuts the connection."""
        self.requests += 1
        lose = self.requests % self._every == 0

        async def sending(message: Message) -> None:
            if lose and message["type"] == "http.response.body":
                self.lost += 1
                message = {**message, "body": b"{", "more_body": True}
            await send(message)

        await self._app(scope, receive, sending)  # type: ignore[misc]  # an ASGI app returns an awaitable


class Deployment:
    """An embedded log in a folder, an admin key, and gateways that can be started one after the other."""

    def __init__(self, folder: Path) -> None:
        self.clock = SystemClock()
        self.log = SqliteLog(folder / "log.db", self.clock)
        self.keys = folder / "keys.jsonl"
        self.key = create_key(self.keys, Role.ADMIN, self.clock)[0]

    @asynccontextmanager
    async def gateway(self, port: int = 0, lose_every: int = 0) -> AsyncIterator[tuple[str, LosesAnswers]]:
        """A gateway on a real socket; `lose_every` n loses every n-th answer."""
        genesis = await ensure_deployment(self.log, SECRET, SETTINGS.topics())

        async def meter_set() -> MeterSet | None:
            return MeterSet.model_validate(METER_SET)

        app = create_gateway(
            GatewayDependencies(self.log, genesis, SETTINGS, self.clock, KeyFile(self.keys), meter_set)
        )
        faulty = LosesAnswers(app, lose_every or 10**9)
        async with serving(faulty, "127.0.0.1", port) as bound:  # type: ignore[arg-type]  # any ASGI app will do
            yield f"http://127.0.0.1:{bound}", faulty

    async def ids(self) -> Counter[str]:
        """How often each event id stands in the log."""
        found: Counter[str] = Counter()
        for partition in range(SETTINGS.partitions):
            offset = 0
            while records := await self.log.read(EVENTS_TOPIC, partition, offset):
                for record in records:
                    if not record.headers:
                        found.update(event["id"] for event in json.loads(record.value or b""))
                offset = records[-1].next_offset
        return found


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    """A fresh one."""
    made = Deployment(tmp_path)
    await made.log.start()
    yield made
    await made.log.close()


async def test_every_acknowledged_event_is_in_the_log_although_answers_get_lost(deployment: Deployment) -> None:
    """An answer that is lost after the append makes the emitter repeat the same ids, and nothing else."""
    async with deployment.gateway(lose_every=3) as (url, faulty):
        emitter = Emitter(
            url, deployment.key, source="test", batch_events_max=20, flush_interval_s=0.01, retry_base_s=0.01
        )
        ids = [emitter.emit("api.request", f"account-{number % 50}", {"user": "u"}) for number in range(1_000)]
        assert await asyncio.to_thread(emitter.close)

    stored = await deployment.ids()

    assert faulty.lost > 0
    assert emitter.stats().accepted == 1_000
    assert set(stored) == set(ids)
    assert max(stored.values()) > 1


async def test_events_outlive_a_gateway_that_is_away_for_a_while(deployment: Deployment) -> None:
    """The emitter waits in front of a closed port and finds the gateway that comes back on it."""
    port = free_port()
    emitter = Emitter(
        f"http://127.0.0.1:{port}", deployment.key, source="test", flush_interval_s=0.01, retry_base_s=0.01,
        retry_max_s=0.05, when_full="drop",
    )  # fmt: skip
    early = emitter.emit("api.request", "acme", {"user": "u"})
    assert not await asyncio.to_thread(emitter.flush, 0.2)
    assert "refused" in emitter.stats().last_error

    async with deployment.gateway(port):
        assert await asyncio.to_thread(emitter.flush)
    late = emitter.emit("api.request", "acme", {"user": "u"})
    async with deployment.gateway(port):
        assert await asyncio.to_thread(emitter.close)

    assert set(await deployment.ids()) == {early, late}
    assert emitter.stats().accepted == 2


async def test_a_process_that_is_killed_again_and_again_loses_no_event_of_its_spool(
    deployment: Deployment, tmp_path: Path
) -> None:
    """Four processes emit with one spool and are killed at once, the last ones while the gateway answers and loses
    answers. Every event whose `emit` returned is in the log in the end."""
    port = free_port()
    script = f"""
import sys
from emitter import Emitter
emitter = Emitter("http://127.0.0.1:{port}", {deployment.key!r}, source="test", flush_interval_s=0.001,
    retry_base_s=0.01, batch_events_max=5, queue_events_max=20, spool_path={str(tmp_path / "spool")!r})
for number in range(1_000_000):
    print(emitter.emit("api.request", f"account-{{number % 7}}", {{"user": "u"}}), flush=True)
"""

    def killed(events: int) -> list[str]:
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            ids = [process.stdout.readline().strip() for _ in range(events)]
            process.kill()
            # The last line may be torn.
            return ids + process.stdout.read().split("\n")[:-1]

    emitted = [event_id for _ in range(2) for event_id in await asyncio.to_thread(killed, 50)]
    async with deployment.gateway(port, lose_every=3) as (url, faulty):
        for _ in range(2):
            emitted += await asyncio.to_thread(killed, 300)
        last = Emitter(
            url, deployment.key, source="test", flush_interval_s=0.001, retry_base_s=0.01, spool_path=tmp_path / "spool"
        )
        await until(lambda: not list((tmp_path / "spool").iterdir()), "an empty spool")
        assert await asyncio.to_thread(last.close)

    stored = await deployment.ids()
    assert faulty.lost > 0
    assert set(emitted) <= set(stored)
    assert last.stats().recovered == last.stats().accepted > 0
    # Beyond what had been emitted, an event may be there whose `emit` was about to return.
    assert len(set(stored) - set(emitted)) <= 4


async def test_batches_larger_than_the_gateway_takes_are_split_until_they_fit(deployment: Deployment) -> None:
    """The emitter's limit and the gateway's are set by different people."""
    told: list[str] = []
    async with deployment.gateway() as (url, _):
        with_limits = Emitter(
            url, deployment.key, source="test", flush_interval_s=5, on_rejected=lambda *why: told.append(why[1])
        )
        for number in range(12):
            data = {"user": "u", "note": "x" * (20_000 if number != 5 else 150_000)}
            with_limits.emit("api.request", "acme", data, id=str(number))
        assert await asyncio.to_thread(with_limits.close)

    assert told == ["body_too_large"]
    assert sorted(await deployment.ids()) == sorted(str(number) for number in range(12) if number != 5)


async def test_a_hundred_megabytes_are_refused_and_the_gateway_goes_on(deployment: Deployment) -> None:
    """With and without an announced length; the client sees the answer, not a broken connection."""

    async def stream() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 1_000_000

    headers = {"authorization": f"Bearer {deployment.key}", "content-type": "application/json"}
    async with deployment.gateway() as (url, _), httpx.AsyncClient(base_url=url, headers=headers) as client:
        announced = await client.post("/v1/events", content=b"x" * 100_000_000)
        streamed = await client.post("/v1/events", content=stream())
        after = await client.post("/v1/events", content=b"[]")

    assert (announced.status_code, streamed.status_code, after.status_code) == (413, 413, 202)
