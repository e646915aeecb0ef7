"""Events older than the dedup window, from their arrival to their decision, in every view (S10)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest

from aggregators.deferred import complete_up_to_ms
from aggregators.meters import successor
from pipeline.logs.adjustments import append_adjustments
from reconciler.causes import Cause, Pair
from reconciler.causes import Verdict as Reconciled
from schemas.adjustments import adjustment
from schemas.analytics import DedupOutcome
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.control import DedupDecision, DedupDecisionRecord, MeterSetRecord
from schemas.log import REJECTED_TOPIC, position
from schemas.meters import MeterSet
from schemas.rollup import Counters, Waiting
from sinks.redis.fake import FakeLiveView
from tests.traffic.generate import rfc3339
from tests.worlds.reconciler import DECEMBER_MS, METER_SET, NOVEMBER_MS, Deployment, late, rows_of, settled

EARLY_MS = NOVEMBER_MS + DAY_MS
OCTOBER_MS = NOVEMBER_MS - 10 * DAY_MS


async def judged(deployment: Deployment) -> None:
    """Folds, archives, resolves and relays until nothing changes."""
    await deployment.fold()
    await deployment.archive()
    await deployment.resolve()
    await deployment.settle()


async def counters(deployment: Deployment, account: str = "ada") -> Counters:
    return (await deployment.checkpoint(account)).counters


def moved(after: Counters, before: Counters) -> dict[str, int]:
    """The changes of the counters, without those that stayed."""
    return {
        name: new - old
        for name, new, old in zip(Counters._fields, after, before, strict=True)
        if new != old and name != "received"
    }


async def test_late_events_are_counted_exactly_once_in_every_view() -> None:
    """In their own period if it is open, carried forward if it is closed; repetitions without a mark do not count. Then
    Redis, usage_hourly, intents, Stripe and the recount agree."""
    deployment = await settled()
    first = await deployment.emit("ada", gb="1", user="early", region="eu")
    await deployment.settle()
    await deployment.advance(6 * DAY_MS)
    before, totals = await counters(deployment), dict(deployment.totals("ada"))
    emitted_ms = (await deployment.checkpoint("ada")).stream_time_ms - 6 * DAY_MS

    await late(deployment, EARLY_MS)
    await late(deployment, OCTOBER_MS)
    await late(deployment, emitted_ms - 2 * HOUR_MS, id=first)
    twice = await late(deployment, EARLY_MS + 5)
    await late(deployment, EARLY_MS + 5, id=twice)
    await late(deployment, EARLY_MS, type_="page.viewed")
    await deployment.fold()

    assert moved(await counters(deployment), before) == {"deferred": 5, "duplicate": 1}
    assert deployment.totals("ada") == totals

    await judged(deployment)
    assert moved(await counters(deployment), before) == {"counted": 3, "duplicate": 2, "unmetered": 1}
    assert int(deployment.totals("ada")["requests"]) == int(totals["requests"]) + 3
    assert int(deployment.totals("ada")["gigabytes"]) == int(totals["gigabytes"]) + 3 * 7_125
    assert int(deployment.totals("ada")["users"]) == int(totals["users"]) + 1
    report = await deployment.reconcile()
    assert (report.verdict, report.differences) == (Reconciled.EQUAL, 0)
    assert {row.id for row in deployment.clickhouse.duplicates.values()} >= {first, twice}


async def test_event_ahead_of_time_that_repeats_when_its_mark_has_just_expired_is_counted_once() -> None:
    """The event stays within the window slightly longer than its mark lives; afterwards the event is deferred."""
    meter_set = {**METER_SET, "policy": {"window_ms": 2 * HOUR_MS, "future_ms": 10 * MINUTE_MS}}
    deployment = await Deployment().start(meter_set)
    # Past the first slice of marks, which has the default window, to an instant just before the end of a slice.
    await deployment.advance(5 * DAY_MS)
    await deployment.fold()
    await deployment.advance(DAY_MS - deployment.clock.ms % HOUR_MS - MINUTE_MS)
    time_ms = deployment.clock.ms + 9 * MINUTE_MS
    first = await deployment.emit("ada", at_ms=time_ms, gb="1", user="ahead", region="eu")
    await deployment.settle()
    before = await counters(deployment)
    await deployment.advance(time_ms + 2 * HOUR_MS - MINUTE_MS - deployment.clock.ms)
    await deployment.emit("ada", id=first, at_ms=time_ms, gb="1", user="ahead", region="eu")
    await judged(deployment)

    assert moved(await counters(deployment), before) == {"duplicate": 1}
    assert (await deployment.reconcile()).differences == 0


async def test_repeated_decisions_of_two_resolvers_and_after_a_crash_change_nothing() -> None:
    """All resolvers decide alike, and the fold takes the first decision."""
    deployment = await settled()
    await late(deployment, EARLY_MS)
    await deployment.fold()
    await deployment.archive()
    given = [await deployment.resolve() for _ in range(3)]
    await deployment.settle()
    after = await counters(deployment)
    await deployment.world.control(
        deployment.partition("ada"), DedupDecisionRecord(decisions=(await _last_decision(deployment, "ada"),) * 2)
    )
    await deployment.settle()

    assert given == [1, 1, 1]
    assert await counters(deployment) == after
    assert after.deferred == 0
    assert (await deployment.reconcile()).verdict is Reconciled.EQUAL


async def test_nothing_is_judged_by_an_exchanged_table_that_lacks_concurrent_writes() -> None:
    """The table may lack the first arrival: the repetition would seem new and count twice."""
    deployment = await settled()
    await late(deployment, EARLY_MS)
    await deployment.fold()
    await deployment.archive()
    rebuilt, first_positions = deployment.clickhouse.rebuilt, deployment.clickhouse.first_positions

    deployment.clickhouse.rebuilt = None
    assert await deployment.resolve() == 0

    async def exchanged(identities: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], int]:
        positions = await first_positions(identities)
        deployment.clickhouse.rebuilt = 1
        return positions

    deployment.clickhouse.rebuilt = rebuilt
    deployment.clickhouse.first_positions = exchanged  # type: ignore[method-assign]  # a race, made certain
    assert await deployment.resolve() == 0
    assert await deployment.resolve() == 1


async def _last_decision(deployment: Deployment, account: str) -> DedupDecision:
    rows = await deployment.clickhouse.controls(deployment.partition(account), 1 << 56)
    decisions = [DedupDecisionRecord.model_validate_json(row.value) for row in rows if row.kind == "decision"]
    return decisions[-1].decisions[-1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"account": "cyd"}, None, id="of another account"),
        pytest.param({"position": position(1 << 30)}, None, id="on an event that is to come"),
        pytest.param({"position": 0}, None, id="on a control record"),
        pytest.param({"account": "bob"}, b"bad_control", id="on another partition"),
    ],
)
async def test_decision_without_its_event_changes_nothing(changes: dict[str, Any], reason: bytes | None) -> None:
    """The event waits for its own decision."""
    deployment = await settled()
    assert deployment.partition("cyd") == deployment.partition("ada") != deployment.partition("bob")
    await late(deployment, EARLY_MS)
    await deployment.fold()
    before = await counters(deployment)
    _, (event,) = await deployment.store.deferred.deferred(deployment.partition("ada"), 10)
    given = DedupDecision(
        position=event.position, account="ada", time_us=event.time_us, new=True, metered=True, quarantine=False
    )
    await deployment.world.control(
        deployment.partition("ada"), DedupDecisionRecord(decisions=(given.model_copy(update=changes),))
    )
    await deployment.fold()
    refused = await deployment.world.records(deployment.partition("ada"), REJECTED_TOPIC)

    assert moved(await counters(deployment), before) == ({"rejected": 1} if reason else {})
    assert [dict(record.headers)["tidemark-reason"] for record in refused] == ([reason] if reason else [])
    await judged(deployment)
    assert moved(await counters(deployment), before)["counted"] == 1
    assert (await deployment.reconcile()).verdict is Reconciled.EQUAL


async def test_events_without_a_decision_are_no_drift_and_limit_completeness() -> None:
    """Nothing else waits: all other events count, and no view includes the undecided events."""
    deployment = await settled()
    arrived_ms = deployment.clock.ms
    await late(deployment, EARLY_MS)
    await deployment.emit("ada", gb="1", user="prompt", region="eu")
    await deployment.settle()
    report = await deployment.reconcile()

    assert (report.differences, report.verdict) == (0, Reconciled.INCOMPLETE)
    (row,) = rows_of(report, Cause.IN_FLIGHT, Pair.COUNTERS)
    assert (row.partition, row.detail[:9]) == (deployment.partition("ada"), "1 events ")
    assert (await counters(deployment)).deferred == 1
    relayed = (await deployment.clickhouse.load_relayed())[deployment.partition("ada")]
    assert relayed.stream_time_ms == arrived_ms
    assert relayed.next_offset == (await deployment.checkpoint("ada")).next_offset

    await judged(deployment)
    await deployment.relay()
    relayed = (await deployment.clickhouse.load_relayed())[deployment.partition("ada")]
    assert relayed.stream_time_ms == (await deployment.checkpoint("ada")).stream_time_ms
    assert (await deployment.reconcile()).verdict is Reconciled.EQUAL


@pytest.mark.parametrize(
    ("waited", "deferred_then", "deferred_now", "complete_ms"),
    [
        pytest.param(None, 0, 0, 20, id="nothing waits"),
        pytest.param(5, 1, 1, 5, id="the oldest that waits"),
        pytest.param(5, 1, 0, 20, id="judged between the two reads"),
        pytest.param(None, 0, 1, 10, id="deferred between the two reads"),
        pytest.param(None, 1, 1, 10, id="of another account"),
    ],
)
async def test_completeness_never_passes_a_deferred_event(
    waited: int | None, deferred_then: int, deferred_now: int, complete_ms: int
) -> None:
    """A commit may happen between the read of the deferred events and the read of the answer."""
    checkpoint = await (await settled()).checkpoint("ada")
    before, after = (
        msgspec.structs.replace(checkpoint, stream_time_ms=stream_time_ms, counters=Counters(deferred=deferred))
        for stream_time_ms, deferred in ((10, deferred_then), (20, deferred_now))
    )

    assert complete_up_to_ms(before, Waiting(int(waited is not None), waited), after) == complete_ms


async def test_period_that_closes_between_arrival_and_decision_takes_nothing_more() -> None:
    """A closed period never changes: the decision's stream time decides, in the fold and in the recount."""
    deployment = await settled()
    totals = dict(deployment.totals("ada"))
    await late(deployment, EARLY_MS)
    await deployment.fold()
    await deployment.advance(DECEMBER_MS + 2 * HOUR_MS - deployment.clock.ms)
    await judged(deployment)

    assert deployment.totals("ada") == totals
    _, december = await deployment.store.totals.account_totals(
        deployment.partition("ada"), list(deployment.store.server.partitions[deployment.partition("ada")].totals)
    )
    assert {key.period_start_ms: fields["requests"] for key, fields in december.items() if key.account == "ada"} == {
        NOVEMBER_MS: totals["requests"], DECEMBER_MS: "1",
    }  # fmt: skip
    assert (await deployment.reconcile()).differences == 0


