"""The same number of events over more and more accounts: what an account more costs each event, and Redis.

The worker's own processor, store and relay in this process, on a real Valkey and ClickHouse engine; each step on empty
stores. Every account has used something before the measurement begins, so that its total, cell and place in the
rankings are there.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from redis import Redis

from aggregators.codec import parse_value
from benchmarks.figures import Report
from benchmarks.live import EVENTS_OF_AN_ACCOUNT, bytes_by_kind
from benchmarks.machine import resident_bytes
from benchmarks.services import SECRET, Services, Stores
from benchmarks.traffic import RECORD_EVENTS, time_text
from pipeline.clock import SystemClock
from pipeline.logs.control_records import ensure_deployment, ensure_meter_set
from pipeline.logs.fake import FakeLog
from pipeline.open import read_meter_set
from pipeline.rollup.processor import RollupProcessor, RollupSettings
from pipeline.rollup.relays import HourlyRelay
from pipeline.settings import Settings
from schemas.log import EVENTS_TOPIC, Record
from sinks.clickhouse.client import open_clickhouse
from sinks.clickhouse.writer import ClickHouseStore
from sinks.redis.view import RedisLiveView

FLUSH_RECORDS: Final = 20
TOTALS_AT_ONCE: Final = 5_000


class AccountsStep(NamedTuple):
    """One step: time per event, of this process and by the wall, the cells each event touched for itself, memory of
    this process and Redis at its end, and the bytes and number of each kind of key."""

    accounts: int
    events: int
    cpu_us: float
    wall_us: float
    cells: int
    process_bytes: int
    redis_bytes: int
    kinds: dict[str, tuple[float, int]]

    @property
    def cells_per_event(self) -> float:
        """How many different cells a flush of 20 000 events writes, per event: 1 where no two events share one."""
        return self.cells / self.events


class _Usage:
    """Random events of accounts of one partition, and what they add up to."""

    def __init__(self, accounts: int, offset: int, now_ms: int) -> None:
        self._chance = random.Random(1)
        self._accounts = accounts
        self._offset = offset
        self._now_ms = now_ms
        self._time = time_text(now_ms)
        self.tokens = self.requests = 0

    def first(self) -> Iterator[list[Record]]:
        """One event of each account."""
        numbers = iter(range(self._accounts))
        yield from self._flushes(self._accounts, lambda: (next(numbers), 0))

    def some(self, events: int) -> Iterator[list[Record]]:
        """Events of any account and kind."""
        chance, kinds = self._chance, len(EVENTS_OF_AN_ACCOUNT)
        yield from self._flushes(events, lambda: (chance.randrange(self._accounts), chance.randrange(kinds)))

    def _flushes(self, events: int, draw: Callable[[], tuple[int, int]]) -> Iterator[list[Record]]:
        for start in range(0, events, FLUSH_RECORDS * RECORD_EVENTS):
            left = min(events - start, FLUSH_RECORDS * RECORD_EVENTS)
            yield [self._record(min(RECORD_EVENTS, left - at), draw) for at in range(0, left, RECORD_EVENTS)]

    def _record(self, events: int, draw: Callable[[], tuple[int, int]]) -> Record:
        body = []
        for index in range(events):
            number, which = draw()
            kind, data = EVENTS_OF_AN_ACCOUNT[which]
            self.requests += kind == "api.request"
            self.tokens += 1234 if kind == "llm.completion" else 0
            body.append({
                "specversion": "1.0", "id": f"{self._offset}/{index}", "source": "benchmark", "type": kind,
                "subject": f"acct_{number:07d}", "time": self._time, "data": data,
            })  # fmt: skip
        record = Record(EVENTS_TOPIC, 0, self._offset, self._now_ms, None, msgspec.json.encode(body))
        self._offset += 1
        return record


async def accounts_growth(
    folder: Path, counts: Sequence[int], events: int, report: Report, say: Callable[[str], None]
) -> list[AccountsStep]:
    """`events` events over each number of accounts."""
    services = Services(folder, say)
    steps = []
    for accounts in counts:
        with ExitStack() as stack:
            step = await _step(services.stores(stack), accounts, events, report)
        steps.append(step)
        say(f"{accounts:,} accounts: {step.cpu_us:.1f} µs of processor time and {step.wall_us:.1f} µs an event")
    return steps


async def _step(stores: Stores, accounts: int, events: int, report: Report) -> AccountsStep:
    clock, secret = SystemClock(), SECRET.encode()
    log = FakeLog(clock)
    await ensure_deployment(log, secret, Settings(partitions=1).topics())
    await ensure_meter_set(log, secret, read_meter_set(None))
    store = RedisLiveView(stores.valkey.url)
    hourly = ClickHouseStore(open_clickhouse(stores.clickhouse_url))
    await hourly.migrate()
    rollup = RollupProcessor(log, store.state, clock, secret, RollupSettings())
    relay = HourlyRelay(store.outbox, store.drops, store.deferred, hourly)
    await rollup.start_offset(0)
    head = await log.read(EVENTS_TOPIC, 0, 0, 100)
    await rollup.step(0, head)
    # One hour of stream time: what is measured does not depend on when it was begun.
    usage = _Usage(accounts, head[-1].next_offset, clock.now_ms())
    for records in usage.first():
        await rollup.step(0, records)
    while not (await relay.relay(0)).complete:
        pass
    cpu_s = wall_s = 0.0
    cells = 0
    for records in usage.some(events):
        began = time.process_time(), time.perf_counter()
        await rollup.step(0, records)
        relayed = await relay.relay(0)
        cpu_s, wall_s = cpu_s + time.process_time() - began[0], wall_s + time.perf_counter() - began[1]
        cells += relayed.cells
    await _verify(store, rollup, usage, accounts, events, report)
    with Redis.from_url(stores.valkey.url) as redis:
        redis_bytes = int(redis.info("memory")["used_memory"])
    await hourly.close()
    await store.close()
    return AccountsStep(
        accounts, events, cpu_s / events * 1e6, wall_s / events * 1e6, cells, resident_bytes(_own_pid()), redis_bytes,
        bytes_by_kind(stores),
    )  # fmt: skip


def _own_pid() -> int:
    return int(Path("/proc/self").readlink().name)


async def _verify(
    store: RedisLiveView, rollup: RollupProcessor, usage: _Usage, accounts: int, events: int, report: Report
) -> None:
    counted = rollup.checkpoints[0].counters.counted
    if counted != accounts + events:
        report.fail(f"{accounts} accounts: {counted} events were counted of {accounts + events}")
    found = {"api_requests": 0, "tokens": 0}
    cursor, keys = await store.totals.total_keys(0, 0, TOTALS_AT_ONCE)
    walked = set(keys)
    while cursor:
        cursor, keys = await store.totals.total_keys(0, cursor, TOTALS_AT_ONCE)
        walked.update(keys)
    ordered = sorted(walked)
    for start in range(0, len(ordered), TOTALS_AT_ONCE):
        _, totals = await store.totals.account_totals(0, ordered[start : start + TOTALS_AT_ONCE])
        for fields in totals.values():
            for meter in found:
                found[meter] += parse_value(fields.get(meter, "0")).minor
    if found != {"api_requests": usage.requests, "tokens": usage.tokens}:
        report.fail(f"{accounts} accounts: {found} were counted, sent were {usage.requests} and {usage.tokens}")
