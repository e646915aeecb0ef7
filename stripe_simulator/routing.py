"""Finds the route of a request. A fixed segment of a path wins over an id."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from stripe_simulator.contract.parameters import known_routes
from stripe_simulator.errors import not_simulated, unrecognized
from stripe_simulator.mode import Route

_ID: Final = ""


class Router:
    """The routes of the simulator, and by name all other routes of Stripe's."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._root: dict[str, Any] = {}
        for name in known_routes():
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
            below = node.get(segment) if segment else None
            if below is None and segment:
                below = node.get(_ID)
                ids.append(segment)
            if below is None:
                raise unrecognized(method, path)
            node = below
        leaf = node.get("/", {})
        if method not in leaf:
            raise unrecognized(method, path)
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
