"""`POST /v1/quarantine/redrives`: a look, a redrive that goes on with the next request, and what is refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from pipeline.http import redrives as endpoint
from pipeline.http.api_keys import Role, create_key
from pipeline.http.operator_stores import OperatorStores, OperatorTables
from pipeline.logs import redriving
from pipeline.roles.operating import operator_tables
from schemas.catalog_changes import NO_ACCOUNT
from schemas.clock import HOUR_MS
from schemas.log import INBOX_TOPIC
from sinks.clickhouse.fake_reconciliations import FakeReconciliations
from sinks.sql.fake import FakeSideTables
from tests.services.postgres import LOG_ID, SCOPE, last_link_pays
from tests.worlds.gateway import Gateway, event, running

LATER = "2026-11-21T11:20:00Z"
WHY = {"by": "ann", "reason": "the producer's clock was ahead"}


async def _no_report(_identifier: str, _by: str, _reason: str) -> str:
    raise NotImplementedError


@pytest.fixture
async def tables() -> FakeSideTables:
    store = FakeSideTables(last_link_pays)
    await store.migrate(SCOPE, LOG_ID)
    return store


@pytest.fixture
async def gateway(tmp_path: Path, tables: FakeSideTables) -> AsyncIterator[Gateway]:
    """A gateway that rejected nine events from the future, which is the present now, and one for good."""

    async def opened() -> OperatorTables:
        return operator_tables(tables)

    operator = OperatorStores(opened, FakeReconciliations(), "walker", _no_report)
    async with running(tmp_path, operator=operator) as door:
        early = [event(f"op-{number}", time=LATER, subject=f"account {number % 2}") for number in range(9)]
        answer = await door.post([*early, event("bad", data={"usage": {"tokens": "many"}, "model": "small"})])
        assert answer.json()["rejected"] == 10
        door.world.clock.advance(HOUR_MS)
        yield door


async def ask(gateway: Gateway, key: str = "operator", **body: Any) -> httpx.Response:
    return await gateway.client.post("/v1/quarantine/redrives", json=body, headers=gateway.bearer(key))


async def inbox(gateway: Gateway) -> list[str]:
    """The ids of the events that were sent again."""
    return sorted(
        [
            each["id"]
            for partition in range(gateway.world.partitions)
            for record in await gateway.world.records(partition, INBOX_TOPIC)
            for each in json.loads(record.value or b"")
        ]
    )


async def test_a_look_says_what_would_become_of_the_events_and_sends_none(gateway: Gateway) -> None:
    answer = await ask(gateway, dry_run=True)

    assert (answer.status_code, answer.json()) == (200, {
        "id": "", "state": "done", "looked": 10, "sent": 9, "failing": 1, "cut": 0, "repeated": 0,
        "look": {
            "passing": {"too_far_in_future": 9}, "accounts": {"account 0": 5, "account 1": 4},
            "failing": [{
                "cause": "bad_quantity", "reason": "bad_quantity", "count": 1,
                "detail": answer.json()["look"]["failing"][0]["detail"],
            }],
            "arrived": 0, "older_than_window": 0, "unmetered": 0,
        },
    })  # fmt: skip
    assert await inbox(gateway) == []


async def test_a_redrive_sends_what_passes_and_is_audited_with_its_key(
    gateway: Gateway, tables: FakeSideTables
) -> None:
    answer = await ask(gateway, cause="too_far_in_future", meter="tokens", since="2026-11-21T00:00:00Z", **WHY)

    assert (answer.status_code, answer.json()["state"], answer.json()["sent"]) == (200, "done", 9)
    assert await inbox(gateway) == [f"op-{number}" for number in range(9)]
    rows = await tables.audit(NO_ACCOUNT)
    key_id = gateway.keys["operator"].split("_")[1]
    assert [(row.entity_id, row.actor, row.reason) for row in rows] == [
        (answer.json()["id"], f"ann (key {key_id})", WHY["reason"])
    ] * 2


async def test_the_same_request_goes_on(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarantine of millions is not sent within one request."""
    monkeypatch.setattr(redriving, "STEP_RECORDS", 3)
    monkeypatch.setattr(endpoint, "WORK_S", 0.0)
    first = (await ask(gateway, **WHY)).json()
    monkeypatch.setattr(endpoint, "WORK_S", 4.0)
    second = (await ask(gateway, **WHY)).json()

    assert (first["state"], first["looked"]) == ("running", 0)
    assert (second["id"], second["state"], second["looked"], second["sent"]) == (first["id"], "done", 10, 9)
    assert len(await inbox(gateway)) == 9


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 400, "by and reason: say who you are, and why"),
        ({"by": "ann", "reason": " "}, 400, "by and reason: say who you are, and why"),
        ({"cause": "nonsense", **WHY}, 400, "cause: 'nonsense' is no reason"),
        ({"meter": "nothing", "dry_run": True}, 400, "meter: 'nothing' is not in the meter set in force"),
        ({"since": "yesterday", **WHY}, 400, "since: "),
        ({"reasons": []}, 400, ": Object contains unknown field"),
    ],
)
async def test_what_cannot_be_done_is_refused(gateway: Gateway, body: dict[str, Any], status: int, said: str) -> None:
    answer = await ask(gateway, **body)

    assert answer.status_code == status
    error = answer.json()["error"]
    assert f"{error.get('field', '')}: {error['message']}".startswith(said)
    assert await inbox(gateway) == []


async def test_a_key_of_one_account_sends_nothing(gateway: Gateway, tmp_path: Path) -> None:
    """The quarantine has the events of all accounts."""
    text, _ = create_key(tmp_path / "keys.jsonl", Role.OPERATOR, gateway.world.clock, account="acme")
    cast("dict[str, str]", gateway.keys)["one"] = text

    assert (await ask(gateway, key="one", dry_run=True)).status_code == 403
