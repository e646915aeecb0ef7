"""A store that is stopped by SIGSTOP: it takes connections and answers nothing. Only what needs it may wait."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from confluent_kafka.admin import AdminClient

from emitter import Emitter
from pipeline.clock import SystemClock
from pipeline.http.api_keys import Role as KeyRole
from pipeline.http.api_keys import create_key
from pipeline.local.kafka import LocalKafka
from pipeline.local.postgres import LocalPostgres
from pipeline.local.processes import LocalProcess, free_port
from pipeline.local.valkey import LocalValkey
from pipeline.rollup.processor import ROLLUP_GROUP
from tests.conformance.postgres_faults import stopped as postgres_stopped
from tests.integration.deployment import Deployment, tidemark, traffic, until
from tests.integration.exactness import check_exact
from tests.services.clickhouse import RunningClickHouse

INGEST_S_MAX: Final = 2.0
LIVE_S_MAX: Final = 4.0
# Load balancers commonly wait two seconds; the rest is this machine's.
READY_S_MAX: Final = 4.5
POST_S_MAX: Final = 12.0
QUERY_TIMEOUT_S: Final = 2
SESSION_TIMEOUT_S: Final = 6


@contextlib.contextmanager
def stopped(process: LocalProcess) -> Iterator[None]:
    """The process and its children are stopped during the block and go on after it."""
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGCONT)


class Caller:
    """An HTTP client of one gateway, which measures every answer."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.key = key
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.client = httpx.AsyncClient(base_url=url, headers=headers, timeout=60, trust_env=False)

    async def get(self, path: str, within_s: float, **parameters: str) -> httpx.Response:
        """GET; fails if the answer takes longer than `within_s`."""
        return await self._timed(within_s, "GET", path, params=parameters or None)

    async def post(self, event_id: str, within_s: float, account: str = "acme") -> httpx.Response:
        """Send one event of `api_requests`; fails if the answer takes longer than `within_s`."""
        event = {"specversion": "1.0", "id": event_id, "source": "test", "type": "api.request", "subject": account,
                 "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "data": {"user": "u"}}  # fmt: skip
        return await self._timed(within_s, "POST", "/v1/events", json=event)

    async def _timed(self, within_s: float, method: str, path: str, **arguments: Any) -> httpx.Response:
        began_s = time.monotonic()
        answer = await self.client.request(method, path, **arguments)
        took_s = time.monotonic() - began_s
        assert took_s < within_s, f"{method} {path} took {took_s:.2f} s: {answer.text}"
        return answer

    async def counted(self, account: str) -> str | None:
        """The live value of `api_requests`; None if the answer is not 200."""
        answer = await self.client.get(f"/v1/accounts/{account}/usage")
        values = {each["meter"]: each["value"] for each in answer.json().get("meters", ())}
        return values.get("api_requests")

    async def counts(self, account: str, expected: str) -> None:
        """Return once the live value is `expected`."""

        async def is_counted() -> bool:
            return await self.counted(account) == expected

        await until(is_counted, f"{expected} events of {account} counted")


Callers = Callable[[str, str], Caller]


@pytest.fixture
async def callers() -> AsyncIterator[Callers]:
    """Makes clients by URL and key, and closes them."""
    async with contextlib.AsyncExitStack() as stack:

        def make(url: str, key: str = "") -> Caller:
            caller = Caller(url, key)
            stack.push_async_callback(caller.client.aclose)
            return caller

        yield make


async def start_gateway(deployment: Deployment, callers: Callers, name: str = "gateway") -> Caller:
    """Start a gateway of the deployment; returns once it answers."""
    keys, port = deployment.folder / f"{name}.keys.jsonl", free_port()
    key = create_key(keys, KeyRole.ADMIN, SystemClock())[0]
    deployment.start(
        "gateway", name=name, TIDEMARK_API_KEYS=str(keys), TIDEMARK_GATEWAY_PORT=str(port),
        TIDEMARK_QUERY_TIMEOUT_S=str(QUERY_TIMEOUT_S),
    )  # fmt: skip
    caller = callers(f"http://127.0.0.1:{port}", key)

    async def answers() -> bool:
        try:
            return (await caller.client.get("/healthz")).status_code == 200
        except httpx.HTTPError:
            return False

    await deployment.until(answers, f"{name} answers")
    return caller


def restarted(deployment: Deployment) -> dict[str, str]:
    """The last output of the roles that had to start again."""
    return {name: role.output()[-2000:] for name, role in deployment.roles.items() if role.starts > 1}


async def knows_meters(caller: Caller) -> None:
    """Return once the gateway has the meter set in memory."""

    async def is_known() -> bool:
        answer = await caller.client.get("/v1/meters")
        return answer.status_code == 200 and answer.json()["version"] == 1

    await until(is_known, "the gateway knows the meter set")


def last_hours() -> dict[str, str]:
    """`from` and `to` of a query that covers now."""
    hour_s = int(time.time()) // 3600 * 3600
    return {
        name: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_s))
        for name, at_s in (("from", hour_s - 3600), ("to", hour_s + 3600))
    }


