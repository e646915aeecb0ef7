"""The archive role."""

from __future__ import annotations

from pipeline.processors.archive import ARCHIVE_GROUP, ArchiveProcessor
from pipeline.roles.running import run_processor, runner_settings
from pipeline.settings import Settings
from pipeline.stores import open_base, open_clickhouse_store

# ClickHouse wants few large inserts; analysts see an event this much later.
LINGER_S = 1.0


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
        flushes = runner_settings(settings, ARCHIVE_GROUP, flush_records_max=100, linger_s=LINGER_S)
        await run_processor(base, archive, flushes)
    finally:
        await store.close()
        await base.log.close()
