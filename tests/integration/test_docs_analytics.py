"""Every query of docs/analytics.md, on the real engine, through the analysts' read-only address."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from pipeline.ingest.archive import ArchiveProcessor
from pipeline.open import read_meter_set
from schemas.log import EVENTS_TOPIC
from sinks.clickhouse.client import open_clickhouse
from sinks.clickhouse.writer import ClickHouseStore
from tests.services.clickhouse import RunningClickHouse
from tests.worlds.deployment import SECRET, World, hourly_relay

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "analytics.md"
EXAMPLES = dict(re.findall(r"^### (.+?)\n.*?```sql\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.S | re.M))


START = datetime(2026, 11, 2, 10, tzinfo=UTC)
TWENTIETH = datetime(2026, 11, 20, 10, tzinfo=UTC)
ELEVEN, NOON = TWENTIETH + timedelta(hours=1), TWENTIETH + timedelta(hours=2)

# Arrival, id, type, data, and the seconds (or the time) by which the event is older. In the order of the log.
EVENTS: list[tuple[datetime, str, str, dict[str, object], int | datetime]] = [
    (START, "late", "llm.completion", {"tokens": 250, "model": "large"}, datetime(2026, 10, 31, 20, tzinfo=UTC)),
    (TWENTIETH, "t1", "llm.completion", {"tokens": 1_500, "model": "large"}, 0),
    (TWENTIETH, "t2", "llm.completion", {"tokens": 500, "model": "small"}, 0),
    (TWENTIETH, "r1", "api.request", {"region": "eu", "method": "GET"}, 0),
    (TWENTIETH, "r2", "api.request", {"region": "eu", "method": "GET"}, 0),
    (TWENTIETH, "r3", "api.request", {"region": "eu", "method": "POST"}, 0),
    (TWENTIETH, "u1", "user.active", {"user": "ada"}, 0),
    (TWENTIETH, "u2", "user.active", {"user": "bob"}, 0),
    (TWENTIETH, "g1", "storage.sampled", {"gigabytes": "9.5"}, 0),
    (TWENTIETH, "s1", "seats.changed", {"seats": 9}, 0),
    (TWENTIETH, "p1", "page.viewed", {}, 0),
    (ELEVEN, "t1", "llm.completion", {"tokens": 1_500, "model": "large"}, 3_600),
    (ELEVEN, "t2", "llm.completion", {"tokens": 200, "model": "small"}, 3_600),
    (ELEVEN, "g2", "storage.sampled", {"gigabytes": 7}, 60),
    (ELEVEN, "s2", "seats.changed", {"seats": 7}, 0),
    (ELEVEN, "u3", "user.active", {"user": "ada"}, 0),
    (NOON, "r4", "api.request", {"region": "us", "method": "GET"}, 0),
]


def ms(instant: datetime) -> int:
    return int(instant.timestamp()) * 1000


async def used(store: ClickHouseStore) -> None:
    """What `tidemark dev` writes to ClickHouse for these events of one account, and for one event of another."""
    world = World(ms(START), partitions=1)
    await world.start(read_meter_set(None))
    for arrival, event_id, event_type, data, age in EVENTS:
        world.clock.ms = ms(arrival)
        time = age if isinstance(age, datetime) else arrival - timedelta(seconds=age)
        event = {
            "specversion": "1.0", "id": event_id, "source": "app", "type": event_type, "subject": "acme",
            "time": time.isoformat(), "data": data,
        }  # fmt: skip
        await world.log.append(EVENTS_TOPIC, 0, json.dumps(event).encode())
    other = {**event, "id": "x", "type": "llm.completion", "subject": "globex", "data": {"tokens": 300}}
    await world.log.append(EVENTS_TOPIC, 0, json.dumps(other).encode())
    await world.fold_all()
    relay = hourly_relay(world.store, store)
    await relay.relay(0)
    await relay.duplicates(0)
    archive = ArchiveProcessor(world.log, store, SECRET)
    await archive.start_offset(0)
    await archive.step(0, await world.records(0))


@pytest.fixture
async def analysts(clickhouse_database: str, clickhouse_server: RunningClickHouse) -> AsyncIterator[httpx.AsyncClient]:
    """The read-only address, on a database with usage of every meter of `tidemark dev`."""
    store = ClickHouseStore(open_clickhouse(clickhouse_database))
    await store.migrate()
    await used(store)
    await store.close()
    database = clickhouse_database.rsplit("/", 1)[1]
    async with httpx.AsyncClient(base_url=clickhouse_server.read_only_url, params={"database": database}) as client:
        yield client


async def ask(analysts: httpx.AsyncClient, sql: str) -> list[list[object]]:
    answer = await analysts.post(
        "/", content=sql.encode(), params={**analysts.params, "default_format": "JSONCompactEachRow"}
    )
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


ANSWERS: dict[str, list[list[object]]] = {
    "Top accounts": [["acme", 2_250], ["globex", 300]],
    "Usage by hour": [["2026-11-20 11:00:00", 3], ["2026-11-20 12:00:00", 0], ["2026-11-20 13:00:00", 1]],
    "Usage by dimension": [["eu", "GET", 2], ["eu", "POST", 1], ["us", "GET", 1]],
    "What an account will be billed for": [
        ["active_users", "unique", 2],
        ["api_requests", "count", 4],
        ["seats", "latest", 7],
        ["storage_gb", "max", 9.5],
        ["tokens", "sum", 2_250],
    ],
    "Distinct users by day": [["2026-11-20", 2]],
    "Duplicates": [["acme", "app", 2, "2026-11-20 11:00:00.000"]],
    "Conflicts": [
        [
            "acme",
            "t2",
            "llm.completion",
            "llm.completion",
            "app",
            "app",
            '{"model":"small","tokens":500}',
            '{"model":"small","tokens":200}',
            "2026-11-20 11:00:00.000",
        ]
    ],
    "Lateness": [["app", 16, [0, 136_800], 136_800]],
    "Usage that arrived after its period had closed": [
        ["acme", "tokens", "2026-10-31 20:00:00.000", "2026-11-01 00:00:00.000", 250]
    ],
    "Unmetered types": [["page.viewed", 1, "2026-11-20 10:00:00.000000"]],
    "Meter set history": [[1, "2026-11-02 10:00:00.000", 8]],
}


def test_every_example_is_tested() -> None:
    """A new example needs its answer here."""
    assert {*ANSWERS, "One account's events"} == set(EXAMPLES)


@pytest.mark.parametrize("title", ANSWERS)
async def test_documented_query_gives_the_answer_its_sentence_promises(analysts: httpx.AsyncClient, title: str) -> None:
    """Examples are run, or they rot."""
    rows = json.loads(json.dumps(await ask(analysts, EXAMPLES[title])), parse_int=float)

    assert json.loads(json.dumps(ANSWERS[title]), parse_int=float) == [_numbers(row) for row in rows]


async def test_one_accounts_events_come_latest_first(analysts: httpx.AsyncClient) -> None:
    """The last example, whose rows are long."""
    rows = await ask(analysts, EXAMPLES["One account's events"])

    times, ids = [str(row[0]) for row in rows], [row[1] for row in rows]
    assert times == sorted(times, reverse=True)
    assert (ids[0], ids[-1], sorted(map(str, ids))) == ("r4", "late", sorted({entry[1] for entry in EVENTS}))


async def test_columns_of_the_views_are_those_documented(analysts: httpx.AsyncClient) -> None:
    """The table of views names every column, in order."""
    documented = re.findall(
        r"^\| `(events|usage|duplicates|controls)` \| [^|]+ \| (.+) \|$", DOCUMENT.read_text(), re.M
    )

    assert len(documented) == 4
    for view, columns in documented:
        names = [str(row[0]) for row in await ask(analysts, f"DESCRIBE {view}")]
        assert sorted(names) == sorted(re.findall(r"`(\w+)`", columns)), view


async def test_address_of_the_document_is_only_an_example(analysts: httpx.AsyncClient) -> None:
    """The curl line's query works as it is."""
    (sql,) = re.findall(r"\?query=(\S+)'", DOCUMENT.read_text())

    assert (await analysts.get("/", params={**analysts.params, "query": sql.replace("+", " ")})).text == "16\n"


def _numbers(value: object) -> object:
    if isinstance(value, list):
        return [_numbers(each) for each in value]
    if isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d+)?", value):
        return float(value)
    return value
