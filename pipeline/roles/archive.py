"""The archive role."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from pipeline.ingest.archive import ARCHIVE_GROUP, STEP_EVENTS_MAX, ArchiveProcessor
from pipeline.metrics import Metrics
from pipeline.native.load import load
from pipeline.open import open_base, open_clickhouse_store
from pipeline.roles.base import run_processor, runner_settings
from pipeline.settings import Settings

# Per partition; an insert has the events of several partitions. The queue has the next step while one is inserted.
FLUSH_BYTES_MAX: Final = 32 * 1024 * 1024
QUEUE_BYTES_MAX: Final = 24 * 1024 * 1024


async def run_archive(settings: Settings, *, replay_from_start: bool = False) -> None:
    """Write every accepted event to ClickHouse until stopped."""
    base = await open_base(settings)
    store = await open_clickhouse_store(settings)
    native = load(enabled=settings.native).library
    try:
        events_max = min(settings.flush_events_max, STEP_EVENTS_MAX)
        archive = ArchiveProcessor(
            base.log,
            store,
            settings.secret_bytes(),
            events_max=events_max,
            replay_from_start=replay_from_start,
            native=native,
        )
        metrics = Metrics()
        metrics.set("tidemark_native_core", native is not None)
        linger_s = settings.archive_linger_s
        limits = runner_settings(settings, ARCHIVE_GROUP, events_max, linger_s=linger_s, catch_up_linger_s=linger_s)
        await run_processor(
            base,
            archive,
            replace(limits, flush_bytes_max=FLUSH_BYTES_MAX, queue_bytes_max=QUEUE_BYTES_MAX),
            metrics=metrics,
        )
    finally:
        await store.close()
        await base.log.close()
