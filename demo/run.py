"""Runs the demo from start to proof. See `tidemark demo --help`."""

from __future__ import annotations

import asyncio
import json
import pickle
import random
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from aggregators.partitioning import partition_of
from demo import plan
from demo.faults import lose_event, send_twice
from demo.settled import unsettled_intents
from demo.verify import Expected, Mismatch, mismatches, redis_counters, redis_totals, stripe_totals
from demo.view import Screen, summary
from pipeline.clock import FileClock, ScaledClock, SystemClock, write_clock
from pipeline.commands.operations import reconcile_deployment
from pipeline.local.dev import Dev, DevOptions
from pipeline.logs.control_records import append_control
from pipeline.open import open_base, open_rollup_store
from pipeline.rollup.replay_counter import FileWitness
from pipeline.settings import Settings
from reconciler.causes import Cause, Pair, Verdict
from reconciler.report import Report
from schemas.clock import MINUTE_MS
from schemas.control import BindingRecord
from schemas.errors import OperatorNeeded
from schemas.log import EVENTS_TOPIC
from sinks.clickhouse.client import open_clickhouse
from sinks.clickhouse.reader import ClickHouseReader
from sinks.clickhouse.writer import ClickHouseStore

KILLS_MAX: Final = 25
SETTLE_TIMEOUT_S: Final = 120.0
WORKERS_LAG_MAX: Final = 3


@dataclass
class Story:
    """What happened, for the view and the result."""

    kills: int = 0
    replayed: int = 0
    emitted: int = 0
    counters: Counter[str] = field(default_factory=Counter)
    traffic: dict[str, Any] = field(default_factory=dict)
    traffic_s: float = 0.0
    mismatches: list[Mismatch] = field(default_factory=list)
    top: list[tuple[str, int]] = field(default_factory=list)
    at_stripe: Counter[str] = field(default_factory=Counter)
    report: Report | None = None
    faulty_report: Report | None = None
    faults_found: list[str] = field(default_factory=list)

    def result(self) -> dict[str, object]:
        """The one line of JSON."""
        counted = {
            name: self.counters[name] for name in ("received", "counted", "duplicate", "unmetered", "late", "rejected")
        }
        return {
            "sent": self.traffic.get("sent", 0),
            **counted,
            "replayed": self.replayed,
            "oracle_mismatches": len(self.mismatches),
            "drift": self.report.differences if self.report else None,
            "injected_faults_found": len(self.faults_found),
            "events_per_s": round(self.traffic.get("sent", 0) / self.traffic_s) if self.traffic_s else 0,
        }


