"""`expand[]`: ids in an answer become the objects that they name (docs.stripe.com/api/expanding_objects)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from stripe_simulator.contract import fields_of, route_type
from stripe_simulator.errors import ApiError, not_simulated
from stripe_simulator.store import Object, copied

DEPTH_MAX: Final = 4
# Fields that an object has only if the request expands them.
INCLUDABLE: Final = {"price": "tiers", "coupon": "applies_to"}

# Finds an object of any kind by its id.
Find = Callable[[str], Object | None]


def without_includable(value: Any) -> Any:
    """A copy of a JSON value in which no object has its field of `INCLUDABLE`."""
    if isinstance(value, dict):
        kind = value.get("object")
        hidden = INCLUDABLE.get(kind) if isinstance(kind, str) else None
        return {name: without_includable(item) for name, item in value.items() if name != hidden}
    if isinstance(value, list):
        return [without_includable(item) for item in value]
    return value


def expand(route: str, body: Object, paths: Sequence[str], find: Find) -> Object:
    """A copy of an answer with the fields of `paths` expanded. Raises `ApiError` (400) for any other field."""
    expanded: Object = without_includable(body)
    for path in paths:
        steps = path.split(".")
        if len(steps) - (steps[0] == "data") > DEPTH_MAX:
            raise ApiError(
                400, f"You cannot expand more than {DEPTH_MAX} levels of a property ({path}).", param="expand"
            )
        _Expansion(path, find).walk(expanded, route_type(route), steps)
    return expanded


class _Expansion:
    def __init__(self, path: str, find: Find) -> None:
        self._path = path
        self._find = find

    def walk(self, value: Any, kind: Any, steps: Sequence[str], *, was_expandable: bool = False) -> Any:
        """The value, expanded along the steps. The object is changed in place."""
        while kind[0] == "optional":
            kind = kind[1]
        if kind[0] == "expandable":
            if isinstance(value, str):
                value = without_includable(self._find(value))
            return self.walk(value, kind[1], steps, was_expandable=True)
        if kind[0] == "list":
            items = value or []
            items[:] = [self.walk(item, kind[1], steps, was_expandable=was_expandable) for item in items]
            if not items:
                self.walk(None, kind[1], steps, was_expandable=was_expandable)
            return value
        if kind[0] == "union":
            return self._walk_union(value, kind[1], steps, was_expandable)
        if kind[0] in ("page", "page2"):
            return self._walk_page(value, kind[1], steps)
        if not steps and was_expandable:
            return value
        fields = fields_of(kind[1]) if kind[0] == "object" else {}
        if len(steps) == 1 and steps[0] in INCLUDABLE.values() and "id" in fields and steps[0] in fields:
            if isinstance(value, dict):
                value[steps[0]] = copied(self._find(value["id"]) or {}).get(steps[0])
            return value
        if not steps or steps[0] not in fields:
            raise self._refused()
        below = value.get(steps[0]) if isinstance(value, dict) else None
        result = self.walk(below, fields[steps[0]], steps[1:])
        if isinstance(value, dict) and steps[0] in value:
            value[steps[0]] = result
        return value

    def _walk_page(self, value: Any, kind: Any, steps: Sequence[str]) -> Any:
        if not steps:
            # A list that an answer contains only if the request expands the list.
            if value is None:
                raise not_simulated(f"the expansion of {self._path}")
            return value
        if steps[0] != "data":
            raise self._refused(f". You may want to try expanding 'data.{self._path}' instead" if value else "")
        if isinstance(value, dict):
            self.walk(value["data"], ["list", kind], steps[1:])
        return value

    def _walk_union(self, value: Any, kinds: Sequence[Any], steps: Sequence[str], was_expandable: bool) -> Any:
        """By the member that the object is; an absent object is checked against none."""
        if not steps or not isinstance(value, dict):
            return value
        for kind in kinds:
            if kind[0] == "object" and fields_of(kind[1]).get("object") == ["enum", [value.get("object")]]:
                return self.walk(value, kind, steps, was_expandable=was_expandable)
        raise self._refused()

    def _refused(self, hint: str = "") -> ApiError:
        return ApiError(400, f"This property cannot be expanded ({self._path}){hint}.", param="expand")
