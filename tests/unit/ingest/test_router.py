"""The router forwards every event of the inbox or the event's beginning; no event stops the router for ever."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aggregators.decode import decode
from pipeline.ingest.router import RouterProcessor
from pipeline.logs.fake import FakeLog
from pipeline.logs.rejected import quarantine_entry
from pipeline.settings import Settings
from schemas.clock import DAY_MS
from schemas.log import EVENTS_TOPIC, INBOX_TOPIC, REJECTED_TOPIC
from tests.worlds.clock import ManualClock

EVENT: dict[str, Any] = {
    "specversion": "1.0", "id": "good", "source": "s", "type": "t", "subject": "acme", "time": "2026-01-01T00:00:00Z"
}  # fmt: skip


@pytest.mark.parametrize("data", [b"\x01", b"\xff"], ids=["control byte", "no UTF-8"])
async def test_event_that_grows_beyond_the_record_limit_is_cut_and_others_are_forwarded_once(data: bytes) -> None:
    """Binary data may grow sixfold as JSON text. A router that failed here would fail for ever."""
    log = FakeLog(ManualClock(0))
    await log.create_topics(Settings(partitions=1).topics())
    headers = tuple((f"ce_{name}", text.encode()) for name, text in {**EVENT, "id": "large"}.items())
    await log.append(INBOX_TOPIC, 0, data * 4_000_000, headers=headers)
    await log.append(INBOX_TOPIC, 0, json.dumps(EVENT).encode())
    router = RouterProcessor(log)
    await router.start_offset(0)

    await router.step(0, await log.read(INBOX_TOPIC, 0, 0))

    forwarded = [decode(record.value or b"", 1 << 20) for record in await log.read(EVENTS_TOPIC, 0, 0)]
    assert sorted((each.received, len(each.rejected)) for each in forwarded) == [(1, 0), (1, 1)]
    assert [event.id for each in forwarded for _, event in each.events] == ["good"]


async def test_a_router_that_forwards_again_after_days_forwards_the_same_event() -> None:
    """Killed between the append and the commit, it starts three days later: with a new time for an event without one,
    the event would be outside the dedup window and count twice."""
    clock = ManualClock(1_795_262_400_000)
    log = FakeLog(clock)
    await log.create_topics(Settings(partitions=1).topics())
    for time in ({}, {"time": None}):
        event = {name: value for name, value in EVENT.items() if name != "time"} | time
        await log.append(INBOX_TOPIC, 0, json.dumps(event).encode())
    await log.append(INBOX_TOPIC, 0, json.dumps(EVENT).encode())
    router = RouterProcessor(log)
    await router.start_offset(0)
    records = await log.read(INBOX_TOPIC, 0, 0)

    await router.step(0, records)
    clock.advance(4 * DAY_MS)
    await router.step(0, records)

    first, second = (record.value for record in await log.read(EVENTS_TOPIC, 0, 0))
    assert first == second
    times = [event.time for _, event in decode(first, 1 << 20).events]
    assert times == ["2026-11-21T12:00:00Z", "2026-11-21T12:00:00Z", EVENT["time"]]


async def test_an_event_with_a_reserved_type_goes_to_the_quarantine_and_others_of_its_record_go_on() -> None:
    """An application cannot adjust a meter (S14). A record that is routed again has the same entry."""
    log = FakeLog(ManualClock(0))
    await log.create_topics(Settings(partitions=1).topics())
    forged = {**EVENT, "id": "forged", "type": "tidemark.adjusted.calls", "data": {"quantity": "-5"}}
    taken = {**EVENT, "id": f"c:{'0' * 24}:calls:{'0' * 24}:0"}
    await log.append(INBOX_TOPIC, 0, json.dumps([EVENT, forged, taken]).encode())
    router = RouterProcessor(log)
    await router.start_offset(0)

    for _ in range(2):
        await router.step(0, await log.read(INBOX_TOPIC, 0, 0))

    forwarded = [decode(record.value, 1 << 20) for record in await log.read(EVENTS_TOPIC, 0, 0)]
    assert [event.id for each in forwarded for _, event in each.events] == ["good", "good"]
    entries = [quarantine_entry(record) for record in await log.read(REJECTED_TOPIC, 0, 0)]
    assert {(each.position, each.reason, json.loads(each.value)["id"]) for each in entries} == {
        ("usage.inbox-0@0.1", "reserved_type", "forged"), ("usage.inbox-0@0.2", "reserved_type", taken["id"]),
    }  # fmt: skip


@pytest.mark.parametrize("inner", [b"[]", b" [ ] ", b"[%s]" % json.dumps(EVENT).encode(), b"[1,2]"])
@pytest.mark.parametrize("others", [b"", b",%s" % json.dumps(EVENT).encode()], ids=["alone", "beside an event"])
async def test_a_list_in_place_of_an_event_is_rejected_and_not_read_as_a_batch(inner: bytes, others: bytes) -> None:
    """Forwarded as it is, an empty one would be no event, so nobody would count or keep it."""
    log = FakeLog(ManualClock(0))
    await log.create_topics(Settings(partitions=1).topics())
    await log.append(INBOX_TOPIC, 0, b"[%s%s]" % (inner, others))
    router = RouterProcessor(log)
    await router.start_offset(0)

    await router.step(0, await log.read(INBOX_TOPIC, 0, 0))

    forwarded = [decode(record.value or b"", 1 << 20) for record in await log.read(EVENTS_TOPIC, 0, 0)]
    assert [rejected.raw.strip() for each in forwarded for rejected in each.rejected] == [inner.strip()]
    assert sum(len(each.events) for each in forwarded) == bool(others)