async def test_a_hanging_redis_delays_only_live_reads(
    deployment: Deployment, own_valkey: LocalValkey, callers: Callers
) -> None:
    """Events are taken in milliseconds; what needs Redis says so within two seconds; nothing is lost."""
    deployment.start("worker")
    deployment.start("archive")
    caller = await start_gateway(deployment, callers)
    assert (await caller.post("before", 5)).status_code == 202
    await caller.counts("acme", "1")
    await knows_meters(caller)
    emitter = Emitter(caller.url, caller.key, source="test", flush_interval_s=0.05)

    with stopped(own_valkey):
        for number in range(20):
            answer = await caller.post(f"during-{number}", INGEST_S_MAX)
            assert answer.json() == {
                "accepted": 1, "rejected": 0,
                "events": [{"index": 0, "id": f"during-{number}", "status": "accepted"}],
            }  # fmt: skip
        for number in range(218):
            emitter.emit("api.request", "emitted", {"user": "u"}, id=f"emitted-{number}")
        assert await asyncio.to_thread(emitter.close, 10)
        assert emitter.stats().accepted == 218
        assert (await caller.get("/v1/meters", INGEST_S_MAX)).json()["version"] == 1
        reads = [caller.get("/v1/accounts/acme/usage", LIVE_S_MAX) for _ in range(40)]
        assert {(answer.status_code, answer.json()["error"]["code"]) for answer in await asyncio.gather(*reads)} == {
            (503, "unavailable")
        }
        assert (await caller.get("/v1/usage", 5, meter="api_requests", **last_hours())).status_code == 200
        ready = await caller.get("/readyz", READY_S_MAX)
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        late = await start_gateway(deployment, callers, "started-meanwhile")
        answer = await late.post("late", INGEST_S_MAX)
        assert (answer.status_code, "unmetered" in answer.json()) == (202, False)
        assert (await late.get("/v1/meters", INGEST_S_MAX)).status_code == 503
        assert (await late.get("/readyz", READY_S_MAX)).json()["checks"]["meter_set"] == {
            "ok": False, "age_s": None, "problem": "Redis has not answered since the gateway started",
        }  # fmt: skip

    await caller.counts("acme", "22")
    await caller.counts("emitted", "218")
    await knows_meters(late)
    metrics = (await late.get("/metrics", 5)).text
    (read_s,) = re.findall(r"^tidemark_gateway_meter_set_read_seconds (\S+)$", metrics, re.MULTILINE)
    assert abs(time.time() - float(read_s)) < 10
    assert restarted(deployment) == {}


async def test_a_worker_ends_when_redis_hangs_for_long_and_goes_on_when_it_answers(
    deployment: Deployment, own_valkey: LocalValkey
) -> None:
    """It is not wedged for ever, and what was in hand is counted once."""
    worker = deployment.start("worker", TIDEMARK_STORE_TIMEOUT_S="1")
    deployment.start("archive")
    records = list(traffic(deployment, 1_000, seed=7))
    await deployment.append_all(records[:20])
    await deployment.folded_to(await deployment.ends())
    appending = asyncio.create_task(deployment.append_all(records[20:]))
    await asyncio.sleep(0.1)

    async def has_restarted() -> bool:
        return worker.starts > 1

    with stopped(own_valkey):
        await appending
        await deployment.until(has_restarted, "the worker ends and starts again")

    await deployment.at_rest()
    await deployment.stop_roles()
    await check_exact(deployment)


