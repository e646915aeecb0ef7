"""Pages of lists: API v1 by `limit`, `starting_after` and `ending_before`, API v2 by page tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any
from urllib.parse import urlencode

from stripe_simulator.contract.parameters import Params
from stripe_simulator.errors import ApiError, no_such
from stripe_simulator.mode import Call, Mode
from stripe_simulator.store import Object

LIST = ("limit", "starting_after", "ending_before")
COMPARISONS: Mapping[str, Callable[[int, int], bool]] = {
    "gt": lambda value, bound: value > bound,
    "gte": lambda value, bound: value >= bound,
    "lt": lambda value, bound: value < bound,
    "lte": lambda value, bound: value <= bound,
}


def matches(value: int, wanted: Any) -> bool:
    """Whether a time in seconds satisfies a filter such as `created`: an instant or bounds `gt`, `gte`, `lt`, `lte`."""
    if isinstance(wanted, dict):
        return all(COMPARISONS[name](value, bound) for name, bound in wanted.items())
    return wanted is None or value == wanted


def page(
    mode: Mode,
    call: Call,
    kind: str,
    where: Mapping[str, Any] | None = None,
    keep: Callable[[Object], bool] = lambda _: True,
) -> Object:
    """A page of the objects of a kind, newest first.

    `where` names fields and the values to keep; None keeps all. An indexed field is looked up. `created` of the request
    is applied here. `keep` is any other filter.
    """
    wanted = {field: value for field, value in (where or {}).items() if value is not None}
    indexed = next((field for field in wanted if mode.store.is_indexed(kind, field)), "")
    created = call.params.get("created")

    def is_kept(body: Object) -> bool:
        return (
            all(body.get(field) == value for field, value in wanted.items())
            and matches(body.get("created", 0), created)
            and keep(body)
        )

    def objects(cursor: str, *, older: bool) -> Iterable[Object]:
        place = mode.store.place(kind, cursor) if cursor else None
        if cursor and place is None:
            raise _no_cursor(call.params, kind, cursor)
        rows = mode.store.from_place(kind, indexed, wanted.get(indexed), place, older=older)
        return (body for _, body in rows if is_kept(body))

    return _page(call, objects)


def listed(kind: str, *fields: str) -> Callable[[Mode, Call], Object]:
    """The `run` of a route that lists a kind, filtered by parameters that are fields of the objects."""
    return lambda mode, call: page(mode, call, kind, {field: call.params.get(field) for field in fields})


def page_of(call: Call, rows: list[Object]) -> Object:
    """A page of rows that are no stored objects. `rows` is the whole list in the order of the answer."""
    places = {row["id"]: place for place, row in enumerate(rows)}

    def objects(cursor: str, *, older: bool) -> Iterable[Object]:
        if cursor and cursor not in places:
            raise _no_cursor(call.params, "object", cursor)
        if not cursor:
            return rows
        place = places[cursor]
        return rows[place + 1 :] if older else reversed(rows[:place])

    return _page(call, objects)


def _no_cursor(params: Params, kind: str, cursor: str) -> ApiError:
    param = "starting_after" if "starting_after" in params else "ending_before"
    return no_such(kind.replace("_", " "), cursor, param, 400)


def _page(call: Call, objects: Callable[..., Iterable[Object]]) -> Object:
    limit = limit_of(call.params, 10)
    after, before = call.params.get("starting_after", ""), call.params.get("ending_before", "")
    if after and before:
        raise ApiError(400, "Only one of starting_after and ending_before can be set.", code="parameters_exclusive")
    rows = list(islice(objects(after or before, older=not before), limit + 1))
    data = rows[:limit]
    return {
        "object": "list",
        "url": call.path,
        "has_more": len(rows) > limit,
        "data": data[::-1] if before else data,
    }


def limit_of(params: Params, default: int) -> int:
    """The size of a page. Raises `ApiError` if it is not between 1 and 100."""
    limit = params.get("limit", default)
    if limit > 100:
        raise ApiError(
            400, "This value must be less than or equal to 100.", param="limit", code="parameter_invalid_integer"
        )
    if limit < 1:
        message = "This value must be greater than or equal to 1."
        raise ApiError(400, message, param="limit", code="parameter_invalid_integer")
    return int(limit)


def page_v2(mode: Mode, call: Call, kind: str, keep: Callable[[Object], bool]) -> Object:
    """A page of API v2: the address of the next page contains the filters and a token."""
    limit = limit_of(call.params, 20)
    token = call.params.get("page")
    place = None if token is None else mode.store.place(kind, token)
    if token is not None and place is None:
        raise ApiError(400, "The page token is invalid.", param="page")
    rows = (body for _, body in mode.store.from_place(kind, place=place) if keep(body))
    data = list(islice(rows, limit + 1))
    next_url = None
    if len(data) > limit:
        again = {**call.params, "limit": limit, "page": data[limit - 1]["id"]}
        next_url = f"{call.path}?{urlencode(list(_flat(again)))}"
    return {"data": data[:limit], "next_page_url": next_url, "previous_page_url": None}


def _flat(params: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """The fields of a query string."""
    items = params.items() if isinstance(params, dict) else enumerate(params)
    for key, value in items:
        name = f"{prefix}[{key}]" if prefix else str(key)
        if isinstance(value, dict | list):
            yield from _flat(value, name)
        else:
            yield name, str(value)
