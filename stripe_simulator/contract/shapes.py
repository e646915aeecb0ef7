"""Checks responses against the SDK's resource classes, and knows which of their fields can be expanded."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec

PROBLEMS_MAX = 20
_EVENT: Final = "v2.core._event:Event"
_PLAIN: Final[Mapping[str, tuple[type, ...]]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "any": (object,),
}


@cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = msgspec.json.decode(Path(__file__).with_name("shapes.json").read_bytes())
    return document


@cache
def _by_object_name() -> dict[str, str]:
    """The definition of each object by its `object` field."""
    names = {}
    for key, fields in _document()["definitions"].items():
        kind = fields.get("object", "")
        if kind and kind[0] == "enum" and "." not in key.partition(":")[2]:
            names[kind[1][0]] = key
    return names


def route_type(route: str) -> Any:
    """The compiled type of a route's response. Raises `KeyError` for a route that is not in the contract."""
    return _document()["routes"][route]


def fields_of(definition: str) -> Mapping[str, Any]:
    """The fields of a definition."""
    fields: dict[str, Any] = _document()["definitions"][definition]
    return fields


def problems(route: str, body: Any) -> list[str]:
    """What in a response differs from the SDK's shape, as `path: difference`; empty if nothing does."""
    found: list[str] = []
    _walk(body, route_type(route), "", found)
    return found[:PROBLEMS_MAX]


def _walk(value: Any, kind: Any, path: str, found: list[str]) -> None:
    if isinstance(kind, str):
        _walk_plain(value, kind, path, found)
        return
    match kind[0]:
        case "optional" | "expandable":
            if not (value is None if kind[0] == "optional" else isinstance(value, str)):
                _walk(value, kind[1], path, found)
        case "enum":
            if value not in kind[1] or isinstance(value, bool) != isinstance(kind[1][0], bool):
                found.append(f"{path}: {value!r} is not one of {kind[1]}")
        case "list":
            _walk_list(value, kind[1], path, found)
        case "map":
            if not isinstance(value, dict):
                found.append(f"{path}: want a map, got {value!r:.60}")
                return
            for key, item in value.items():
                _walk(item, kind[1], f"{path}[{key}]", found)
        case "object":
            _walk_object(value, kind[1], path, found)
        case "page":
            _walk_page(value, kind[1], path, found, {"object", "data", "has_more", "url"})
        case "page2":
            _walk_page(value, kind[1], path, found, {"data", "next_page_url", "previous_page_url"})
        case _:
            _walk_union(value, kind[1], path, found)


def _walk_plain(value: Any, kind: str, path: str, found: list[str]) -> None:
    if kind == "decimal":
        try:
            is_right = isinstance(value, str | Decimal) and Decimal(value).is_finite()
        except InvalidOperation:
            is_right = False
    else:
        is_right = isinstance(value, _PLAIN[kind]) and (kind in ("bool", "any") or not isinstance(value, bool))
    if not is_right:
        found.append(f"{path}: want {kind}, got {value!r:.60}")


def _walk_list(value: Any, kind: Any, path: str, found: list[str]) -> None:
    if not isinstance(value, list):
        found.append(f"{path}: want a list, got {value!r:.60}")
        return
    for index, item in enumerate(value):
        _walk(item, kind, f"{path}[{index}]", found)


def _walk_page(value: Any, kind: Any, path: str, found: list[str], names: set[str]) -> None:
    if not isinstance(value, dict) or set(value) != names or value.get("object", "list") != "list":
        found.append(f"{path}: want a page with {sorted(names)}, got {value!r:.60}")
        return
    _walk_list(value["data"], kind, f"{path}.data", found)
    if not isinstance(value.get("has_more", False), bool):
        found.append(f"{path}.has_more: want bool")


def _walk_object(value: Any, definition: str, path: str, found: list[str]) -> None:
    if not isinstance(value, dict):
        found.append(f"{path}: want {definition}, got {value!r:.60}")
        return
    if definition == _EVENT:
        definition = _document()["events"].get(value.get("type"), _EVENT)
    fields = fields_of(definition)
    if value.get("deleted") is True and "deleted" in fields:
        if set(value) != {"id", "object", "deleted"}:
            found.append(f"{path}: a deleted object has the fields id, object and deleted")
        return
    for name, kind in fields.items():
        if name in value:
            _walk(value[name], kind, f"{path}.{name}", found)
        elif kind[0] != "optional":
            found.append(f"{path}.{name}: missing")
    found += [f"{path}.{name}: unknown field" for name in value if name not in fields]
    if value.get("object") == "event":
        snapshot = value["data"]["object"]
        _walk_object(snapshot, _by_object_name()[snapshot["object"]], f"{path}.data.object", found)


def _walk_union(value: Any, kinds: list[Any], path: str, found: list[str]) -> None:
    attempts: list[list[str]] = []
    for kind in kinds:
        attempt: list[str] = []
        _walk(value, kind, path, attempt)
        if not attempt:
            return
        attempts.append(attempt)
    shortest = min(attempts, key=len)
    found += shortest