def members(broker: LocalKafka) -> list[str]:
    """The ids of the members of the worker's group, which change with every new membership."""
    admin = AdminClient({"bootstrap.servers": broker.url.removeprefix("kafka://")})
    (group,) = admin.describe_consumer_groups([ROLLUP_GROUP]).values()
    return [member.member_id for member in group.result().members]


@pytest.fixture
async def on_kafka(
    tmp_path: Path, own_valkey: LocalValkey, clickhouse_database: str
) -> AsyncIterator[tuple[Deployment, LocalKafka]]:
    """A deployment on a broker that the test may stop."""
    with LocalKafka(tmp_path / "kafka") as broker:
        variables = {"TIDEMARK_SESSION_TIMEOUT_S": str(SESSION_TIMEOUT_S), "TIDEMARK_PARTITIONS": "2"}
        async with Deployment(tmp_path / "one", own_valkey.url, clickhouse_database, broker.url, **variables) as made:
            yield made, broker


async def test_a_hanging_broker_is_answered_in_time_and_delays_no_read(
    on_kafka: tuple[Deployment, LocalKafka], own_valkey: LocalValkey, callers: Callers
) -> None:
    """No event can be taken; the client learns that before its own limit, and the repeated events count once.

    Redis hangs afterwards, for longer than the group waits for a silent member.
    """
    deployment, broker = on_kafka
    worker = deployment.start("worker", TIDEMARK_METRICS_PORT=str(port := free_port()))
    ops = callers(f"http://127.0.0.1:{port}", "")
    caller = await start_gateway(deployment, callers)
    assert (await caller.post("before", 10)).status_code == 202
    await caller.counts("acme", "1")
    assert (await ops.get("/readyz", READY_S_MAX)).status_code == 200

    with stopped(broker):
        posts = [caller.post(f"during-{number}", POST_S_MAX) for number in range(10)]
        later = asyncio.create_task(caller.post("behind-others", POST_S_MAX + 3))
        answers = await asyncio.gather(*posts)
        assert {(answer.status_code, answer.json()["unknown"]) for answer in answers} == {(503, 1)}
        assert (await later).status_code == 503
        ready = await caller.get("/readyz", READY_S_MAX)
        assert (ready.status_code, ready.json()["status"]) == (503, "not_ready")
        silent = await ops.get("/readyz", READY_S_MAX)
        assert (silent.status_code, silent.json()["silent_partitions"]) == (503, [0, 1])
        assert (await caller.get("/v1/accounts/acme/usage", LIVE_S_MAX)).status_code == 200
        done = await asyncio.to_thread(
            tidemark, deployment.folder, "account", "show", "acme",
            **{**deployment.environment, "TIDEMARK_STORE_TIMEOUT_S": "2"},
        )  # fmt: skip
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("tidemark: Kafka did not answer in 2 s")

    for event_id in ("behind-others", *(f"during-{number}" for number in range(10))):

        async def is_taken(event_id: str = event_id) -> bool:
            return (await caller.post(event_id, POST_S_MAX)).status_code == 202

        await until(is_taken, f"{event_id} is taken")
    await caller.counts("acme", "12")
    assert worker.starts == 1

    async def is_ready() -> bool:
        return (await ops.client.get("/readyz")).status_code == 200

    await until(is_ready, "the worker is ready again")
    (member,) = await asyncio.to_thread(members, broker)
    with stopped(own_valkey):
        assert (await caller.post("without-redis", POST_S_MAX)).status_code == 202
        await asyncio.sleep(SESSION_TIMEOUT_S + 2)
    await caller.counts("acme", "13")
    assert await asyncio.to_thread(members, broker) == [member], "the worker lost its place in the group"
    assert worker.starts == 1


