"""Checks responses of the Stripe simulator against the SDK's resource classes. `python -m tests.services.stripe_shapes`
is the simulator with this check: a response that differs becomes a 500 and is recorded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import islice
from typing import Any, Final

from stripe_simulator.__main__ import main
from stripe_simulator.contract import fields_of, route_type, shapes

PROBLEMS_MAX = 20
_EVENT: Final = "v2.core._event:Event"
_DECIMAL: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?$")
_PAGES: Final = {
    "page": {"object", "data", "has_more", "url"},
    "page2": {"data", "next_page_url", "previous_page_url"},
}
_PLAIN: Final[Mapping[str, tuple[type, ...]]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "any": (object,),
}


@cache
def _by_object_name() -> dict[str, str]:
    """The definition of each object by its `object` field."""
    names = {}
    for key, fields in shapes()["definitions"].items():
        kind = fields.get("object", "")
        if kind and kind[0] == "enum" and "." not in key.partition(":")[2]:
            names[kind[1][0]] = key
    return names


def problems(route: str, body: Any) -> list[str]:
    """What in a response differs from the SDK's shape, as `path: difference`; empty if nothing does."""
    return list(islice(_walk(body, route_type(route), ""), PROBLEMS_MAX))


def _walk(value: Any, kind: Any, path: str) -> Iterator[str]:
    match kind if isinstance(kind, str) else kind[0]:
        case "optional" | "expandable":
            if not (value is None if kind[0] == "optional" else isinstance(value, str)):
                yield from _walk(value, kind[1], path)
        case "enum":
            if value not in kind[1] or isinstance(value, bool) != isinstance(kind[1][0], bool):
                yield f"{path}: {value!r} is not one of {kind[1]}"
        case "null":
            if value != {}:
                yield f"{path}: want nothing, got {value!r:.60}"
        case "list":
            yield from _walk_list(value, kind[1], path)
        case "map":
            if not isinstance(value, dict):
                yield f"{path}: want a map, got {value!r:.60}"
                return
            for key, item in value.items():
                yield from _walk(item, kind[1], f"{path}[{key}]")
        case "object":
            yield from _walk_object(value, kind[1], path)
        case "page" | "page2":
            yield from _walk_page(value, kind[1], path, _PAGES[kind[0]])
        case "union":
            attempts: list[list[str]] = [list(_walk(value, member, path)) for member in kind[1]]
            yield from min(attempts, key=len)
        case _:
            if not _is_plain(value, kind):
                yield f"{path}: want {kind}, got {value!r:.60}"


def _is_plain(value: Any, kind: str) -> bool:
    if kind == "decimal":
        return isinstance(value, str) and _DECIMAL.match(value) is not None
    return isinstance(value, _PLAIN[kind]) and (kind in ("bool", "any") or not isinstance(value, bool))


def _walk_list(value: Any, kind: Any, path: str) -> Iterator[str]:
    if not isinstance(value, list):
        yield f"{path}: want a list, got {value!r:.60}"
        return
    for index, item in enumerate(value):
        yield from _walk(item, kind, f"{path}[{index}]")


def _walk_page(value: Any, kind: Any, path: str, names: set[str]) -> Iterator[str]:
    if not isinstance(value, dict) or set(value) != names or value.get("object", "list") != "list":
        yield f"{path}: want a page with {sorted(names)}, got {value!r:.60}"
        return
    yield from _walk_list(value["data"], kind, f"{path}.data")
    if not isinstance(value.get("has_more", False), bool):
        yield f"{path}.has_more: want bool"


def _walk_object(value: Any, definition: str, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: want {definition}, got {value!r:.60}"
        return
    if definition == _EVENT:
        definition = shapes()["events"].get(value.get("type"), _EVENT)
    fields = fields_of(definition)
    if value.get("deleted") is True and "deleted" in fields:
        if set(value) != {"id", "object", "deleted"}:
            yield f"{path}: a deleted object has the fields id, object and deleted"
        return
    for name, kind in fields.items():
        if name in value:
            yield from _walk(value[name], kind, f"{path}.{name}")
        elif kind[0] != "optional":
            yield f"{path}.{name}: missing"
    for name in value:
        if name not in fields:
            yield f"{path}.{name}: unknown field"
    if value.get("object") == "event":
        snapshot = value["data"]["object"]
        yield from _walk_object(snapshot, _by_object_name()[snapshot["object"]], f"{path}.data.object")


if __name__ == "__main__":
    main(obj=problems)
