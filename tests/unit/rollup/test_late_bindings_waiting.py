"""While a late binding waits for its restatement: which events wait, for how long, and what else ends the wait."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest

from aggregators.bindings import RESTATEMENT_MS_MAX, is_waiting, restated
from pipeline.rollup import resolver, restater
from pipeline.rollup.restater import BEGINNINGS_MAX, JUDGED_MS_MAX, TOO_OFTEN
from schemas.clock import DAY_MS, MINUTE_MS
from schemas.control import RestatementRecord
from schemas.errors import HeldUp, OperatorNeeded, Transient
from schemas.log import EVENTS_TOPIC, position
from schemas.periods import AccountState, Billing
from tests.worlds.late_binding import (
    CUT_MS,
    EVE,
    POLICY,
    agrees,
    bind,
    deployment,
    neighbour,
    reached,
    state,
    totals,
    used,
)
from tests.worlds.reconciler import METER_SET, NOVEMBER_MS, Deployment


async def test_events_during_the_wait_are_counted_once_and_after_it() -> None:
    """Nothing counts meanwhile. Earlier identities are known, and early decisions have no effect."""
    world = await deployment()
    first = await world.emit(EVE, gb="1", user="new", region="eu")
    await bind(world)
    before = await totals(world, "requests")
    counters = (await world.checkpoint(EVE)).counters

    await world.emit(EVE, gb="2", user="newer", region="eu")
    await world.emit(EVE, id=first, gb="1", user="new", region="eu")
    await world.emit(EVE, type_="page.viewed", page="/")
    await world.emit(EVE, at_ms=CUT_MS - MINUTE_MS, gb="3", user="late", region="us")
    await world.fold()
    await world.archive()
    assert await world.resolve() == 0
    after = (await world.checkpoint(EVE)).counters
    assert await totals(world, "requests") == before
    assert (after.deferred - counters.deferred, after.duplicate - counters.duplicate) == (2, 1)

    assert await world.restatement() == 1
    await world.fold()
    await world.archive()
    assert await world.resolve() == 2
    await world.settle()
    # The event from before the cut arrived after the grace of the period that ends at the cut.
    assert await totals(world, "requests") == {NOVEMBER_MS: 9, CUT_MS: 12}
    await agrees(world)


async def test_control_records_during_the_wait_take_effect() -> None:
    """A closing at once, another binding afterwards, in the order of the log."""
    world = await deployment()
    await bind(world, billing=Billing.UNMAPPED, stripe_customer="")
    await world.close_period(EVE, world.clock.ms - 90 * DAY_MS)
    await world.bind(EVE, effective_from_ms=NOVEMBER_MS, anchor_ms=CUT_MS, stripe_customer=f"cus_{EVE}")
    await world.fold()
    assert (await state(world)).customers == ()
    assert len((await state(world)).closed_start_ms) == 1

    for _ in range(2):
        await world.archive()
        assert await world.restatement() == 1
        await world.fold()
    await used(world, hours=1)
    await world.settle()

    account = await state(world)
    assert account.pending is None
    assert account.customers[-1].stripe_customer == f"cus_{EVE}"
    assert await totals(world, "requests") == {NOVEMBER_MS: 9, CUT_MS: 15}
    report = await world.reconcile()
    assert report.differences == 0, report.rows


async def test_usage_that_does_not_fit_a_record_is_not_restated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The binding takes effect after the usage, and the record contains the reason."""
    monkeypatch.setattr(restater, "CONTENT_CHARACTERS_MAX", 10)
    world = await deployment()
    await bind(world, effective_from_ms=NOVEMBER_MS)
    bound_ms = world.clock.ms
    await world.restatement()
    await world.settle()

    controls = await world.clickhouse.controls(world.partition(EVE), position(1 << 40))
    assert "one record" in RestatementRecord.model_validate_json(controls[-1].value).declined
    account = await state(world)
    assert (account.pending, account.restatements) == (None, ())
    assert account.bindings[-1].effective_from_ms > bound_ms
    assert await totals(world, "requests") == {NOVEMBER_MS: 18}
    await agrees(world)