async def test_period_closed_by_a_record_stays_closed_for_late_events_until_its_grace_has_passed() -> None:
    """With a long grace, only the record keeps late events out, however long after the period's end."""
    deployment = await Deployment().start({**METER_SET, "policy": {"grace_ms": 30 * DAY_MS}})
    await deployment.close_period("ada", OCTOBER_MS)
    await deployment.close_period("ada", OCTOBER_MS - 30 * DAY_MS)
    for account in ("ada", "bob"):
        await late(deployment, OCTOBER_MS, account)
    await judged(deployment)

    counted = {
        key.account: key.period_start_ms
        for partition in deployment.store.server.partitions.values()
        for key in partition.totals
    }  # fmt: skip
    assert counted == {"ada": NOVEMBER_MS, "bob": NOVEMBER_MS - 31 * DAY_MS}
    assert (await deployment.reconcile()).differences == 0


async def test_late_event_of_a_closed_period_whose_meter_quarantines_is_quarantined_with_its_bytes() -> None:
    """The event stays the first of its identity in the archive and counts nowhere."""
    meter_set = copy.deepcopy(METER_SET)
    meter_set["meters"][-1]["late"] = "quarantine"
    deployment = await Deployment().start(meter_set)
    await deployment.traffic(1)
    await deployment.settle()
    before = await counters(deployment)
    await late(deployment, OCTOBER_MS, type_="seats", seats=5)
    await judged(deployment)

    assert moved(await counters(deployment), before) == {"late": 1}
    (kept,) = await deployment.world.records(deployment.partition("ada"), REJECTED_TOPIC)
    headers = dict(kept.headers)
    assert headers["tidemark-reason"] == b"period_closed"
    assert b'"seats": 5' in (kept.value or b"")
    stands = position(int(headers["tidemark-offset"]), int(headers["tidemark-index"]))
    (row,) = [each for each in deployment.clickhouse.decisions.values() if each.position == stands]
    assert row.outcome is DedupOutcome.LATE
    assert (await deployment.reconcile()).verdict is Reconciled.EQUAL


