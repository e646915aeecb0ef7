"""The gateway role: the HTTP API."""

from __future__ import annotations

import asyncio
import contextlib

from pipeline.api_keys import KeyFile
from pipeline.gateway import create_gateway
from pipeline.gateway_dependencies import GatewayDependencies
from pipeline.ops import serving, stop_event
from pipeline.settings import Settings
from pipeline.stores import open_base, open_rollup_store
from schemas.errors import InvalidInput, Transient
from schemas.meters import Catalog
from schemas.rollup import RollupStore
from sinks.clickhouse.client import open_clickhouse
from sinks.clickhouse.reader import ClickHouseReader
from sinks.clickhouse.writer import ClickHouseStore


class CatalogInForce:
    """The catalog of partition 0's fence, looked up every few seconds."""

    def __init__(self, store: RollupStore, refresh_interval_s: float = 2.0) -> None:
        self._store = store
        self._refresh_interval_s = refresh_interval_s
        self._catalog: Catalog | None = None
        self._known_until_s = 0.0

    async def __call__(self) -> Catalog | None:
        """The catalog, or None before the first; the last known one where Redis does not answer."""
        now_s = asyncio.get_running_loop().time()
        if self._catalog is None or now_s >= self._known_until_s:
            self._known_until_s = now_s + self._refresh_interval_s
            with contextlib.suppress(Transient):
                fence = await self._store.load_fence(0)
                self._catalog = fence.catalog if fence else self._catalog
        return self._catalog


async def run_gateway(settings: Settings) -> None:
    """The HTTP API."""
    if settings.api_keys is None:
        raise InvalidInput("TIDEMARK_API_KEYS", "is not set; name the file that `tidemark key create` writes to")
    base = await open_base(settings)
    store = open_rollup_store(settings)
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
                catalog=CatalogInForce(store),
                rollup=store,
                usage=ClickHouseReader(clickhouse),
                hourly=ClickHouseStore(clickhouse),
            )
        )
        async with serving(app, settings.gateway_host, settings.gateway_port):
            await stop.wait()
    finally:
        await clickhouse.close()
        await store.close()
        await base.log.close()
