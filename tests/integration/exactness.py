"""What the stores hold against what the oracle counts from the log's own records, value by value."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple, TypeVar

from aggregators.codec import parse_value
from oracle.model import Oracle
from oracle.records import Place
from pipeline.logs.control_records import read_control
from schemas.control import (
    BindingRecord,
    CloseRecord,
    ControlKind,
    DedupDecisionRecord,
    FlushRecord,
    MeterSetRecord,
    RestatementRecord,
)
from schemas.log import EVENTS_TOPIC, Record, index_of, offset_of, position
from schemas.meters import MeterSet
from schemas.rollup import TotalKey
from sinks.clickhouse.client import open_clickhouse
from tests.integration.deployment import Deployment
from tests.traffic.generate import METER_SET

DIFFERENCES_SHOWN = 5
UNIQUE_METERS = frozenset(meter["slug"] for meter in METER_SET["meters"] if meter["aggregation"] == "unique")

Key = TypeVar("Key", bound=Hashable)
Arrival = tuple[str, str, int, int]


class Views(NamedTuple):
    """Everything a deployment says about its traffic.

    `totals` by account, meter and period start; `cells` also by hour, dimensions and arrival bucket; `counters` by
    partition and outcome; `events` and `duplicates` are (account, id, partition, position), `conflicts` (account, id);
    `quarantined` has the reason by (partition, offset, place in the record).
    """

    totals: dict[tuple[str, str, int], int]
    cells: dict[tuple[str, str, int, int, str, int], int]
    counters: dict[tuple[int, str], int]
    events: dict[Arrival, bool]
    duplicates: dict[Arrival, bool]
    conflicts: dict[tuple[str, str], bool]
    quarantined: dict[tuple[int, int, int], str]


async def recount(deployment: Deployment) -> Oracle:
    """The oracle, fed with the log's records in the log's order."""
    oracle = Oracle({"meters": []}, partitions=len(deployment.partitions))
    for partition in deployment.partitions:
        version = 0
        for record in await deployment.records(EVENTS_TOPIC, partition):
            version = _tell(oracle, deployment.settings.secret_bytes(), record, version)
    return oracle


def _tell(oracle: Oracle, secret: bytes, record: Record, version: int) -> int:
    """Tell the oracle of one record; the version of the meter set in force after it."""
    at, partition = record.timestamp_ms, record.partition
    found = [control for kind in ControlKind if (control := read_control(secret, record, kind)) is not None]
    match found:
        case []:
            oracle.feed(partition, record.offset, at, record.value or b"", record.headers)
        case [MeterSetRecord(meter_set=MeterSet() as meter_set)] if meter_set.version > version:
            oracle.set_meter_set(partition, meter_set.model_dump(mode="json"), at)
            return meter_set.version
        case [BindingRecord(account=account, revision=revision, binding=binding)]:
            oracle.bind(partition, account, binding.model_dump(mode="json"), at, record.offset, revision=revision)
        case [CloseRecord(account=account, revision=revision, instant_ms=instant_ms)]:
            oracle.close(partition, account, instant_ms, at, record.offset, revision=revision)
        case [FlushRecord(account=account, revision=revision)]:
            oracle.flush(partition, account, at, revision=revision)
        case [RestatementRecord(account=account, position=bound_at, begins=True)]:
            oracle.begin_restatement(partition, account, offset_of(bound_at), record.offset, at)
        case [RestatementRecord(account=account, position=bound_at, declined=declined)]:
            oracle.restatement(partition, account, offset_of(bound_at), declined=bool(declined), timestamp_ms=at)
        case [DedupDecisionRecord(decisions=decisions)]:
            for index, each in enumerate(decisions):
                place = Place(partition, offset_of(each.position), index_of(each.position))
                oracle.resolve(place, record.offset, index, at)
        case _:
            oracle.tick(partition, at)
    return version


def expected(oracle: Oracle) -> Views:
    """What the oracle says, in the stores' terms."""
    kept = {
        place: decision
        for place, decision in oracle.rulings.items()
        if decision.outcome in ("counted", "unmetered") or place in oracle.kept_out
    }
    return Views(
        totals={(account, meter, period[0]): value for (account, meter, period), value in oracle.totals.items()},
        cells={
            (account, meter, period[0], hour, dimensions, bucket): value
            for (account, meter, period, hour, dimensions, bucket), value in oracle.cells.items()
            # A cell whose events all brought values known before holds nothing, and need not be there.
            if value or meter not in UNIQUE_METERS
        },
        counters={(each, name): value for each, sums in oracle.counters.items() for name, value in sums.items()},
        events={_arrival(place, decision.account, decision.id): True for place, decision in kept.items()},
        duplicates={_arrival(each.place, each.account, each.id): True for each in oracle.duplicates},
        conflicts=dict.fromkeys(oracle.conflicts, True),
        quarantined={
            (place.partition, place.offset, place.event_index): decision.reason
            for place, decision in oracle.rulings.items()
            if decision.reason is not None
        },
    )


