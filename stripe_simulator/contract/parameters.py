"""The parameters of a request: Stripe's form encoding `a[b][0]=c` of API v1 or JSON of API v2, converted to the types
of the SDK's `*Params` classes."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final
from urllib.parse import unquote_plus

import msgspec

from stripe_simulator import contract
from stripe_simulator.errors import ApiError, empty_parameter, missing_parameter, not_simulated

FIELDS_MAX = 1_000
DEPTH_MAX = 8
BODY_BYTES_MAX = 1 << 20

Raw = dict[str, Any]
Params = dict[str, Any]


def api_version() -> str:
    """Stripe's API version, as in `2026-10-28.endive`."""
    return str(contract.requests()["api"])


def parse_form(text: str) -> Raw:
    """The nested fields of a form body or query string; lists are maps from index to value. Raises `ApiError` (400)."""
    pairs = text.split("&") if text else ()
    if len(pairs) > FIELDS_MAX:
        raise ApiError(400, f"Invalid request body: more than {FIELDS_MAX} fields")
    fields: Raw = {}
    for name, _, value in (pair.partition("=") for pair in pairs):
        *above, last = _keys(name)
        target = fields
        for key in above:
            target = target.setdefault(key or str(len(target)), {})
            if not isinstance(target, dict):
                raise ApiError(400, f"Invalid object: {name}", param=name)
        target[last or str(len(target))] = _decoded(value)
    return fields


def _decoded(text: str) -> str:
    if "%" not in text and "+" not in text:
        return text
    try:
        return unquote_plus(text, errors="strict")
    except UnicodeDecodeError as error:
        raise ApiError(400, f"Invalid request body: {error}") from error


@lru_cache
def _keys(encoded: str) -> list[str]:
    name = _decoded(encoded)
    head, *rest = name.split("[")
    if not all(part.endswith("]") for part in rest):
        raise ApiError(400, f"Invalid parameter name: {name}")
    if len(rest) >= DEPTH_MAX:
        raise ApiError(400, f"Invalid parameter name: {name}: nested too deeply")
    return [head, *(part[:-1] for part in rest)]


def parse_json(body: bytes) -> Raw:
    """The fields of a JSON body of API v2. Raises `ApiError` (400) if the body is not an object."""
    try:
        fields = msgspec.json.decode(body or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"Invalid request body: {error}") from error
    if not isinstance(fields, dict):
        raise ApiError(400, "Invalid request body: it must be a JSON object.")
    return fields


def coerce(route: str, raw: Raw, takes: Collection[str]) -> Params:
    """The parameters of one request, converted. A parameter that `""` clears is None.

    `route` is `METHOD PATH`. `takes` are the names that the resource implements, `name` or, for a part of a map,
    `name[key]`; any other parameter of Stripe's is a 501. Raises `ApiError` in Stripe's order: unknown, mistyped,
    missing.
    """
    return _coercion(route, frozenset(takes)).coerce(raw)


@lru_cache(1_000)
def _coercion(route: str, takes: frozenset[str]) -> _Coercion:
    return _Coercion(route, takes | {"expand", "page"})


