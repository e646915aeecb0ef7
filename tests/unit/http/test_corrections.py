"""Corrections by the API: what is said, what is written once, and what is refused (S16)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.http.api_keys import Role, create_key
from pipeline.rollup.corrector import Corrector
from schemas.clock import DAY_MS
from schemas.control import ControlKind
from sinks.clickhouse.fake_corrections import FakeCorrections
from tests.worlds.gateway import Gateway, running
from tests.worlds.reconciler import DECEMBER_MS, Deployment

WHY = {"by": "ann", "reason": "a test run"}
TOKENS: dict[str, Any] = {"usage": {"tokens": 7}, "model": "small"}


class Shop:
    """A gateway over a deployment with a corrector, where ada has used 7 tokens."""

    def __init__(self, door: Gateway, world: Deployment) -> None:
        self.door, self.world = door, world
        self.corrector = Corrector(world.log, world.clickhouse, FakeCorrections(world.clickhouse))

    async def ask(self, key: str = "operator", **body: Any) -> httpx.Response:
        content = {"correction": "c-1", "account": "ada", **WHY, **body}
        return await self.door.client.post("/v1/corrections", json=content, headers=self.door.bearer(key))

    async def listed(self) -> list[dict[str, Any]]:
        answer = await self.door.get("/v1/accounts/ada/corrections")
        assert answer.status_code == 200, answer.text
        rows: list[dict[str, Any]] = answer.json()["corrections"]
        return rows

    async def catch_up(self) -> None:
        """Bring all of the log to every view, and correct."""
        for _ in range(2):
            await self.world.fold()
            await self.world.archive()
            for partition in range(self.world.world.partitions):
                await self.corrector.correct(partition)

    async def tokens(self) -> str:
        answer = await self.door.get("/v1/usage/current", account="ada")
        (row,) = [each for each in answer.json()["meters"] if each["meter"] == "tokens"]
        return str(row["value"])

    async def records(self) -> int:
        await self.world.archive()
        rows = self.world.clickhouse.control_log.values()
        return sum(row.kind == ControlKind.CORRECTION for row in rows)


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    world = Deployment()
    async with running(tmp_path, world.world, corrections=FakeCorrections(world.clickhouse)) as door:
        await world.emit("ada", type_="completion.finished", **TOKENS)
        opened = Shop(door, world)
        await opened.catch_up()
        yield opened


async def test_a_void_is_told_and_listed_and_counts_once(shop: Shop) -> None:
    assert await shop.tokens() == "7"
    first = await shop.ask(void="event-1")
    await shop.catch_up()
    second = await shop.ask(void="event-1")
    await shop.catch_up()

    change = {"meter": "tokens", "dimensions": {"model": "small"}, "quantity": "-7"}
    assert (first.status_code, first.json()) == (202, {
        "correction": "c-1", "account": "ada", "event": "event-1", "kind": "void", "state": "written",
        "closed_period": "next_period", "period_start": "2026-11-01T00:00:00Z", "period_end": "2026-12-01T00:00:00Z",
        "is_closed": False, "counts": True, "changes": [change], "measured_again": [],
        "settlements": [],
    })  # fmt: skip
    assert (second.status_code, second.json()["state"], second.json()["changes"]) == (202, "known", [])
    assert await shop.tokens() == "0"
    assert await shop.records() == 1
    (row,) = await shop.listed()
    assert (row["correction"], row["kind"], row["told"], row["data"]) == ("c-1", "void", [change], None)
    assert row["by"].startswith("ann (key ")


async def test_an_amended_event_counts_its_new_data_and_the_last_correction_decides(shop: Shop) -> None:
    amended = await shop.ask(amend="event-1", data={"usage": {"tokens": 9}, "model": "large"})
    await shop.catch_up()
    assert await shop.tokens() == "9"
    voided = await shop.ask(correction="c-2", void="event-1")
    await shop.catch_up()

    assert [(each["dimensions"], each["quantity"]) for each in amended.json()["changes"]] == [
        ({"model": "large"}, "9"), ({"model": "small"}, "-7"),
    ]  # fmt: skip
    assert [each["quantity"] for each in voided.json()["changes"]] == ["-9"]
    assert await shop.tokens() == "0"
    assert [row["correction"] for row in await shop.listed()] == ["c-2", "c-1"]


async def test_a_list_reads_what_the_listed_corrections_told_and_no_more(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An account may have many more of them."""
    await shop.ask(void="event-1")
    await shop.world.emit("ada", type_="completion.finished", id="other", **TOKENS)
    await shop.catch_up()
    await shop.ask(correction="c-2", void="other")
    await shop.catch_up()
    read: list[str] = []
    told = FakeCorrections.told

    async def noted(self: FakeCorrections, *given: Any) -> Any:
        rows = await told(self, *given)
        read.extend(row.data for row in rows)
        return rows

    monkeypatch.setattr(FakeCorrections, "told", noted)
    answer = await shop.door.get("/v1/accounts/ada/corrections", limit="1")

    (row,) = answer.json()["corrections"]
    assert (row["correction"], [each["quantity"] for each in row["told"]]) == ("c-2", ["-7"])
    assert [json.loads(data)["corrects"] for data in read] == ["other"]
    assert len(await shop.listed()) == 2


