"""Events older than the dedup window, from their arrival to their decision, in every view (S10)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest

from aggregators.deferred import complete_up_to_ms
from aggregators.meters import successor
from reconciler.causes import Cause, Pair
from reconciler.causes import Verdict as Reconciled
from schemas.analytics import DedupOutcome
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.control import DedupDecision, DedupDecisionRecord, MeterSetRecord
from schemas.log import REJECTED_TOPIC, position
from schemas.meters import MeterSet
from schemas.rollup import Counters, Waiting
from sinks.redis.fake import FakeLiveView
from tests.worlds.reconciler import DECEMBER_MS, METER_SET, NOVEMBER_MS, Deployment, late, named, settled

EARLY_MS = NOVEMBER_MS + DAY_MS
OCTOBER_MS = NOVEMBER_MS - 10 * DAY_MS


async def judged(made: Deployment) -> None:
    """Folds, archives, resolves and relays until nothing changes."""
    await made.fold()
    await made.archive()
    await made.resolve()
    await made.settle()


async def counters(made: Deployment, account: str = "ada") -> Counters:
    return (await made.checkpoint(account)).counters


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
    made = await settled()
    first = await made.emit("ada", gb="1", user="early", region="eu")
    await made.settle()
    await made.advance(6 * DAY_MS)
    before, totals = await counters(made), dict(made.totals("ada"))
    emitted_ms = (await made.checkpoint("ada")).stream_time_ms - 6 * DAY_MS

    await late(made, EARLY_MS)
    await late(made, OCTOBER_MS)
    await late(made, emitted_ms - 2 * HOUR_MS, id=first)
    twice = await late(made, EARLY_MS + 5)
    await late(made, EARLY_MS + 5, id=twice)
    await late(made, EARLY_MS, type_="page.viewed")
    await made.fold()

    assert moved(await counters(made), before) == {"deferred": 5, "duplicate": 1}
    assert made.totals("ada") == totals

    await judged(made)
    assert moved(await counters(made), before) == {"counted": 3, "duplicate": 2, "unmetered": 1}
    assert int(made.totals("ada")["requests"]) == int(totals["requests"]) + 3
    assert int(made.totals("ada")["gigabytes"]) == int(totals["gigabytes"]) + 3 * 7_125
    assert int(made.totals("ada")["users"]) == int(totals["users"]) + 1
    report = await made.reconcile()
    assert (report.verdict, report.differences) == (Reconciled.EQUAL, 0)
    assert {row.id for row in made.clickhouse.duplicates.values()} >= {first, twice}


async def test_event_ahead_of_time_that_repeats_when_its_mark_has_just_expired_is_counted_once() -> None:
    """The event stays within the window slightly longer than its mark lives; afterwards the event is deferred."""
    meter_set = {**METER_SET, "policy": {"window_ms": 2 * HOUR_MS, "future_ms": 10 * MINUTE_MS}}
    made = await Deployment().start(meter_set)
    # Past the first slice of marks, which has the default window, to an instant just before the end of a slice.
    await made.advance(5 * DAY_MS)
    await made.fold()
    await made.advance(DAY_MS - made.clock.ms % HOUR_MS - MINUTE_MS)
    time_ms = made.clock.ms + 9 * MINUTE_MS
    first = await made.emit("ada", at_ms=time_ms, gb="1", user="ahead", region="eu")
    await made.settle()
    before = await counters(made)
    await made.advance(time_ms + 2 * HOUR_MS - MINUTE_MS - made.clock.ms)
    await made.emit("ada", id=first, at_ms=time_ms, gb="1", user="ahead", region="eu")
    await judged(made)

    assert moved(await counters(made), before) == {"duplicate": 1}
    assert (await made.reconcile()).differences == 0


async def test_repeated_decisions_of_two_resolvers_and_after_a_crash_change_nothing() -> None:
    """All resolvers decide alike, and the fold takes the first decision."""
    made = await settled()
    await late(made, EARLY_MS)
    await made.fold()
    await made.archive()
    given = [await made.resolve() for _ in range(3)]
    await made.settle()
    after = await counters(made)
    await made.world.control(
        made.partition("ada"), DedupDecisionRecord(decisions=(await _last_decision(made, "ada"),) * 2)
    )
    await made.settle()

    assert given == [1, 1, 1]
    assert await counters(made) == after
    assert after.deferred == 0
    assert (await made.reconcile()).verdict is Reconciled.EQUAL


async def test_nothing_is_judged_by_an_exchanged_table_that_lacks_concurrent_writes() -> None:
    """The table may lack the first arrival: the repetition would seem new and count twice."""
    made = await settled()
    await late(made, EARLY_MS)
    await made.fold()
    await made.archive()
    rebuilt, first_positions = made.clickhouse.rebuilt, made.clickhouse.first_positions

    made.clickhouse.rebuilt = None
    assert await made.resolve() == 0

    async def exchanged(identities: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], int]:
        found = await first_positions(identities)
        made.clickhouse.rebuilt = 1
        return found

    made.clickhouse.rebuilt = rebuilt
    made.clickhouse.first_positions = exchanged  # type: ignore[method-assign]  # a race, made certain
    assert await made.resolve() == 0
    assert await made.resolve() == 1


async def _last_decision(made: Deployment, account: str) -> DedupDecision:
    rows = await made.clickhouse.controls(made.partition(account), 1 << 56)
    found = [DedupDecisionRecord.model_validate_json(row.value) for row in rows if row.kind == "decision"]
    return found[-1].decisions[-1]


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
    made = await settled()
    assert made.partition("cyd") == made.partition("ada") != made.partition("bob")
    await late(made, EARLY_MS)
    await made.fold()
    before = await counters(made)
    _, (held,) = await made.store.deferred.deferred(made.partition("ada"), 10)
    given = DedupDecision(position=held.position, account="ada", time_us=held.time_us, new=True, quarantine=False)
    await made.world.control(made.partition("ada"), DedupDecisionRecord(decisions=(given.model_copy(update=changes),)))
    await made.fold()
    refused = await made.world.records(made.partition("ada"), REJECTED_TOPIC)

    assert moved(await counters(made), before) == ({"rejected": 1} if reason else {})
    assert [dict(record.headers)["tidemark-reason"] for record in refused] == ([reason] if reason else [])
    await judged(made)
    assert moved(await counters(made), before)["counted"] == 1
    assert (await made.reconcile()).verdict is Reconciled.EQUAL


async def test_events_without_a_decision_are_no_drift_and_limit_completeness() -> None:
    """Nothing else waits: all other events count, and no view includes the undecided events."""
    made = await settled()
    arrived_ms = made.clock.ms
    await late(made, EARLY_MS)
    await made.emit("ada", gb="1", user="prompt", region="eu")
    await made.settle()
    report = await made.reconcile()

    assert (report.differences, report.verdict) == (0, Reconciled.INCOMPLETE)
    (row,) = named(report, Cause.IN_FLIGHT, Pair.COUNTERS)
    assert (row.partition, row.detail[:9]) == (made.partition("ada"), "1 events ")
    assert (await counters(made)).deferred == 1
    relayed = (await made.clickhouse.load_relayed())[made.partition("ada")]
    assert relayed.stream_time_ms == arrived_ms
    assert relayed.next_offset == (await made.checkpoint("ada")).next_offset

    await judged(made)
    await made.relay()
    relayed = (await made.clickhouse.load_relayed())[made.partition("ada")]
    assert relayed.stream_time_ms == (await made.checkpoint("ada")).stream_time_ms
    assert (await made.reconcile()).verdict is Reconciled.EQUAL


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
    made = await settled()
    totals = dict(made.totals("ada"))
    await late(made, EARLY_MS)
    await made.fold()
    await made.advance(DECEMBER_MS + 2 * HOUR_MS - made.clock.ms)
    await judged(made)

    assert made.totals("ada") == totals
    _, december = await made.store.totals.account_totals(
        made.partition("ada"), list(made.store.server.partitions[made.partition("ada")].totals)
    )
    assert {key.period_start_ms: fields["requests"] for key, fields in december.items() if key.account == "ada"} == {
        NOVEMBER_MS: totals["requests"], DECEMBER_MS: "1",
    }  # fmt: skip
    assert (await made.reconcile()).differences == 0


async def test_period_closed_by_a_record_stays_closed_for_late_events_until_its_grace_has_passed() -> None:
    """With a long grace, only the record keeps late events out, however long after the period's end."""
    made = await Deployment().start({**METER_SET, "policy": {"grace_ms": 30 * DAY_MS}})
    await made.close_period("ada", OCTOBER_MS)
    await made.close_period("ada", OCTOBER_MS - 30 * DAY_MS)
    for account in ("ada", "bob"):
        await late(made, OCTOBER_MS, account)
    await judged(made)

    counted = {
        key.account: key.period_start_ms
        for held in made.store.server.partitions.values()
        for key in held.totals
    }  # fmt: skip
    assert counted == {"ada": NOVEMBER_MS, "bob": NOVEMBER_MS - 31 * DAY_MS}
    assert (await made.reconcile()).differences == 0


