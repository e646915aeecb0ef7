"""How fast a check is: in a process, over HTTP, and after a change at Stripe. `python -m benchmarks --only access`."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Final, NamedTuple, cast

import httpx

from aggregators.account_grants import resolver_of
from aggregators.catalog import read_catalog
from benchmarks.catalog import catalog_figures
from benchmarks.figures import Figure
from benchmarks.machine import cpu_s, quantile, resident_bytes
from benchmarks.services import Process
from pipeline.access.checks import AccessChecks, Counted
from pipeline.access.renewal import commerce_of
from pipeline.clock import SystemClock
from pipeline.local.dev import SIMULATOR_KEY, Dev, DevOptions
from pipeline.local.example import ACCOUNTS, FREE
from pipeline.local.processes import free_port
from pipeline.open import DEFAULT_CATALOG
from schemas.catalog import PlanId
from schemas.catalog_changes import CatalogKind, CatalogStore, KnownPlan, PlanState, Standing, StripeRecord
from schemas.clock import DAY_MS
from schemas.entitlements import Entitlements, EntitlementVersion
from schemas.side_tables import MIRROR_COLUMNS, Link, Row
from schemas.upgrades import Billed

IN_PROCESS: Final = "(i) Checks in a process"
OVER_HTTP: Final = "(j) Checks over HTTP, 500 a second"
CHANGES: Final = "(k) From a change at Stripe to another answer"
FEATURES: Final = ("pos", "api_calls", "ai_tokens", "reporting")
CONNECTIONS: Final = 8
PER_S: Final = 500
MEDIAN_US_MAX, P99_MS_MAX, HTTP_P99_MS_MAX, CHANGE_P99_S_MAX = 20.0, 1.0, 3.0, 2.0
CHANGE_WAIT_S: Final = 30.0
SHA256: Final = "sha256"


def verdict(value: float, most: float) -> str:
    """Whether a figure keeps its target."""
    return "met" if value <= most else "missed"


class Static:
    """The part of `Entitlements` that a check reads, in memory."""

    def __init__(self, versions: Mapping[str, EntitlementVersion]) -> None:
        self._versions = versions

    async def latest(self, accounts: Sequence[str]) -> Mapping[str, EntitlementVersion]:
        """The versions of known accounts."""
        return {account: self._versions[account] for account in accounts if account in self._versions}

    async def last_number(self) -> int:
        """No version is made later."""
        return 0

    async def billed(self, _account: str, _now_ms: int) -> Billed:
        """What nobody pays yet; a denied check asks for it."""
        return Billed()


class StaticCatalog:
    """The catalog that ships, with a price for each component of `professional`."""

    def __init__(self) -> None:
        catalog, problems = read_catalog(DEFAULT_CATALOG.read_bytes(), {})
        assert catalog is not None, problems
        self._catalog = catalog

    async def active_sha256(self) -> str:
        """The hash of `standing`."""
        return SHA256

    async def standing(self) -> Standing:
        """As after the first `apply`."""
        plan = PlanId("professional", 1)
        records = {
            (CatalogKind.PRICE, f"tm.{component}"): StripeRecord(
                f"tm.{component}", CatalogKind.PRICE, f"price_{component}", plan, component, "month", "usd"
            )
            for component in ("location", "member")
        }
        plans = {name: KnownPlan(sold, PlanState.OPEN) for name, sold in self._catalog.sold().items()}
        return Standing(self._catalog, SHA256, plans=plans, records=records)


def subscribed(number: int, now_ms: int) -> dict[str, list[Row]]:
    """The mirror's rows of a customer who bought `professional`."""

    def row(table: str, **values: str | int) -> Row:
        return {**dict.fromkeys(MIRROR_COLUMNS[table]), "deleted": 0, **values}

    start_ms = now_ms - 20 * DAY_MS - number
    subscription = row(
        "subscriptions", id=f"sub_{number}", customer_id=f"cus_{number}", status="active", start_ms=start_ms,
        anchor_ms=start_ms, currency="usd",
    )  # fmt: skip
    items = [
        row(
            "subscription_items", id=f"si_{number}_{component}", subscription_id=f"sub_{number}",
            price_id=f"price_{component}", quantity=number % 9 + 1, interval="month", period_start_ms=start_ms,
            period_end_ms=start_ms + 31 * DAY_MS,
        )
        for component in ("location", "member")
    ]  # fmt: skip
    return {"subscriptions": [subscription], "subscription_items": items}