async def test_nothing_begins_or_ends_before_the_archive_has_passed_it() -> None:
    """Neither with a table that was just exchanged nor with an archive that lags far: events would wait for long."""
    world = await deployment()
    await world.bind(EVE, effective_from_ms=CUT_MS, anchor_ms=CUT_MS)
    await world.fold()
    assert await world.restatement() == 0
    await world.archive()
    await world.advance(2 * restater.NEAR_MS_MAX)
    await world.fold()
    assert await world.restatement() == 0
    await world.archive()
    assert await world.restatement() == 1

    await world.fold()
    assert await world.restatement() == 0
    await world.archive()
    world.clickhouse.rebuilt = None
    assert await world.restatement() == 0
    world.clickhouse.rebuilt = 0
    assert await world.restatement() == 1
    await world.settle()
    assert len((await state(world)).restatements) == 1


async def test_usage_continues_if_a_restatement_does_not_end_and_the_restatement_restarts() -> None:
    """The archive disappears right after the start: events wait for half an hour at most, then count as before."""
    world = await deployment()
    await bind(world)
    await world.emit(EVE, gb="1", user="waits", region="eu")
    await world.advance(RESTATEMENT_MS_MAX)
    await world.emit(EVE, gb="1", user="counts", region="eu")
    await world.fold()
    assert await totals(world, "requests") == {NOVEMBER_MS: 19}
    assert (await world.checkpoint(EVE)).counters.deferred == 1

    await world.archive()
    # The waiting events count before any event waits again.
    assert await world.restatement() == 0
    assert await world.resolve() == 1
    await reached(world)
    assert await world.restatement() == 1
    await reached(world)
    assert await world.restatement() == 1
    await world.settle()
    assert await totals(world, "requests") == {NOVEMBER_MS: 9, CUT_MS: 11}
    await agrees(world)


async def test_an_event_that_the_archive_lost_does_not_prevent_a_restart_of_the_restatement() -> None:
    """This event never gets a decision; the others had time for theirs."""
    world = await deployment()
    await bind(world)
    lost = await world.emit(EVE, gb="1", user="lost", region="eu")
    await world.advance(RESTATEMENT_MS_MAX)
    await reached(world)
    del world.clickhouse.events[EVE, lost]
    assert (await world.resolve(), await world.restatement()) == (0, 0)

    await world.advance(JUDGED_MS_MAX)
    await reached(world)
    assert await world.restatement() == 1


async def test_answer_that_comes_too_late_changes_nothing() -> None:
    world = await deployment()
    await bind(world)
    assert await world.restatement() == 1
    records = await world.log.read(EVENTS_TOPIC, world.partition(EVE), 0, 10_000)
    await world.archive()
    late = AccountState.model_validate((await state(world)).model_dump())
    answer = RestatementRecord.model_validate_json(records[-1].value or b"")
    assert late.pending is not None
    assert late.pending.until_ms is not None

    assert restated(late, answer, 1 << 50, POLICY, late.pending.until_ms) == late
    assert restated(late, answer, 1 << 50, POLICY, late.pending.until_ms - 1).restatements


async def test_events_in_time_wait_whatever_the_limit_for_late_ones_is() -> None:
    """They are the events of a few minutes. A rejection would make the producer send them under another id."""
    world = await Deployment().start({**METER_SET, "version": 1, "policy": {"deferred_max": 2}})
    world.stripe.add_customer(f"cus_{EVE}")
    await used(world, hours=1)
    await bind(world, effective_from_ms=NOVEMBER_MS, anchor_ms=NOVEMBER_MS + DAY_MS)
    for number in range(5):
        await world.emit(EVE, gb="1", user=f"u{number}", region="eu")
    await world.fold()
    assert (await world.checkpoint(EVE)).counters.deferred == 5

    await world.archive()
    await world.restatement()
    await reached(world)
    assert await world.resolve() == 5
    await world.settle()
    assert sum((await totals(world, "requests")).values()) == 11
    await agrees(world)


@pytest.mark.parametrize("lost_max", [6, 1_000], ids=["some", "all"])
async def test_live_counts_are_not_replaced_by_an_archive_that_lost_events(lost_max: int) -> None:
    """The totals do not change while the account waits, so totals and recount must be equal."""
    world = await deployment()
    await bind(world)
    lost = [key for key in world.clickhouse.events if key[0] == EVE][:lost_max]
    for key in lost:
        del world.clickhouse.events[key]
    assert await world.restatement() == 1
    await world.fold()

    assert await totals(world, "requests") == {NOVEMBER_MS: 18}
    assert ((await state(world)).pending, (await state(world)).restatements) == (None, ())