async def test_late_event_of_a_closed_period_whose_meter_quarantines_is_quarantined_with_its_bytes() -> None:
    """The event stays the first of its identity in the archive and counts nowhere."""
    meter_set = copy.deepcopy(METER_SET)
    meter_set["meters"][-1]["late"] = "quarantine"
    made = await Deployment().start(meter_set)
    await made.traffic(1)
    await made.settle()
    before = await counters(made)
    await late(made, OCTOBER_MS, type_="seats", seats=5)
    await judged(made)

    assert moved(await counters(made), before) == {"late": 1}
    (kept,) = await made.world.records(made.partition("ada"), REJECTED_TOPIC)
    headers = dict(kept.headers)
    assert headers["tidemark-reason"] == b"period_closed"
    assert b'"seats": 5' in (kept.value or b"")
    stands = position(int(headers["tidemark-offset"]), int(headers["tidemark-index"]))
    (row,) = [each for each in made.clickhouse.decisions.values() if each.position == stands]
    assert row.outcome is DedupOutcome.LATE
    assert (await made.reconcile()).verdict is Reconciled.EQUAL


async def test_a_meter_gets_the_event_only_if_it_was_there_at_arrival_and_at_decision() -> None:
    """A new meter has not judged the event, and a removed meter no longer wants it."""
    made = await settled()
    totals = dict(made.totals("ada"))
    await late(made, EARLY_MS)
    await made.fold()
    meter_set = copy.deepcopy(METER_SET)
    meter_set["version"] = 2
    meter_set["meters"] = [each for each in meter_set["meters"] if each["slug"] != "peak"]
    meter_set["meters"].append({"slug": "calls", "event_type": "request", "aggregation": "count"})
    following = successor(MeterSet.model_validate(METER_SET), MeterSet.model_validate(meter_set))
    await made.world.control(made.partition("ada"), MeterSetRecord(meter_set=following))
    await judged(made)

    changed = {name for name, text in made.totals("ada").items() if totals.get(name) != text}
    assert changed == {"requests", "gigabytes", "users"}
    assert (await made.reconcile()).differences == 0


