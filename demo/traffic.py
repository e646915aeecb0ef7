"""Makes the demo's traffic: customers of the application, and an old producer that writes to the inbox.

The demo runs `python -m demo.traffic FOLDER EVENTS`, which prints progress and the result as lines of JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx

from aggregators.instants import format_instant_ms
from demo.app import create_app
from demo.plan import ACCOUNTS, END_MS, FEATURES, LATE_FROM_MS, MONTH_END_MS, START_MS
from demo.truth import TruthFile, WitnessedTransport
from emitter import Emitter
from emitter.transport import HttpTransport
from pipeline.clock import AnyClock, clock_from_text
from pipeline.logs.open import open_log
from schemas.clock import HOUR_MS, MINUTE_MS
from schemas.log import INBOX_TOPIC, Log

SEED: Final = 20261031
REQUESTS: Final = {"api": 40, "completions": 35, "login": 10, "storage": 8, "seats": 4, "page": 3}
REMEMBERED_MAX: Final = 5_000
BROKEN_BYTES: Final = (b"{not json", b'{"id": NaN}', b"\xff\xfe", b"[[[")


class Application:
    """The instrumented application and its customers."""

    def __init__(self, folder: Path, gateway_url: str, api_key: str, clock: AnyClock) -> None:
        self.clock = clock
        self.chance = random.Random(SEED)
        self.truth = TruthFile(folder / "application.jsonl", clock)
        self.transport = WitnessedTransport(HttpTransport(gateway_url), self.truth)
        self.emitter = Emitter(
            gateway_url,
            api_key,
            source="demo-application",
            queue_events_max=50_000,
            block_timeout_s=60.0,
            transport=self.transport,
            now_ns=lambda: clock.now_ms() * 1_000_000,
        )
        self.app = create_app(self.emitter, self.chance)
        self.recent: deque[tuple[float, dict[str, Any]]] = deque(maxlen=REMEMBERED_MAX)

    async def serve(self, client: httpx.AsyncClient) -> None:
        """Make one request of a random customer."""
        number = self.chance.randrange(len(ACCOUNTS))
        account, used = ACCOUNTS[number], FEATURES[number % len(FEATURES)]
        kind = self.chance.choices(used, [REQUESTS[name] for name in used])[0]
        body: dict[str, Any] = {"account": account}
        if kind == "api":
            body["calls"] = self.chance.randrange(40, 160)
        elif kind == "completions":
            body["prompts"] = self.chance.randrange(40, 120)
        elif kind == "login":
            body["users"] = [f"user-{self.chance.randrange(60)}" for _ in range(self.chance.randrange(5, 30))]
        elif kind == "seats":
            body["seats"] = self.chance.randrange(1, 500)
        await client.post(f"/{kind}", json=body)

    def misbehave(self) -> None:
        """Emit duplicates, retries two seconds later, and late usage."""
        now_s = asyncio.get_running_loop().time()
        event = {"account": self.chance.choice(ACCOUNTS), "id": f"job-{self.chance.getrandbits(64):016x}"}
        data = {"method": "POST", "region": "eu-west-1"}
        self.emitter.emit("api.request", event["account"], data, id=event["id"])
        self.emitter.emit("api.request", event["account"], data, id=event["id"])
        self.recent.append((now_s, event))
        while self.recent and self.recent[0][0] < now_s - 2.0:
            _, old = self.recent.popleft()
            self.emitter.emit("api.request", old["account"], data, id=old["id"])
        now_ms = self.clock.now_ms()
        if now_ms >= LATE_FROM_MS:
            account = self.chance.choice(ACCOUNTS[::3])
            time = format_instant_ms(MONTH_END_MS - self.chance.randrange(5 * MINUTE_MS, HOUR_MS))
            identifier = f"late-{self.chance.getrandbits(64):016x}"
            if self.chance.random() < 0.3:
                account = self.chance.choice(ACCOUNTS[2::3])
                self.emitter.emit("seats.changed", account, {"seats": 1}, id=identifier, time=time)
            else:
                tokens = {"tokens": self.chance.randrange(1, 100), "model": "small"}
                self.emitter.emit("llm.completion", account, tokens, id=identifier, time=time)


class OldProducer:
    """Writes single events, some of them bad, to `usage.inbox`, like a producer in another language."""

    def __init__(self, folder: Path, log: Log, clock: AnyClock) -> None:
        self.log = log
        self.clock = clock
        self.chance = random.Random(SEED + 1)
        self.truth = TruthFile(folder / "inbox.jsonl", clock)
        self.sent = self.broken = 0

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield a good event and sometimes a bad event."""
        now_ms = self.clock.now_ms()

        def event(**changes: Any) -> dict[str, Any]:
            fields = {
                "specversion": "1.0",
                "id": f"old-{self.chance.getrandbits(64):016x}",
                "source": "old-producer",
                "type": "llm.completion",
                "subject": self.chance.choice(ACCOUNTS[::3]),
                "time": format_instant_ms(now_ms),
                "data": {"tokens": self.chance.randrange(1, 50), "model": "large"},
            }
            return {name: value for name, value in {**fields, **changes}.items() if value is not None}

        yield event()
        if self.chance.random() < 0.3:
            yield self.chance.choice(
                [
                    event(subject=None),
                    event(id=""),
                    event(time="yesterday"),
                    event(time=format_instant_ms(now_ms + 6 * HOUR_MS)),
                    self._far_late(event, now_ms),
                    event(data={"tokens": "12.5", "model": "large"}),
                    event(data={"tokens": -5, "model": "large"}),
                    event(data={"model": "large"}),
                    event(data={"tokens": "many", "model": "large"}),
                    event(id="x" * 200),
                ]
            )

    def _far_late(self, event: Callable[..., dict[str, Any]], now_ms: int) -> dict[str, Any]:
        """An event older than the dedup window, which is deferred. Its meter quarantines late usage.

        With carry_forward, the period of the event would depend on the time of the dedup decision.
        """
        time = format_instant_ms(now_ms - 100 * 24 * HOUR_MS)
        return event(type="seats.changed", subject=self.chance.choice(ACCOUNTS[2::3]), data={"seats": 1}, time=time)

    async def send(self) -> None:
        """Send the events of `events`, and sometimes broken bytes."""
        partition = self.chance.randrange(await self.log.partition_count(INBOX_TOPIC))
        for event in self.events():
            self.truth.write_events([event])
            self.sent += 1
            await self.log.append(INBOX_TOPIC, partition, json.dumps(event).encode())
        if self.chance.random() < 0.05:
            self.sent += 1
            self.broken += 1
            await self.log.append(INBOX_TOPIC, partition, self.chance.choice(BROKEN_BYTES))


