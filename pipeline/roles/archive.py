"""The archive role."""

from __future__ import annotations

from pipeline.ingest.archive import ARCHIVE_GROUP, ArchiveProcessor
from pipeline.open import open_base, open_clickhouse_store
from pipeline.roles.base import run_processor, runner_settings
from pipeline.settings import Settings


async def run_archive(settings: Settings, *, replay_from_start: bool = False) -> None:
    """Write every accepted event to ClickHouse until stopped."""
    base = await open_base(settings)
    store = await open_clickhouse_store(settings)
    try:
        archive = ArchiveProcessor(
            base.log,
            store,
            settings.secret_bytes(),
            events_max=settings.flush_events_max,
            replay_from_start=replay_from_start,
        )
        linger_s = settings.archive_linger_s
        await run_processor(
            base, archive, runner_settings(settings, ARCHIVE_GROUP, linger_s=linger_s, catch_up_linger_s=linger_s)
        )
    finally:
        await store.close()
        await base.log.close()
