"""Staging tables under two commands: in the fake and in ClickHouse's engine the later claim wins."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import pytest

from schemas.analytics import ArchivePosition
from schemas.errors import Fenced
from schemas.rebuild import AnalyticalStore, Building, RebuildClaim, RowRecounts, TableStaging
from sinks.clickhouse.client import ClickHouse
from sinks.clickhouse.fake import FakeClickHouse
from sinks.clickhouse.fake_staging import FakeStaging
from sinks.clickhouse.reader import ClickHouseReader
from sinks.clickhouse.staging import ClickHouseStaging
from sinks.clickhouse.writer import ClickHouseStore
from tests.conformance.clickhouse_rows import NOW_MS, cell
from tests.worlds.crashing import Crash

HOURLY = ("usage_duplicates", "usage_hourly")
ARCHIVE = ("usage_events", "dedup_decisions", "control_log", "archive_positions")
BOTH = frozenset(HOURLY)


class Claim:
    """A command's claim; a test may act right after one of its looks, before the statement that follows."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.is_lost = False
        self.looks = 0
        self.at, self.event = 0, self._nothing

    async def _nothing(self) -> None: ...

    def after(self, looks: int, event: Callable[[], Awaitable[None]]) -> None:
        """Runs an action after the n-th look from here on."""
        self.at, self.event = self.looks + looks, event  # type: ignore[assignment]  # any such function

    async def check(self) -> None:
        if self.is_lost:
            raise Fenced("another one was started")
        self.looks += 1
        if self.looks == self.at:
            await self.event()


class Tables(NamedTuple):
    """A store, its reader, and the staging tables of a command."""

    store: AnalyticalStore
    reader: RowRecounts
    watched: TableStaging
    staging: Callable[[RebuildClaim], TableStaging]

    def command(self, token: str) -> tuple[TableStaging, Claim]:
        claim = Claim(token)
        return self.staging(RebuildClaim(token, claim.check)), claim

    async def values(self) -> dict[str, int]:
        return {key.account: value for key, value in (await self.reader.hourly_cells(3)).items()}


@pytest.fixture(params=["fake", "service"])
def tables(request: pytest.FixtureRequest) -> Tables:
    if request.param == "fake":
        fake = FakeClickHouse()
        staging = FakeStaging(fake)
        return Tables(fake, fake, staging, staging.another)
    opened: ClickHouse = request.getfixturevalue("clickhouse")
    store, reader, watched = ClickHouseStore(opened), ClickHouseReader(opened), ClickHouseStaging(opened)
    return Tables(store, reader, watched, lambda claim: ClickHouseStaging(opened, claim))


async def exchanged(tables: Tables) -> None:
    """Another command takes over, exchanges both tables, and has not caught up."""
    staging, _ = tables.command("later")
    assert (await staging.begin(HOURLY, "second")).note == "first"
    for table in HOURLY:
        await staging.swap(table)


STATEMENTS: dict[str, Callable[[TableStaging], Awaitable[None]]] = {
    "exchange": lambda staging: staging.swap("usage_hourly"),
    "drop": lambda staging: staging.drop(HOURLY),
    "insert": lambda staging: staging.beside(HOURLY).insert_hourly([cell("tokens", 9, account="late")]),
    "copy": lambda staging: staging.carry_over(3, 0),
}


@pytest.mark.parametrize("statement", STATEMENTS)
async def test_statement_under_way_fails_once_another_command_has_taken_over(tables: Tables, statement: str) -> None:
    """Its command had looked before the other command claimed."""
    staging, claim = tables.command("earlier")
    await tables.store.insert_hourly([cell("tokens", 7, account="old")])
    await staging.begin(HOURLY, "first")
    await staging.beside(HOURLY).insert_hourly([cell("tokens", 5)])

    async def overtaken() -> None:
        claim.is_lost = True
        await exchanged(tables)

    claim.after(1, overtaken)
    with pytest.raises(Fenced):
        await STATEMENTS[statement](staging)

    assert await tables.watched.building(HOURLY) == Building("first", BOTH, BOTH)
    assert await tables.values() == {"acme": 5}
    last, _ = tables.command("last")
    assert await last.building(HOURLY) == Building("first", BOTH, BOTH)
    await last.drop(HOURLY)
    assert await tables.watched.building(HOURLY) is None


@pytest.mark.parametrize("looks", range(1, 5))
async def test_table_that_is_created_late_belongs_to_no_command(tables: Tables, looks: int) -> None:
    """Another command has built and exchanged the same tables meanwhile, and ended."""
    staging, claim = tables.command("earlier")

    async def overtaken() -> None:
        claim.is_lost = True
        later, _ = tables.command("later")
        await later.begin(HOURLY, "second")
        await later.beside(HOURLY).insert_hourly([cell("tokens", 5)])
        for table in HOURLY:
            await later.swap(table)
        await later.drop(HOURLY)

    async def go_on() -> None:
        await staging.begin(HOURLY, "first")
        await staging.beside(HOURLY).insert_hourly([])

    claim.after(looks, overtaken)
    with pytest.raises(Fenced):
        await go_on()

    assert await tables.watched.building(HOURLY) is None
    assert await tables.values() == {"acme": 5}
    last, _ = tables.command("last")
    assert await last.begin(HOURLY, "third") == Building("third", frozenset(), BOTH)


@pytest.mark.parametrize("looks", range(1, 5))
async def test_partly_created_tables_are_created_again(tables: Tables, looks: int) -> None:
    staging, claim = tables.command("earlier")

    async def killed() -> None:
        raise Crash

    claim.after(looks, killed)
    with pytest.raises(Crash):
        await staging.begin(HOURLY, "first")

    later, _ = tables.command("later")
    assert await later.begin(HOURLY, "second") == Building("second", frozenset(), BOTH)


async def test_positions_do_not_outlive_their_rows(tables: Tables) -> None:
    """A removal was interrupted after the first table: no rebuild may continue from the remainder."""
    staging, _ = tables.command("earlier")
    await staging.begin(ARCHIVE, "log")
    await staging.beside(ARCHIVE).save_position(ArchivePosition(3, 50, NOW_MS, "log"))
    await staging.drop(ARCHIVE[:1])

    later, _ = tables.command("later")
    building = await later.building(ARCHIVE)
    assert building is not None
    assert building.beside == frozenset(ARCHIVE[1:])
    assert (await later.begin(ARCHIVE, "log")).beside == frozenset(ARCHIVE)
    assert await later.beside(ARCHIVE).load_position(3) is None


async def test_table_that_has_not_caught_up_is_recognised_under_any_name(tables: Tables) -> None:
    """Deferred events need a table that contains the writes around its exchange."""
    staging, _ = tables.command("earlier")
    await staging.begin(ARCHIVE, "log")
    assert await tables.store.events_rebuilt() == 0
    await staging.swap("usage_events")
    assert await tables.store.events_rebuilt() is None

    later, _ = tables.command("later")
    assert await later.building(ARCHIVE) == Building("log", frozenset({"usage_events"}), frozenset(ARCHIVE))
    assert await tables.store.events_rebuilt() is None
    await later.drop(ARCHIVE)
    assert await tables.store.events_rebuilt() == 1
