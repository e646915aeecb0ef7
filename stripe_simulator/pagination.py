"""Pages of lists: API v1 by `limit`, `starting_after` and `ending_before`, API v2 by page tokens."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final
from urllib.parse import urlencode

from stripe_simulator.errors import ApiError, no_such
from stripe_simulator.mode import Call, Mode
from stripe_simulator.store import Object

LIST: Final = ("limit", "starting_after", "ending_before")
COMPARISONS: Final = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}

# The objects from next to a cursor on, or all without one, older or newer; None if there is no such object.
_Rows = Callable[[str, bool], Iterable[Object] | None]


def page(
    mode: Mode,
    call: Call,
    kind: str,
    where: Mapping[str, Any] | None = None,
    keep: Callable[[Object], bool] = lambda _: True,
) -> Object:
    """A page of the objects of a kind, newest first.

    `where` names fields and the values to keep; None keeps all. An indexed field is looked up. `created` of the request
    is applied here: an instant or the bounds `gt`, `gte`, `lt`, `lte`. `keep` is any other filter.
    """
    wanted = {field: value for field, value in (where or {}).items() if value is not None}
    indexed = next((field for field in wanted if mode.store.is_indexed(kind, field)), "")
    created = call.params.get("created", {})
    bounds = created if isinstance(created, dict) else {"gte": created, "lte": created}

    def is_kept(body: Object) -> bool:
        return (
            all(body.get(field) == value for field, value in wanted.items())
            and all(COMPARISONS[name](body.get("created", 0), bound) for name, bound in bounds.items())
            and keep(body)
        )

    def rows(cursor: str, older: bool) -> Iterable[Object] | None:
        place = mode.store.place(kind, cursor) if cursor else None
        if cursor and place is None:
            return None
        found = mode.store.from_place(kind, indexed, wanted.get(indexed), place, older=older)
        return (body for _, body in found if is_kept(body))

    return _page(call, kind.replace("_", " "), rows)


def listed(kind: str, *fields: str) -> Callable[[Mode, Call], Object]:
    """The `run` of a route that lists a kind, filtered by parameters that are fields of the objects."""
    return lambda mode, call: page(mode, call, kind, {field: call.params.get(field) for field in fields})


def page_of(call: Call, objects: list[Object]) -> Object:
    """A page of rows that are no stored objects. `objects` is the whole list in the order of the answer."""

    def rows(cursor: str, older: bool) -> Iterable[Object] | None:
        if not cursor:
            return objects
        place = next((place for place, row in enumerate(objects) if row["id"] == cursor), None)
        if place is None:
            return None
        return objects[place + 1 :] if older else objects[:place][::-1]

    return _page(call, "object", rows)


def _page(call: Call, label: str, rows: _Rows) -> Object:
    limit, cursors = _limit(call, 10), [name for name in LIST[1:] if call.params.get(name)]
    if len(cursors) > 1:
        raise ApiError(400, "Only one of starting_after and ending_before can be set.", code="parameters_exclusive")
    cursor, is_back = call.params[cursors[0]] if cursors else "", "ending_before" in cursors
    found = rows(cursor, not is_back)
    if found is None:
        raise no_such(label, cursor, cursors[0], 400)
    data = list(islice(found, limit + 1))
    shown = data[:limit][::-1] if is_back else data[:limit]
    return {"object": "list", "url": call.path, "has_more": len(data) > limit, "data": shown}


def _limit(call: Call, default: int) -> int:
    limit: int = call.params.get("limit", default)
    if not 1 <= limit <= 100:
        message = f"This value must be {'less than or equal to 100' if limit > 1 else 'greater than or equal to 1'}."
        raise ApiError(400, message, param="limit", code="parameter_invalid_integer")
    return limit


def page_v2(mode: Mode, call: Call, kind: str, keep: Callable[[Object], bool]) -> Object:
    """A page of API v2: the address of the next page contains the filters and a token."""
    limit, token = _limit(call, 20), call.params.get("page")
    place = None if token is None else mode.store.place(kind, token)
    if token is not None and place is None:
        raise ApiError(400, "The page token is invalid.", param="page")
    data = list(islice((body for _, body in mode.store.from_place(kind, place=place) if keep(body)), limit + 1))
    next_url = None
    if len(data) > limit:
        again = {**call.params, "limit": limit, "page": data[limit - 1]["id"]}
        next_url = f"{call.path}?{urlencode(list(_query(again, '')))}"
    return {"data": data[:limit], "next_page_url": next_url, "previous_page_url": None}


def _query(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """The fields of a query string for nested parameters."""
    if not isinstance(value, dict | list):
        yield name, str(value)
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _query(item, f"{name}[{key}]" if name else str(key))