async def in_process(accounts: int, checks: int) -> list[Figure]:
    """Checks of accounts at random, each in memory, with usage that is in memory too."""
    clock, catalog = SystemClock(), cast("CatalogStore", StaticCatalog())
    now_ms = clock.now_ms()
    found = await commerce_of(catalog)
    assert found is not None
    resolver, versions = resolver_of(found[1]), {}
    for number in range(accounts):
        account = f"account-{number}"
        computed = resolver([Link(account, f"cus_{number}", 0)], subscribed(number, now_ms), (), now_ms)
        versions[account] = EntitlementVersion(
            account, 1, now_ms, computed.inputs_sha256, computed.segments, f"evt_{number}"
        )

    async def usage(_account: str, _meter: str, *, fresh: bool = False) -> Counted:  # noqa: ARG001  # a protocol
        return Counted(Decimal(4_711), now_ms + DAY_MS, now_ms)

    known = AccessChecks(catalog, cast("Entitlements", Static(versions)), usage, clock, accounts)
    before = resident_bytes(os.getpid())
    for account in versions:
        await known.check(account, "pos", Decimal(1))
    grown = resident_bytes(os.getpid()) - before
    source, costs_us = random.Random(1), []
    asked = [(f"account-{source.randrange(accounts)}", source.choice(FEATURES)) for _ in range(checks)]
    for account, feature in asked:
        began_ns = time.perf_counter_ns()
        answer = await known.check(account, feature, Decimal(1))
        costs_us.append((time.perf_counter_ns() - began_ns) / 1000)
        assert answer.version == 1, "an account was not in memory"
    median_us, p99_ms = quantile(costs_us, 0.5), quantile(costs_us, 0.99) / 1000
    note = f"{accounts:,} accounts, random; usage is in memory too"
    return [
        Figure(IN_PROCESS, "median", median_us, "µs", None, note, verdict(median_us, MEDIAN_US_MAX)),
        Figure(IN_PROCESS, "p99", p99_ms, "ms", None, "", verdict(p99_ms, P99_MS_MAX)),
        Figure(IN_PROCESS, "memory of an account", grown / accounts, "bytes", None, "with its entitlements"),
    ]


class Loaded(NamedTuple):
    """Latencies from the instant at which a request was due, and the processor time of the server per request.

    If a connection was free before that instant, a latency begins when the request is sent: that the generator woke up
    late is not the server's doing.
    """

    latencies_ms: Sequence[float]
    own_us: float


