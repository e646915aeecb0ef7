"""Stripe's v1 form encoding, `a[b][0]=c`, and the check of parameters against an endpoint's specification."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import parse_qsl

from stripe_simulator.errors import ApiError, missing_parameter, unknown_parameter

FIELDS_MAX = 1_000
DEPTH_MAX = 8

Params = dict[str, object]


class Spec(NamedTuple):
    """The parameters of an endpoint. `nested` names maps with fixed keys, `open_maps` maps with any keys."""

    plain: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    integers: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    open_maps: tuple[str, ...] = ()
    nested: Mapping[str, tuple[str, ...]] = {}


def parse(text: str) -> Params:
    """The nested parameters of a form body or query string. Raises `ApiError` (400) if the text is malformed."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=FIELDS_MAX)
    except (ValueError, UnicodeDecodeError) as error:
        raise ApiError(400, f"Invalid request body: {error}") from error
    params: Params = {}
    for name, value in pairs:
        _put(params, _keys(name), value, name)
    return params


def _keys(name: str) -> list[str]:
    head, *rest = name.split("[")
    keys = [head]
    for part in rest:
        if not part.endswith("]"):
            raise ApiError(400, f"Invalid parameter name: {name}")
        keys.append(part[:-1])
    if len(keys) > DEPTH_MAX:
        raise ApiError(400, f"Invalid parameter name: {name}: nested too deeply")
    return keys


def _put(target: dict[str, object], keys: Sequence[str], value: str, name: str) -> None:
    for key in keys[:-1]:
        below = target.setdefault(key, {})
        if not isinstance(below, dict):
            raise ApiError(400, f"Invalid object: {name}", param=name)
        target = below
    last = keys[-1] or str(len(target))
    target[last] = value


def check(params: Params, spec: Spec) -> None:
    """Raise `ApiError` for unknown, missing and mistyped parameters, as Stripe does before execution."""
    known = {*spec.plain, *spec.integers, *spec.lists, *spec.open_maps, *spec.nested, "expand"}
    for name in params:
        if name not in known:
            raise unknown_parameter(name)
    for name in spec.required:
        if params.get(name, "") in ("", {}):
            raise missing_parameter(name)
    for name in spec.integers:
        if name in params:
            integer(params, name)
    for name in (*spec.plain, *spec.integers):
        if isinstance(params.get(name), dict):
            raise ApiError(400, f"Invalid string: {name}", param=name)
    for name in (*spec.lists, *spec.open_maps, *spec.nested):
        if name in params and not isinstance(params[name], dict):
            raise ApiError(400, f"Invalid object: {name}", code="parameter_invalid", param=name)
    for name, keys in spec.nested.items():
        for key in mapping(params, name):
            if key not in keys:
                raise unknown_parameter(f"{name}[{key}]")


def integer(params: Params, name: str, default: int = 0) -> int:
    """An integer parameter; `default` if it is absent."""
    value = params.get(name)
    if value is None:
        return default
    try:
        return int(str(value))
    except ValueError:
        raise ApiError(400, f"Invalid integer: {value}", code="parameter_invalid_integer", param=name) from None


def text(params: Params, name: str, default: str = "") -> str:
    """A text parameter; `default` if it is absent."""
    value = params.get(name)
    return default if value is None else str(value)


def mapping(params: Params, name: str) -> dict[str, object]:
    """A map parameter; empty if it is absent."""
    value = params.get(name)
    return value if isinstance(value, dict) else {}


def sequence(params: Params, name: str) -> list[str]:
    """A list parameter, sent as `name[0]=…` or `name[]=…`."""
    return [str(value) for value in mapping(params, name).values()]


def page(rows: Sequence[dict[str, object]], params: Params, url: str) -> dict[str, object]:
    """One page of a v1 list by `limit`, `starting_after` and `ending_before`. `rows` is the whole sorted list."""
    limit = integer(params, "limit", 10)
    if not 1 <= limit <= 100:
        raise ApiError(400, f"Invalid integer: {limit}. limit must be between 1 and 100.", param="limit")
    ids = [str(row["id"]) for row in rows]
    chosen: Iterable[dict[str, object]]
    if after := text(params, "starting_after"):
        start = _index(ids, after, "starting_after") + 1
        chosen, more = rows[start : start + limit], start + limit < len(rows)
    elif before := text(params, "ending_before"):
        end = _index(ids, before, "ending_before")
        chosen, more = rows[max(0, end - limit) : end], end - limit > 0
    else:
        chosen, more = rows[:limit], limit < len(rows)
    return {"object": "list", "url": url, "has_more": more, "data": list(chosen)}


def _index(ids: Sequence[str], identifier: str, param: str) -> int:
    try:
        return ids.index(identifier)
    except ValueError:
        raise ApiError(400, f"No such object: '{identifier}'", code="resource_missing", param=param) from None
