"""`GET /v1/accounts/{account}/timeline`: one list of the future and the past, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from schemas.clock import DAY_MS
from schemas.plan_changes import ChangeKind
from schemas.seats import Seat, SeatState
from tests.worlds.paged import Paged

START_MS: Final = int(datetime(2027, 2, 1, tzinfo=UTC).timestamp()) * 1_000


@pytest_asyncio.fixture
async def business(tmp_path: Path) -> AsyncIterator[Paged]:
    """Acme has a plan that ends with its period."""
    made = Paged(START_MS)
    await made.begin_selling()
    await made.subscribed("pro.v1.location.month.usd")
    await made.settle()
    await made.changed(kind=ChangeKind.CANCEL)
    await made.settle()
    async with made.opened(tmp_path):
        yield made


async def listed(business: Paged, account: str = "acme", key: str = "read", **parameters: str) -> Any:
    answer = await business.door.get(f"/v1/accounts/{account}/timeline", key, **parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_the_future_comes_before_the_past(business: Paged) -> None:
    seat = Seat("seat_1", "acme", "locations", "loc_1", SeatState.RESERVED, START_MS, START_MS, START_MS + DAY_MS)
    await business.sql.seats.take(seat, lambda *_: None, "ann", START_MS)

    found = await listed(business, limit="1000")
    entries = found["entries"]

    assert (found["account"], found["now"]) == ("acme", "2027-02-01T00:00:00Z")
    coming = [each for each in entries if each["when"] == "future"]
    assert [(each["kind"], each["text"]) for each in coming if "card" not in each["text"]] == [
        ("subscription_end", "The subscription ends; the plan is Free then"),
        ("seat", "The invitation of loc_1 expires: locations"),
    ]  # fmt: skip
    assert [each["at"] for each in entries] == sorted((each["at"] for each in entries), reverse=True)
    assert {(each["actor"], each["cause"]) for each in coming} == {("", "")}
    (accepted,) = [each for each in entries if each["kind"] == "operation" and each["actor"] == "ann"]
    assert accepted["cause"] == "plan change"


async def test_pages_have_the_whole_past_once(business: Paged) -> None:
    whole = await listed(business, limit="1000")
    found, page = [], await listed(business, limit="3")
    while True:
        found += page["entries"]
        if "next_cursor" not in page:
            break
        page = await listed(business, limit="3", cursor=page["next_cursor"])

    assert found == whole["entries"]
    assert sum(each["when"] == "past" for each in found) == len(await business.sql.audit("acme"))


@pytest.mark.parametrize(
    ("parameters", "status"),
    [({"limit": "0"}, 400), ({"limit": "1001"}, 400), ({"cursor": "x"}, 400), ({"since": "1"}, 400), ({}, 403)],
    ids=["no rows", "too many rows", "cursor", "unknown", "key"],
)
async def test_a_bad_question_is_refused(business: Paged, parameters: dict[str, str], status: int) -> None:
    key = "check" if status == 403 else "read"

    assert (await business.door.get("/v1/accounts/acme/timeline", key, **parameters)).status_code == status


async def test_an_unknown_account_has_no_timeline(business: Paged) -> None:
    assert (await listed(business, "nobody"))["entries"] == []
