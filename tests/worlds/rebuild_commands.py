"""A rebuild world in which a command can be paused at any step while other commands run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any, NamedTuple

import msgspec

from pipeline.rebuild.archive import TABLES as ARCHIVE_TABLES
from pipeline.rebuild.archive import ArchiveRebuild, abandon_archive
from pipeline.rebuild.hourly import TABLES as HOURLY_TABLES
from pipeline.rebuild.hourly import HourlyRebuild, Note, abandon_hourly
from pipeline.rebuild.live_view import LiveViewRebuild
from pipeline.rebuild.recount import HourlyRecount
from schemas.errors import OperatorNeeded, Transient
from schemas.live_view import LiveView
from schemas.rebuild import AnalyticalStore, RebuildClaim
from sinks.clickhouse.claimed import ClaimedStore, claimed_store
from sinks.clickhouse.fake import FakeClickHouse
from sinks.clickhouse.fake_staging import _ATTRIBUTES, FakeStaging
from sinks.redis.fake import FakeLiveView
from tests.worlds.deployment import SECRET, STORES
from tests.worlds.rebuild import LIMITS, PARTITIONS, RebuildWorld

COMMANDS = ["archive", "redis", "log", "clickhouse"]

Step = Callable[[], Awaitable[None]]


class PausedStep:
    """Pauses the n-th step of a command until a test resumes it."""

    def __init__(self, step: int) -> None:
        self._left = step
        self.reached, self.go = asyncio.Event(), asyncio.Event()

    async def step(self) -> None:
        self._left -= 1
        if not self._left:
            self.reached.set()
            await self.go.wait()


class Calls:
    """Wraps a store: each call is a step."""

    def __init__(self, inner: Any, step: Step) -> None:
        self._inner, self._step = inner, step

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        if name == "built":
            return lambda generation: Calls(attribute(generation), self._step)
        if isinstance(self._inner, FakeLiveView) and name in STORES:
            return Calls(attribute, self._step)
        if not asyncio.iscoroutinefunction(attribute):
            return attribute

        async def call(*arguments: Any) -> Any:
            await self._step()
            return await attribute(*arguments)

        return call


class SlowInserts(FakeClickHouse):
    """An insert that resolves its table at once and stores its rows a step later; the table may be renamed between."""

    def __init__(self, inner: FakeClickHouse, step: Step) -> None:
        super().__init__()
        self._inner, self._step = inner, step

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith(("insert_", "save_")):
            return super().__getattribute__(name) if name.startswith("_") else getattr(self._inner, name)

        async def call(rows: Any) -> None:
            target = FakeClickHouse()
            for attribute in _ATTRIBUTES.values():
                setattr(target, attribute, getattr(self._inner, attribute))
            await self._step()
            await getattr(target, name)(rows)

        return call


class SlowStaging(FakeStaging):
    """Staging tables whose inserts are steps."""

    step: Step

    def beside(self, tables: Collection[str]) -> AnalyticalStore:
        store = super().beside(tables)
        assert isinstance(store, ClaimedStore)
        store._store = SlowInserts(store._store, self.step)  # type: ignore[arg-type]  # the fake's
        return store


class Command(NamedTuple):
    """The arguments of a command."""

    live: LiveView
    hourly: AnalyticalStore
    staging: FakeStaging
    shadow_copy: Callable[[str], Any]


class CommandsWorld(RebuildWorld):
    """A world in which several commands run at once."""

    def started(self, step: Step) -> Command:
        """A command that claims now. Each look at its claim, each call of Redis, and each insert is a step."""
        live, claim = self.command()

        async def check() -> None:
            await claim.check()
            await step()

        slow = RebuildClaim(claim.token, check)
        staging = SlowStaging(self.clickhouse)
        staging._marks, staging._beside, staging.step = self.staging._marks, self.staging._beside, step
        staging.claim(slow)
        hourly = claimed_store(SlowInserts(self.clickhouse, step), slow)
        return Command(
            Calls(live, step),
            hourly,
            staging,
            lambda name: Calls(self.shadow_copy(name).another(live.server.claim), step),
        )

    async def run(self, command: str, given: Command) -> None:
        live, hourly, staging, shadow_copy = given
        if command == "redis":
            await LiveViewRebuild(self.log, live, hourly, self.clock, SECRET, LIMITS).run()
        elif command == "log":
            await HourlyRebuild(self.log, live, shadow_copy, hourly, staging, self.clock, SECRET, LIMITS).run()
        elif command == "clickhouse":
            await HourlyRecount(self.log, live, hourly, self.clickhouse, staging, self.clock, SECRET, 3).run()
        elif command == "archive":
            await ArchiveRebuild(self.log, staging, SECRET, LIMITS).run()
        elif command == "abandon redis":
            await LiveViewRebuild(self.log, live, hourly, self.clock, SECRET, LIMITS).abandon()
        elif command == "abandon usage_hourly":
            await abandon_hourly(staging, shadow_copy, PARTITIONS)
        else:
            await abandon_archive(staging)

    async def finish(self) -> None:
        """Resumes unfinished rebuilds and does nothing else."""
        tables = self.staging.another()
        if await tables.building(ARCHIVE_TABLES) is not None:
            await self.now("archive")
        if await self.live.rebuilds.rebuilding() is not None:
            await self.now("redis")
        if building := await tables.building(HOURLY_TABLES):
            await self.now(msgspec.json.decode(building.note, type=Note).source)

    async def assert_right(self) -> None:
        """Every view equals that of a deployment without any rebuild, and nothing of a rebuild is left."""
        await self.assert_gone()
        assert await self.staging.another().building(ARCHIVE_TABLES) is None
        assert await self.live.rebuilds.rebuilding() is None
        await self.assert_equal()
        # The stored position may be older than the one that the running archive remembers, until its next batch.
        self.running = None
        await self.assert_archived()

    async def traffic(self) -> None:
        await self.feed(0.13)
        await self.work()

    async def now(self, command: str) -> None:
        """Runs a command to its end; the command may refuse because another one must be finished first."""
        try:
            await self.run(command, self.started(PausedStep(0).step))
        except (OperatorNeeded, Transient) as error:
            assert "run" in str(error)  # noqa: PT017 - either end is good