def _tell(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


async def _run(folder: Path, events: int) -> None:
    plan = json.loads((folder / "traffic.json").read_text())
    clock = clock_from_text(plan["clock"])
    log = open_log(plan["log_url"], clock)
    await log.start()
    application = Application(folder, plan["gateway_url"], plan["api_key"], clock)
    old = OldProducer(folder, log, clock)
    transport = httpx.ASGITransport(application.app)
    told_s = 0.0
    async with httpx.AsyncClient(transport=transport, base_url="http://application") as client:
        _tell(started=True)
        while True:
            share = min(1.0, (clock.now_ms() - START_MS) / (END_MS - START_MS))
            emitted = application.emitter.stats().emitted
            if share >= 1.0 and emitted >= events:
                break
            if emitted < events * share or share >= 1.0:
                await application.serve(client)
                application.misbehave()
                if application.chance.random() < 0.5:
                    await old.send()
            else:
                await asyncio.sleep(0.005)
            now_s = asyncio.get_running_loop().time()
            if now_s - told_s > 0.5:
                told_s = now_s
                _tell(emitted=emitted, accepted=application.emitter.stats().accepted, inbox=old.sent)
    await asyncio.to_thread(application.emitter.close, 60.0)
    application.truth.close()
    old.truth.close()
    await log.close()
    stats = application.emitter.stats()
    _tell(
        done=True,
        sent=application.transport.sent_events + old.sent,
        acknowledged=stats.accepted + old.sent,
        broken=old.broken,
        gateway_rejected=stats.rejected,
    )


def main() -> None:
    """The entry point of the traffic process."""
    asyncio.run(_run(Path(sys.argv[1]), int(sys.argv[2])))


if __name__ == "__main__":
    main()
