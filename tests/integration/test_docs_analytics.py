"""Every query of docs/analytics.md, on the real engine, through the analysts' read-only address."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from schemas.aggregations import Aggregation
from schemas.analytics import ControlRow, DuplicateRow, EventRow, HourlyRow
from schemas.clock import HOUR_MS
from schemas.meters import Meter, MeterSet
from sinks.clickhouse.client import open_clickhouse
from sinks.clickhouse.writer import ClickHouseStore
from tests.services.clickhouse import RunningClickHouse

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "analytics.md"
EXAMPLES = dict(re.findall(r"^### (.+?)\n.*?```sql\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.S | re.M))


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


TEN = ms("2026-11-20T10:00")
NOVEMBER = (ms("2026-11-01"), ms("2026-12-01"))


def event(number: int, data: dict[str, object], event_type: str = "llm.request", account: str = "acme") -> EventRow:
    at = TEN + number * 1000
    text = json.dumps(data, separators=(",", ":"), sort_keys=True)
    return EventRow(account, f"e{number}", event_type, "app", at * 1000, text, 3, number << 16, at + number * 500)


def cell(meter: str, aggregation: Aggregation, value: int, hour_ms: int, scale: int = 0, **change: object) -> HourlyRow:
    dimensions = '{"model":"large","region":"eu"}' if meter == "tokens" else "{}"
    row = HourlyRow(
        "acme", meter, *NOVEMBER, hour_ms, dimensions, hour_ms, aggregation, scale, value, hour_ms * 1000, 1, 3, 1
    )
    return row._replace(**change)  # type: ignore[arg-type]  # a test's own fields


@pytest.fixture
async def analysts(clickhouse_database: str, clickhouse_server: RunningClickHouse) -> AsyncIterator[httpx.AsyncClient]:
    """The read-only address, on a database with some usage of every kind."""
    clickhouse = open_clickhouse(clickhouse_database)
    store = ClickHouseStore(clickhouse)
    await store.migrate()
    events = [event(number, {"user": f"u{number % 2}", "tokens": number}) for number in range(1, 5)]
    await store.insert_events([*events, event(9, {}, "page.viewed")])
    await store.insert_events(events)
    await store.insert_duplicates(
        [
            DuplicateRow(*event(1, {"user": "u1", "tokens": 1})._replace(position=7 << 16)[:9]),
            DuplicateRow(*event(2, {"user": "u1", "tokens": 200})._replace(position=8 << 16)[:9]),
        ]
    )
    await store.insert_hourly(
        [
            cell("tokens", Aggregation.SUM, 1_500, TEN, 3),
            cell("tokens", Aggregation.SUM, 500, TEN, 3, arrival_bucket_ms=TEN + HOUR_MS),
            cell("tokens", Aggregation.SUM, 250, ms("2026-10-31T20:00"), 3),
            cell("calls", Aggregation.COUNT, 3, TEN),
            cell("calls", Aggregation.COUNT, 4, TEN + 2 * HOUR_MS),
            cell("seats", Aggregation.MAX, 9, TEN),
            cell("seats", Aggregation.MAX, 7, TEN + HOUR_MS),
            cell("credit", Aggregation.MIN, 3, TEN),
            cell("credit", Aggregation.MIN, -2, TEN, arrival_bucket_ms=TEN + HOUR_MS),
            cell("credit", Aggregation.MIN, 1, TEN + HOUR_MS),
            cell("disk", Aggregation.LATEST, 9, TEN),
            cell("disk", Aggregation.LATEST, 7, TEN + HOUR_MS),
        ]
    )
    meter = Meter(slug="calls", event_type="llm.request", aggregation=Aggregation.COUNT)
    meter_set = json.dumps({"meter_set": MeterSet(version=1, meters=(meter,)).model_dump(mode="json")})
    await store.insert_controls(
        [ControlRow(3, 1, "meter_set", "", TEN, meter_set), ControlRow(3, 2, "tick", "", TEN, "{}")]
    )
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
    "Top accounts": [["acme", 2.25]],
    "Usage by hour": [["2026-11-20 11:00:00", 3], ["2026-11-20 12:00:00", 0], ["2026-11-20 13:00:00", 4]],
    "Usage by dimension": [["eu", "large", 2]],
    "What an account will be billed for": [
        ["calls", "count", 7],
        ["credit", "min", -2],
        ["disk", "latest", 7],
        ["seats", "max", 9],
        ["tokens", "sum", 2.25],
    ],
    "Distinct users by day": [["2026-11-20", 2]],
    "Duplicates": [["acme", "app", 2, "2026-11-20 10:00:01.500"]],
    "Conflicts": [
        [
            "acme",
            "e2",
            "llm.request",
            "llm.request",
            "app",
            "app",
            '{"tokens":2,"user":"u0"}',
            '{"tokens":200,"user":"u1"}',
            "2026-11-20 10:00:03.000",
        ]
    ],
    "Lateness": [["app", 5, [1, 4], 4]],
    "Usage that arrived after its period had closed": [
        ["acme", "tokens", "2026-10-31 20:00:00.000", "2026-11-01 00:00:00.000", 0.25]
    ],
    "Unmetered types": [["page.viewed", 1, "2026-11-20 10:00:09.000000"]],
    "Meter set history": [[1, "2026-11-20 10:00:00.000", 1]],
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

    assert [row[1] for row in rows] == ["e9", "e4", "e3", "e2", "e1"]


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

    assert (await analysts.get("/", params={**analysts.params, "query": sql.replace("+", " ")})).text == "5\n"


def _numbers(value: object) -> object:
    if isinstance(value, list):
        return [_numbers(each) for each in value]
    if isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d+)?", value):
        return float(value)
    return value
