"""`POST /v1/events?verify=1`: the gateway says which events arrived before, if it can know in time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.http import verify
from pipeline.http.dependencies import LiveUsage
from schemas.errors import OperatorNeeded, Transient
from sinks.redis.fake import FakeLiveView
from tests.worlds.deployment import World
from tests.worlds.gateway import NOW_MS, Gateway, event, running


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway whose stores and log all work."""
    async with running(tmp_path) as running_gateway:
        yield running_gateway


async def post(gateway: Gateway, events: list[dict[str, Any]], query: str = "?verify=1") -> httpx.Response:
    """POST /v1/events with a query."""
    headers = {"content-type": "application/json", **gateway.bearer("ingest")}
    return await gateway.client.post(f"/v1/events{query}", content=json.dumps(events), headers=headers)


def statuses(answer: httpx.Response) -> list[str]:
    """The status of each event."""
    return [result["status"] for result in answer.json()["events"]]


async def test_an_event_that_was_counted_is_answered_as_a_duplicate(gateway: Gateway) -> None:
    """Also one of another type: an id is unique within its account. Nothing is refused, and nothing counts twice."""
    await post(gateway, [event("1"), event("2")])
    await gateway.world.fold_all()
    again = [
        event("1"), event("3"), event("2", type="api.request", data={"user": "u", "region": "eu", "method": "GET"}),
        event("1", subject="other"), event("bad", time="no"),
    ]  # fmt: skip

    answer = await post(gateway, again)
    await gateway.world.fold_all()

    assert answer.status_code == 207
    assert statuses(answer) == ["duplicate", "accepted", "duplicate", "accepted", "rejected"]
    counts = {name: answer.json()[name] for name in ("accepted", "duplicates", "rejected", "verified")}
    assert counts == {"accepted": 2, "duplicates": 2, "rejected": 1, "verified": True}
    usage = await gateway.get("/v1/usage/current", account="acme")
    assert {meter["meter"]: meter["value"] for meter in usage.json()["meters"]}["tokens"] == "21"


async def test_a_dry_run_says_what_would_become_of_each_event_and_writes_nothing(gateway: Gateway) -> None:
    """Neither to the log nor to the quarantine, and the metrics do not count the events."""
    await post(gateway, [event("1")])
    await gateway.world.fold_all()

    answer = await post(gateway, [event("1"), event("2"), event("bad", time="no")], "?verify=1&dry_run=1")

    assert (answer.status_code, statuses(answer)) == (207, ["duplicate", "accepted", "rejected"])
    assert answer.json()["dry_run"] is True
    assert [sent["id"] for sent in await gateway.stored()] == ["1"]
    assert await gateway.quarantined() == []
    line = 'tidemark_gateway_events_total{reason="bad_time",status="rejected"} 1.0'
    assert line not in (await gateway.client.get("/metrics")).text
    await post(gateway, [event("bad", time="no")], "")
    assert line in (await gateway.client.get("/metrics")).text


async def test_all_duplicates_are_no_error(gateway: Gateway) -> None:
    """A job that runs twice must not fail the second time."""
    await post(gateway, [event("1")])
    await gateway.world.fold_all()

    answer = await post(gateway, [event("1")])

    assert (answer.status_code, answer.json()["accepted"], answer.json()["duplicates"]) == (202, 0, 1)
    assert [sent["id"] for sent in await gateway.stored()] == ["1", "1"]


async def test_the_same_id_twice_in_one_request_is_known_without_redis(gateway: Gateway) -> None:
    """The second one is the duplicate."""
    answer = await post(gateway, [event("1"), event("1"), event("1", subject="other")])

    assert statuses(answer) == ["accepted", "duplicate", "accepted"]


@pytest.mark.parametrize("query", ["", "?verify=0", "?other=1"])
async def test_without_the_parameter_nothing_changes(gateway: Gateway, query: str) -> None:
    """Redis is not asked, and the answer has no further fields."""
    await post(gateway, [event("1")])
    await gateway.world.fold_all()

    answer = await post(gateway, [event("1")], query)

    result = {"index": 0, "id": "1", "status": "accepted"}
    assert answer.json() == {"accepted": 1, "rejected": 0, "events": [result]}


@pytest.mark.parametrize("query", ["?verify=yes", "?verify=", "?verify=1&verify=0", "?verify=%FF"])
async def test_another_value_is_refused(gateway: Gateway, query: str) -> None:
    """A sender that believes its events to be verified must not be wrong."""
    answer = await post(gateway, [event("1")], query)

    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "verify")
    assert await gateway.stored() == []


class _Marks:
    """Marks that cannot be read: an error, or no answer at all."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    async def marked(self, partition: int, marks: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:  # noqa: ARG002
        if self._error is None:
            await asyncio.Event().wait()
            return set()
        raise self._error


@pytest.mark.parametrize("error", [None, Transient("refused"), OperatorNeeded("a key has another type")])
async def test_events_are_accepted_unverified_if_redis_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception | None
) -> None:
    """Redis must not hold up the log. The answer says what is not known, and the log why."""
    monkeypatch.setattr(verify, "VERIFY_TIMEOUT_S", 0.02)
    store = FakeLiveView()
    live = LiveUsage(store.accounts, store.deferred, store.totals, _Marks(error))
    async with running(tmp_path, World(NOW_MS, store=store), live=live) as gateway:
        answer = await post(gateway, [event("1")])

    assert (answer.status_code, answer.json()["accepted"], answer.json()["verified"]) == (202, 1, False)
    (line,) = caplog.messages
    assert line == f"events could not be verified: {error or 'Redis did not answer in time'}"


async def test_a_long_request_is_not_verified(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lookup is bounded."""
    monkeypatch.setattr(verify, "VERIFIED_EVENTS_MAX", 2)

    answer = await post(gateway, [event("1"), event("2"), event("3")])

    assert (answer.json()["accepted"], answer.json()["verified"]) == (3, False)


async def test_a_gateway_without_redis_verifies_nothing(tmp_path: Path) -> None:
    """Taking events needs no Redis."""
    async with running(tmp_path, live=None) as gateway:
        answer = await post(gateway, [event("1")])

    assert (answer.json()["accepted"], answer.json()["verified"]) == (1, False)
