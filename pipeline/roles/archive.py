"""The archive role."""

from __future__ import annotations

from pipeline.ingest.archive import ARCHIVE_GROUP, ArchiveProcessor
from pipeline.open import open_base, open_clickhouse_store
from pipeline.roles.base import run_processor, runner_settings
from pipeline.settings import Settings

# As many as wait for a worker at most: a process that is behind inserts most at once.
FLUSH_RECORDS_MAX = 200


async def run_archive(settings: Settings, *, replay_from_start: bool = False) -> None:
    """Every accepted event into ClickHouse."""
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
        flushes = runner_settings(
            settings, ARCHIVE_GROUP, FLUSH_RECORDS_MAX, linger_s=linger_s, catch_up_linger_s=linger_s
        )
        await run_processor(base, archive, flushes)
    finally:
        await store.close()
        await base.log.close()
