"""The tables of all resources, and the router: a fixed segment of a path wins over an id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Final

from stripe_simulator import contract, invoicing, payments, resources
from stripe_simulator.errors import ApiError, not_simulated
from stripe_simulator.mode import Job, Route, Subscriber
from stripe_simulator.resources import subscription_cycle

_RESOURCES: Final = [import_module(f"{resources.__name__}.{found.name}") for found in iter_modules(resources.__path__)]
_ID: Final = ""


def _table(name: str) -> dict[str, Any]:
    return {key: value for resource in _RESOURCES for key, value in getattr(resource, name, {}).items()}


ROUTES: Final[Sequence[Route]] = [route for resource in _RESOURCES for route in getattr(resource, "ROUTES", ())]
JOBS: Final[Mapping[str, Job]] = _table("JOBS")
INDEXED: Final[Mapping[str, Sequence[str]]] = _table("INDEXED")
SUBSCRIBERS: Final[Sequence[Subscriber]] = [
    subscriber for resource in _RESOURCES for subscriber in getattr(resource, "SUBSCRIBERS", ())
]

payments.LISTENERS[:] = [invoicing.payment_settled]
invoicing.LISTENERS[:] = [subscription_cycle.follow]


class Router:
    """The routes of the simulator, and by name all other routes of Stripe's."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._root: dict[str, Any] = {}
        for name in contract.requests()["known"]:
            method, _, path = name.partition(" ")
            self._leaf(path)[method] = None
        for route in routes:
            leaf = self._leaf(route.path)
            if route.method not in leaf:
                raise LookupError(f"the SDK has no route {route.name}")
            leaf[route.method] = route

    def find(self, method: str, path: str) -> tuple[Route, tuple[str, ...]]:
        """The route and the ids in the path. Raises `ApiError`: 501 for a route of Stripe's that is missing
        here, 404 for one that Stripe does not have."""
        node, ids = self._root, []
        for segment in path.split("/")[1:]:
            if segment in node and segment != _ID:
                node = node[segment]
            else:
                node = node.get(_ID, {}) if segment else {}
                ids.append(segment)
        leaf = node.get("/", {})
        if method not in leaf:
            message = f"Unrecognized request URL ({method}: {path}). Please see https://stripe.com/docs or we can help"
            raise ApiError(404, f"{message} at https://support.stripe.com/.")
        route: Route | None = leaf[method]
        if route is None:
            raise not_simulated(f"{method} {path}")
        return route, tuple(ids)

    def _leaf(self, path: str) -> dict[str, Route | None]:
        node = self._root
        for segment in path.split("/")[1:]:
            node = node.setdefault(_ID if segment.startswith("{") else segment, {})
        leaf: dict[str, Route | None] = node.setdefault("/", {})
        return leaf
