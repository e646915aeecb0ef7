"""The gateway role: the HTTP API."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from pipeline.explaining.quarantine import in_quarantine
from pipeline.explaining.stores import ExplainStores
from pipeline.http.api_keys import KeyFile
from pipeline.http.app import create_gateway
from pipeline.http.dependencies import GatewayDependencies, LiveUsage
from pipeline.http.known_keys import KnownKeys
from pipeline.http.serving import serving, stop_event
from pipeline.metrics import Metrics
from pipeline.open import Base, open_base, open_live_view
from pipeline.roles.account_links import OpenedAccountLinks
from pipeline.roles.opened_access import OpenedAccess
from pipeline.roles.operating import operating
from pipeline.settings import Settings
from schemas.errors import InvalidInput, TidemarkError, Transient
from schemas.live_view import CheckpointedState
from schemas.meters import MeterSet
from sinks.clickhouse.client import ClickHouse, open_clickhouse
from sinks.clickhouse.corrections import ClickHouseCorrections
from sinks.clickhouse.evidence import ClickHouseEvidence
from sinks.clickhouse.reader import ClickHouseReader
from sinks.clickhouse.writer import ClickHouseStore

# A live read asks Redis up to three times; the first call without an answer ends the read.
LIVE_READ_TIMEOUT_S: Final = 1.0
REFRESH_INTERVAL_S: Final = 2.0
FIRST_WAIT_S: Final = 0.2

_log = logging.getLogger(__name__)


class MeterSetInForce:
    """The meter set of partition 0's checkpoint, kept in memory. `refresh` reads it again and again.

    If Redis does not answer, the meter set of the last read stays in force here. The worker decides with the log's own
    meter set in any case.
    """

    def __init__(self, state: CheckpointedState, on_read: Callable[[], None] = lambda: None) -> None:
        """`on_read` is called after each read that Redis answered."""
        self._state = state
        self._on_read = on_read
        self._meter_set: MeterSet | None = None
        self._read_at_s: float | None = None
        self._failure: type[TidemarkError] | None = None

    async def __call__(self) -> MeterSet | None:
        """The meter set, from memory. None if there is no meter set yet.

        Without a meter set in memory the call asks Redis, for up to `FIRST_WAIT_S`, and not if the last read failed.
        Raises `Transient` if Redis does not answer.
        """
        if self._meter_set is not None:
            return self._meter_set
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_WAIT_S):
                if self._failure is None:
                    await self.read()
                if self._failure is None:
                    return self._meter_set
        raise Transient("the meter set is not known yet, because Redis does not answer")

    def age_s(self) -> float | None:
        """Seconds since Redis last answered. None if Redis has never answered."""
        return None if self._read_at_s is None else asyncio.get_running_loop().time() - self._read_at_s

    async def read(self) -> None:
        """Read the meter set once. A failure is logged, and the meter set stays."""
        try:
            checkpoint = await self._state.load_checkpoint(0)
        except TidemarkError as error:
            if type(error) is not self._failure:
                level = logging.WARNING if isinstance(error, Transient) else logging.ERROR
                _log.log(level, "the meter set cannot be read, the gateway goes on with the last one: %s", error)
            self._failure = type(error)
            return
        self._failure = None
        self._meter_set = checkpoint.meter_set if checkpoint else self._meter_set
        self._read_at_s = asyncio.get_running_loop().time()
        self._on_read()

    async def refresh(self) -> None:
        """Read the meter set every `REFRESH_INTERVAL_S`, for ever."""
        while True:
            await self.read()
            await asyncio.sleep(REFRESH_INTERVAL_S)


def _explaining(
    base: Base, accounts: OpenedAccountLinks | None, clickhouse: ClickHouse, meter_set: MeterSetInForce
) -> Callable[[], Awaitable[ExplainStores]] | None:
    """What gives the stores that explain asks; None without PostgreSQL."""
    if accounts is None:
        return None
    evidence, reader, looked = ClickHouseEvidence(clickhouse), ClickHouseReader(clickhouse), in_quarantine(base.log)

    async def stores() -> ExplainStores:
        corrections = ClickHouseCorrections(clickhouse)
        return ExplainStores(base.clock, await accounts.tables(), evidence, reader, meter_set, looked, corrections)

    return stores


def _checking(base: Base, live: LiveUsage, metrics: Metrics) -> tuple[OpenedAccess, KnownKeys] | tuple[None, None]:
    """What reads PostgreSQL again and again: the checks and the API keys; nothing without PostgreSQL."""
    if not base.settings.sql_url.startswith("postgresql://"):
        return None, None

    def note_keys(ending: int) -> None:
        metrics.set("tidemark_gateway_keys_ending", ending)
        metrics.set("tidemark_gateway_keys_read_seconds", base.clock.now_ms() / 1000)

    access = OpenedAccess(base, live, lambda: metrics.add("tidemark_gateway_fallback_checks_total"))
    return access, KnownKeys(access.keys, base.clock, note_keys)


def _may_link(settings: Settings) -> bool:
    return bool(settings.stripe_api_key.get_secret_value()) and settings.sql_url.startswith("postgresql://")


async def run_gateway(settings: Settings) -> None:
    """Serve the HTTP API until stopped."""
    if settings.api_keys is None:
        raise InvalidInput("TIDEMARK_API_KEYS", "is not set; name the file that `tidemark key create` writes to")
    base = await open_base(settings)
    view = open_live_view(settings, LIVE_READ_TIMEOUT_S)
    clickhouse = open_clickhouse(settings.clickhouse_url, timeout_s=settings.query_timeout_s, abandons=True)
    accounts = OpenedAccountLinks(base, view) if _may_link(settings) else None
    live = LiveUsage(view.accounts, view.deferred, view.totals, view.marks)
    metrics = Metrics()
    access, known_keys = _checking(base, live, metrics)
    stop = stop_event()

    def note_read() -> None:
        metrics.set("tidemark_gateway_meter_set_read_seconds", base.clock.now_ms() / 1000)

    meter_set = MeterSetInForce(view.state, note_read)
    await meter_set.read()
    tasks: list[asyncio.Task[object]] = [
        asyncio.create_task(stop.wait()),
        asyncio.create_task(meter_set.refresh()),
        *(asyncio.create_task(each.run()) for each in (access, known_keys) if each is not None),
    ]
    try:
        app = create_gateway(
            GatewayDependencies(
                log=base.log,
                genesis=base.genesis,
                settings=settings,
                clock=base.clock,
                keys=KeyFile(settings.api_keys),
                meter_set=meter_set,
                live=live,
                usage=ClickHouseReader(clickhouse),
                hourly=ClickHouseStore(clickhouse),
                meter_set_age_s=meter_set.age_s,
                accounts=accounts,
                access=access,
                notices=access.notices if access is not None else None,
                dunning=access.dunning if access is not None else None,
                changes=accounts.changes if accounts is not None else None,
                catalog=accounts.catalog if accounts is not None else None,
                records=accounts.records if accounts is not None else None,
                seats=accounts.seats if accounts is not None else None,
                revenue=accounts.revenue if accounts is not None else None,
                evidence=ClickHouseEvidence(clickhouse),
                journal=accounts.journal if accounts is not None else None,
                credits=accounts.credits if accounts is not None else None,
                explain=_explaining(base, accounts, clickhouse, meter_set),
                operator=operating(base, accounts, clickhouse),
                known_keys=known_keys,
                corrections=ClickHouseCorrections(clickhouse),
            ),
            metrics,
        )
        async with serving(app, settings.gateway_host, settings.gateway_port):
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks[1:]:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for opened in (accounts, access):
            if opened is not None:
                await opened.close()
        await clickhouse.close()
        await view.close()
        await base.log.close()
