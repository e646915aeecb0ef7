"""`GET /v1/notices`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from schemas.notices import ChannelName, DeliveryState
from tests.worlds.gateway import Gateway, running
from tests.worlds.notices import NoticeWorld

PATH = "/v1/notices"


@pytest_asyncio.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """Three accounts have reached their limit; one of the notices is dead."""
    world = NoticeWorld()
    await world.begin()
    for account in ("acme", "globex", "initech"):
        world.use(account, 1_000)
    await world.notifier()[0].turn()
    now_ms = world.clock.now_ms()
    (first,) = await world.outbox.claim(now_ms, now_ms + 1, 1)
    await world.outbox.settle(first, DeliveryState.DEAD, "the webhook answered 500", now_ms)
    async with running(tmp_path, notices=lambda: world.outbox) as gateway:
        yield gateway


async def test_a_dead_delivery_is_shown_with_its_reason(gateway: Gateway) -> None:
    (shown,) = (await gateway.get(f"{PATH}?state=dead", "admin")).json()["notices"]

    assert (shown["detail"], shown["channel"], shown["due_at"]) == (
        "the webhook answered 500",
        ChannelName.WEBHOOK,
        None,
    )
    assert (shown["data"]["feature"], shown["data"]["used"]) == ("tokens", "1000")


async def test_pages_follow_each_other(gateway: Gateway) -> None:
    ids, cursor = [], ""
    while True:
        answer = (await gateway.get(f"{PATH}?limit=4&cursor={cursor}", "admin")).json()
        ids += [each["id"] for each in answer["notices"]]
        cursor = answer.get("next_cursor", "")
        if not cursor:
            break
    assert len(ids) == len(set(ids)) == 6


@pytest.mark.parametrize(
    ("key", "query", "status", "accounts"),
    [
        ("", "", 401, None), ("read", "", 403, None), ("ingest", "", 403, None),
        ("admin", "", 200, {"acme", "globex", "initech"}), ("admin", "account=globex", 200, {"globex"}),
        ("acme", "", 200, {"acme"}), ("acme", "account=acme", 200, {"acme"}), ("acme", "account=globex", 403, None),
        ("admin", "state=lost", 400, None), ("admin", "cursor=x", 400, None), ("admin", "limit=0", 400, None),
    ],
)  # fmt: skip
async def test_who_sees_what(gateway: Gateway, key: str, query: str, status: int, accounts: set[str] | None) -> None:
    answer = await gateway.get(f"{PATH}?{query}", key)

    assert answer.status_code == status
    if accounts is not None:
        assert {each["account"] for each in json.loads(answer.content)["notices"]} == accounts


@pytest.mark.parametrize(("notices", "status"), [(None, 501), (lambda: None, 503)], ids=["not configured", "not yet"])
async def test_without_sql_there_is_no_answer(tmp_path: Path, notices: object, status: int) -> None:
    async with running(tmp_path, notices=notices) as gateway:
        assert (await gateway.get(PATH, "admin")).status_code == status
