"""Request bodies: Stripe's form encoding `a[b][0]=c` of API v1, and JSON of API v2."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_plus

import msgspec

from stripe_simulator.errors import ApiError

FIELDS_MAX = 1_000
DEPTH_MAX = 8
BODY_BYTES_MAX = 1 << 20

Raw = dict[str, Any]


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
