"""The gateway's ASGI app. The caller opens and closes the dependencies.

    app = create_gateway(GatewayDependencies(log=…, genesis=…, settings=…, clock=…, keys=KeyFile(path), meter_set=…))

docs/http-api.md describes every path.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aggregators.instants import format_instant_ms
from pipeline.http.api_keys import Role
from pipeline.http.appender import Appender
from pipeline.http.dependencies import GatewayDependencies, authorized
from pipeline.http.errors import Handler, answering, http_exception, json_answer
from pipeline.http.events import EventsEndpoint
from pipeline.http.usage import UsageEndpoints
from pipeline.metrics import Metrics
from schemas.errors import TidemarkError
from schemas.log import EVENTS_TOPIC
from schemas.meters import Meter

CHECK_TIMEOUT_S: Final = 2.0


def create_gateway(dependencies: GatewayDependencies, metrics: Metrics | None = None) -> Starlette:
    """The app. Without `metrics` the app creates a registry.

    The end of the app's lifespan waits for all pending events. A server without lifespan may end such requests, and
    their senders send the events again.
    """
    counted = metrics or Metrics()
    appender = Appender(dependencies.log, dependencies.genesis.partitions, counted)
    events = EventsEndpoint(dependencies, appender, counted)
    usage = UsageEndpoints(dependencies)
    health = _Health(dependencies)

    async def meters(request: Request) -> Response:
        authorized(dependencies, request, None)
        meter_set = await dependencies.meter_set()
        return json_answer({
            "version": meter_set.version if meter_set else None,
            "meters": [_described(meter) for meter in meter_set.meters] if meter_set else [],
        })  # fmt: skip

    async def exposition(_request: Request) -> Response:
        content, media_type = counted.render()
        return Response(content, media_type=media_type)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await appender.close()

    def route(path: str, handler: Handler, method: str = "GET") -> Route:
        return Route(path, answering(path, handler, counted), methods=[method])

    return Starlette(
        routes=[
            route("/v1/events", events.post, "POST"),
            route("/v1/usage", usage.over_time),
            route("/v1/accounts/{account:path}/usage", usage.current),
            route("/v1/meters", meters),
            route("/healthz", health.alive),
            route("/readyz", health.ready),
            route("/metrics", exposition),
        ],
        exception_handlers={HTTPException: http_exception},
        lifespan=lifespan,
    )


def _described(meter: Meter) -> dict[str, Any]:
    return {
        "slug": meter.slug,
        "event_type": meter.event_type,
        "aggregation": meter.aggregation.value,
        "value_path": meter.value_path,
        "dimensions": sorted(meter.dimensions),
        "unit": meter.unit,
        "scale": meter.scale,
        "late": meter.late.value,
        "description": meter.description,
    }


class _Health:
    """`/healthz` and `/readyz`."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self._dependencies = dependencies

    async def alive(self, _request: Request) -> Response:
        return json_answer({"status": "alive"})

    async def ready(self, _request: Request) -> Response:
        """503 if the log does not accept events. If only another store is down, the status is `degraded`."""
        given = self._dependencies
        checks: dict[str, Callable[[], Awaitable[dict[str, Any]]] | None] = {
            "log": self._log,
            "redis": self._redis if given.live else None,
            "clickhouse": self._clickhouse if given.hourly or given.usage else None,
        }
        present = {name: check for name, check in checks.items() if check is not None}
        outcomes = await asyncio.gather(*(_checked(check) for check in present.values()))
        results = dict(zip(present, outcomes, strict=True))
        ready = bool(results["log"]["ok"])
        whole = all(outcome["ok"] for outcome in outcomes)
        status = "ready" if whole else "degraded" if ready else "not_ready"
        return json_answer({"status": status, "checks": results}, 200 if ready else 503)

    async def _log(self) -> dict[str, Any]:
        partitions = await self._dependencies.log.partition_count(EVENTS_TOPIC)
        # The partition count may come from a cache, so `bounds` checks that the log answers.
        await self._dependencies.log.bounds(EVENTS_TOPIC, 0)
        return {"ok": partitions == self._dependencies.genesis.partitions, "partitions": partitions}

    async def _redis(self) -> dict[str, Any]:
        live = self._dependencies.live
        assert live is not None  # noqa: S101  # `ready` checks Redis only with a live view
        partitions = range(self._dependencies.genesis.partitions)
        answers = await asyncio.gather(*(live.totals.account_totals(partition, []) for partition in partitions))
        times_ms = [checkpoint.stream_time_ms for checkpoint, _ in answers if checkpoint is not None]
        counted_up_to = format_instant_ms(min(times_ms)) if len(times_ms) == len(answers) else None
        lag_s = (self._dependencies.clock.now_ms() - min(times_ms)) / 1000 if times_ms else None
        return {"ok": True, "counted_up_to": counted_up_to, "lag_s": lag_s}

    async def _clickhouse(self) -> dict[str, Any]:
        given = self._dependencies
        if given.hourly is not None:
            times = [position.stream_time_ms for position in (await given.hourly.load_relayed()).values()]
        else:
            assert given.usage is not None  # noqa: S101  # `ready` checks ClickHouse only with a reader
            times = [position.stream_time_ms for position in (await given.usage.archive_positions()).values()]
        whole = len(times) == given.genesis.partitions
        return {"ok": True, "complete_up_to": format_instant_ms(min(times)) if whole else None}


async def _checked(check: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return await check()
    except (TidemarkError, TimeoutError, OSError) as error:
        return {"ok": False, "problem": type(error).__name__}


__all__ = ["GatewayDependencies", "Role", "create_gateway"]
