"""The rebuild commands: open the stores of the settings, claim the rebuild and run it."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

from aggregators.columns import MakerOf
from pipeline.native.load import load, maker_of
from pipeline.open import Base, open_base, open_live_view
from pipeline.rebuild.archive import ArchiveRebuild, abandon_archive
from pipeline.rebuild.hourly import HourlyRebuild, abandon_hourly
from pipeline.rebuild.limits import RebuildLimits
from pipeline.rebuild.live_view import LiveViewRebuild
from pipeline.rebuild.recount import HourlyRecount
from pipeline.settings import Settings
from schemas.live_view import LiveView
from schemas.log import EVENTS_TOPIC
from schemas.rebuild import AnalyticalStore, Progress, RebuildClaim
from sinks.clickhouse.claimed import claimed_store
from sinks.clickhouse.client import open_clickhouse
from sinks.clickhouse.reader import ClickHouseReader
from sinks.clickhouse.snapshots import ClickHouseSnapshots
from sinks.clickhouse.staging import ClickHouseStaging
from sinks.clickhouse.writer import ClickHouseStore
from sinks.redis.view import RedisLiveView

_SHADOW_COPY_THREADS = 4
_NOTHING = "no rebuild was in progress"
_GIVEN_UP = "the rebuild is given up and its data is removed"


class _Opened(NamedTuple):
    """The stores of the deployment. Writes fail after another rebuild has claimed the rebuild."""

    base: Base
    live: RedisLiveView
    hourly: AnalyticalStore
    reader: ClickHouseReader
    staging: ClickHouseStaging
    snapshots: ClickHouseSnapshots
    secret: bytes
    limits: RebuildLimits
    maker_of: MakerOf

    def shadow_copy(self, name: str) -> LiveView:
        """A second live view in the same Redis, with its own key prefix."""
        url, claim = self.base.settings.redis_url, self.live.keyspace.claim
        return RedisLiveView(url, f"tidemark-shadow_copy-{name}", _SHADOW_COPY_THREADS, claim=claim)


@contextlib.asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[_Opened]:
    async with contextlib.AsyncExitStack() as stack:
        live = open_live_view(settings)
        stack.push_async_callback(live.close)
        base = await open_base(settings, create=False)
        stack.push_async_callback(base.log.close)
        clickhouse = open_clickhouse(settings.clickhouse_url)
        stack.push_async_callback(clickhouse.close)
        hourly = ClickHouseStore(clickhouse)
        await hourly.migrate()
        claim = RebuildClaim(uuid.uuid4().hex[:16], live.rebuilds.check_claim)
        await live.rebuilds.claim_rebuild(claim.token)
        limits = RebuildLimits(events_max=settings.flush_events_max, cells_max=settings.relay_cells_max)
        yield _Opened(
            base, live, claimed_store(hourly, claim), ClickHouseReader(clickhouse),
            ClickHouseStaging(clickhouse, claim), ClickHouseSnapshots(clickhouse),
            settings.secret_bytes(), limits, maker_of(load(enabled=settings.native).library),
        )  # fmt: skip


def _live_view(opened: _Opened, progress: Callable[[Progress], None], source: str) -> LiveViewRebuild:
    base = opened.base
    return LiveViewRebuild(
        base.log, opened.live, opened.hourly, base.clock, opened.secret, opened.limits, progress,
        opened.snapshots, from_snapshot=source != "log", maker_of=opened.maker_of,
    )  # fmt: skip


async def rebuild_live_view(settings: Settings, progress: Callable[[Progress], None], source: str) -> str:
    """Run `LiveViewRebuild` from `source` (log, snapshot or clickhouse); returns a message."""
    async with _opened(settings) as opened:
        generation = await _live_view(opened, progress, source).run()
        return f"the live view is generation {generation}"


async def abandon_live_view(settings: Settings) -> str:
    """Remove what an unfinished rebuild of the live view has built; returns a message for the operator."""
    async with _opened(settings) as opened:
        given_up = await _live_view(opened, lambda _: None, "log").abandon()
        return _NOTHING if given_up is None else f"generation {given_up} is given up and removed"


async def rebuild_hourly(settings: Settings, progress: Callable[[Progress], None], source: str) -> str:
    """Run `HourlyRebuild` (source log) or `HourlyRecount` (source clickhouse); returns a message."""
    async with _opened(settings) as opened:
        base = opened.base
        if source == "log":
            await HourlyRebuild(
                base.log, opened.live, opened.shadow_copy, opened.hourly, opened.staging, base.clock, opened.secret,
                opened.limits, progress, maker_of=opened.maker_of,
            ).run()  # fmt: skip
            return "usage_hourly and usage_duplicates are rebuilt from the log"
        await HourlyRecount(
            base.log, opened.live, opened.hourly, opened.reader, opened.staging, base.clock, opened.secret,
            progress=progress,
        ).run()  # fmt: skip
        return "usage_hourly is rebuilt by a recount of usage_events"


async def give_up_hourly(settings: Settings) -> str:
    """Give up an unfinished rebuild of usage_hourly; returns a message."""
    async with _opened(settings) as opened:
        partitions = await opened.base.log.partition_count(EVENTS_TOPIC)
        given_up = await abandon_hourly(opened.staging, opened.shadow_copy, partitions)
        return _GIVEN_UP if given_up else _NOTHING


async def rebuild_archive_tables(settings: Settings, progress: Callable[[Progress], None]) -> str:
    """Run `ArchiveRebuild`; returns a message."""
    async with _opened(settings) as opened:
        await ArchiveRebuild(opened.base.log, opened.staging, opened.secret, opened.limits, progress).run()
        return "usage_events, decisions and control_log are rebuilt from the log"


async def give_up_archive(settings: Settings) -> str:
    """Give up an unfinished rebuild of the archive tables; returns a message."""
    async with _opened(settings) as opened:
        return _GIVEN_UP if await abandon_archive(opened.staging) else _NOTHING
