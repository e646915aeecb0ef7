"""What stripe-python says about requests and responses. `python -m tests.stripe_contract` compiles the two JSON files.

A type is a name (`str`, `int`, `float`, `bool`, `decimal`, `any`) or a list whose first item says its kind:
`["enum", values]`, `["list", type]`, `["map", type]`, `["object", definition]`, `["union", types]`,
`["optional", type]` (may be absent or null), `["clear", type]` (`""` clears a parameter), `["expandable", type]` (an id
or the object), `["page", type]` and `["page2", type]` (a list of API v1 or v2).
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec


@cache
def requests() -> dict[str, Any]:
    """The types of the parameters, the names of all routes of the SDK as `known`, and Stripe's API version."""
    return _read("requests")


@cache
def shapes() -> dict[str, Any]:
    """The types of the responses by `routes`, and of the thin `events`."""
    return _read("shapes")


def route_type(route: str) -> Any:
    """The type of a route's response. Raises `KeyError` for a route that is not in the contract."""
    return shapes()["routes"][route]


def fields_of(definition: str) -> Mapping[str, Any]:
    """The fields of a response's definition."""
    fields: dict[str, Any] = shapes()["definitions"][definition]
    return fields


def _read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.json.decode(Path(__file__).with_name(f"{name}.json").read_bytes())
    return document
