"""Columns: every maker counts odd records as the oracle does, and the ledger never outlives what it was believed at."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, Final

import pytest

from aggregators import columns
from aggregators.codec import cell_text, parse_cell_text, parse_value
from aggregators.columns import Leave, MakerOf, PythonColumns
from aggregators.decode import decode
from oracle.model import Oracle
from pipeline.rollup.processor import RollupSettings
from schemas.aggregations import Aggregation, Value
from schemas.control import BindingRecord, MeterSetRecord
from schemas.errors import Transient
from schemas.log import EVENTS_TOPIC, Record
from schemas.meters import MeterSet
from schemas.periods import Billing, Binding, Interval
from schemas.rollup import Changes, Checkpoint, ReadRequest, View
from sinks.redis.fake import FakeLiveView, FakeServer, FakeState
from tests.traffic.generate import METER_SET, Rates, records, rfc3339
from tests.worlds.deployment import World

MARCH_MS: Final = 1_772_323_200_000  # 2026-03-01T00:00:00Z
HOUR_MS: Final = 3_600_000
NOON_MS: Final = MARCH_MS + 12 * HOUR_MS
LARGEST: Final = 10**18 - 1
ODD: Final[dict[str, Any]] = {
    "version": 1,
    "meters": [
        {"slug": "calls", "event_type": "call", "aggregation": "count", "dimensions": {"how": "$.how"}},
        {"slug": "units", "event_type": "sum", "aggregation": "sum", "value_path": "$.n"},
        {"slug": "exact", "event_type": "exact", "aggregation": "sum", "value_path": "$.n", "scale": 6},
        {"slug": "most", "event_type": "max", "aggregation": "max", "value_path": "$.n", "allow_negative": True},
        {"slug": "last", "event_type": "latest", "aggregation": "latest", "value_path": "$.n"},
        {"slug": "users", "event_type": "user", "aggregation": "unique", "value_path": "$.user"},
        {"slug": "both_calls", "event_type": "both", "aggregation": "count", "dimensions": {"a": "$.a", "b": "$.b.c"}},
        {"slug": "both_units", "event_type": "both", "aggregation": "sum", "value_path": "$.n"},
    ],
}  # fmt: skip


class Everything(PythonColumns):
    """A maker that finds nothing plain: every event is an exception."""

    def take(self, record: Record, leave: Leave) -> int:
        """Leave all events out."""
        decoded = decode(record.value, 65_536)
        for rejected in decoded.rejected:
            leave(rejected.place, rejected)
        for place, event in decoded.events:
            leave(place, event)
        return decoded.received


MAKERS: Final = pytest.mark.parametrize("maker_of", [PythonColumns, Everything], ids=["columns", "exceptions"])


def event(kind: str, time_ms: int = NOON_MS, **data: Any) -> dict[str, Any]:
    return {
        "specversion": "1.0", "id": f"{kind}-{random.getrandbits(64):x}", "source": "s", "type": kind, "subject": "a",
        "time": rfc3339(time_ms * 1000), "data": data,
    }  # fmt: skip


def raw(text: str, kind: str = "sum", name: str = "one") -> bytes:
    """A record of one event with a text as its data."""
    body = json.dumps(event(kind) | {"id": name})
    return body[: body.index('"data"')].encode() + b'"data": ' + text.encode() + b"}"


def batch(*events: dict[str, Any]) -> bytes:
    return json.dumps(events).encode()


WHOLES: Final[tuple[object, ...]] = (1, True, 1, False, 1.0)
TEXTS: Final[tuple[object, ...]] = ("1", 1, True, "true", None, "", [1], {})
KINDS: Final = ("sum", "latest")
TIMES: Final = (
    None, "2026-03-01T12:00:00Z", "2026-03-01t11:00:00.5z", "2026-03-01T12:00:00.1234567+01:00", "2026-03-01T12:00:60Z",
)  # fmt: skip


# The stream time of each record, and the record.
CASES: Final[dict[str, list[tuple[int, bytes]]]] = {
    "sums beyond 2^63": [(NOON_MS, batch(*(event("sum", n=LARGEST) for _ in range(24))))],
    "one more than the largest quantity": [(NOON_MS, batch(event("sum", n=LARGEST), event("sum", n=LARGEST + 1)))],
    "decimals of 18 digits": [
        (NOON_MS, batch(*(event("exact", n=text) for text in ("999999999999.999999", "0.000001", "123456789012.5"))))
    ] * 2,
    "a digit too many": [(NOON_MS, batch(*(event("exact", n=text) for text in ("1", "0.0000001", "01"))))],
    "True and 1": [
        (NOON_MS, batch(*(event(kind, n=value) for value in WHOLES for kind in (*KINDS, "max")))),
        (NOON_MS, batch(*(event("call", how=value) for value in TEXTS * 2), event("call"))),
        (NOON_MS, batch(*(event("user", user=value) for value in TEXTS * 2))),
    ],
    "keys that stand twice": [
        (NOON_MS, raw('{"n": 1, "n": 2}')), (NOON_MS, raw('{"n": "x", "n": 2}', name="two")),
        (NOON_MS, b'[{"specversion":"1.0","specversion":"1.0","id":"i","source":"s","type":"sum","subject":"a"}]'),
    ],
    "surrogates": [
        (NOON_MS, raw(r'{"how": "\ud83d\ude00"}', "call", "pair")),
        (NOON_MS, raw(r'{"how": "\ud83d"}', "call", "half")),
        (NOON_MS, raw('{"how": "😀"}', "call", "plain")), (NOON_MS, raw(r'{"n": 1, "x": "\udc00"}', name="other half")),
    ],
    "escapes in ids": [
        (NOON_MS, raw('{"n": 1}', name="ab").replace(b'"ab"', rb'"a\u0062"')), (NOON_MS, raw('{"n": 1}', name="ab")),
        (NOON_MS, raw('{"n": 1}', name="b").replace(b'"subject": "a"', rb'"subject": "\u0061"')),
    ],
    "an arrival bucket ends between two records": [
        (NOON_MS - 1, batch(event("sum", n=1), event("latest", n=1))),
        (NOON_MS, batch(event("sum", n=2), event("sum", n=3))),
        (NOON_MS + HOUR_MS, batch(event("sum", n=4))),
    ],
    "a period ends within a record": [
        (MARCH_MS, batch(*(event(kind, MARCH_MS + shift_ms, n=7) for shift_ms in (-1, 0, 1, -1) for kind in KINDS))),
        (MARCH_MS + HOUR_MS - 1, batch(event("sum", MARCH_MS - 1, n=1))),
        (MARCH_MS + HOUR_MS, batch(event("sum", MARCH_MS - 1, n=2))),
    ],
    "one meter of two cannot use the event": [
        (NOON_MS, batch(*(event("both", a="a", b={"c": c}, n=n) for c in ("x", 1.5) for n in (1, "x", 2)))),
    ],
    "the same identity within a record": [(NOON_MS, batch(*[event("sum", n=1) | {"id": "twice"}] * 3))],
    "no time, and times of other shapes": [
        (NOON_MS, batch(*(event("latest", n=number) | {"time": text} for number, text in enumerate(TIMES)))),
    ],
    "no list, and no event": [(NOON_MS, raw('{"n": 1}')), (NOON_MS, b"[1]"), (NOON_MS, b"["), (NOON_MS, b"")],
}  # fmt: skip


async def folded(world: World, maker_of: MakerOf, events_max: int = 20_000, at_once: int = 500) -> None:
    worker = world.rollup(RollupSettings(flush_events_max=events_max), maker_of)
    for partition in range(world.partitions):
        offset = await worker.start_offset(partition)
        while records := await world.log.read(EVENTS_TOPIC, partition, offset, at_once):
            await worker.step(partition, records)
            offset = records[-1].next_offset


def totals(world: World) -> dict[tuple[str, str, int], int]:
    assert isinstance(world.store, FakeLiveView)
    return {
        (key.account, meter, key.period_start_ms): parse_value(text).minor
        for partition in world.store.server.partitions.values()
        for key, fields in partition.totals.items()
        for meter, text in fields.items()
    }


async def loaded(case: list[tuple[int, bytes]]) -> tuple[World, Oracle]:
    world = World(MARCH_MS - 20 * HOUR_MS, 1)
    await world.start(ODD)
    oracle = Oracle(ODD, partitions=1)
    for stream_time_ms, value in case:
        world.clock.ms = stream_time_ms
        oracle.feed(0, await world.log.append(EVENTS_TOPIC, 0, value), stream_time_ms, value)
    return world, oracle


@MAKERS
@pytest.mark.parametrize("events_max", [1, 20_000], ids=["flush by flush", "at once"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_odd_records_count_as_the_oracle_counts_them(
    case: list[tuple[int, bytes]], events_max: int, maker_of: MakerOf
) -> None:
    """Totals and counters; each case also after the ledger has met its events."""
    world, oracle = await loaded(
        [*case, *((at_ms, value.replace(b'"id": "', b'"id": "again-')) for at_ms, value in case)]
    )

    await folded(world, maker_of, events_max)

    checkpoint = await world.store.state.load_checkpoint(0)
    assert checkpoint is not None
    assert checkpoint.counters._asdict() == oracle.counters[0]
    assert totals(world) == {(name, meter, period[0]): value for (name, meter, period), value in oracle.totals.items()}


@MAKERS
async def test_sums_beyond_2_to_the_127_are_exact(maker_of: MakerOf) -> None:
    """Totals are texts of any length."""
    world, _ = await loaded([(NOON_MS, batch(event("sum", n=1)))])
    await folded(world, maker_of)
    assert isinstance(world.store, FakeLiveView)
    stored = world.store.server.partitions[0]
    ((key, _),) = stored.totals.items()
    stored.totals[key]["units"] = str(2**127)
    ((cell, text),) = stored.cells.items()
    stored.cells[cell] = cell_text(Aggregation.SUM, 0, parse_cell_text(text)[2], Value(2**127 + 1))
    await world.log.append(EVENTS_TOPIC, 0, batch(event("sum", n=LARGEST), event("sum", n=LARGEST)))

    await folded(world, maker_of)

    assert stored.totals[key]["units"] == str(2**127 + 2 * LARGEST)
    assert parse_cell_text(stored.cells[cell])[3].minor == 2**127 + 1 + 2 * LARGEST


@MAKERS
async def test_an_account_that_is_bound_between_two_records_of_a_flush(maker_of: MakerOf) -> None:
    """Usage from the binding's instant on counts in the new period, as for the oracle."""
    world, oracle = await loaded([(NOON_MS, batch(event("sum", n=1)))])
    free = Binding(effective_from_ms=0, billing=Billing.FREE)
    later_ms = NOON_MS + 6 * 60_000
    daily = Binding(effective_from_ms=later_ms, anchor_ms=later_ms, interval=Interval.DAY, billing=Billing.FREE)
    for revision, binding in enumerate((free, daily), start=1):
        await world.control(0, BindingRecord(account="a", revision=revision, binding=binding))
        oracle.bind(0, "a", binding.model_dump(mode="json"), NOON_MS)
        value = batch(*(event("sum", later_ms + shift_ms, n=2) for shift_ms in (-2 * 60_000, -1)))
        oracle.feed(0, await world.log.append(EVENTS_TOPIC, 0, value), NOON_MS, value)
    world.clock.ms = later_ms + 1
    value = batch(*(event("sum", later_ms + shift_ms, n=4) for shift_ms in (-1, 0, 1, -1)))
    oracle.feed(0, await world.log.append(EVENTS_TOPIC, 0, value), world.clock.ms, value)

    await folded(world, maker_of)

    assert len(totals(world)) == 2
    assert totals(world) == {(name, meter, period[0]): value for (name, meter, period), value in oracle.totals.items()}


