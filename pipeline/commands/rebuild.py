"""Opens what a rebuild needs, as the settings name it."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

from pipeline.open import Base, open_base, open_live_view
from pipeline.rebuild.archive import ArchiveRebuild, abandon_archive
from pipeline.rebuild.hourly import HourlyRebuild, abandon_hourly
from pipeline.rebuild.limits import RebuildLimits
from pipeline.rebuild.live_view import LiveViewRebuild
from pipeline.rebuild.recount import HourlyRecount
from pipeline.settings import Settings
from schemas.errors import InvalidInput
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
_NOTHING = "nothing was being built"
_GIVEN_UP = "what was being built is given up and removed"


class _Opened(NamedTuple):
    """The stores as the one rebuild command of the deployment uses them: only until the next one is started."""

    base: Base
    live: RedisLiveView
    hourly: AnalyticalStore
    reader: ClickHouseReader
    staging: ClickHouseStaging
    snapshots: ClickHouseSnapshots
    secret: bytes
    limits: RebuildLimits

    def shadow_copy(self, name: str) -> LiveView:
        """A copy of the rollup's state under a name of its own, in the same Redis."""
        url = self.base.settings.redis_url
        claim = self.live.keyspace.claim
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
        limits = RebuildLimits(settings.flush_records_max, settings.flush_events_max, settings.relay_cells_max)
        yield _Opened(
            base, live, claimed_store(hourly, claim), ClickHouseReader(clickhouse),
            ClickHouseStaging(clickhouse, claim), ClickHouseSnapshots(clickhouse),
            settings.secret_bytes(), limits,
        )  # fmt: skip


def _live_view(opened: _Opened, source: str, progress: Callable[[Progress], None]) -> LiveViewRebuild:
    base = opened.base
    return LiveViewRebuild(
        base.log, opened.live, opened.hourly, base.clock, opened.secret, opened.limits, progress,
        opened.snapshots, from_snapshot=source == "snapshot",
    )  # fmt: skip


async def rebuild_live_view(settings: Settings, source: str, progress: Callable[[Progress], None]) -> str:
    """`LiveViewRebuild.run` on the deployment of these settings; what to say of it."""
    async with _opened(settings) as opened:
        generation = await _live_view(opened, source, progress).run()
        return f"the live view is generation {generation}"


async def abandon_live_view(settings: Settings) -> str:
    """`LiveViewRebuild.abandon` on the deployment of these settings; what to say of it."""
    async with _opened(settings) as opened:
        given_up = await _live_view(opened, "log", lambda _: None).abandon()
        return _NOTHING if given_up is None else f"generation {given_up} is given up and removed"


async def rebuild_hourly(settings: Settings, source: str, progress: Callable[[Progress], None]) -> str:
    """`HourlyRebuild` or `HourlyRecount` on the deployment of these settings; what to say of it."""
    async with _opened(settings) as opened:
        base = opened.base
        if source == "log":
            await HourlyRebuild(
                base.log, opened.live, opened.shadow_copy, opened.hourly, opened.staging, base.clock, opened.secret,
                opened.limits, progress,
            ).run()  # fmt: skip
            return "usage_hourly and usage_duplicates are rebuilt from the log"
        if source != "clickhouse":
            raise InvalidInput("--from", "usage_hourly is made from the log or from clickhouse")
        await HourlyRecount(
            base.log, opened.live, opened.hourly, opened.reader, opened.staging, base.clock, opened.secret,
            progress=progress,
        ).run()  # fmt: skip
        return "usage_hourly is counted again out of usage_events"


async def give_up_hourly(settings: Settings) -> str:
    """`abandon_hourly` on the deployment of these settings; what to say of it."""
    async with _opened(settings) as opened:
        partitions = await opened.base.log.partition_count(EVENTS_TOPIC)
        given_up = await abandon_hourly(opened.staging, opened.shadow_copy, partitions)
        return _GIVEN_UP if given_up else _NOTHING


async def rebuild_archive_tables(settings: Settings, progress: Callable[[Progress], None]) -> str:
    """`ArchiveRebuild` on the deployment of these settings; what to say of it."""
    async with _opened(settings) as opened:
        # As the archive itself: ClickHouse wants few large inserts.
        limits = opened.limits._replace(records_max=max(100, opened.limits.records_max))
        await ArchiveRebuild(opened.base.log, opened.staging, opened.secret, limits, progress).run()
        return "usage_events, decisions and control_log are rebuilt from the log"


async def give_up_archive(settings: Settings) -> str:
    """`abandon_archive` on the deployment of these settings; what to say of it."""
    async with _opened(settings) as opened:
        return _GIVEN_UP if await abandon_archive(opened.staging) else _NOTHING