def _arrival(place: Place, account: str, event_id: str) -> Arrival:
    return account, event_id, place.partition, position(place.offset, place.event_index)


async def found(deployment: Deployment) -> Views:
    """What Redis, ClickHouse and the quarantine topic hold."""
    clickhouse = open_clickhouse(deployment.settings.clickhouse_url)
    try:
        cells = await clickhouse.rows(
            "SELECT account, meter, period_start_ms, hour_ms, dimensions, arrival_bucket_ms, toInt64(value_minor) "
            "FROM usage_hourly FINAL WHERE period_end_ms > period_start_ms"
        )
        events = await clickhouse.rows("SELECT account, id, partition, position FROM events")
        duplicates = await clickhouse.rows("SELECT account, id, partition, position FROM duplicates")
        conflicts = await clickhouse.rows("SELECT DISTINCT account, id FROM duplicates WHERE conflict")
    finally:
        await clickhouse.close()
    assert len(set(events)) == len(events)
    return Views(
        totals=await redis_totals(deployment),
        cells={row[:-1]: row[-1] for row in map(tuple, cells)},
        counters=await redis_counters(deployment),
        events=dict.fromkeys(map(tuple, events), True),
        duplicates=dict.fromkeys(map(tuple, duplicates), True),
        conflicts=dict.fromkeys(map(tuple, conflicts), True),
        quarantined=await deployment.quarantined(),
    )


async def redis_totals(deployment: Deployment) -> dict[tuple[str, str, int], int]:
    """All totals of all partitions, in minor units."""
    totals: dict[tuple[str, str, int], int] = {}
    for partition in deployment.partitions:
        cursor, keys = 0, set[TotalKey]()
        while True:
            cursor, some = await deployment.store.totals.total_keys(partition, cursor, 1000)
            keys.update(some)
            if cursor == 0:
                break
        _, read = await deployment.store.totals.account_totals(partition, sorted(keys))
        for key, fields in read.items():
            for meter, text in fields.items():
                totals[key.account, meter, key.period_start_ms] = parse_value(text).minor
    return totals


async def redis_counters(deployment: Deployment) -> dict[tuple[int, str], int]:
    """The counters of every checkpoint by (partition, outcome)."""
    counters: dict[tuple[int, str], int] = {}
    for partition in deployment.partitions:
        checkpoint = await deployment.store.state.load_checkpoint(partition)
        assert checkpoint is not None
        assert checkpoint.counters.conserved
        counters.update({(partition, name): value for name, value in checkpoint.counters._asdict().items()})
    return counters


def differences(wanted: Mapping[Key, Any], got: Mapping[Key, Any]) -> list[tuple[Key, Any, Any]]:
    """(key, wanted, got) wherever they differ."""
    keys = wanted.keys() | got.keys()
    return [(key, wanted.get(key), got.get(key)) for key in keys if wanted.get(key) != got.get(key)]


async def check_exact(deployment: Deployment) -> Oracle:
    """Fail unless every view of a deployment at rest equals the oracle; the oracle, for more questions."""
    oracle = await recount(deployment)
    wanted, got = expected(oracle)._asdict(), (await found(deployment))._asdict()
    wrong = {}
    for name in Views._fields:
        if unequal := differences(wanted[name], got[name]):
            wrong[name] = (len(unequal), sorted(unequal, key=str)[:DIFFERENCES_SHOWN])
    assert not wrong, wrong
    return oracle
