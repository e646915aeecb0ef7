"""The tables of all resources. A new resource is one more line in `_RESOURCES`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from stripe_simulator.mode import Job, Route, Subscriber
from stripe_simulator.resources import (
    account,
    core_events,
    customers,
    entitlements,
    events,
    meter_event_adjustments,
    meter_event_stream,
    meter_event_summaries,
    meter_events,
    meters,
    webhook_endpoints,
)

_RESOURCES: Final[tuple[Any, ...]] = (
    account,
    customers,
    meters,
    meter_events,
    meter_event_summaries,
    meter_event_adjustments,
    meter_event_stream,
    events,
    core_events,
    webhook_endpoints,
    entitlements,
)

ROUTES: Final[Sequence[Route]] = [route for resource in _RESOURCES for route in resource.ROUTES]
JOBS: Final[Mapping[str, Job]] = {
    kind: job for resource in _RESOURCES for kind, job in getattr(resource, "JOBS", {}).items()
}
INDEXED: Final[Mapping[str, Sequence[str]]] = {
    kind: fields for resource in _RESOURCES for kind, fields in getattr(resource, "INDEXED", {}).items()
}
SUBSCRIBERS: Final[Sequence[Subscriber]] = [
    subscriber for resource in _RESOURCES for subscriber in getattr(resource, "SUBSCRIBERS", ())
]
