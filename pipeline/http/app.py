"""The gateway's ASGI app. The caller opens and closes the dependencies.

    app = create_gateway(GatewayDependencies(log=…, genesis=…, settings=…, clock=…, keys=KeyFile(path), meter_set=…))

docs/http-api.md describes every path.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.http.api_keys import Role
from pipeline.http.appender import Appender
from pipeline.http.dependencies import GatewayDependencies, authorized
from pipeline.http.errors import Handler, answering, http_exception, json_answer
from pipeline.http.events import EventsEndpoint
from pipeline.http.health import Health
from pipeline.http.usage import UsageEndpoints
from pipeline.metrics import Metrics
from schemas.meters import Meter


def create_gateway(dependencies: GatewayDependencies, metrics: Metrics | None = None) -> Starlette:
    """The app. Without `metrics` the app creates a registry.

    The end of the app's lifespan waits for all pending events. A server without lifespan may end such requests, and
    their senders send the events again.
    """
    counted = metrics or Metrics()
    appender = Appender(dependencies.log, dependencies.genesis.partitions, counted)
    events = EventsEndpoint(dependencies, appender, counted)
    usage = UsageEndpoints(dependencies)
    health = Health(dependencies)

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


__all__ = ["GatewayDependencies", "Role", "create_gateway"]