async def test_deferred_events_beyond_the_limit_are_rejected_and_nothing_else_is_harmed() -> None:
    """The limit is in the log, so a replay rejects the same events. A rejected event counts nowhere, and because the
    archive has its identity, a repetition does not count either."""
    meter_set = {**METER_SET, "policy": {"deferred_max": 2}}
    made = await Deployment().start(meter_set)
    await made.traffic(1)
    await made.settle()
    before = await counters(made)
    refused = [await late(made, EARLY_MS + number) for number in range(4)]
    await judged(made)
    await late(made, EARLY_MS + 9)
    again = await late(made, EARLY_MS + 3, id=refused[-1])
    await judged(made)
    await made.emit("ada", id=again, gb="1", user="prompt", region="eu")
    await judged(made)

    assert moved(await counters(made), before) == {"counted": 3, "rejected": 2, "duplicate": 2}
    kept = await made.world.records(made.partition("ada"), REJECTED_TOPIC)
    assert [dict(record.headers)["tidemark-reason"] for record in kept] == [b"too_many_deferred"] * 2
    assert (await made.reconcile()).verdict is Reconciled.EQUAL


@pytest.mark.parametrize("resolved", [False, True], ids=["waiting", "judged"])
async def test_replay_of_the_log_reaches_the_same_state(resolved: bool) -> None:
    """Dedup decisions are in the log: a rebuilt view needs no resolver and has the same bytes (I7)."""
    made = await settled()
    for at_ms in (EARLY_MS, OCTOBER_MS):
        await late(made, at_ms)
    await (judged(made) if resolved else made.fold())
    again = FakeLiveView()
    live, made.world.store = made.store, again
    await made.fold()

    for at, held in again.server.partitions.items():
        kept = live.server.partitions[at]
        assert (held.checkpoint, held.totals, held.deferred) == (kept.checkpoint, kept.totals, kept.deferred)
