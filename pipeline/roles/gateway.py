"""The gateway role: the HTTP API."""

from __future__ import annotations

import asyncio
import contextlib

from pipeline.http.api_keys import KeyFile
from pipeline.http.app import create_gateway
from pipeline.http.dependencies import GatewayDependencies, LiveUsage
from pipeline.http.serving import serving, stop_event
from pipeline.open import open_base, open_live_view
from pipeline.settings import Settings
from schemas.errors import InvalidInput, Transient
from schemas.live_view import CheckpointedState
from schemas.meters import MeterSet
from sinks.clickhouse.client import open_clickhouse
from sinks.clickhouse.reader import ClickHouseReader
from sinks.clickhouse.writer import ClickHouseStore


class MeterSetInForce:
    """The meter set of partition 0's checkpoint, reloaded every few seconds."""

    def __init__(self, state: CheckpointedState, refresh_interval_s: float = 2.0) -> None:
        self._state = state
        self._refresh_interval_s = refresh_interval_s
        self._meter_set: MeterSet | None = None
        self._known_until_s = 0.0

    async def __call__(self) -> MeterSet | None:
        """The meter set, or None before the first one. If Redis does not answer, the last known one."""
        now_s = asyncio.get_running_loop().time()
        if self._meter_set is None or now_s >= self._known_until_s:
            self._known_until_s = now_s + self._refresh_interval_s
            with contextlib.suppress(Transient):
                checkpoint = await self._state.load_checkpoint(0)
                self._meter_set = checkpoint.meter_set if checkpoint else self._meter_set
        return self._meter_set


async def run_gateway(settings: Settings) -> None:
    """Serve the HTTP API until stopped."""
    if settings.api_keys is None:
        raise InvalidInput("TIDEMARK_API_KEYS", "is not set; name the file that `tidemark key create` writes to")
    base = await open_base(settings)
    view = open_live_view(settings)
    clickhouse = open_clickhouse(settings.clickhouse_url)
    stop = stop_event()
    try:
        app = create_gateway(
            GatewayDependencies(
                log=base.log,
                genesis=base.genesis,
                settings=settings,
                clock=base.clock,
                keys=KeyFile(settings.api_keys),
                meter_set=MeterSetInForce(view.state),
                live=LiveUsage(view.accounts, view.deferred, view.totals, view.marks),
                usage=ClickHouseReader(clickhouse),
                hourly=ClickHouseStore(clickhouse),
            )
        )
        async with serving(app, settings.gateway_host, settings.gateway_port):
            await stop.wait()
    finally:
        await clickhouse.close()
        await view.close()
        await base.log.close()