class _Coercion:
    def __init__(self, route: str, takes: frozenset[str]) -> None:
        self._route = route
        self._takes = takes
        self._partly = {name.partition("[")[0] for name in takes if "[" in name}
        self._is_json = route.startswith("POST /v2/")
        self._definitions = contract.requests()["definitions"]
        self._top = self._definitions.get(contract.requests()["routes"].get(route), {})
        if route.startswith("GET /v2/") and "limit" in self._top:
            self._top = {**self._top, "page": ["optional", "str"]}

    def coerce(self, raw: Raw) -> Params:
        return self.fields(raw, self._top, "")

    def fields(self, raw: Mapping[str, Any], fields: Mapping[str, Any], prefix: str) -> Params:
        names = {key: f"{prefix}[{key}]" if prefix else key for key in raw}
        if unknown := [name for key, name in names.items() if key not in fields]:
            message = f"Received unknown parameter{'s' if len(unknown) > 1 else ''}: {', '.join(unknown)}"
            raise ApiError(400, message, code="parameter_unknown", param=unknown[0])
        params: Params = {}
        for key, value in raw.items():
            name = names[key]
            if (not prefix or prefix in self._partly) and name not in self._takes and name not in self._partly:
                raise not_simulated(f"{self._route} with the parameter {name}")
            params[key] = self.value(value, fields[key], name)
        for key, kind in fields.items():
            if kind[0] != "optional" and params.get(key, {}) == {}:
                raise missing_parameter(f"{prefix}[{key}]" if prefix else key)
        return params

    def value(self, value: Any, kind: Any, name: str) -> Any:
        if isinstance(kind, str):
            return self._plain(value, kind, name)
        inner = kind[1]
        match kind[0]:
            case "optional":
                # API v2 clears by null.
                return None if value is None else self.value(value, inner, name)
            case "clear":
                return None if value == "" else self.value(value, inner, name)
            case "enum":
                return _enum(value, inner, name)
            case "list":
                return [self.value(item, inner, f"{name}[{place}]") for place, item in enumerate(_items(value, name))]
            case "union":
                return self._union(value, inner, name)
        if not isinstance(value, dict):
            raise _invalid("object", name, code="parameter_invalid")
        if kind[0] == "object":
            return self.fields(value, self._definitions[inner], name)
        # A map. `""` as a value removes the key, as in `metadata[colour]=`.
        return {key: item if item == "" else self.value(item, inner, f"{name}[{key}]") for key, item in value.items()}

    def _union(self, value: Any, kinds: Sequence[Any], name: str) -> Any:
        """The first member that takes the value; otherwise the error of the last member of the value's form."""
        structured = [kind for kind in kinds if kind[0] in ("object", "map", "list")]
        plain = [kind for kind in kinds if kind not in structured]
        *others, last = (structured if isinstance(value, dict | list) else plain) or kinds
        for kind in others:
            with suppress(ApiError):
                return self.value(value, kind, name)
        return self.value(value, last, name)

    def _plain(self, value: Any, kind: str, name: str) -> Any:
        """A text of a form, or a value of JSON that has its type already."""
        if kind == "any":
            return value
        if value == "":
            raise empty_parameter(name)
        if self._is_json and type(value) in _OF_JSON.get(kind, ()):
            return value
        pattern, convert, label = _OF_TEXT[kind]
        if not isinstance(value, str) or (self._is_json and kind in ("int", "bool")) or not pattern.fullmatch(value):
            code = "parameter_invalid_integer" if kind == "int" else None
            raise _invalid(label, name, None if kind == "str" else value, code)
        return convert(value)


_OF_JSON: Final = {"int": (int,), "bool": (bool,), "float": (int, float)}
# What a text must look like, and what it becomes.
_OF_TEXT: Final[Mapping[str, tuple[re.Pattern[str], Callable[[str], Any], str]]] = {
    "str": (re.compile(r"(?s).*"), str, "string"),
    "int": (re.compile(r"-?[0-9]{1,18}"), int, "integer"),
    "bool": (re.compile(r"true|false"), "true".__eq__, "boolean"),
    "decimal": (re.compile(r"-?[0-9]{1,18}(\.[0-9]+)?"), Decimal, "decimal"),
    "float": (re.compile(r"-?[0-9]{1,18}(\.[0-9]+)?"), float, "decimal"),
}


def _invalid(kind: str, name: str, value: object = None, code: str | None = None) -> ApiError:
    return ApiError(400, f"Invalid {kind}: {name if value is None else str(value)[:100]}", code=code, param=name)


def _enum(value: Any, values: Sequence[Any], name: str) -> Any:
    for known in values:
        if value == known or (isinstance(known, bool) and value == str(known).lower()):
            return known
    if value == "":
        raise empty_parameter(name)
    shown = [str(known) for known in values]
    listed = " or ".join(shown) if len(shown) < 3 else f"{', '.join(shown[:-1])}, or {shown[-1]}"
    raise ApiError(400, f"Invalid {name}: must be {'one of ' if len(shown) > 1 else ''}{listed}", param=name)


def _items(value: Any, name: str) -> Sequence[Any]:
    """The items of a list: a JSON list, or a form's map from index to item, in the order of the indices."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict) or not all(key.isdigit() and key.isascii() for key in value):
        raise _invalid("array", name)
    return [value[key] for key in sorted(value, key=int)]