class Demo:
    """One run in one folder."""

    def __init__(self, folder: Path, events: int, kills: int, screen: Screen) -> None:
        self.folder = folder
        self.events = events
        self.kills = kills
        self.screen = screen
        self.story = Story()
        self.chance = random.Random()
        # Real speed until the traffic starts, however slow this machine is to get there.
        self._clock_path = folder / "clock"
        write_clock(self._clock_path, ScaledClock(SystemClock().now_ms(), plan.START_MS - 10 * MINUTE_MS, 1))
        self.clock = FileClock(self._clock_path)
        self.dev = Dev(
            DevOptions(
                folder / "data",
                gateway_port=0,
                clickhouse_port=0,
                clock=f"file:{self._clock_path}",
                meter_set=plan.METER_SET,
                environment=plan.ENVIRONMENT,
            ),
            screen.step,
        )
        self._settings: Settings | None = None
        self._closed_ms: int | None = None

    @property
    def settings(self) -> Settings:
        """The running deployment's settings."""
        self._settings = self._settings or self.dev.settings()
        return self._settings

    async def run(self) -> Story:
        """The whole story; whatever happens, everything is stopped at its end."""
        try:
            await self.dev.start()
            await self._bind_accounts()
            killer = asyncio.create_task(self._kill_at_random())
            with self.screen.live(self):
                await self._traffic()
                self.screen.phase = "closing the last hour, reporting it to Stripe, recounting the producers' files"
                expected, _ = await asyncio.gather(self._recount(), self._settle_and_reconcile())
            killer.cancel()
            await self._prove(expected)
            await self._break_it()
        finally:
            await self.dev.stop()
        return self.story

    async def _bind_accounts(self) -> None:
        self.screen.step(f"Making {len(plan.ACCOUNTS)} customers at Stripe and binding their accounts")
        base = await open_base(self.settings)
        try:
            async with httpx.AsyncClient(base_url=self.dev.stripe_url) as client:
                for account in plan.ACCOUNTS:
                    customer = f"cus_{account}"
                    answer = await client.post("/_simulator/customers", json={"id": customer, "name": account})
                    answer.raise_for_status()
                    partition = partition_of(account, base.genesis.partitions)
                    for binding in plan.bindings(account, customer):
                        record = BindingRecord(account=account, binding=binding)
                        await append_control(base.log, self.settings.secret_bytes(), partition, record)
        finally:
            await base.log.close()

    async def _traffic(self) -> None:
        document = {
            "clock": f"file:{self._clock_path}",
            "log_url": self.settings.log_url,
            "gateway_url": self.dev.gateway_url,
            "api_key": self.dev.api_key,
        }
        (self.folder / "traffic.json").write_text(json.dumps(document))
        self.screen.phase = "an application with 220 customers at work; the worker is killed at random instants"
        began_s = asyncio.get_running_loop().time()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "demo.traffic", str(self.folder), str(self.events),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            assert process.stdout is not None  # noqa: S101 - it was asked for
            while line := await process.stdout.readline():
                told = json.loads(line)
                if told.get("started"):
                    now_ms = SystemClock().now_ms()
                    write_clock(self._clock_path, ScaledClock(now_ms, plan.START_MS, plan.FACTOR))
                if "emitted" in told:
                    self.story.emitted = told["emitted"] + told["inbox"]
                if told.get("done"):
                    self.story.traffic = told
            if await process.wait() != 0 or not self.story.traffic:
                errors = await process.stderr.read() if process.stderr else b""
                raise OperatorNeeded(f"the demo's traffic failed: {errors.decode(errors='replace')[-2000:]}")
            self.story.traffic_s = asyncio.get_running_loop().time() - began_s
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def _kill_at_random(self) -> None:
        """Kill the worker while it counts: each time only after it has made progress since the last kill."""
        share = self.events // (self.kills * 3)
        while self.story.kills < KILLS_MAX and not (self.story.kills >= self.kills and self.story.replayed):
            # A share of the events between two kills, so that kills cannot starve the worker on a slow machine.
            await self._received(self.story.counters["received"] + self.chance.randrange(share // 2, share))
            await asyncio.sleep(self.chance.uniform(0.0, 0.5))
            self.story.kills += self.dev.kill_worker()
            self.story.replayed = self._replayed()

    async def _received(self, count: int) -> None:
        """Return once the worker has received so many events."""
        while self.story.counters["received"] < count:  # noqa: ASYNC110 - the counters are in another process
            await asyncio.sleep(0.05)

    def _replayed(self) -> int:
        witness = FileWitness(self.settings.data_dir / "witness")
        return sum(witness.replayed(partition) for partition in range(self.settings.partitions))

    async def watch(self) -> None:
        """Keep the counters up to date until cancelled."""
        while True:
            self.story.counters, _ = await redis_counters(self.settings)
            await asyncio.sleep(0.5)

    async def _recount(self) -> Expected:
        arguments = [sys.executable, "-m", "demo.recount", str(self.folder), str(self.story.traffic["broken"])]
        process = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        if process.returncode:
            raise OperatorNeeded("the oracle failed to recount the producers' files")
        expected: Expected = pickle.loads(output)  # noqa: S301 - our own child's output
        return expected

    async def _settle_and_reconcile(self) -> None:
        await self._settle()
        self.screen.phase = "reconciling: a recount by SQL, and the oracle's from the producers' files"
        self.story.report = await self._reconcile()

    async def _settle(self) -> None:
        """Return when everything that was sent is folded, archived, relayed, reported and settled at Stripe."""
        base = await open_base(self.settings)
        store = open_rollup_store(self.settings)
        clickhouse = open_clickhouse(self.settings.clickhouse_url)
        reader, hourly = ClickHouseReader(clickhouse), ClickHouseStore(clickhouse)
        deadline_s = asyncio.get_running_loop().time() + SETTLE_TIMEOUT_S
        try:
            while True:
                waiting = await self._waiting(base.log, store, reader, hourly)
                self.screen.waiting = waiting
                if not waiting:
                    return
                if self.dev.supervisor.failure.done():
                    self.dev.supervisor.failure.result()
                if asyncio.get_running_loop().time() > deadline_s:
                    raise OperatorNeeded(f"the pipeline did not come to rest: {waiting}; see {self.folder}/data/logs")
                await asyncio.sleep(0.5)
        finally:
            await clickhouse.close()
            await store.close()
            await base.log.close()

    async def _waiting(self, log: Any, store: Any, reader: Any, hourly: Any) -> str:
        """What is still under way, or nothing."""
        counters, _ = await redis_counters(self.settings)
        if counters["received"] < self.story.traffic["sent"]:
            return f"{self.story.traffic['sent'] - counters['received']} events to be folded"
        if counters["deferred"]:
            return f"{counters['deferred']} events older than the window to be judged"
        if self._closed_ms is None:
            # Everything is in: the simulated clock goes on to where the last hour and report bucket are closed.
            self._closed_ms = (self.clock.now_ms() // plan.REPORT_INTERVAL_MS + 1) * plan.REPORT_INTERVAL_MS
            self._go_on_to(self._closed_ms + MINUTE_MS)
        archived, relayed = await reader.archive_positions(), await hourly.load_relayed()
        for partition in range(self.settings.partitions):
            checkpoint = await store.load_checkpoint(partition)
            end = (await log.bounds(EVENTS_TOPIC, partition)).next
            if checkpoint is None or checkpoint.stream_time_ms < self._closed_ms:
                return f"partition {partition} to pass the hour"
            if partition not in archived or archived[partition].next_offset < end - WORKERS_LAG_MAX:
                return f"partition {partition} to be archived"
            if partition not in relayed or relayed[partition].stream_time_ms < self._closed_ms:
                return f"partition {partition} to be relayed to ClickHouse"
            _, buckets = await store.report_buckets(partition)
            if any(bucket + plan.REPORT_INTERVAL_MS <= self._closed_ms for bucket in buckets):
                return f"reports of partition {partition} to be written"
        pending = await unsettled_intents(log, self.settings.partitions)
        return f"Stripe: {pending} reports" if pending else ""

    def _go_on_to(self, simulated_ms: int) -> None:
        """Set the simulated clock of all processes forward."""
        write_clock(self._clock_path, ScaledClock(SystemClock().now_ms(), simulated_ms, plan.FACTOR))

    async def _prove(self, expected: Expected) -> None:
        self.screen.step("Comparing Redis, ClickHouse and Stripe with the oracle")
        story = self.story
        story.counters, _ = await redis_counters(self.settings)
        story.replayed = self._replayed()
        story.mismatches = await mismatches(self.settings, self.dev.stripe_url, self.dev.meter_set(), expected)
        used = {
            account: value
            for (account, meter, start_ms), value in (await redis_totals(self.settings)).items()
            if (meter, start_ms) == (plan.TOP_METER, plan.MONTH_END_MS)
        }
        story.top = sorted(used.items(), key=lambda each: (-each[1], each[0]))[: plan.TOP_ACCOUNTS]
        held = stripe_totals(self.dev.stripe_url, self.dev.meter_set())
        story.at_stripe = Counter(meter for (_, meter, _), value in held.items() if value)

    async def _reconcile(self) -> Report:
        return await reconcile_deployment(
            self.settings, None, None, stripe_reads_max=10_000, archive_wait_s=plan.ARCHIVE_WAIT_S
        )

    async def _break_it(self) -> None:
        """Two faults on purpose; the reconciler must name both."""
        self.screen.step("Two faults on purpose: a row deleted from ClickHouse, a meter event sent twice to Stripe")
        account, event_id = await lose_event(self.settings)
        customer = await send_twice(self.dev.stripe_url)
        # What Stripe took a moment ago is not compared yet: the simulated clock goes on by half an hour.
        self._go_on_to(self.clock.now_ms() + 30 * MINUTE_MS)
        report = self.story.faulty_report = await self._reconcile()
        if any(row.account == account and row.cause is Cause.MISSING for row in report.rows):
            self.story.faults_found.append(f"event {event_id} of {account} is missing in ClickHouse")
        if any(
            row.pair is Pair.STRIPE and row.cause is Cause.EXTRA and row.stripe_customer == customer
            for row in report.rows
        ):
            self.story.faults_found.append(f"Stripe holds too much for {customer}")


def verdict(story: Story, kills: int) -> list[str]:
    """What is wrong with a run; empty for a good one."""
    problems = []
    counters = story.counters
    if story.mismatches:
        problems.append(f"{len(story.mismatches)} values differ from the oracle's")
    if story.report is None or story.report.verdict is not Verdict.EQUAL:
        problems.append(f"the reconciler says {story.report.verdict if story.report else 'nothing'}")
    if len(story.faults_found) != 2:
        problems.append("the reconciler did not name both faults")
    if story.kills < kills or not story.replayed:
        problems.append(f"{story.kills} kills and {story.replayed} replayed events prove nothing; run it again")
    if counters["received"] != story.traffic.get("sent"):
        problems.append(f"{story.traffic.get('sent')} events sent, {counters['received']} received")
    if counters["received"] != sum(
        counters[name] for name in ("counted", "duplicate", "unmetered", "late", "rejected", "deferred")
    ):
        problems.append("the counters do not add up")
    return problems


async def run_demo(*, as_json: bool, keep: Path | None, events: int, kills: int) -> int:
    """Run the demo and print its summary; the exit code. Its data is deleted unless it failed or `keep` is given."""
    folder = keep or Path(tempfile.mkdtemp(prefix="tidemark-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    screen = Screen(quiet=as_json)
    demo = Demo(folder, events, kills, screen)
    story = await demo.run()
    problems = verdict(story, kills)
    screen.print(summary(story, problems))
    if problems:
        screen.print(f"The data is kept in {folder}")
    elif keep is None:
        shutil.rmtree(folder)
    if as_json:
        sys.stdout.write(json.dumps(story.result()) + "\n")
    return 1 if problems else 0