@pytest.mark.parametrize("seed", range(6))
async def test_columns_leave_the_same_bytes_as_exceptions(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks, totals, cells, versions, reports and deferred events of any traffic, in any flushes; and caches of any
    size."""
    chance = random.Random(seed)
    monkeypatch.setattr(columns, "KNOWN_MAX", chance.choice([1, 7, 524_288]))
    interval_ms = chance.choice([60_000, HOUR_MS])
    meters = [{**meter, "stripe_event_name": meter["slug"]} for meter in METER_SET["meters"]]
    policy = {**METER_SET["policy"], "report_interval_ms": interval_ms}
    world = World(MARCH_MS - 40 * HOUR_MS, 2)
    await world.start({**METER_SET, "meters": meters, "policy": policy})
    world.clock.ms = MARCH_MS - 2 * HOUR_MS
    for record in records(
        seed, 20, 1_000, world.clock.ms * 1000, partitions=2, span_us=5 * HOUR_MS * 1000, rates=Rates(far_late=0.05)
    ):
        world.clock.ms = max(world.clock.ms, record.sent_ms)
        await world.log.append(EVENTS_TOPIC, record.partition, record.value, headers=tuple(record.headers))
    slow = World(0, 2)
    slow.log = world.log
    await folded(slow, Everything)

    await folded(world, PythonColumns, chance.choice([1, 30, 20_000]), chance.randrange(1, 60))

    assert isinstance(world.store, FakeLiveView)
    assert isinstance(slow.store, FakeLiveView)
    assert world.store.server.partitions == slow.store.server.partitions


class Watched(FakeState):
    """Notes what is read, and may fail to commit."""

    def __init__(self, server: FakeServer) -> None:
        super().__init__(server)
        self.read_accounts: list[list[str]] = []
        self.fails = False

    async def read(self, partition: int, believed: Checkpoint, request: ReadRequest) -> View:
        if request.accounts:
            self.read_accounts.append(list(request.accounts))
        return await super().read(partition, believed, request)

    async def commit(self, partition: int, believed: Checkpoint, changes: Changes) -> None:
        if self.fails:
            raise Transient("no answer", 0.0)
        await super().commit(partition, believed, changes)


async def watched(names: Callable[[int], str] = lambda number: f"account-{number}") -> tuple[World, Watched]:
    store = FakeLiveView()
    state = Watched(store.server)
    store.state = state
    world = World(NOON_MS, 1, store)
    await world.start(ODD)
    for number in range(6):
        value = batch(*(event("sum", n=1) | {"subject": names(2 * number + index)} for index in range(2)))
        await world.log.append(EVENTS_TOPIC, 0, value)
    return world, state


async def test_unknown_accounts_of_a_flush_are_read_at_once_and_once() -> None:
    """A read for each account would be a round trip for each account."""
    world, state = await watched()

    worker = await world.fold_all()
    await worker.step(0, await world.records(0))

    assert [len(accounts) for accounts in state.read_accounts] == [12]


async def test_unknown_accounts_of_control_records_are_read_at_once_and_once() -> None:
    """A rebuild reads half a million bindings, and events between them may have headers."""
    world, state = await watched()
    free = Binding(effective_from_ms=0, billing=Billing.FREE)
    for number in range(6):
        await world.control(0, BindingRecord(account=f"bound-{number}", revision=1, binding=free))
        value = batch(event("sum", n=1) | {"subject": f"traced-{number}"})
        await world.log.append(EVENTS_TOPIC, 0, value, headers=(("traceparent", b"00"),))

    worker = world.rollup()
    offset = await worker.start_offset(0)
    # The first events are not among the records, so that a control record is the first to need an account.
    records = [record for record in await world.records(0) if record.offset >= offset]
    await worker.step(0, records[:2])
    await worker.step(0, records[8:])

    assert [len(accounts) for accounts in state.read_accounts] == [12]


@pytest.mark.parametrize("named", [True, False], ids=["gets a name", "loses its name"])
async def test_a_meter_is_renamed_at_stripe_between_two_records_of_a_flush(named: bool) -> None:
    """Usage is reported as the meter set at its record says, whatever the flushes were (I7)."""
    meter = {"slug": "calls", "event_type": "call", "aggregation": "count"}
    plain: dict[str, Any] = {"version": 1, "meters": [meter]}
    reported: dict[str, Any] = {"version": 1, "meters": [{**meter, "stripe_event_name": "calls"}]}
    first, second = (plain, reported) if named else (reported, plain)
    stored = []
    for events_max in (1, 20_000):
        world = World(NOON_MS, 1)
        await world.start(first)
        await world.log.append(EVENTS_TOPIC, 0, batch(event("call")))
        await world.control(0, MeterSetRecord(meter_set=MeterSet.model_validate({**second, "version": 2})))
        await world.log.append(EVENTS_TOPIC, 0, batch(event("call"), event("call")))
        await folded(world, PythonColumns, events_max, 1 if events_max == 1 else 500)
        assert isinstance(world.store, FakeLiveView)
        stored.append([text.split(":")[:2] for text in world.store.server.partitions[0].reports.values()])

    assert stored == [[["1", "3"] if named else ["0", "1"]]] * 2


async def test_a_ledger_is_dropped_after_an_error() -> None:
    """It was changed before the commit that failed, so what it knows is not what the store has."""
    world, state = await watched()
    worker = world.rollup()
    await worker.start_offset(0)
    state.fails = True
    with pytest.raises(Transient):
        await worker.step(0, await world.records(0))
    state.fails = False

    await worker.step(0, await world.records(0))

    assert set(totals(world).values()) == {1}
    assert len(state.read_accounts) == 2


@pytest.mark.parametrize(("entries_max", "reads"), [(0, 6), (500_000, 1)], ids=["full", "with room"])
async def test_a_full_ledger_is_dropped_and_read_again(entries_max: int, reads: int) -> None:
    """Its memory has a limit, and what it counts has none."""
    world, state = await watched(lambda number: f"account-{number % 2}")
    worker = world.rollup(RollupSettings(flush_events_max=1, cache_entries_max=entries_max))
    await worker.start_offset(0)

    await worker.step(0, await world.records(0))

    assert len(state.read_accounts) == reads
    assert set(totals(world).values()) == {6}
