"""Reports of a foreign writer: what the ledger cannot store must not stop the reports of others."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.reports import Attempt, ReportOutcome
from tests.worlds.closing import METER, ClosingWorld

NOVEMBER = ("2027-11-01", "2027-12-01")


FAR = 1 << 70


@pytest.mark.parametrize(
    ("names", "limit"),
    [
        pytest.param(("period_start_ms",), FAR, id="period starts too late"),
        pytest.param(("period_start_ms",), -FAR, id="period starts too early"),
        pytest.param(("period_start_ms",), (1 << 63) - 1, id="period starts in the last ms of 64 bits"),
        pytest.param(("period_end_ms",), FAR, id="period ends too late"),
        pytest.param(("period_end_ms",), -FAR, id="period ends too early"),
        pytest.param(("bucket_start_ms",), -FAR, id="bucket starts too early"),
        pytest.param(("bucket_end_ms",), FAR, id="bucket ends too late"),
        pytest.param(("bucket_end_ms", "period_end_ms"), FAR, id="bucket and period end too late"),
    ],
)
async def test_an_intent_with_a_time_that_no_table_stores_is_kept(names: tuple[str, ...], limit: int) -> None:
    world = await ClosingWorld("2027-11-01").start()
    await world.sign_up("acme", world.per_call("2"))
    await world.jump("2027-11-20 12:00")
    bad = world.used("acme", 7, "2027-11-20 12:00", NOVEMBER).model_copy(update=dict.fromkeys(names, limit))
    good = world.used("acme", 5, "2027-11-20 12:00", NOVEMBER)
    await world.publish(bad, good)
    await world.pump()
    await world.restart()
    await world.pump()
    both = await world.tables.intents.found([bad.identifier, good.identifier])
    found = {each.intent.identifier: each for each in both}
    assert len(found) == 2
    assert found[good.identifier].state == "accepted"
    await world.close()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (Attempt, {"timestamp_s": FAR}),
        (Attempt, {"attempted_at_ms": FAR}),
        (Attempt, {"timestamp_s": (1 << 63) - 1}),
        (ReportOutcome, {"settled_at_ms": -FAR}),
    ],
    ids=["timestamp", "attempted", "timestamp of 64 bits", "settled"],
)
async def test_an_attempt_or_outcome_with_such_a_time_stops_nobody(kind: Any, changes: dict[str, int]) -> None:
    world = await ClosingWorld("2027-11-01").start()
    await world.sign_up("acme", world.per_call("2"))
    await world.jump("2027-11-20 12:00")
    one, good = (world.used("acme", calls, "2027-11-20 12:00", NOVEMBER) for calls in (7, 5))
    fields: dict[str, Any] = {"identifier": one.identifier, "stripe_customer": world.customers["acme"]}
    if kind is Attempt:
        fields |= {"timestamp_s": world.clock.ms // 1_000 - 1, "value": "7", "attempted_at_ms": world.clock.ms}
    else:
        fields |= {"status": "free"}
    await world.publish(one)
    await world.log.append("billing.reports", 0, kind(**fields | changes).model_dump_json().encode())
    await world.publish(good)
    await world.pump()
    totals = await world.tables.intents.totals(METER, world.customers["acme"], 0, 1 << 50)
    assert totals.accepted in (5, 12)
    await world.close()


@pytest.mark.parametrize("name", ["identifier", "account", "event_name"])
async def test_a_report_with_a_name_that_no_index_takes_is_ignored(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """It stays in the topic. PostgreSQL refused the row, and the sink stopped at each start."""
    world = await ClosingWorld("2027-11-01").start()
    await world.sign_up("acme", world.per_call("2"))
    await world.jump("2027-11-20 12:00")
    bad, good = (world.used("acme", calls, "2027-11-20 12:00", NOVEMBER) for calls in (7, 5))
    await world.publish(bad.model_copy(update={name: "n" * 257}), good)
    await world.pump()
    totals = await world.tables.intents.totals(METER, world.customers["acme"], 0, 1 << 50)
    assert [totals.accepted, totals.pending] == [5, 0]
    assert "record 0 is no report; it is ignored" in caplog.text
    await world.close()
