"""The gateway's promises about the log, and its behaviour if a dependency fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.http import events
from pipeline.http.appender import Appender, Outgoing
from pipeline.http.dependencies import LiveUsage
from pipeline.metrics import METRICS, Metrics
from schemas.errors import Transient
from schemas.log import EVENTS_TOPIC, Bounds, Headers
from schemas.meters import MeterSet
from tests.traffic.generate import METER_SET
from tests.worlds.deployment import World
from tests.worlds.gateway import NOW_MS, Gateway, event, running
from tests.worlds.measured import METERS


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway whose stores and log all work."""
    async with running(tmp_path) as running_gateway:
        yield running_gateway


class FailingLog:
    """A log whose appends to `usage.events` fail, are slow, or wait, as the test decides."""

    def __init__(self, world: World) -> None:
        self._log = world.log
        self.failures: list[Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.reached = asyncio.Event()
        self.appends = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def append(
        self, topic: str, partition: int, value: bytes, *, key: bytes | None = None, headers: Headers = ()
    ) -> int:
        """Waits for the gate, appends, and then fails if a failure is due."""
        if topic == EVENTS_TOPIC:
            self.appends += 1
            self.reached.set()
            await self.gate.wait()
        offset = await self._log.append(topic, partition, value, key=key, headers=headers)
        if topic == EVENTS_TOPIC and self.failures:
            raise self.failures.pop(0)
        return offset


@pytest.mark.parametrize("failure", [Transient("no answer"), TimeoutError(), ValueError("a defect")], ids=type)
async def test_an_append_without_confirmation_is_unknown_and_may_be_repeated(
    tmp_path: Path, failure: Exception
) -> None:
    """The event may be in the log, so the answer is neither success nor refusal."""
    world = World(NOW_MS)
    log = FailingLog(world)
    async with running(tmp_path, world, log=log) as gateway:
        log.failures.append(failure)

        first = await gateway.post(event())
        second = await gateway.post(event())

    assert (first.status_code, second.status_code) == (503, 202)
    assert int(first.headers["retry-after"]) >= 1
    assert first.json()["events"][0]["status"] == "unknown"
    assert first.json()["unknown"] == 1


async def test_no_answer_before_the_append_returns_and_concurrent_requests_share_appends(tmp_path: Path) -> None:
    """The event is durable before the answer. Many small requests must not become many small records."""
    world = World(NOW_MS)
    log = FailingLog(world)
    async with running(tmp_path, world, log=log) as gateway:
        log.gate.clear()
        requests = [asyncio.create_task(gateway.post(event(str(number)))) for number in range(100)]
        await log.reached.wait()

        assert not any(request.done() for request in requests)

        log.gate.set()
        answers = await asyncio.gather(*requests)

    assert {answer.status_code for answer in answers} == {202}
    assert log.appends <= 5


async def test_a_full_gateway_refuses_before_writing_anything(tmp_path: Path) -> None:
    """The gateway's memory is bounded; the client still has the event and sends it again."""
    world = World(NOW_MS)
    await world.start(METER_SET)
    log = FailingLog(world)
    log.gate.clear()
    appender = Appender(log, 2, Metrics(), pending_events_max=2)
    waiting = asyncio.create_task(appender.append([Outgoing("acme", b"{}")] * 2))
    await log.reached.wait()

    with pytest.raises(Transient):
        await appender.append([Outgoing("acme", b"{}")])

    log.gate.set()
    assert await waiting == [True, True]
    assert await appender.append([Outgoing("acme", b"{}")]) == [True]


async def test_missing_or_failed_stores_affect_only_their_own_answers(tmp_path: Path) -> None:
    """Without Redis and ClickHouse the gateway still takes events and stays in its load balancer."""

    class Down:
        def __getattr__(self, name: str) -> Any:
            async def fail(*_: object) -> None:
                raise Transient("secret-host:6379 refused")

            return fail

    down: Any = Down()
    async with running(tmp_path, live=LiveUsage(down, down, down), usage=None, hourly=down) as gateway:
        ingest = await gateway.post(event())
        live = await gateway.get("/v1/accounts/acme/usage")
        over_time = await gateway.get("/v1/usage", meter="tokens")
        ready = await gateway.get("/readyz", key="")

    assert (ingest.status_code, live.status_code, over_time.status_code, ready.status_code) == (202, 503, 501, 200)
    assert ready.json()["status"] == "degraded"
    assert "secret-host" not in live.text + ready.text


async def test_a_log_that_does_not_answer_makes_the_gateway_not_ready(tmp_path: Path) -> None:
    """Without the log the gateway cannot do anything."""

    class Away:
        async def partition_count(self, _topic: str) -> int:
            raise Transient("away")

    async with running(tmp_path, log=Away()) as gateway:
        ready = await gateway.get("/readyz", key="")
        alive = await gateway.get("/healthz", key="")

    assert (ready.status_code, ready.json()["status"], alive.status_code) == (503, "not_ready", 200)


async def test_a_log_that_disappears_later_makes_the_gateway_not_ready(tmp_path: Path) -> None:
    """A driver may remember the number of partitions; the load balancer must notice that no partition takes events."""

    class GoneSince:
        async def partition_count(self, _topic: str) -> int:
            return World(NOW_MS).partitions

        async def bounds(self, _topic: str, _partition: int) -> Bounds:
            raise Transient("gone")

    async with running(tmp_path, log=GoneSince()) as gateway:
        ready = await gateway.get("/readyz", key="")

    assert (ready.status_code, ready.json()["checks"]["log"]) == (
        503,
        {"ok": False, "problem": "the log does not answer"},
    )


@pytest.mark.parametrize("hangs", [True, False], ids=["hangs", "fails"])
async def test_a_log_without_one_partition_makes_the_gateway_not_ready(tmp_path: Path, hangs: bool) -> None:
    """Events of the accounts on that partition could not be taken. The answer comes before a load balancer gives up."""
    world = World(NOW_MS)

    class WithoutOne(FailingLog):
        async def bounds(self, topic: str, partition: int) -> Bounds:
            if partition == world.partitions - 1:
                if hangs:
                    await asyncio.Event().wait()
                raise Transient("no leader")
            return await world.log.bounds(topic, partition)

    loop = asyncio.get_running_loop()
    async with running(tmp_path, world, log=WithoutOne(world)) as gateway:
        began_s = loop.time()
        ready = await gateway.get("/readyz", key="")
        took_s = loop.time() - began_s

    assert (ready.status_code, ready.json()["status"], took_s < 2) == (503, "not_ready", True)
    assert ready.json()["checks"]["log"] == {"ok": False, "partitions": 2, "silent_partitions": [1]}


async def test_events_behind_an_append_that_hangs_wait_no_longer_than_the_limit() -> None:
    """The limit is of the answer, not of each append in a row."""
    world = World(NOW_MS)
    await world.start(METER_SET)
    log = FailingLog(world)
    log.gate.clear()
    appender = Appender(log, 2, Metrics(), append_timeout_s=0.3)
    loop = asyncio.get_running_loop()

    began_s = loop.time()
    first = asyncio.create_task(appender.append([Outgoing("acme", b"{}")]))
    await log.reached.wait()
    behind = await appender.append([Outgoing("acme", b"{}")])

    assert (await first, behind) == ([False], [False])
    assert loop.time() - began_s < 0.55


async def test_rejected_events_that_cannot_be_kept_delay_the_answer_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is of the answer, not of each part of a large request."""
    monkeypatch.setattr(events, "ANSWER_TIMEOUT_S", 0.5)
    world = World(NOW_MS)

    class Hangs(FailingLog):
        async def append(self, *_arguments: Any, **_more: Any) -> int:
            await asyncio.Event().wait()
            return 0

    loop = asyncio.get_running_loop()
    async with running(tmp_path, world, log=Hangs(world)) as gateway:
        began_s = loop.time()
        answer = await gateway.post([{"id": "broken"}] * 1_500)
        took_s = loop.time() - began_s

    assert (answer.status_code, answer.json()["rejected"]) == (400, 1_500)
    assert took_s < 3


async def test_events_are_taken_while_the_meter_set_is_not_known(tmp_path: Path) -> None:
    """The gateway started while Redis hung. No answer says what nobody knows: which events are unmetered."""

    async def unknown() -> MeterSet | None:
        raise Transient("not known yet")

    async with running(tmp_path, meter_set=unknown, meter_set_age_s=lambda: None) as gateway:
        posted = await gateway.post(event())
        meters = await gateway.get("/v1/meters")
        over_time = await gateway.get(
            "/v1/usage", meter="tokens", from_="2026-11-21T00:00:00Z", to="2026-11-22T00:00:00Z"
        )
        ready = await gateway.get("/readyz", key="")

    assert (posted.status_code, "unmetered" in posted.json()) == (202, False)
    assert (meters.status_code, over_time.status_code) == (503, 503)
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    assert ready.json()["checks"]["meter_set"] == {
        "ok": False, "age_s": None, "problem": "Redis has not answered since the gateway started",
    }  # fmt: skip


async def test_a_defect_is_answered_without_a_stack_trace(tmp_path: Path) -> None:
    """The gateway's log has the trace; the client gets a sentence."""

    async def broken() -> MeterSet | None:
        raise ZeroDivisionError("inner secrets")

    async with running(tmp_path, meter_set=broken) as gateway:
        answer = await gateway.post(event())

    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal"
    assert "inner secrets" not in answer.text


async def test_events_before_the_first_meter_set_are_accepted_as_the_fold_accepts_them(tmp_path: Path) -> None:
    """The events are archived as unmetered."""

    async def none() -> MeterSet | None:
        return None

    async with running(tmp_path, meter_set=none) as gateway:
        answer = await gateway.post(event())

    assert (answer.status_code, answer.json()["unmetered"]) == (202, 1)


async def test_meters_are_listed_for_any_key(gateway: Gateway) -> None:
    """A producer may ask which meters exist."""
    answer = await gateway.get("/v1/meters", key="ingest")

    listed = answer.json()["meters"]
    assert [each["slug"] for each in listed] == [each["slug"] for each in METER_SET["meters"]]
    assert [each["filters"] for each in listed] == [
        [{"operator": "eq", **condition} for condition in each.get("filters", ())] for each in METER_SET["meters"]
    ]
    assert (await gateway.get("/v1/meters", key="")).status_code == 401


async def test_a_measured_meter_says_what_it_reads_of_a_sample(tmp_path: Path) -> None:
    """Who writes a producer of samples learns from the answer which fields they need. No other meter has them."""
    counting = {"slug": "plain", "event_type": "e", "aggregation": "count"}
    measured = MeterSet.model_validate({"version": 1, "meters": [*METERS, counting]})

    async def in_force() -> MeterSet | None:
        return measured

    async with running(tmp_path, meter_set=in_force) as gateway:
        listed = {each["slug"]: each for each in (await gateway.get("/v1/meters", key="ingest")).json()["meters"]}

    names = ("per", "series_path", "stands_s_max", "start_path", "session_path", "session_gap_s_max")
    assert {slug: tuple(meter[name] for name in names) for slug, meter in listed.items()} == {
        "disk": ("hour", None, None, None, None, None),
        "boxes": ("minute", "$.box", 5_400, None, None, None),
        "most": (None, "$.box", None, None, None, None),
        "jobs": ("hour", None, None, "$.began", None, None),
        "calls": ("second", None, None, None, "$.call", 2_400),
        "days": ("hour", None, None, None, "$.call", 100_000),
        "plain": (None,) * 6,
    }


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        pytest.param("GET", "/v1/nothing", 404, "not_found", id="no such path"),
        pytest.param("GET", "/v1/events", 405, "method_not_allowed", id="reading events"),
        pytest.param("PUT", "/v1/usage", 405, "method_not_allowed", id="writing usage"),
        pytest.param("PATCH", "/v1/accounts/acme", 405, "method_not_allowed", id="a path of two routes"),
    ],
)
async def test_wrong_paths_and_methods_are_answered_in_json(
    gateway: Gateway, method: str, path: str, status: int, code: str
) -> None:
    """Even these answers are JSON."""
    answer = await gateway.client.request(method, path)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    if status == 405:
        allowed = ", ".join(sorted(answer.headers["allow"].split(", ")))
        assert answer.json()["error"]["message"] == f"this path does not take {method}; it takes {allowed}"
        assert path != "/v1/accounts/acme" or allowed == "GET, HEAD, PUT"


async def test_metrics_count_events_by_answer_in_the_apps_registry(gateway: Gateway) -> None:
    """An operator sees what was refused and why."""
    await gateway.post([event("1"), event("2", time="no")])

    text = (await gateway.get("/metrics", key="")).text

    assert 'tidemark_gateway_events_total{reason="",status="accepted"} 1.0' in text
    assert 'tidemark_gateway_events_total{reason="bad_time",status="rejected"} 1.0' in text
    assert 'tidemark_gateway_requests_total{route="/v1/events",status="207"} 1.0' in text


def test_every_metric_has_a_sentence_and_a_conventional_name() -> None:
    """Prometheus' convention: names of counters end in _total. The operator reads the sentence."""
    for name, spec in METRICS.items():
        assert name.startswith("tidemark_")
        assert spec.sentence.endswith(".")
        assert (spec.kind == "counter") == name.endswith("_total")
        assert (spec.kind == "histogram") == bool(spec.buckets)
