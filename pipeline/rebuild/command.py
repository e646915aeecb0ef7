"""Opens what a rebuild needs, as the settings name it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from pipeline.rebuild.live_view import LiveViewRebuild, RebuildLimits
from pipeline.settings import Settings
from pipeline.stores import open_base, open_clickhouse_store, open_rollup_store
from schemas.rebuild import Progress


@contextlib.asynccontextmanager
async def _opened(settings: Settings, progress: Callable[[Progress], None]) -> AsyncIterator[LiveViewRebuild]:
    async with contextlib.AsyncExitStack() as stack:
        store = open_rollup_store(settings)
        stack.push_async_callback(store.close)
        base = await open_base(settings, create=False)
        stack.push_async_callback(base.log.close)
        hourly = await open_clickhouse_store(settings)
        stack.push_async_callback(hourly.close)
        limits = RebuildLimits(settings.flush_records_max, settings.flush_events_max, settings.drain_cells_max)
        yield LiveViewRebuild(base.log, store, hourly, base.clock, settings.secret_bytes(), limits, progress)


async def rebuild_live_view(settings: Settings, progress: Callable[[Progress], None]) -> int:
    """`LiveViewRebuild.run` on the deployment of these settings."""
    async with _opened(settings, progress) as rebuild:
        return await rebuild.run()


async def abandon_live_view(settings: Settings) -> int | None:
    """`LiveViewRebuild.abandon` on the deployment of these settings."""
    async with _opened(settings, lambda _: None) as rebuild:
        return await rebuild.abandon()
