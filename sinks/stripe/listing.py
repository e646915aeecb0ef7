"""The pages of Stripe's lists, of which any object may be deleted while they are read.

A page begins after an object. If that object is gone, Stripe refuses the page, and the object before it serves: nothing
is left out and nothing comes twice, because what lay between the two is gone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

from schemas.billing_events import cursor_of
from schemas.errors import InvalidInput, OperatorNeeded, Transient
from sinks.stripe.answers import Malformed
from sinks.stripe.connection import json_of

PAGE_ROWS: Final = 100
GONE: Final = "resource_missing"

T = TypeVar("T")
Get = Callable[[str, Mapping[str, object]], Awaitable[T]]


def list_of(response: Any) -> dict[str, Any]:
    """A page of a list. Raises `Malformed` if it is none, or has a row without an id."""
    page = json_of(response)
    check_list(page)
    return page


def check_list(page: object) -> None:
    """Raise `Malformed` if a value is no page of a list, or has a row without an id."""
    rows = page.get("data") if isinstance(page, dict) else None
    if not isinstance(page, dict) or not isinstance(rows, list) or not isinstance(page.get("has_more"), bool):
        raise Malformed("not a page of a list: it has no data or no has_more")
    if not all(isinstance(row, dict) and isinstance(row.get("id"), str) and row["id"] for row in rows):
        raise Malformed("not a page of a list: a row has no id")


async def page_after(get: Get[T], path: str, options: Mapping[str, object], after: str) -> T:
    """The page of a list after a place (`cursor_of`), "" for the first one. Raises `Transient` if all objects of the
    place are gone, and what `get` raises."""
    if not after:
        return await get(path, options)
    for identifier in after.split(","):
        try:
            return await get(path, {**options, "starting_after": identifier})
        except InvalidInput as error:
            if error.field != GONE:
                raise
            last = error
    raise Transient(f"the objects at the end of a page of {path} are gone, so the list must be read anew") from last


async def listed(
    get: Get[dict[str, Any]], path: str, options: Mapping[str, object], pages_max: int
) -> AsyncIterator[Any]:
    """The rows of all pages of a list. Raises `OperatorNeeded` beyond `pages_max` pages, and as `page_after`."""
    options, after = {**options, "limit": PAGE_ROWS}, ""
    for _ in range(pages_max):
        page = await page_after(get, path, options, after)
        for row in page["data"]:
            yield row
        if not page["has_more"] or not page["data"]:
            return
        after = cursor_of([row["id"] for row in page["data"]])
    raise OperatorNeeded(f"Stripe's list {path} has more than {pages_max * PAGE_ROWS} rows: read a shorter span")