async def two_begun() -> tuple[Deployment, str]:
    """A deployment with two accounts of one partition whose restatements have begun, and the second account's name."""
    world = await deployment()
    other = neighbour(world)
    await used(world, hours=1, account=other)
    for account in (EVE, other):
        await world.bind(account, effective_from_ms=CUT_MS, anchor_ms=CUT_MS)
    await reached(world)
    assert await world.restatement() == 2
    return world, other


async def test_account_whose_usage_cannot_be_recounted_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The account is declined with the reason; the same call answers the others."""
    world, other = await two_begun()
    await reached(world)
    counted = world.clickhouse.recount_rows

    async def fails(request: Any, generation: int) -> Any:
        if request.accounts == [EVE]:
            raise OperatorNeeded("the boundaries do not reach an event")
        return await counted(request, generation)

    monkeypatch.setattr(world.clickhouse, "recount_rows", fails)
    assert await world.restatement() == 2
    await world.fold()
    assert (await state(world)).pending is None
    assert (await world.store.accounts.account(world.partition(other), other)).pending is None


@pytest.mark.parametrize("kind", [Transient, HeldUp])
async def test_account_whose_recount_never_answers_blocks_no_other_and_is_given_up(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    """ClickHouse's limits are too low, or a table is gone. The call answers the others; waiting events then count."""
    world, other = await two_begun()
    counted, looks = world.clickhouse.recount_rows, 0

    async def fails(request: Any, generation: int) -> Any:
        nonlocal looks
        if request.accounts == [EVE]:
            looks += 1
            raise kind("memory limit exceeded")
        return await counted(request, generation)

    monkeypatch.setattr(world.clickhouse, "recount_rows", fails)
    await reached(world)
    with pytest.raises(Transient, match="memory limit"):
        await world.restatement()
    await reached(world)
    assert (await world.store.accounts.account(world.partition(other), other)).pending is None

    for _ in range(2 * BEGINNINGS_MAX):
        await world.emit(EVE, gb="1", user="waits", region="eu")
        while (await state(world)).pending and is_waiting(
            await state(world), (await world.checkpoint(EVE)).stream_time_ms
        ):
            await world.advance(RESTATEMENT_MS_MAX)
            await reached(world)
            with contextlib.suppress(Transient):
                await world.restatement()
            await reached(world)
        await world.resolve()
        await reached(world)
        assert (await world.checkpoint(EVE)).counters.deferred == 0
        with contextlib.suppress(Transient):
            await world.restatement()
        await reached(world)
    after = await state(world)
    assert (after.pending, after.restatements) == (None, ())
    assert looks >= BEGINNINGS_MAX
    assert await totals(world, "requests") == {NOVEMBER_MS: 18 + 2 * BEGINNINGS_MAX}
    controls = await world.clickhouse.load_controls(world.partition(EVE), 1 << 60)
    declined = [
        RestatementRecord.model_validate_json(each.value).declined for each in controls if each.kind == "restatement"
    ]
    assert [text for text in declined if text] == [TOO_OFTEN.format(BEGINNINGS_MAX, "memory limit exceeded")]


async def test_a_view_that_went_back_between_two_looks_declines_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that was behind has taken over with older totals."""
    world = await deployment()
    before = copy.deepcopy(world.store.server.partitions)
    await world.emit(EVE, gb="1", user="new", region="eu")
    await bind(world)
    now, account_totals = world.store.server.partitions, world.store.totals.account_totals

    async def failed_over(partition: int, keys: Any) -> Any:
        world.store.server.partitions = before
        return await account_totals(partition, keys)

    monkeypatch.setattr(world.store.totals, "account_totals", failed_over)
    with pytest.raises(Transient, match="went back"):
        await world.restatement()
    monkeypatch.undo()
    world.store.server.partitions = now
    assert await world.restatement() == 1
    await world.settle()
    assert len((await state(world)).restatements) == 1


async def test_late_events_of_others_do_not_wait_behind_those_of_a_waiting_account(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resolver, "DECISIONS_MAX", 3)
    world = await deployment()
    await bind(world)
    for number in range(7):
        await world.emit(EVE, gb="1", user=f"u{number}", region="eu")
    other = next(name for name in ("bob", "ada", "cyd", "dora") if world.partition(name) == world.partition(EVE))
    await world.emit(other, at_ms=world.clock.ms - 5 * DAY_MS, gb="1", user="late", region="eu")
    await reached(world)

    assert await world.resolve() == 1
    await world.fold()
    assert (await world.checkpoint(EVE)).counters.deferred == 7
