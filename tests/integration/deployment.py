"""A deployment of real processes: roles that are started, killed, started again and awaited, and never outlive a test.

The log, Redis and ClickHouse are read from here with the product's own drivers; what must be in them is said by the
oracle (`tests.integration.exactness`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final, Self

from demo.worker import ReplayCounter
from pipeline.ingest.router import ROUTER_GROUP
from pipeline.local.processes import LocalProcess, python
from pipeline.logs.rejected import quarantine_entry
from pipeline.open import Base, apply_meter_set, open_base, open_live_view
from pipeline.settings import Settings, load_settings
from schemas.log import EVENTS_TOPIC, INBOX_TOPIC, REJECTED_TOPIC, Record
from schemas.meters import MeterSet
from sinks.clickhouse.client import open_clickhouse
from sinks.clickhouse.reader import ClickHouseReader
from sinks.clickhouse.writer import ClickHouseStore
from sinks.redis.view import RedisLiveView
from tests.traffic.generate import METER_SET, SECOND_US, Rates, TrafficRecord, records

ROOT: Final = Path(__file__).parents[2]
SECRET: Final = "a secret of thirty-two characters"
ACCOUNTS: Final = 60
PATIENCE_S: Final = 90.0
STOP_TIMEOUT_S: Final = 40.0
COMMAND_S: Final = 120.0
EXIT_TRANSIENT: Final = 1
EXIT_OPERATOR: Final = 3


def clean_environment(**variables: str) -> dict[str, str]:
    """This process's environment without its `TIDEMARK_…`, and with these variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMARK_")}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **variables}


