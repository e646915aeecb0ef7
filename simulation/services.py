"""The fakes of the services, extended by faults of a whole service."""

from __future__ import annotations

import asyncio
import bisect
import dataclasses
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from sqlalchemy import delete, select

from pipeline.logs.fake import FakeLog
from schemas.billing_events import ObjectName
from schemas.clock import Clock
from schemas.errors import Transient
from schemas.log import Headers, Record
from schemas.periods import AccountState
from schemas.reports import MeterEvent
from schemas.rollup import Checkpoint
from schemas.side_tables import Outcome, Overlaps, Step, Timeline
from simulation.faults import Fault, Faults, Rates
from simulation.invoicing import WatchedBills
from simulation.loop import SimulatedClock
from simulation.processes import Trace
from simulation.stripe_account import DrivenObjects, StripeAccount
from simulation.traffic import PARTITIONS
from sinks.clickhouse.fake import FakeClickHouse
from sinks.redis.fake import FakeAccounts, FakeLiveView, FakeServer, FakeState
from sinks.sql.fake import FakeSideTables
from sinks.sql.intents import READER
from sinks.sql.tables import intents, metadata, positions
from sinks.stripe.connection import json_of
from sinks.stripe.fake import FakeFault, FakeStripe
from sinks.stripe.objects import Parse

GAP_PROBABILITY: Final = 0.05
SILENCE_S: Final = (60.0, 5_400.0)
LATE_READ_S: Final = 200.0


class WatchedLog(FakeLog):
    """The log's fake with a copy of all appended records, readers that can wait, and gaps between offsets.

    Transactions and compaction leave such gaps in Kafka.
    """

    def __init__(self, clock: Clock, chance: random.Random) -> None:
        super().__init__(clock)
        self._chance = chance
        self.appended: dict[tuple[str, int], list[Record]] = {}
        self._waiting: dict[tuple[str, int], list[asyncio.Future[None]]] = {}

    async def append(
        self, topic: str, partition: int, value: bytes, *, key: bytes | None = None, headers: Headers = ()
    ) -> int:
        """Like the fake; wakes waiting readers."""
        offset = await super().append(topic, partition, value, key=key, headers=headers)
        part = self._partitions[topic, partition]
        self.appended.setdefault((topic, partition), []).append(part.records[-1])
        part.next_offset += self._chance.random() < GAP_PROBABILITY
        for waiting in self._waiting.pop((topic, partition), ()):
            _wake(waiting)
        return offset

    async def read(self, topic: str, partition: int, offset: int, records_max: int = 500) -> list[Record]:
        """Like the fake; skips gaps between offsets."""
        records = self._partition(topic, partition).records
        start = bisect.bisect_left(records, offset, key=lambda record: record.offset)
        return records[start : start + records_max]

    def first(self, topic: str, partition: int) -> int:
        """The offset of the oldest record that the log keeps."""
        records = self._partitions[topic, partition].records
        return records[0].offset if records else 0

    def end(self, topic: str, partition: int) -> int:
        """The offset after the last record."""
        records = self.appended.get((topic, partition))
        return records[-1].next_offset if records else 0

    async def grown(self, topic: str, partition: int, offset: int, patience_s: float) -> None:
        """Return when the partition has a record at or after `offset`, or after `patience_s`."""
        if self.end(topic, partition) > offset:
            return
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()
        self._waiting.setdefault((topic, partition), []).append(waiting)
        timer = loop.call_later(patience_s, _wake, waiting)
        try:
            await waiting
        finally:
            timer.cancel()


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