async def load(port: int, key: str, bodies: Sequence[bytes], seconds: float, pid: int | None) -> Loaded:
    """Send `PER_S` requests a second over `CONNECTIONS` kept-alive connections, each when it is due."""
    head = f"POST /v1/access/check HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {key}\r\ncontent-length: "
    latencies_ms: list[float] = []
    count = round(PER_S * seconds)
    began_s = time.perf_counter() + 0.1
    numbers = iter(range(count))

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in numbers:
            due_s = began_s + number / PER_S
            # Requests come at their time, whatever the answers take.
            wait_s = due_s - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
                due_s = time.perf_counter()
            body = bodies[number % len(bodies)]
            writer.write(f"{head}{len(body)}\r\n\r\n".encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            content = await reader.readexactly(length)
            assert answer.startswith(b"HTTP/1.1 200"), answer + content
            latencies_ms.append((time.perf_counter() - due_s) * 1000)
        writer.close()

    assert pid is not None, "the server ended"
    before_s = cpu_s(pid)
    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    return Loaded(latencies_ms, (cpu_s(pid) - before_s) / count * 1e6)


@contextmanager
def empty_handler(folder: Path) -> Iterator[tuple[int, int | None]]:
    """The port and the process of a server whose handler does nothing."""
    port = free_port()
    with Process(["benchmarks.empty_handler", str(port)], folder / "empty.log") as process:
        process.wait_line("ready")
        yield port, process.pid


async def over_http(dev: Dev, folder: Path, seconds: float) -> list[Figure]:
    """Checks of the example business at the gateway of a running deployment, and requests to an empty handler."""
    bodies = [
        json.dumps({"account": account.name, "feature": feature}).encode()
        for account in ACCOUNTS
        for feature in FEATURES
    ]
    gateway = dev.supervisor.children["gateway"].process
    port = int(dev.environment["TIDEMARK_GATEWAY_PORT"])
    rounds = []
    with empty_handler(folder) as (empty_port, empty_pid):
        for _ in range(3):
            nothing = await load(empty_port, dev.api_key, bodies, seconds, empty_pid)
            rounds.append((nothing, await load(port, dev.api_key, bodies, seconds, gateway.pid)))
    nothing_ms, ours_ms = (
        min(quantile(each.latencies_ms, 0.99) for each in loads) for loads in zip(*rounds, strict=True)
    )
    median_ms = min(quantile(ours.latencies_ms, 0.5) for _, ours in rounds)
    bare_us, own_us = (min(each.own_us for each in loads) for loads in zip(*rounds, strict=True))
    note = f"{ours_ms / nothing_ms:.2f} × an empty handler's p99 of {nothing_ms:.2f} ms; best of 3 rounds"
    cost = f"{own_us / bare_us:.2f} × an empty handler's {bare_us:.0f} µs"
    return [
        Figure(OVER_HTTP, "median", median_ms, "ms"),
        Figure(OVER_HTTP, "p99", ours_ms, "ms", None, note, verdict(ours_ms, HTTP_P99_MS_MAX)),
        Figure(OVER_HTTP, "processor time of the gateway", own_us, "µs/check", None, cost),
    ]


async def changes(dev: Dev, times: int) -> list[Figure]:
    """Subscribe customers at the simulator, and ask the gateway until the answer is another one."""
    seconds: list[float] = []
    stripe = {"Authorization": f"Bearer {SIMULATOR_KEY}"}
    key = {"Authorization": f"Bearer {dev.api_key}"}
    async with (
        httpx.AsyncClient(base_url=dev.stripe_url, headers=stripe, timeout=30.0) as api,
        httpx.AsyncClient(base_url=dev.gateway_url, headers=key, timeout=30.0) as gateway,
    ):
        found = (await api.get("/v1/prices", params={"lookup_keys[]": "tm.scale.v1.base.month.usd"})).json()
        customers = {
            each["name"].lower(): each["id"]
            for each in (await api.get("/v1/customers", params={"limit": "100"})).json()["data"]
            if each["name"]
        }

        async def is_allowed() -> bool:
            answer = await gateway.post("/v1/access/check", json={"account": FREE[0], "feature": "pos"})
            return bool(answer.json()["allowed"])

        async def until(wanted: bool) -> float:
            began_s = time.perf_counter()
            while await is_allowed() is not wanted:
                assert time.perf_counter() - began_s < CHANGE_WAIT_S, "the answer never changed"
                await asyncio.sleep(0.01)
            return time.perf_counter() - began_s

        fields = {"customer": customers[FREE[0]], "items[0][price]": found["data"][0]["id"], "trial_period_days": "9"}
        for _ in range(times):
            made = await api.post("/v1/subscriptions", data=fields)
            made.raise_for_status()
            seconds.append(await until(True))
            (await api.delete(f"/v1/subscriptions/{made.json()['id']}")).raise_for_status()
            seconds.append(await until(False))
    p99_s = quantile(seconds, 0.99)
    note = f"{len(seconds)} changes; from the answer of the simulator to that of the gateway"
    return [
        Figure(CHANGES, "median", quantile(seconds, 0.5), "s"),
        Figure(CHANGES, "p99", p99_s, "s", None, note, verdict(p99_s, CHANGE_P99_S_MAX)),
    ]


async def access_figures(folder: Path, say: Callable[[str], None], *, quick: bool) -> list[Figure]:
    """All figures of checks. Starts a deployment with the example business."""
    say("Checks in a process")
    figures = await in_process(10_000 if quick else 100_000, 50_000 if quick else 200_000)
    say("Starting a deployment with the example business")
    dev = Dev(DevOptions(folder / "dev", gateway_port=0, clickhouse_port=0, example=True), lambda _: None)
    try:
        await dev.start()
        await dev.make_example()
        say("Checks over HTTP")
        figures += await over_http(dev, folder, 5.0 if quick else 20.0)
        say("Changes at Stripe")
        figures += await changes(dev, 10 if quick else 60)
        return figures + await catalog_figures(dev, folder, say, quick=quick)
    finally:
        await dev.stop()
