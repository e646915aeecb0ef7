"""Runs the demo from start to proof. See `python -m demo --help`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import random
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

from demo import plan
from demo.access import LOOK_S, AccessWalk
from demo.billing import BillingWalk
from demo.faults import lose_event, send_twice
from demo.settled import unsettled_intents
from demo.story import Story, verdict
from demo.verify import Expected, live_counters, mismatches, recount
from demo.view import Screen, summary
from demo.worker import ReplayCounter
from pipeline.audit.reconciling import reconcile_deployment
from pipeline.clock import FileClock, ScaledClock, SystemClock, write_clock
from pipeline.local.dev import Dev, DevOptions, locked_folder
from pipeline.local.processes import LocalProcess, python
from pipeline.open import open_base, open_live_view, read_meter_set
from pipeline.settings import Settings
from reconciler.causes import Cause, Pair
from reconciler.report import Report
from schemas.clock import MINUTE_MS, SECOND_MS
from schemas.errors import OperatorNeeded
from schemas.log import EVENTS_TOPIC
from sinks.clickhouse.client import open_clickhouse
from sinks.clickhouse.reader import ClickHouseReader
from sinks.clickhouse.writer import ClickHouseStore

KILLS_MAX: Final = 25
SETTLE_TIMEOUT_S: Final = 120.0
WORKERS_LAG_MAX: Final = 3
IN_HAND_TIMEOUT_S: Final = 2.0


class Demo:
    """A run of the demo in a folder."""

    def __init__(self, folder: Path, events: int, kills: int, screen: Screen) -> None:
        self.folder = folder
        self.events = events
        self.kills = kills
        self.screen = screen
        self.story = Story()
        self.chance = random.Random()
        self._clock_path = folder / "clock"
        self._go_on_to(plan.SIGN_UP_MS, plan.BILLING_FACTOR)
        self.clock = FileClock(self._clock_path)
        self.dev = Dev(
            DevOptions(
                folder / "data",
                gateway_port=0,
                clickhouse_port=0,
                clock=f"file:{self._clock_path}",
                meter_set=plan.CATALOG,
                roles=plan.ROLES,
                modules={"worker": ("demo.worker",)},
                environment=plan.ENVIRONMENT,
                simulator_arguments=("--invoice-grace-s", str(plan.INVOICE_GRACE_MS // SECOND_MS)),
            ),
            screen.step,
        )
        self._settings: Settings | None = None
        self._closed_ms: int | None = None
        self._started = False

    @property
    def settings(self) -> Settings:
        """The settings of the running deployment."""
        self._settings = self._settings or self.dev.settings()
        return self._settings

    async def run(self) -> Story:
        """Run the demo and stop everything at the end, also after an error."""
        billing: BillingWalk | None = None
        try:
            await self.dev.start()
            billing = BillingWalk(self.dev, self.story, self.screen.step)
            await billing.sign_up()
            beside = [asyncio.create_task(self._kill_at_random()), asyncio.create_task(self._watch())]
            with self.screen.live(self.story, self.clock):
                await self._traffic()
                self.screen.phase = "closing the last hour, reporting it to Stripe, recounting the producers' files"
                expected, _ = await asyncio.gather(self._recount(), self._settle_and_reconcile())
            for task in beside:
                task.cancel()
            await self._prove(expected)
            self._go_on_to(max(plan.INVOICES_FINAL_MS, self.clock.now_ms()), plan.BILLING_FACTOR)
            await billing.bill(expected.totals)
            await asyncio.gather(self._break_it(), self._lose_database(billing))
        finally:
            if billing is not None:
                await billing.close()
            await self.dev.stop()
        return self.story

    async def _lose_database(self, billing: BillingWalk) -> None:
        """Lose the SQL database and fill it again; then ask what an account may do."""
        await billing.lose_database()
        until = partial(billing.until, look_s=LOOK_S)
        await AccessWalk(self.dev, self.story, self.screen.step, until).run()

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
        command = python("demo.traffic", str(self.folder), str(self.events))
        with LocalProcess("the demo's traffic", command, self.folder / "traffic.log") as process:
            while not self.story.traffic:
                ended = process.pid is None
                for line in process.output().splitlines(keepends=True):
                    if line.startswith("{") and line.endswith("\n"):
                        self._note_traffic(json.loads(line))
                if ended and not self.story.traffic:
                    process.check()
                await asyncio.sleep(0.1)
        self.story.traffic_s = asyncio.get_running_loop().time() - began_s

    def _note_traffic(self, message: dict[str, Any]) -> None:
        if message.get("started") and not self._started:
            self._started = True
            # A slow machine may have signed up customers until later.
            self._go_on_to(max(plan.START_MS, self.clock.now_ms()))
        if "emitted" in message:
            self.story.emitted = message["emitted"] + message["inbox"]
        if message.get("done"):
            self.story.traffic = message

    async def _kill_at_random(self) -> None:
        """Kill the worker repeatedly, each time after some progress."""
        share = self.events // (self.kills * 3)
        while self.story.kills < KILLS_MAX and not (self.story.kills >= self.kills and self.story.replayed):
            # A share of the events between two kills: even a slow machine makes progress.
            await self._received(self.story.counters["received"] + self.chance.randrange(share // 2, share))
            await asyncio.sleep(self.chance.uniform(0.0, 0.5))
            if not self.story.replayed:
                await self._in_hand()
            self.story.kills += self.dev.kill_worker()
            self.story.replayed = self._replayed()

    async def _in_hand(self) -> None:
        """Return when the worker has uncommitted records, so that a kill makes it read them again; or at the timeout,
        because the traffic may have ended."""
        counter, partitions = ReplayCounter(self.settings.data_dir), range(self.settings.partitions)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(IN_HAND_TIMEOUT_S):
                while not any(map(counter.is_in_hand, partitions)):  # noqa: ASYNC110 - the worker is another process
                    await asyncio.sleep(0.001)

    async def _received(self, count: int) -> None:
        """Return when the worker has received `count` events."""
        while self.story.counters["received"] < count:  # noqa: ASYNC110 - the counters are in another process
            await asyncio.sleep(0.05)

    def _replayed(self) -> int:
        counter = ReplayCounter(self.settings.data_dir)
        return sum(counter.replayed(partition) for partition in range(self.settings.partitions))

    async def _watch(self) -> None:
        """Keep the counters up to date until cancelled."""
        while True:
            self.story.counters = await live_counters(self.settings)
            await asyncio.sleep(0.5)

    async def _recount(self) -> Expected:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return await asyncio.get_running_loop().run_in_executor(
                pool,
                recount,
                self.folder,
                read_meter_set(self.dev.options.meter_set),
                self.story.traffic["broken"],
            )

    async def _settle_and_reconcile(self) -> None:
        await self._settle()
        self.screen.phase = "reconciling: a recount by SQL, and the oracle's from the producers' files"
        self.story.report = await self._reconcile()

    async def _settle(self) -> None:
        """Return when all sent events are folded, archived, relayed, reported and settled at Stripe."""
        base = await open_base(self.settings)
        store = open_live_view(self.settings)
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
        """A text that names unfinished work; empty if there is none."""
        counters = await live_counters(self.settings)
        if counters["received"] < self.story.traffic["sent"]:
            return f"{self.story.traffic['sent'] - counters['received']} events to be folded"
        if counters["deferred"]:
            return f"dedup decisions on {counters['deferred']} far-late events"
        if self._closed_ms is None:
            # All events are folded: move the clock until the last hour and report bucket are closed.
            self._closed_ms = (self.clock.now_ms() // plan.REPORT_INTERVAL_MS + 1) * plan.REPORT_INTERVAL_MS
            self._go_on_to(self._closed_ms + MINUTE_MS)
        archived, relayed = await reader.archive_positions(), await hourly.load_relayed()
        for partition in range(self.settings.partitions):
            checkpoint = await store.state.load_checkpoint(partition)
            end = (await log.bounds(EVENTS_TOPIC, partition)).next
            if checkpoint is None or checkpoint.stream_time_ms < self._closed_ms:
                return f"partition {partition} to pass the hour"
            if partition not in archived or archived[partition].next_offset < end - WORKERS_LAG_MAX:
                return f"partition {partition} to be archived"
            if partition not in relayed or relayed[partition].stream_time_ms < self._closed_ms:
                return f"partition {partition} to be relayed to ClickHouse"
            _, buckets = await store.reports.report_buckets(partition)
            if any(bucket + plan.REPORT_INTERVAL_MS <= self._closed_ms for bucket in buckets):
                return f"reports of partition {partition} to be written"
        pending = await unsettled_intents(log, self.settings.partitions)
        return f"Stripe: {pending} reports" if pending else ""

    def _go_on_to(self, simulated_ms: int, factor: int = plan.FACTOR) -> None:
        """Set the simulated clock of all processes forward."""
        write_clock(self._clock_path, ScaledClock(SystemClock().now_ms(), simulated_ms, factor))

    async def _prove(self, expected: Expected) -> None:
        self.screen.step("Comparing the live view with the oracle")
        self.story.counters = await live_counters(self.settings)
        self.story.replayed = self._replayed()
        self.story.mismatches = await mismatches(self.settings, expected)

    async def _reconcile(self) -> Report:
        # The SQL database is deleted at the same time; `billing` compares the mirrors itself.
        return await reconcile_deployment(
            self.settings, None, None, stripe_reads_max=10_000, archive_wait_s=plan.ARCHIVE_WAIT_S, mirror=False
        )

    async def _break_it(self) -> None:
        """Inject two faults; the reconciler must name both."""
        self.screen.step("Two faults on purpose: a row deleted from ClickHouse, a meter event sent twice to Stripe")
        account, event_id = await lose_event(self.settings)
        customer = await send_twice(self.dev.stripe_url)
        # The reconciler does not compare recent events at Stripe: move the clock by half an hour.
        self._go_on_to(self.clock.now_ms() + 30 * MINUTE_MS, plan.BILLING_FACTOR)
        report = self.story.faulty_report = await self._reconcile()
        if any(row.account == account and row.cause is Cause.MISSING for row in report.rows):
            self.story.faults_found.append(f"event {event_id} of {account} is missing in ClickHouse")
        if any(
            row.pair is Pair.STRIPE and row.cause is Cause.EXTRA and row.stripe_customer == customer
            for row in report.rows
        ):
            self.story.faults_found.append(f"Stripe holds too much for {customer}")


async def run_demo(*, as_json: bool, keep: Path | None, events: int, kills: int) -> int:
    """Run the demo and print its summary; returns the exit code. Keeps the data after a failure or with `keep`."""
    folder = keep or Path(tempfile.mkdtemp(prefix="tidemark-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    screen = Screen(quiet=as_json)
    with locked_folder(folder / "data", "--keep"):
        story = await Demo(folder, events, kills, screen).run()
    problems = verdict(story, kills)
    screen.print(summary(story, problems))
    if problems:
        screen.print(f"The data is kept in {folder}")
    elif keep is None:
        shutil.rmtree(folder)
    if as_json:
        print(json.dumps(story.result()))
    return 1 if problems else 0