async def test_a_dry_run_says_the_same_and_writes_nothing(shop: Shop) -> None:
    answer = await shop.ask(void="event-1", dry_run=True)

    assert (answer.status_code, answer.json()["state"], len(answer.json()["changes"])) == (200, "looked", 1)
    assert await shop.records() == 0


@pytest.mark.parametrize(("treatment", "counts"), [("next_period", True), ("credit_note", False), ("write_off", False)])
async def test_a_closed_period(shop: Shop, treatment: str, counts: bool) -> None:
    """Only the treatment next_period changes a total, that of the open period. Here no PostgreSQL knows the cents."""
    await shop.world.advance(DECEMBER_MS - shop.world.clock.ms + 10 * DAY_MS)
    await shop.catch_up()

    answer = (await shop.ask(void="event-1", closed_period=treatment)).json()
    await shop.catch_up()

    assert (answer["is_closed"], answer["counts"], len(answer["changes"])) == (True, counts, 1)
    (settled,) = answer["settlements"]
    assert (settled["meter"], settled["difference"], "TIDEMARK_SQL_URL" in settled["unknown"]) == ("tokens", None, True)
    (row,) = await shop.listed()
    assert (row["closed_period"], row["counts"], len(row["told"])) == (treatment, counts, int(counts))


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"void": "event-9"}, 404, "not_archived_yet"),
        ({"void": "peak"}, 422, "not_correctable"),
        ({"amend": "event-1", "data": {"usage": {"tokens": "many"}, "model": "small"}}, 422, "not_correctable"),
        ({}, 400, "invalid_input"),
        ({"void": "event-1", "amend": "event-1"}, 400, "invalid_input"),
        ({"void": "event-1", "data": {}}, 400, "invalid_input"),
        ({"amend": "event-1"}, 400, "invalid_input"),
        ({"amend": "event-1", "data": [1]}, 400, "invalid_input"),
        ({"amend": "event-1", "data": {**TOKENS, "deep": json.loads("[" * 200 + "]" * 200)}}, 400, "invalid_input"),
        ({"void": "event-1", "closed_period": "forget"}, 400, "invalid_input"),
        ({"void": "event-1", "account": ""}, 400, "invalid_input"),
    ],
)
async def test_what_is_refused(shop: Shop, body: dict[str, Any], status: int, code: str) -> None:
    await shop.world.emit("ada", type_="storage.sampled", id="peak", gigabytes=3, tier="hot")
    await shop.catch_up()

    answer = await shop.ask(**body)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert ("retry-after" in answer.headers) is (code == "not_archived_yet")
    assert await shop.records() == 0


async def test_a_name_that_says_something_else_is_refused(shop: Shop) -> None:
    await shop.ask(void="event-1")
    await shop.catch_up()

    answer = await shop.ask(void="event-1", reason="another reason")

    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "correction_exists")
    assert await shop.records() == 1


async def test_keys_of_accounts(shop: Shop, tmp_path: Path) -> None:
    """Not another account's, and not the key that an account has for itself."""
    for role, account, status in (
        (Role.OPERATOR, "bob", 403), (Role.ADMIN, "ada", 403), (Role.READ, None, 403), (Role.OPERATOR, "ada", 200),
    ):  # fmt: skip
        text, _ = create_key(tmp_path / "keys.jsonl", role, shop.world.clock, account=account)
        body = {"correction": "c", "account": "ada", "void": "event-1", "dry_run": True, **WHY}
        headers = {"authorization": f"Bearer {text}"}
        answer = await shop.door.client.post("/v1/corrections", json=body, headers=headers)
        assert answer.status_code == status, (role, account)
    assert await shop.records() == 0