async def test_a_meter_gets_the_event_only_if_it_was_there_at_arrival_and_at_decision() -> None:
    """A new meter has not judged the event, and a removed meter no longer wants it."""
    deployment = await settled()
    totals = dict(deployment.totals("ada"))
    await late(deployment, EARLY_MS)
    await deployment.fold()
    meter_set = copy.deepcopy(METER_SET)
    meter_set["version"] = 2
    meter_set["meters"] = [each for each in meter_set["meters"] if each["slug"] != "peak"]
    meter_set["meters"].append({"slug": "calls", "event_type": "request", "aggregation": "count"})
    following = successor(MeterSet.model_validate(METER_SET), MeterSet.model_validate(meter_set))
    await deployment.world.control(deployment.partition("ada"), MeterSetRecord(meter_set=following))
    await judged(deployment)

    changed = {name for name, text in deployment.totals("ada").items() if totals.get(name) != text}
    assert changed == {"requests", "gigabytes", "users"}
    assert (await deployment.reconcile()).differences == 0


async def test_deferred_events_beyond_the_limit_are_rejected_and_nothing_else_is_harmed() -> None:
    """The limit is in the log, so a replay rejects the same events. A rejected event counts nowhere, and because the
    archive has its identity, a repetition does not count either."""
    meter_set = {**METER_SET, "policy": {"deferred_max": 2}}
    deployment = await Deployment().start(meter_set)
    await deployment.traffic(1)
    await deployment.settle()
    before = await counters(deployment)
    refused = [await late(deployment, EARLY_MS + number) for number in range(4)]
    await judged(deployment)
    await late(deployment, EARLY_MS + 9)
    again = await late(deployment, EARLY_MS + 3, id=refused[-1])
    await judged(deployment)
    await deployment.emit("ada", id=again, gb="1", user="prompt", region="eu")
    await judged(deployment)

    assert moved(await counters(deployment), before) == {"counted": 3, "rejected": 2, "duplicate": 2}
    kept = await deployment.world.records(deployment.partition("ada"), REJECTED_TOPIC)
    assert [dict(record.headers)["tidemark-reason"] for record in kept] == [b"too_many_deferred"] * 2
    assert (await deployment.reconcile()).verdict is Reconciled.EQUAL


