"""Keys that expire, and keys that may send so many events a second."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.http.api_keys import ApiKey, KeyFile, Role, create_key
from pipeline.http.errors import ApiError
from pipeline.http.rate_limit import BURST_MS, RateLimit
from schemas.clock import DAY_MS
from tests.worlds.clock import ManualClock
from tests.worlds.gateway import event, running

NOW_MS = 1_795_257_000_000


def key(events_per_s: int | None) -> ApiKey:
    """A key with a limit."""
    return ApiKey(id="0" * 12, role=Role.INGEST, hash="0" * 64, created="", events_per_s=events_per_s)


def refused_s(limit: RateLimit, asked: ApiKey) -> int:
    """The seconds that the client is told to wait; 0 if it may send."""
    try:
        limit.check(asked)
    except ApiError as error:
        refusal = error
    else:
        return 0
    assert (refusal.status, refusal.code) == (429, "too_fast")
    assert refusal.headers is not None
    return int(refusal.headers["Retry-After"])


@pytest.mark.parametrize(
    ("per_s", "taken", "wait_s"),
    [
        pytest.param(None, [1_000_000], 0, id="a key without a limit"),
        pytest.param(10, [100], 0, id="the burst of ten seconds"),
        pytest.param(10, [100, 1], 1, id="one event more waits a tenth of a second, told as a whole one"),
        pytest.param(10, [400], 30, id="a request is never cut, and the next one waits for it"),
    ],
)
def test_a_key_sends_its_burst_and_then_waits(per_s: int | None, taken: list[int], wait_s: int) -> None:
    """The bucket after some requests."""
    clock = ManualClock(NOW_MS)
    limit = RateLimit(clock)
    for events in taken:
        limit.take(key(per_s), events)

    assert refused_s(limit, key(per_s)) == wait_s
    clock.ms -= DAY_MS
    assert refused_s(limit, key(per_s)) == wait_s, "a clock that is set back locks nobody out"


def test_over_a_minute_a_key_sends_its_rate_and_one_burst() -> None:
    """A client that sends whenever it may, by the time of the gateway's clock."""
    clock = ManualClock(NOW_MS)
    limit, sent = RateLimit(clock), 0
    for _ in range(600):
        while not refused_s(limit, key(50)):
            limit.take(key(50), 7)
            sent += 7
        clock.advance(100)

    assert 60 * 50 + BURST_MS // 1000 * 50 <= sent + 7 <= 60 * 50 + BURST_MS // 1000 * 50 + 14


def test_one_key_does_not_slow_another() -> None:
    """Each key has its own bucket."""
    limit = RateLimit(ManualClock(NOW_MS))
    limit.take(key(1), 1_000)

    assert refused_s(limit, key(1).model_copy(update={"id": "1" * 12})) == 0


async def test_a_key_that_is_too_fast_gets_429_and_nothing_is_written(tmp_path: Path) -> None:
    """The answer to the request after the one that used the bucket up; later the key may send again."""
    async with running(tmp_path) as gateway:
        text, _ = create_key(tmp_path / "keys.jsonl", Role.INGEST, gateway.world.clock, events_per_s=1)
        slow = replace(gateway, keys={"slow": text})
        first = await slow.post([event(f"op-{number}") for number in range(12)], key="slow")
        second = await slow.post(event("op-12"), key="slow")
        stored = len(await gateway.stored())
        gateway.world.clock.advance(2_000)
        third = await slow.post(event("op-12"), key="slow")

    assert (first.status_code, second.status_code, third.status_code) == (202, 429, 202)
    assert (second.json()["error"]["code"], second.headers["retry-after"], stored) == ("too_fast", "2", 12)


async def test_of_requests_that_are_open_at_once_the_first_one_empties_the_bucket(tmp_path: Path) -> None:
    """All of them were let in while the bucket was full, and the next request was told to wait for hours."""
    async with running(tmp_path) as gateway:
        text, _ = create_key(tmp_path / "keys.jsonl", Role.INGEST, gateway.world.clock, events_per_s=10)
        headers = {"content-type": "application/json", "authorization": f"Bearer {text}"}
        begun, go = asyncio.Queue[None](), asyncio.Event()

        async def sent(number: int) -> int:
            async def body() -> AsyncIterator[bytes]:
                begun.put_nowait(None)
                await go.wait()
                yield json.dumps([event(f"{number}-{at}") for at in range(100)]).encode()

            return (await gateway.client.post("/v1/events", content=body(), headers=headers)).status_code

        sending = [asyncio.create_task(sent(number)) for number in range(4)]
        for _ in sending:
            await begun.get()
        go.set()
        statuses = await asyncio.gather(*sending)
        stored = len(await gateway.stored())
        looked = await gateway.client.post("/v1/events?dry_run=1", content=b"[]", headers=headers)

    assert (sorted(statuses), stored) == ([202, 202, 429, 429], 200)
    assert (looked.status_code, looked.headers["retry-after"]) == (429, "10")


async def test_what_is_only_judged_takes_nothing(tmp_path: Path) -> None:
    """A look at a large file must not stop the live events of the same key."""
    async with running(tmp_path) as gateway:
        text, _ = create_key(tmp_path / "keys.jsonl", Role.INGEST, gateway.world.clock, events_per_s=1)
        headers = {"content-type": "application/json", "authorization": f"Bearer {text}"}
        body = json.dumps([event(f"{at}") for at in range(500)]).encode()
        looked = await gateway.client.post("/v1/events?dry_run=1", content=body, headers=headers)
        sent = await gateway.client.post("/v1/events", content=body, headers=headers)

    assert (looked.status_code, sent.status_code) == (202, 202)


async def test_an_expired_key_is_refused_and_says_so(tmp_path: Path) -> None:
    """The last millisecond, and the instant of the end."""
    async with running(tmp_path) as gateway:
        clock = gateway.world.clock
        text, stored = create_key(tmp_path / "keys.jsonl", Role.INGEST, clock, valid_days=1)
        short = replace(gateway, keys={"short": text})
        assert stored.expires_ms == clock.now_ms() + DAY_MS
        assert KeyFile(tmp_path / "keys.jsonl").verify(text) == stored
        clock.advance(DAY_MS - 1)
        before = await short.post([], key="short")
        clock.advance(1)
        after = await short.post([], key="short")

    assert (before.status_code, after.status_code) == (202, 401)
    assert "expired" in after.json()["error"]["message"]
