"""The router role."""

from __future__ import annotations

from pipeline.ingest.router import ROUTER_GROUP, RouterProcessor
from pipeline.open import open_base
from pipeline.roles.base import run_processor, runner_settings
from pipeline.settings import Settings


async def run_router(settings: Settings) -> None:
    """Forward `usage.inbox` to `usage.events` until stopped."""
    base = await open_base(settings)
    try:
        await run_processor(base, RouterProcessor(base.log), runner_settings(settings, ROUTER_GROUP))
    finally:
        await base.log.close()