def tidemark(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run one command in a folder."""
    return subprocess.run(
        python("pipeline.cli", *arguments),
        cwd=folder, env=clean_environment(**variables), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=COMMAND_S, check=False,
    )  # fmt: skip


@contextlib.contextmanager
def running_dev(folder: Path, *arguments: str) -> Iterator[LocalProcess]:
    """`tidemark dev` in a folder, from the moment it says that it runs; stopped by ctrl-C, with exit code 0."""
    command = python("pipeline.cli", "dev", *arguments)
    process = LocalProcess("tidemark dev", command, folder / "output", environment=clean_environment(), cwd=folder)
    process.start()
    try:
        process.wait_line("Press ctrl-C")
        yield process
        process.signal(signal.SIGINT)
        assert process.wait(60) == 0, process.output()
        assert "Traceback" not in process.output()
    finally:
        process.kill()


async def until(condition: Callable[[], Awaitable[bool]], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Return once `condition` holds, which others make true; fails after `timeout_s`."""
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline_s, f"timed out after {timeout_s:.0f} s: {what}"
        await asyncio.sleep(0.02)


class Role:
    """One `tidemark` process. While `kept` it is started again when it dies of a kill or of something passing, as
    a supervisor does; `lost` says that it ended with something that a restart cannot mend, which fails the test
    unless it `may_refuse`."""

    def __init__(self, name: str, arguments: Iterable[str], environment: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.kept = True
        self.lost = False
        self.may_refuse = False
        self.starts = 0
        self.codes: list[int] = []
        self._log_path = folder / f"{name}.log"
        role, *options = arguments
        module = ("demo.worker", *options) if role == "worker" else ("pipeline.cli", *arguments)
        self._process = LocalProcess(
            name, python(*module), self._log_path, environment=clean_environment(**environment), cwd=folder
        )

    def start(self) -> None:
        """Start the process, which goes on in the background."""
        self.starts += 1
        self._process.start()

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process.pid is not None

    def kill(self) -> bool:
        """kill -9; False where it is not running at the moment."""
        return self._process.signal(signal.SIGKILL)

    def tend(self) -> None:
        """Note an end; start a kept role again. Fails where it ended with something that a restart cannot mend."""
        code = self._process.exit_code
        if code is None or len(self.codes) == self.starts:
            return
        self.codes.append(code)
        if self.kept and code in (EXIT_TRANSIENT, -signal.SIGKILL):
            self.start()
        elif self.kept:
            self.kept, self.lost = False, True

    async def refusal(self) -> str:
        """What it said last, once it has ended because an operator must choose; the test goes on without it."""

        async def gave_up() -> bool:
            return self.lost

        self.may_refuse = True
        await until(gave_up, f"{self.name} to give up")
        assert self.codes[-1] == EXIT_OPERATOR, self.output()
        assert "Traceback" not in self.output(), self.output()
        return self.output().splitlines()[-1]

    def resume(self) -> None:
        """Start it again after it was stopped or had given up, and keep it running."""
        self.kept, self.lost = True, False
        self.start()

    async def stop(self) -> int:
        """Stop in order; the exit code."""
        self.kept = False
        await asyncio.to_thread(self._process.stop, STOP_TIMEOUT_S)
        self.tend()
        return self.codes[-1]

    def end(self) -> None:
        """Whatever state it is in, it is gone afterwards."""
        self.kept = False
        self._process.kill()

    def output(self) -> str:
        """All it has printed, over all its starts."""
        return self._log_path.read_text(errors="replace")


class Deployment:
    """Roles on one log, one Redis and one ClickHouse, whose servers are the caller's.

    `async with`: makes the log with the meter set, and at the end kills what still runs.
    """

    meter_set: ClassVar[Mapping[str, Any]] = METER_SET
    patience_s: ClassVar[float] = PATIENCE_S

    def __init__(self, folder: Path, redis_url: str, clickhouse_url: str, log_url: str = "", **variables: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.environment = {
            "TIDEMARK_DATA_DIR": str(folder / "data"),
            "TIDEMARK_LOG_URL": log_url or f"embedded://{folder / 'log.db'}",
            "TIDEMARK_REDIS_URL": redis_url,
            "TIDEMARK_CLICKHOUSE_URL": clickhouse_url,
            "TIDEMARK_SECRET": SECRET,
            "TIDEMARK_TICK_INTERVAL_S": "0.3",
            "TIDEMARK_RELAY_INTERVAL_S": "0.2",
            "TIDEMARK_ARCHIVE_LINGER_S": "0.3",
            **variables,
        }
        named: dict[str, Any] = {
            name.removeprefix("TIDEMARK_").lower(): value for name, value in self.environment.items()
        }
        self.settings: Settings = load_settings(**named)
        self.partitions = range(self.settings.partitions)
        self.roles: dict[str, Role] = {}
        self.base: Base
        self.store: RedisLiveView
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.base = await open_base(self.settings)
        self.store = open_live_view(self.settings)
        await apply_meter_set(self.base, MeterSet.model_validate(self.meter_set))
        self._keeper = asyncio.create_task(self._keep())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for role in self.roles.values():
            role.end()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self.store.close()
        await self.base.log.close()

    async def _keep(self) -> None:
        while True:
            for role in self.roles.values():
                role.tend()
            await asyncio.sleep(0.02)

    def start(self, *arguments: str, name: str = "", **variables: str) -> Role:
        """Start `tidemark ARGUMENTS` as a role of this deployment."""
        role = Role(name or arguments[0], arguments, {**self.environment, **variables}, self.folder)
        self.roles[role.name] = role
        role.start()
        return role

    async def until(self, condition: Callable[[], Awaitable[bool]], what: str, timeout_s: float | None = None) -> None:
        """`until`, which also fails at once where a role cannot be kept running; `patience_s` if not said."""

        async def checked() -> bool:
            for role in self.roles.values():
                assert role.may_refuse or not role.lost, (
                    f"{role.name} ended with {role.codes}:\n{role.output()[-4000:]}"
                )
            return await condition()

        await until(checked, what, timeout_s or self.patience_s)

    async def stop_roles(self) -> None:
        """Stop all roles in order; nothing moves afterwards."""
        codes = await asyncio.gather(*(role.stop() for role in self.roles.values() if role.kept))
        assert not any(codes), {role.name: role.codes for role in self.roles.values()}

    # What the stores and the log say

    async def folded(self) -> dict[int, int]:
        """The next offset of each partition's checkpoint, 0 where there is none."""
        checkpoints = {partition: await self.store.state.load_checkpoint(partition) for partition in self.partitions}
        return {partition: checkpoint.next_offset if checkpoint else 0 for partition, checkpoint in checkpoints.items()}

    async def ends(self, topic: str = EVENTS_TOPIC) -> dict[int, int]:
        """The end of each partition of the log."""
        return {partition: (await self.base.log.bounds(topic, partition)).next for partition in self.partitions}

    async def folded_to(self, ends: Mapping[int, int]) -> None:
        """Return once all before `ends` is folded."""

        async def reached() -> bool:
            return _covers(await self.folded(), ends)

        await self.until(reached, f"folded up to {ends}")

    async def at_rest(self) -> None:
        """Return once all that is in the log now is routed, folded, judged, archived and relayed."""
        await self.until(self._routed, "usage.inbox routed")
        await self.folded_to(await self.ends())
        await self.until(self._cut, "answers to all late bindings")
        await self.until(self._judged, "decisions on all that was deferred")
        ends = await self.ends()
        await self.folded_to(ends)
        clickhouse = open_clickhouse(self.settings.clickhouse_url)
        reader, hourly = ClickHouseReader(clickhouse), ClickHouseStore(clickhouse)

        async def archived() -> bool:
            positions = await reader.archive_positions()
            return _covers({partition: each.next_offset for partition, each in positions.items()}, ends)

        async def relayed() -> bool:
            positions = await hourly.load_relayed()
            if not _covers({partition: each.next_offset for partition, each in positions.items()}, ends):
                return False
            return not any([await self.store.outbox.duplicates(partition, 1) for partition in self.partitions])

        try:
            # A role that has just been started may not have made the tables yet.
            await hourly.migrate()
            await self.until(archived, f"archived up to {ends}")
            await self.until(relayed, f"relayed up to {ends}")
        finally:
            await clickhouse.close()

    async def _cut(self) -> bool:
        return not any([(await self.store.accounts.restating(partition, 1))[1] for partition in self.partitions])

    async def _judged(self) -> bool:
        return not any([(await self.store.deferred.waiting(partition))[1].events for partition in self.partitions])

    async def _routed(self) -> bool:
        log = self.base.log
        for partition, end in (await self.ends(INBOX_TOPIC)).items():
            if end and (await log.committed(ROUTER_GROUP, INBOX_TOPIC, partition) or 0) < end:
                return False
        return True

    async def records(self, topic: str, partition: int) -> list[Record]:
        """All records of a partition."""
        found: list[Record] = []
        offset, end = await self.base.log.bounds(topic, partition)
        while offset < end and (batch := await self.base.log.read(topic, partition, offset)):
            found += batch
            offset = batch[-1].next_offset
        return found

    async def quarantined(self) -> dict[tuple[int, int, int], str]:
        """Reason by (partition, offset, place in the record) of what `usage.events` held; repeated entries are one."""
        found: dict[tuple[int, int, int], str] = {}
        for partition in self.partitions:
            for record in await self.records(REJECTED_TOPIC, partition):
                entry = quarantine_entry(record)
                assert entry.topic == EVENTS_TOPIC
                place = (entry.partition, entry.offset, entry.place)
                assert found.setdefault(place, entry.reason) == entry.reason
        return found

    def delivered(self, folder: Path | None = None) -> dict[int, int]:
        """How far each partition's records were handed to a worker with this data folder."""
        counter = ReplayCounter(folder or self.settings.data_dir)
        return {partition: counter.delivered(partition) for partition in self.partitions}

    def replayed(self) -> int:
        """Events that were handed to a worker again after one that had them died."""
        counter = ReplayCounter(self.settings.data_dir)
        return sum(counter.replayed(partition) for partition in self.partitions)

    # Traffic

    async def append(self, record: TrafficRecord) -> None:
        """Append a record of the generator to `usage.events`."""
        await self.base.log.append(EVENTS_TOPIC, record.partition, record.value, key=record.key, headers=record.headers)

    async def append_all(self, records: Iterable[TrafficRecord]) -> None:
        """Append records without waiting for anything to fold them."""
        for record in records:
            await self.append(record)

    async def feed(self, records: Iterable[TrafficRecord], stop: asyncio.Event, backlog_records_max: int) -> int:
        """Append until `stop`, never further ahead of the fold than `backlog_records_max` a partition, so that a
        worker always finds work and a slow machine is not flooded. How many records."""
        appended = 0
        for record in records:
            if stop.is_set():
                break
            if appended % 10 == 0:
                await self._room(stop, backlog_records_max)
            await self.append(record)
            appended += 1
        return appended

    async def _room(self, stop: asyncio.Event, backlog_records_max: int) -> None:
        async def room() -> bool:
            folded, ends = await self.folded(), await self.ends()
            return stop.is_set() or all(ends[each] - folded[each] < backlog_records_max for each in ends)

        await self.until(room, "room for more traffic")


def traffic(deployment: Deployment, events: int, seed: int = 5) -> Iterator[TrafficRecord]:
    """Records of `ACCOUNTS` accounts that are sent from now on."""
    now_us = deployment.base.clock.now_ms() * 1000
    rates = Rates(duplicate=0.05, conflict=0.02, malformed=0.03, late=0.05)
    return records(
        seed, ACCOUNTS, events, now_us, partitions=4, batch_events_max=60, span_us=30 * SECOND_US, rates=rates
    )


def _covers(positions: Mapping[int, int], ends: Mapping[int, int]) -> bool:
    return all(positions.get(partition, 0) >= end for partition, end in ends.items())