async def test_a_hanging_clickhouse_delays_only_its_own_answers(
    deployment: Deployment, clickhouse_server: RunningClickHouse, callers: Callers
) -> None:
    """Counting goes on. Usage over time is refused in a bounded time, and complete again afterwards."""
    deployment.start("worker")
    deployment.start("archive")
    caller = await start_gateway(deployment, callers)
    assert (await caller.post("before", 5)).status_code == 202
    await caller.counts("acme", "1")
    query = {"meter": "api_requests", "account": "acme", **last_hours()}
    assert (await caller.get("/v1/usage", 5, **query)).status_code == 200

    with stopped(clickhouse_server.process):
        for number in range(20):
            assert (await caller.post(f"during-{number}", INGEST_S_MAX)).status_code == 202
        await caller.counts("acme", "21")
        # More at once than the gateway has connections to ClickHouse.
        reads = [caller.get("/v1/usage", QUERY_TIMEOUT_S + 1, **query) for _ in range(12)]
        assert {answer.status_code for answer in await asyncio.gather(*reads)} == {503}
        ready = await caller.get("/readyz", READY_S_MAX)
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        assert (await caller.get("/v1/accounts/acme/usage", LIVE_S_MAX)).status_code == 200

    async def is_complete() -> bool:
        answer = await caller.client.get("/v1/usage", params=query)
        return [row["value"] for row in answer.json().get("rows", ())] == ["21"]

    await until(is_complete, "21 events in ClickHouse")
    await deployment.at_rest()
    assert restarted(deployment) == {}


async def said_of_a_hanging_store(
    deployment: Deployment, server: LocalProcess, name: str, *commands: str
) -> dict[str, str]:
    """The line in which each command, all at once, names the stopped server. Checks exit code and time."""
    environment = {**deployment.environment, "TIDEMARK_STORE_TIMEOUT_S": "2"}
    with stopped(server):
        began_s = time.monotonic()
        runs = (asyncio.to_thread(tidemark, deployment.folder, *each.split(), **environment) for each in commands)
        results = dict(zip(commands, await asyncio.gather(*runs), strict=True))
        took_s = time.monotonic() - began_s
    lines = {}
    for command, done in results.items():
        assert (done.returncode, "Traceback" in done.stdout + done.stderr) == (1, False), done.stdout + done.stderr
        said = done.stdout if command == "doctor" else done.stderr
        assert len(done.stderr.splitlines()) == (command != "doctor"), done.stderr
        (lines[command],) = [line for line in said.splitlines() if f"{name} did not answer" in line]
    # Most of this is the start of Python on a busy machine. Without a limit, the calls would take minutes.
    assert took_s < 45
    return lines


async def test_commands_say_in_one_line_that_redis_hangs(deployment: Deployment, own_valkey: LocalValkey) -> None:
    """Within the limit, with the exit code of a failure that may pass."""
    commands = ("meters show", "account show acme", "doctor", "reconcile")

    lines = await said_of_a_hanging_store(deployment, own_valkey, f"Redis at 127.0.0.1:{own_valkey.port}", *commands)

    assert all("check that it runs" in line for line in lines.values())


async def test_commands_say_in_one_line_that_clickhouse_hangs(
    deployment: Deployment, clickhouse_server: RunningClickHouse
) -> None:
    """As for Redis."""
    lines = await said_of_a_hanging_store(deployment, clickhouse_server.process, "ClickHouse", "doctor", "reconcile")

    assert all("did not answer in 2.0 s; check that it runs" in line for line in lines.values())


async def test_commands_say_in_one_line_that_postgresql_hangs(
    deployment: Deployment, own_postgres: LocalPostgres
) -> None:
    """As for Redis, by each command about what PostgreSQL keeps."""
    commands = ("dunning list", "billing status", "catalog show")
    environment = {**deployment.environment, "TIDEMARK_SQL_URL": own_postgres.url, "TIDEMARK_STORE_TIMEOUT_S": "2"}
    with postgres_stopped(own_postgres):
        runs = (asyncio.to_thread(tidemark, deployment.folder, *each.split(), **environment) for each in commands)
        results = dict(zip(commands, await asyncio.gather(*runs), strict=True))

    said = {command: (done.returncode, done.stderr.count("\n"), done.stderr[:23]) for command, done in results.items()}
    assert said == dict.fromkeys(commands, (1, 1, "tidemark: PostgreSQL at")), results