async def test_an_adjustment_is_deferred_beyond_the_limit() -> None:
    """Who told it finds it in the archive and would not tell it again: what a correction gave back would be lost."""
    deployment = await Deployment().start({**METER_SET, "policy": {"deferred_max": 0}})
    await late(deployment, EARLY_MS)
    meter = MeterSet.model_validate(METER_SET).meter("gigabytes")
    assert meter is not None
    told = adjustment(meter, "ada", "c:1", rfc3339(EARLY_MS * 1000), -2_000, {})
    await append_adjustments(deployment.log, deployment.partition("ada"), [told])
    await judged(deployment)

    assert deployment.totals("ada") == {"gigabytes": "-2000"}
    assert (await deployment.reconcile()).verdict is Reconciled.EQUAL


@pytest.mark.parametrize("resolved", [False, True], ids=["waiting", "judged"])
async def test_replay_of_the_log_reaches_the_same_state(resolved: bool) -> None:
    """Dedup decisions are in the log: a rebuilt view needs no resolver and has the same bytes (I7)."""
    deployment = await settled()
    for at_ms in (EARLY_MS, OCTOBER_MS):
        await late(deployment, at_ms)
    await (judged(deployment) if resolved else deployment.fold())
    again = FakeLiveView()
    live, deployment.world.store = deployment.store, again
    await deployment.fold()

    for at, state in again.server.partitions.items():
        kept = live.server.partitions[at]
        assert (state.checkpoint, state.totals, state.deferred) == (kept.checkpoint, kept.totals, kept.deferred)
