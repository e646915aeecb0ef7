"""`expand[]`: ids in an answer become the objects that they name (docs.stripe.com/api/expanding_objects)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from stripe_simulator.contract import fields_of, route_type
from stripe_simulator.errors import ApiError, not_simulated
from stripe_simulator.store import Object, copied

DEPTH_MAX: Final = 4
# The path of the field that an object has only if the request expands it.
INCLUDABLE: Final = {
    "price": ("tiers",),
    "coupon": ("applies_to",),
    "billing_portal.configuration": ("features", "subscription_update", "products"),
}

# Finds an object of any kind by its id.
Find = Callable[[str], Object | None]


def without_includable(value: Any) -> Any:
    """A copy of a JSON value in which no object has its field of `INCLUDABLE`."""
    if isinstance(value, dict):
        kind = value.get("object")
        copy = {name: without_includable(item) for name, item in value.items()}
        if isinstance(kind, str) and kind in INCLUDABLE:
            *outer, hidden = INCLUDABLE[kind]
            _within(copy, outer).pop(hidden, None)
        return copy
    return [without_includable(item) for item in value] if isinstance(value, list) else value


def _within(body: Object, steps: Sequence[str]) -> Object:
    """The object at the end of a path; an empty one if there is none."""
    for step in steps:
        body = body.get(step) or {}
    return body


def expand(route: str, body: Object, paths: Sequence[str], find: Find) -> Object:
    """A copy of an answer with the fields of `paths` expanded. Raises `ApiError` (400) for any other field."""
    expanded: Object = without_includable(body)
    for path in paths:
        steps = path.split(".")
        if len(steps) - (steps[0] == "data") > DEPTH_MAX:
            message = f"You cannot expand more than {DEPTH_MAX} levels of a property ({path})."
            raise ApiError(400, message, param="expand")
        _Expansion(path, find).walk(expanded, route_type(route), steps)
    return expanded


class _Expansion:
    def __init__(self, path: str, find: Find) -> None:
        self._path = path
        self._find = find

    def walk(self, value: Any, kind: Any, steps: Sequence[str], *, was_expandable: bool = False) -> Any:
        """The value, expanded along the steps. The object is changed in place; an absent one is None."""
        match kind:
            case ["optional", inner]:
                return self.walk(value, inner, steps, was_expandable=was_expandable)
            case ["expandable", inner]:
                found = without_includable(self._find(value)) if isinstance(value, str) else value
                return self.walk(found, inner, steps, was_expandable=True)
            case ["list", inner]:
                for index, item in enumerate(value or [None]):
                    result = self.walk(item, inner, steps, was_expandable=was_expandable)
                    if value:
                        value[index] = result
                return value
            case ["union", kinds]:
                # By the member that the object is; an absent object is checked against none.
                if not steps or not isinstance(value, dict):
                    return value
                named = (member for member in kinds if member[0] == "object")
                own = ["enum", [value.get("object")]]
                inner = next((member for member in named if fields_of(member[1]).get("object") == own), "any")
                return self.walk(value, inner, steps, was_expandable=was_expandable)
            case ["page" | "page2", inner]:
                return self._walk_page(value, inner, steps)
        if not steps and was_expandable:
            return value
        fields = fields_of(kind[1]) if kind[0] == "object" else {}
        if not steps or steps[0] not in fields:
            raise self._refused()
        step, body = steps[0], value if isinstance(value, dict) else {}
        if tuple(steps) == _includable(fields):
            *outer, last = steps
            whole = copied(self._find(body.get("id", "")) or {})
            _within(body, outer)[last] = _within(whole, outer).get(last)
        else:
            result = self.walk(body.get(step), fields[step], steps[1:])
            if step in body:
                body[step] = result
        return value

    def _walk_page(self, value: Any, kind: Any, steps: Sequence[str]) -> Any:
        if steps and steps[0] != "data":
            raise self._refused(f". You may want to try expanding 'data.{self._path}' instead" if value else "")
        if not steps and value is None:
            # A list that an answer contains only if the request expands the list.
            raise not_simulated(f"the expansion of {self._path}")
        if steps and isinstance(value, dict):
            self.walk(value["data"], ["list", kind], steps[1:])
        return value

    def _refused(self, hint: str = "") -> ApiError:
        return ApiError(400, f"This property cannot be expanded ({self._path}){hint}.", param="expand")


def _includable(fields: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The path of `INCLUDABLE` of an object with these fields."""
    match fields.get("object"):
        case ["enum", [str(name)]]:
            return INCLUDABLE.get(name)
    return None
