"""Reading a list of Stripe from which objects are deleted meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from schemas.billing_events import CURSOR_IDS_MAX, cursor_of
from schemas.errors import InvalidInput, OperatorNeeded, Transient
from sinks.stripe import listing


class Shrinking:
    """A list of numbered rows. `gone` are deleted after the page with that number was read."""

    def __init__(self, rows: int, gone: Mapping[int, set[int]]) -> None:
        self.ids = [f"o{number}" for number in range(rows)]
        self._gone = gone
        self._pages = 0
        self.calls = 0

    async def get(self, _: str, options: Mapping[str, object]) -> dict[str, Any]:
        self.calls += 1
        after, limit = options.get("starting_after"), int(str(options["limit"]))
        if after is not None and after not in self.ids:
            raise InvalidInput(listing.GONE, f"No such object: {after}")
        start = 0 if after is None else self.ids.index(str(after)) + 1
        rows, more = self.ids[start : start + limit], len(self.ids) > start + limit
        self._pages += 1
        self.ids = [each for each in self.ids if int(each[1:]) not in self._gone.get(self._pages, set())]
        return {"data": [{"id": each} for each in rows], "has_more": more}


async def read(source: Shrinking, pages_max: int = 20) -> list[int]:
    return [int(row["id"][1:]) async for row in listing.listed(source.get, "/v1/things", {}, pages_max)]


@pytest.mark.parametrize(
    ("gone", "seen", "calls"),
    [
        ({}, range(20), 4),
        ({1: {4}}, range(20), 5),
        ({1: {3, 4}, 2: {9}}, range(20), 7),
        ({1: {0, 1, 2}}, range(20), 4),
        ({1: {4, 5, 6}}, [*range(5), *range(7, 20)], 5),
        ({3: {15, 16, 17, 18, 19}}, range(15), 4),
    ],
    ids=["none", "the last of a page", "the last ones of pages", "others", "the next ones too", "all that follow"],
)
async def test_every_row_that_stays_is_read_once(
    monkeypatch: pytest.MonkeyPatch, gone: Mapping[int, set[int]], seen: range | list[int], calls: int
) -> None:
    monkeypatch.setattr(listing, "PAGE_ROWS", 5)
    source = Shrinking(20, gone)

    assert list(seen) == await read(source)
    assert calls == source.calls


async def test_a_page_of_which_nothing_is_left_is_told_and_asked_for_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "PAGE_ROWS", 50)
    source = Shrinking(100, {1: set(range(50))})

    with pytest.raises(Transient, match="the list must be read anew"):
        await read(source)
    assert 1 + CURSOR_IDS_MAX == source.calls


async def test_a_list_has_a_last_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "PAGE_ROWS", 5)

    with pytest.raises(OperatorNeeded, match="more than 10 rows"):
        await read(Shrinking(11, {}), pages_max=2)


def test_no_row_is_no_place() -> None:
    assert ("", "b,a") == (cursor_of([]), cursor_of(["a", "b"]))