class LosingView(FakeLiveView):
    """The fake of Redis, which can return to an earlier state, like a server without fsync or after a fail-over."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.state: CountedState = CountedState(self)
        self.accounts: WatchedAccounts = WatchedAccounts(self.server, clock)

    def copy(self) -> dict[int, Any]:
        """A copy of the whole state."""
        return {number: _copied(stored) for number, stored in self.server.partitions.items()}

    def restore(self, state: dict[int, Any]) -> None:
        """Return to an earlier state; later writes are lost."""
        self.server.partitions = {number: _copied(stored) for number, stored in state.items()}


class WatchedAccounts(FakeAccounts):
    """Like the fake; records when which account was read."""

    def __init__(self, server: FakeServer, clock: Clock) -> None:
        super().__init__(server)
        self._clock = clock
        self.looked: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)

    async def accounts(
        self, partition: int, accounts: Sequence[str]
    ) -> tuple[Checkpoint | None, dict[str, AccountState]]:
        """Like the fake; records the time of the read and the stream time of the states."""
        checkpoint, states = await super().accounts(partition, accounts)
        if checkpoint is not None:
            for account in accounts:
                self.looked[account].append((self._clock.now_ms(), checkpoint.stream_time_ms))
        return checkpoint, states


class CountedState(FakeState):
    """Like the fake; counts commits and slices of marks."""

    def __init__(self, view: LosingView) -> None:
        super().__init__(view.server)
        self._view = view
        self.commits = 0
        self.slices_max: Counter[int] = Counter()
        self.before_commit: dict[int, list[asyncio.Future[Any]]] = {}

    async def commit(self, partition: int, believed: Any, changes: Any) -> None:
        """Like the fake; counts commits and copies the state before requested commits."""
        self.commits += 1
        for waiting in self.before_commit.pop(self.commits, ()):
            if not waiting.done():
                waiting.set_result(self._view.copy())
        await super().commit(partition, believed, changes)
        slices = len({key.slice_start_ms for key in self._server.at(partition).marks})
        self.slices_max[partition] = max(self.slices_max[partition], slices)


class SharedTables(FakeSideTables):
    """Like the fake; shows whole tables, and loses the ledger of intents. `once_aside`: the events that a commit ever
    set aside."""

    def __init__(self, timeline: Timeline, overlaps: Overlaps) -> None:
        super().__init__(timeline, overlaps)
        self.once_aside: set[str] = set()

    async def commit(self, step_: Step) -> Mapping[str, Outcome]:
        """Like the store."""
        outcomes = await super().commit(step_)
        self.once_aside |= {event_id for event_id, outcome in outcomes.items() if outcome is Outcome.SET_ASIDE}
        return outcomes

    def watched_bills(self, clock: Clock) -> WatchedBills:
        """The bills, watched."""
        return WatchedBills(self._run, clock)

    def empty_ledger(self) -> None:
        """Lose all intents and the positions of their reader."""
        with self._engine.begin() as connection:
            connection.execute(delete(intents))
            connection.execute(delete(positions).where(positions.c.reader == READER))

    def rows(self, table: str) -> list[dict[str, Any]]:
        """All rows of a table, by key."""
        with self._engine.begin() as connection:
            found = connection.execute(select(metadata.tables[table])).mappings()
            return sorted((dict(row) for row in found), key=lambda row: str(list(row.values())))


class UnsureObjects(DrivenObjects):
    """Stripe's objects; some reads fail or are late, and for some objects Stripe keeps silent for a while."""

    def __init__(self, account: StripeAccount, chance: random.Random, faults: Faults, rate: float) -> None:
        super().__init__(account)
        self._chance = chance
        self._faults = faults
        self._rate = rate
        self._reads = 0
        self._silent_until_s: dict[ObjectName, float] = {}

    async def fetch(self, name: ObjectName) -> dict[str, object] | None:
        """Like the driver; raises `Transient` while Stripe keeps silent about the object."""
        draw, length_s = self._chance.random(), self._chance.uniform(*SILENCE_S)
        now_s = asyncio.get_running_loop().time()
        if draw < self._rate / 5 and self._faults.strike(Fault.STRIPE_OBJECT_SILENT, f"{name.id}#{self._reads}"):
            self._silent_until_s[name] = now_s + length_s
        if self._faults.active and now_s < self._silent_until_s.get(name, 0.0):
            raise Transient(f"stripe keeps silent about {name.id}")
        return await super().fetch(name)

    async def _get(
        self, path: str, options: Mapping[str, object] | None = None, parse: Parse = json_of
    ) -> dict[str, Any]:
        self._reads += 1
        draw, slow, late_s = self._chance.random(), self._chance.random(), self._chance.uniform(1, LATE_READ_S)
        kind, key = self._chance.choice(_READS), f"stripe.read#{self._reads}"
        if draw < self._rate and self._faults.strike(kind, key):
            raise Transient(f"{kind}: {path}")
        answer = await super()._get(path, options, parse)
        if slow < self._rate and self._faults.strike(Fault.STRIPE_READ_SLOW, key):
            await asyncio.sleep(late_s)
        return answer


class Deployment(Protocol):
    """What the world shows to Stripe's side and to the operator."""

    faults: Faults
    rates: Rates
    trace: Trace
    clock: SimulatedClock
    log: WatchedLog
    store: LosingView
    clickhouse: FakeClickHouse
    stripe: FakeStripe
    account: StripeAccount
    tables: SharedTables
    objects: UnsureObjects

    def chance(self, name: str) -> random.Random: ...

    def fail(self, where: str, what: str) -> None: ...


def _copied(state: Any) -> Any:
    """Copy two levels; deeper values are never changed in place."""

    def copied(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: inner.copy() if isinstance(inner, dict | set) else inner for key, inner in value.items()}
        return value

    return type(state)(**{field.name: copied(getattr(state, field.name)) for field in dataclasses.fields(state)})


_READS: Final = (Fault.STRIPE_READ_RATE_LIMITED, Fault.STRIPE_READ_FAILED)
_STRIPE = {
    Fault.STRIPE_CONFLICT: FakeFault.CONFLICT,
    Fault.STRIPE_RATE_LIMITED: FakeFault.RATE_LIMITED,
    Fault.STRIPE_SERVER_ERROR: FakeFault.SERVER_ERROR,
    Fault.STRIPE_SERVER_ERROR_AFTER: FakeFault.SERVER_ERROR_AFTER_COMMIT,
    Fault.STRIPE_NO_ANSWER: FakeFault.NO_ANSWER,
    Fault.STRIPE_ANSWER_LOST: FakeFault.LOST_ANSWER,
    Fault.STRIPE_REJECTED: FakeFault.REJECTED,
}


class StripeFaults:
    """Draws the faults of sends to Stripe."""

    def __init__(self, chance: random.Random, faults: Faults, rate: float) -> None:
        self._chance = chance
        self._faults = faults
        self._rate = rate
        self._sends = 0

    def __call__(self, _event: MeterEvent) -> FakeFault | None:
        self._sends += 1
        draw, kind = self._chance.random(), self._chance.choice(list(_STRIPE))
        rate = self._rate / 10 if kind is Fault.STRIPE_REJECTED else self._rate
        if draw < rate and self._faults.strike(kind, f"stripe.send#{self._sends}"):
            return _STRIPE[kind]
        return None


def is_whole(state: Mapping[int, Any]) -> bool:
    """Whether every partition has a checkpoint. A store without a checkpoint counts as emptied."""
    return all(partition in state and state[partition].checkpoint for partition in range(PARTITIONS))
