"""The parameters of a request: Stripe's form encoding `a[b][0]=c` of API v1 or JSON of API v2, converted to the types
of the SDK's `*Params` classes."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
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

_INTEGER: Final = re.compile(r"-?[0-9]{1,18}$")
_DECIMAL: Final = re.compile(r"-?[0-9]{1,18}(\.[0-9]+)?$")
_PAGE: Final = ["optional", "str"]


def api_version() -> str:
    """Stripe's API version, as in `2026-10-28.endive`."""
    return str(contract.requests()["api"])


def parse_form(text: str) -> Raw:
    """The nested fields of a form body or query string; lists are maps from index to value. Raises `ApiError` (400)."""
    pairs = text.split("&") if text else ()
    if len(pairs) > FIELDS_MAX:
        raise ApiError(400, f"Invalid request body: more than {FIELDS_MAX} fields")
    fields: Raw = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        _put(fields, _keys(name), _decoded(value), name)
    return fields


def _decoded(text: str) -> str:
    if "%" not in text and "+" not in text:
        return text
    try:
        return unquote_plus(text, errors="strict")
    except UnicodeDecodeError as error:
        raise ApiError(400, f"Invalid request body: {error}") from error


def parse_json(body: bytes) -> Raw:
    """The fields of a JSON body of API v2. Raises `ApiError` (400) if the body is not an object."""
    try:
        fields = msgspec.json.decode(body or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"Invalid request body: {error}") from error
    if not isinstance(fields, dict):
        raise ApiError(400, "Invalid request body: it must be a JSON object.")
    return fields


@lru_cache
def _keys(encoded: str) -> list[str]:
    name = _decoded(encoded)
    head, *rest = name.split("[")
    keys = [head]
    for part in rest:
        if not part.endswith("]"):
            raise ApiError(400, f"Invalid parameter name: {name}")
        keys.append(part[:-1])
    if len(keys) > DEPTH_MAX:
        raise ApiError(400, f"Invalid parameter name: {name}: nested too deeply")
    return keys


def _put(target: Raw, keys: Sequence[str], value: str, name: str) -> None:
    for key in keys[:-1]:
        below = target.setdefault(key or str(len(target)), {})
        if not isinstance(below, dict):
            raise ApiError(400, f"Invalid object: {name}", param=name)
        target = below
    target[keys[-1] or str(len(target))] = value


def coerce(route: str, raw: Mapping[str, Any], takes: Collection[str]) -> Params:
    """The parameters of one request, converted. A parameter that `""` clears is None.

    `route` is `METHOD PATH`. `takes` are the names that the resource implements, `name` or, for a part of a map,
    `name[key]`; any other parameter of Stripe's is a 501. Raises `ApiError` in Stripe's order: unknown, mistyped,
    missing.
    """
    document = contract.requests()
    definition = document["routes"].get(route)
    fields: dict[str, Any] = document["definitions"][definition] if definition else {}
    if route.startswith("GET /v2/") and "limit" in fields:
        fields = {**fields, "page": _PAGE}
    return _Coercion(route, frozenset(takes) | {"expand", "page"}).fields(raw, fields, "")


class _Coercion:
    def __init__(self, route: str, takes: frozenset[str]) -> None:
        self._route = route
        self._takes = takes
        self._partly = {name.partition("[")[0] for name in takes if "[" in name}
        self._is_json = route.startswith("POST /v2/")

    def fields(self, raw: Mapping[str, Any], fields: Mapping[str, Any], prefix: str) -> Params:
        names = {key: f"{prefix}[{key}]" if prefix else key for key in raw}
        if unknown := [name for key, name in names.items() if key not in fields]:
            message = f"Received unknown parameter{'s' if len(unknown) > 1 else ''}: {', '.join(unknown)}"
            raise ApiError(400, message, code="parameter_unknown", param=unknown[0])
        params: Params = {}
        for key, value in raw.items():
            self._check_taken(names[key], prefix)
            params[key] = self.value(value, fields[key], names[key])
        for key, kind in fields.items():
            if kind[0] != "optional" and params.get(key, {}) == {}:
                raise missing_parameter(f"{prefix}[{key}]" if prefix else key)
        return params

    def _check_taken(self, name: str, prefix: str) -> None:
        if prefix and prefix not in self._partly:
            return
        if name not in self._takes and name not in self._partly:
            raise not_simulated(f"{self._route} with the parameter {name}")

    def value(self, value: Any, kind: Any, name: str) -> Any:
        if isinstance(kind, str):
            if value == "" and kind != "any":
                raise empty_parameter(name)
            return _PLAIN[kind](value, name, self._is_json)
        match kind[0]:
            case "optional":
                # API v2 clears by null.
                return None if value is None else self.value(value, kind[1], name)
            case "clear":
                return None if value == "" else self.value(value, kind[1], name)
            case "enum":
                return _enum(value, kind[1], name)
            case "list":
                return [self.value(item, kind[1], f"{name}[{n}]") for n, item in enumerate(_items(value, name))]
            case "map" | "object" if not isinstance(value, dict):
                raise _invalid("object", name, code="parameter_invalid")
            case "map":
                # `""` as a value of a map removes the key, as in `metadata[colour]=`.
                return {
                    key: item if item == "" else self.value(item, kind[1], f"{name}[{key}]")
                    for key, item in value.items()
                }
            case "object":
                return self.fields(value, contract.requests()["definitions"][kind[1]], name)
        return self._union(value, kind[1], name)

    def _union(self, value: Any, kinds: Sequence[Any], name: str) -> Any:
        """The first member that takes the value; otherwise the error of a member of the value's form."""
        structured = [kind for kind in kinds if kind[0] in ("object", "map", "list")]
        plain = [kind for kind in kinds if kind not in structured]
        candidates = (structured if isinstance(value, dict | list) else plain) or kinds
        for kind in candidates[:-1]:
            try:
                return self.value(value, kind, name)
            except ApiError:
                continue
        return self.value(value, candidates[-1], name)


def _invalid(kind: str, name: str, value: object = None, code: str | None = None) -> ApiError:
    shown = name if value is None else str(value)[:100]
    return ApiError(400, f"Invalid {kind}: {shown}", code=code, param=name)


def _string(value: Any, name: str, _is_json: bool) -> str:
    if not isinstance(value, str):
        raise _invalid("string", name)
    return value


def _integer(value: Any, name: str, is_json: bool) -> int:
    if is_json and isinstance(value, int) and not isinstance(value, bool):
        return value
    if is_json or not isinstance(value, str) or not _INTEGER.match(value):
        raise _invalid("integer", name, value, "parameter_invalid_integer")
    return int(value)


def _boolean(value: Any, name: str, is_json: bool) -> bool:
    if is_json and isinstance(value, bool):
        return value
    if is_json or value not in ("true", "false"):
        raise _invalid("boolean", name, value)
    return bool(value == "true")


def _decimal(value: Any, name: str, _is_json: bool) -> Decimal:
    if not isinstance(value, str) or not _DECIMAL.match(value):
        raise _invalid("decimal", name, value)
    return Decimal(value)


def _float(value: Any, name: str, is_json: bool) -> float:
    if is_json and isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return float(_decimal(value, name, is_json))


def _anything(value: Any, _name: str, _is_json: bool) -> Any:
    return value


_PLAIN: Final[Mapping[str, Callable[[Any, str, bool], Any]]] = {
    "str": _string,
    "int": _integer,
    "bool": _boolean,
    "decimal": _decimal,
    "float": _float,
    "any": _anything,
}


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
