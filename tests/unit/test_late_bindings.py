"""A binding that comes after the usage it cuts: counted again, once, in every view; or refused, and said so."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregators.bindings import LATER_MAX, RECUT_MS_MAX, bound, closed, is_replaced, is_waiting, recut
from aggregators.periods import period_at
from pipeline.processors import recutter, resolver
from pipeline.processors.rollup import RollupSettings
from reconciler.causes import Cause, Pair, Verdict
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.control import RecutRecord
from schemas.errors import InvalidInput, OperatorNeeded
from schemas.log import EVENTS_TOPIC, REPORTS_TOPIC, position
from schemas.meters import Policy
from schemas.periods import AccountState, Billing, Binding, Interval, Period
from schemas.recut import unpacked
from schemas.reports import Intent
from tests.unit.reconciler_world import CATALOG, DECEMBER_MS, NOVEMBER_MS, START_MS, Deployment, named, settled

EVE = "eve"
# In the middle of an hour, so that both sides of it have usage.
CUT_MS = START_MS + 90 * MINUTE_MS
POLICY = Policy()


async def used(made: Deployment, hours: int = 3, account: str = EVE) -> None:
    """Six events an hour, ten minutes apart, of every meter."""
    for hour in range(hours):
        for step in range(6):
            await made.emit(account, gb=f"{hour + 1}.{step}25", user=f"user-{step % 4}", region=("eu", "us")[step % 2])
            await made.emit(account, type_="seats", seats=10 * hour + step)
            await made.advance(10 * MINUTE_MS)


async def deployment() -> Deployment:
    """Three hours of an account that nobody has bound; reported, and held."""
    made = await Deployment().start()
    made.stripe.add_customer(f"cus_{EVE}")
    await used(made)
    await made.settle()
    return made


async def reached(made: Deployment) -> None:
    """All that is in the log is folded and archived."""
    await made.fold()
    await made.archive()


async def bind(made: Deployment, **fields: Any) -> None:
    """Bind late; from here on the account's events wait."""
    asked = {"effective_from_ms": CUT_MS, "anchor_ms": CUT_MS, "stripe_customer": f"cus_{EVE}", **fields}
    await made.bind(EVE, **asked)
    await reached(made)
    assert await made.recut() == 1
    await reached(made)
    assert is_waiting(await state(made), (await made.fence(EVE)).log_time_ms)


async def totals(made: Deployment, meter: str, account: str = EVE) -> dict[int, int]:
    """By the start of the period."""
    held = made.store._partitions[made.partition(account)].totals
    found = {
        key.period_start_ms: fields[meter] for key, fields in held.items() if key.account == account and meter in fields
    }
    return {start_ms: int(text.split(":")[0]) for start_ms, text in sorted(found.items())}


async def state(made: Deployment) -> AccountState:
    return await made.store.account(made.partition(EVE), EVE)


async def agrees(made: Deployment) -> None:
    """Every view says the same, Stripe too; but nobody was named to pay for what lies before the cut."""
    report = await made.reconcile()
    assert report.verdict is Verdict.EQUAL, report.rows
    assert {(row.account, row.cause) for row in report.rows} <= {(EVE, Cause.UNKNOWN_CUSTOMER)}


async def test_usage_before_its_binding_is_counted_again_in_the_periods_of_the_binding() -> None:
    """All five aggregations, an hour on both sides of the cut; then Redis, usage_hourly, intents, Stripe and the
    recount say the same, and Stripe got nothing of the old cut."""
    made = await deployment()
    assert await totals(made, "requests") == {NOVEMBER_MS: 18}

    await bind(made)
    assert await made.recut() == 1
    await made.settle()

    assert {meter: await totals(made, meter) for meter in ("requests", "gigabytes", "peak", "users", "seats")} == {
        "requests": {NOVEMBER_MS: 9, CUT_MS: 9},
        "gigabytes": {NOVEMBER_MS: 14_025, CUT_MS: 26_925},
        "peak": {NOVEMBER_MS: 2_225, CUT_MS: 3_525},
        "users": {NOVEMBER_MS: 4, CUT_MS: 4},
        "seats": {NOVEMBER_MS: 12, CUT_MS: 25},
    }  # fmt: skip
    hour_ms = CUT_MS // HOUR_MS * HOUR_MS
    cells = await made.clickhouse.hourly_cells(made.partition(EVE))
    straddled = [
        key.period_start_ms for key in cells if (key.account, key.meter, key.hour_ms) == (EVE, "seats", hour_ms)
    ]
    assert sorted(straddled) == [NOVEMBER_MS, CUT_MS]
    await agrees(made)
    told = [each.event for each in made.stripe.events if each.event.event_name == "requests"]
    ours = [
        (each.timestamp_s * 1000 >= CUT_MS, Decimal(each.value))
        for each in told
        if each.stripe_customer == f"cus_{EVE}"
    ]
    assert sorted(ours) == [(True, Decimal(9))]


async def test_what_arrives_while_the_account_waits_is_counted_once_and_after_it() -> None:
    """Nothing is counted in between; the identities of before are known, and verdicts that come early do nothing."""
    made = await deployment()
    first = await made.emit(EVE, gb="1", user="new", region="eu")
    await bind(made)
    before = await totals(made, "requests")
    counters = (await made.fence(EVE)).counters

    await made.emit(EVE, gb="2", user="newer", region="eu")
    await made.emit(EVE, id=first, gb="1", user="new", region="eu")
    await made.emit(EVE, type_="page.viewed", page="/")
    await made.emit(EVE, at_ms=CUT_MS - MINUTE_MS, gb="3", user="late", region="us")
    await made.fold()
    await made.archive()
    assert await made.resolve() == 0
    after = (await made.fence(EVE)).counters
    assert await totals(made, "requests") == before
    assert (after.parked - counters.parked, after.duplicate - counters.duplicate) == (2, 1)

    assert await made.recut() == 1
    await made.fold()
    await made.archive()
    assert await made.resolve() == 2
    await made.settle()
    # The one from before the cut came after the grace of the period that ends there.
    assert await totals(made, "requests") == {NOVEMBER_MS: 9, CUT_MS: 12}
    await agrees(made)


async def test_records_that_are_repeated_or_answer_nothing_change_nothing() -> None:
    """A resolver that dies after its append answers again; so does a second one."""
    made = await deployment()
    await bind(made)
    assert [await made.recut(), await made.recut()] == [1, 1]
    await made.settle()
    await used(made, hours=1)
    ends = await made.log.bounds(EVENTS_TOPIC, made.partition(EVE))
    records = await made.log.read(EVENTS_TOPIC, made.partition(EVE), 0, ends.next)
    for said in [record for record in records if ("tidemark-control", b"recut") in record.headers]:
        await made.log.append(EVENTS_TOPIC, made.partition(EVE), said.value or b"", headers=said.headers)
    await made.settle()

    assert await totals(made, "requests") == {NOVEMBER_MS: 9, CUT_MS: 15}
    assert len((await state(made)).recuts) == 1
    await agrees(made)


async def test_what_its_records_say_while_it_waits_is_followed() -> None:
    """A closing at once, another binding after it, in the order of the log."""
    made = await deployment()
    await bind(made, billing=Billing.UNMAPPED, stripe_customer="")
    await made.close_period(EVE, made.clock.ms - 90 * DAY_MS)
    await made.bind(EVE, effective_from_ms=NOVEMBER_MS, anchor_ms=CUT_MS, stripe_customer=f"cus_{EVE}")
    await made.fold()
    assert (await state(made)).customers == ()
    assert len((await state(made)).closed_start_ms) == 1

    for _ in range(2):
        await made.archive()
        assert await made.recut() == 1
        await made.fold()
    await used(made, hours=1)
    await made.settle()

    held = await state(made)
    assert held.pending is None
    assert held.customers[-1].stripe_customer == f"cus_{EVE}"
    assert await totals(made, "requests") == {NOVEMBER_MS: 9, CUT_MS: 15}
    report = await made.reconcile()
    assert report.differences == 0, report.rows


async def test_usage_that_does_not_fit_a_record_is_not_cut_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The binding takes effect beyond it, and the record says why."""
    monkeypatch.setattr(recutter, "CONTENT_CHARACTERS_MAX", 10)
    made = await deployment()
    await bind(made, effective_from_ms=NOVEMBER_MS)
    bound_ms = made.clock.ms
    await made.recut()
    await made.settle()

    controls = await made.clickhouse.controls(made.partition(EVE), position(1 << 40))
    assert "one record" in RecutRecord.model_validate_json(controls[-1].value).declined
    held = await state(made)
    assert (held.pending, held.recuts) == (None, ())
    assert held.bindings[-1].effective_from_ms > bound_ms
    assert await totals(made, "requests") == {NOVEMBER_MS: 18}
    await agrees(made)


async def test_the_archive_keeps_the_record_without_its_content() -> None:
    made = await deployment()
    await bind(made)
    await made.recut()
    await made.settle()

    controls = await made.clickhouse.controls(made.partition(EVE), position(1 << 40))
    row = [each for each in controls if each.kind == "recut"][-1]
    assert RecutRecord.model_validate_json(row.value).content == ""


async def test_nothing_is_begun_or_ended_before_the_archive_has_passed_it() -> None:
    """Nor by a table that was just exchanged, nor where the archive is far behind: events would wait for long."""
    made = await deployment()
    await made.bind(EVE, effective_from_ms=CUT_MS, anchor_ms=CUT_MS)
    await made.fold()
    assert await made.recut() == 0
    await made.archive()
    await made.advance(2 * recutter.NEAR_MS_MAX)
    await made.fold()
    assert await made.recut() == 0
    await made.archive()
    assert await made.recut() == 1

    await made.fold()
    assert await made.recut() == 0
    await made.archive()
    made.clickhouse.rebuilt = None
    assert await made.recut() == 0
    made.clickhouse.rebuilt = 0
    assert await made.recut() == 1
    await made.settle()
    assert len((await state(made)).recuts) == 1


async def test_usage_goes_on_where_a_re_cut_does_not_end_and_it_is_begun_anew() -> None:
    """The archive goes away right after it was begun: events wait for half an hour at most, then count as before."""
    made = await deployment()
    await bind(made)
    await made.emit(EVE, gb="1", user="waits", region="eu")
    await made.advance(RECUT_MS_MAX)
    await made.emit(EVE, gb="1", user="counts", region="eu")
    await made.fold()
    assert await totals(made, "requests") == {NOVEMBER_MS: 19}
    assert (await made.fence(EVE)).counters.parked == 1

    await made.archive()
    assert await made.resolve() == 1
    assert await made.recut() == 1
    await reached(made)
    assert await made.recut() == 1
    await made.settle()
    assert await totals(made, "requests") == {NOVEMBER_MS: 9, CUT_MS: 11}
    await agrees(made)


async def test_answer_that_comes_too_late_changes_nothing() -> None:
    made = await deployment()
    await bind(made)
    assert await made.recut() == 1
    records = await made.log.read(EVENTS_TOPIC, made.partition(EVE), 0, 10_000)
    await made.archive()
    late = AccountState.model_validate((await state(made)).model_dump())
    answer = RecutRecord.model_validate_json(records[-1].value or b"")
    assert late.pending is not None
    assert late.pending.until_ms is not None

    assert recut(late, answer, 1 << 50, POLICY, late.pending.until_ms) == late
    assert recut(late, answer, 1 << 50, POLICY, late.pending.until_ms - 1).recuts


async def test_intents_of_the_old_cut_are_settled_as_replaced() -> None:
    """They are never sent, and nobody waits for them."""
    made = await deployment()
    old = await intents(made)
    await bind(made)
    await made.recut()
    await made.settle()

    held = await state(made)
    new = [each for each in await intents(made) if each not in old]
    assert {is_replaced(held, each.period_start_ms, each.bucket_start_ms) for each in old} == {True}
    assert {is_replaced(held, each.period_start_ms, each.bucket_start_ms) for each in new} == {False}
    sent = {each.event.identifier for each in made.stripe.events}
    assert sent.isdisjoint(each.identifier for each in old)
    assert sent.issuperset(each.identifier for each in new if each.period_start_ms == CUT_MS)


async def test_usage_that_was_sent_is_never_sent_again_in_other_periods() -> None:
    """Bound with a customer, then without one by mistake, then with one and an anchor of its own."""
    made = await settled()
    before = len(made.stripe.events)
    for billing, customer in ((Billing.UNMAPPED, ""), (Billing.MAPPED, "cus_ada")):
        await made.bind("ada", anchor_ms=CUT_MS, billing=billing, stripe_customer=customer)
        for _ in range(2):
            await reached(made)
            assert await made.recut() == 0
    await made.settle()

    assert len(made.stripe.events) == before
    report = await made.reconcile()
    assert report.differences == 0, report.rows


async def test_period_that_the_cut_empties_tells_what_comes_to_it_later_in_the_same_bucket() -> None:
    """Its open report begins at nothing again, and not at what was counted there before."""
    made = await Deployment().start()
    made.stripe.add_customer(f"cus_{EVE}")
    made.clock.ms = CUT_MS
    for step in range(3):
        await made.emit(EVE, gb="1", user=f"user-{step}", region="eu")
    await bind(made, effective_from_ms=NOVEMBER_MS, anchor_ms=CUT_MS)
    assert await made.recut() == 1
    await reached(made)
    await made.emit(EVE, at_ms=CUT_MS - MINUTE_MS, gb="1", user="before", region="eu")
    await made.settle()

    assert await totals(made, "requests") == {NOVEMBER_MS: 1, CUT_MS: 3}
    told = {(each.period_start_ms, each.meter): each.delta_minor for each in await intents(made)}
    assert (told[NOVEMBER_MS, "requests"], told[CUT_MS, "requests"]) == (1, 3)
    await agrees(made)


async def test_what_comes_in_time_waits_whatever_may_wait_of_what_is_late() -> None:
    """It is as much as comes in a few minutes; refused, it would have to be sent under another id."""
    made = await Deployment().start({**CATALOG, "version": 1, "policy": {"parked_max": 2}})
    made.stripe.add_customer(f"cus_{EVE}")
    await used(made, hours=1)
    await bind(made, effective_from_ms=NOVEMBER_MS, anchor_ms=NOVEMBER_MS + DAY_MS)
    for number in range(5):
        await made.emit(EVE, gb="1", user=f"u{number}", region="eu")
    await made.fold()
    assert (await made.fence(EVE)).counters.parked == 5

    await made.archive()
    await made.recut()
    await reached(made)
    assert await made.resolve() == 5
    await made.settle()
    assert sum((await totals(made, "requests")).values()) == 11
    await agrees(made)


async def test_live_counts_are_not_replaced_by_those_of_an_archive_that_lost_events() -> None:
    """The totals stand still while the account waits, so the two must be equal."""
    made = await deployment()
    await bind(made)
    lost = [key for key in made.clickhouse.events if key[0] == EVE][:6]
    for key in lost:
        del made.clickhouse.events[key]
    assert await made.recut() == 1
    await made.fold()

    assert await totals(made, "requests") == {NOVEMBER_MS: 18}
    assert ((await state(made)).pending, (await state(made)).recuts) == (None, ())


async def test_account_whose_usage_cannot_be_counted_again_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is declined with the reason; the others are answered in the same call."""
    made = await deployment()
    await used(made, hours=1, account="zoe")
    for account in (EVE, "zoe"):
        await made.bind(account, effective_from_ms=CUT_MS, anchor_ms=CUT_MS)
    await reached(made)
    assert await made.recut() == 2
    await reached(made)
    counted = made.clickhouse.recount_rows

    async def fails(request: Any, generation: int) -> Any:
        if request.accounts == [EVE]:
            raise OperatorNeeded("the boundaries do not reach an event")
        return await counted(request, generation)

    monkeypatch.setattr(made.clickhouse, "recount_rows", fails)
    assert await made.recut() == 2
    await made.fold()
    assert (await state(made)).pending is None
    assert (await made.store.account(made.partition("zoe"), "zoe")).pending is None


async def test_late_events_of_others_do_not_stand_behind_those_of_a_waiting_account(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resolver, "VERDICTS_MAX", 3)
    made = await deployment()
    await bind(made)
    for number in range(7):
        await made.emit(EVE, gb="1", user=f"u{number}", region="eu")
    other = next(name for name in ("bob", "ada", "cyd", "dora") if made.partition(name) == made.partition(EVE))
    await made.emit(other, at_ms=made.clock.ms - 5 * DAY_MS, gb="1", user="late", region="eu")
    await reached(made)

    assert await made.resolve() == 1
    await made.fold()
    assert (await made.fence(EVE)).counters.parked == 7


async def intents(made: Deployment) -> list[Intent]:
    records = await made.log.read(REPORTS_TOPIC, made.partition(EVE), 0, 10_000)
    found = [
        Intent.model_validate_json(each.value or b"") for each in records if b'"kind":"intent"' in (each.value or b"")
    ]
    return [each for each in found if each.account == EVE]


async def test_unsettled_views_are_in_flight_and_never_drift() -> None:
    """At any step between the binding and the last report."""
    made = await deployment()
    await made.bind(EVE, effective_from_ms=CUT_MS, anchor_ms=CUT_MS, stripe_customer=f"cus_{EVE}")
    steps = (made.fold, made.archive, made.recut, made.archive, made.fold)
    for step in (*steps, *steps[2:], made.drain, made.publish, made.send):
        await step()
        report = await made.reconcile()
        assert report.verdict is not Verdict.DRIFT, (step, report.rows)
    assert named(await made.reconcile(), Cause.IN_FLIGHT, Pair.INTENTS)
    await made.settle()
    await agrees(made)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    minutes=st.lists(st.integers(-3000, 60), min_size=1, max_size=4),
    intervals=st.lists(st.sampled_from(list(Interval)), min_size=4, max_size=4),
    flush=st.sampled_from([1, 7, 20_000]),
)
async def test_any_late_bindings_leave_no_difference(minutes: list[int], intervals: list[Interval], flush: int) -> None:
    """One after the other, with usage before, between and after, however the fold flushes."""
    made = await Deployment().start()
    made.rollup_settings = RollupSettings(flush_events_max=flush)
    for number, each in enumerate(minutes):
        await used(made, hours=2)
        await made.emit(EVE, at_ms=made.clock.ms - 30 * HOUR_MS, gb="0.5", user=f"late-{number}", region="eu")
        now = made.clock.ms // MINUTE_MS
        at_ms = (now + each) * MINUTE_MS
        await made.bind(
            EVE, effective_from_ms=at_ms, anchor_ms=at_ms, interval=intervals[number], billing=Billing.UNMAPPED
        )
        await used(made, hours=1)
        for _ in range(2):
            await reached(made)
            await made.recut()
    await made.settle()
    await made.resolve()
    await made.settle()

    assert (await state(made)).pending is None
    report = await made.reconcile()
    assert report.differences == 0, report.rows


def monthly(effective_ms: int, anchor_ms: int, billing: Billing = Billing.UNMAPPED) -> Binding:
    return Binding(effective_from_ms=effective_ms, anchor_ms=anchor_ms, billing=billing)


NOW_MS = START_MS + 5 * DAY_MS
NEW = monthly(NOVEMBER_MS + 3 * DAY_MS, 3 * DAY_MS)
OCTOBER_MS = NOVEMBER_MS - 31 * DAY_MS


@pytest.mark.parametrize(
    ("before", "binding", "log_time_ms", "expected"),
    [
        pytest.param(AccountState(), NEW, NOW_MS, (NOVEMBER_MS, NEW.effective_from_ms), id="the running month"),
        pytest.param(
            AccountState(), monthly(0, 3 * DAY_MS), NOW_MS, (NOVEMBER_MS, NOVEMBER_MS), id="not before what is open"
        ),
        pytest.param(
            AccountState(), monthly(0, 3 * DAY_MS), NOVEMBER_MS + MINUTE_MS, (OCTOBER_MS, OCTOBER_MS),
            id="grace keeps the month before open",
        ),
        pytest.param(AccountState(), monthly(0, 0), NOW_MS, None, id="the same periods"),
        pytest.param(AccountState(), monthly(NOW_MS + DAY_MS, 5 * DAY_MS), NOW_MS, None, id="in the future"),
        pytest.param(
            AccountState(closed_start_ms=(NOVEMBER_MS,)), NEW, NOW_MS, None, id="the running month is closed"
        ),
        pytest.param(AccountState(named=True), NEW, NOW_MS, None, id="somebody was named"),
    ],
)  # fmt: skip
def test_which_bindings_cut_the_past(
    before: AccountState, binding: Binding, log_time_ms: int, expected: tuple[int, int] | None
) -> None:
    """(start of the first period concerned, instant of the cut), or None: then it takes effect beyond all usage."""
    after = bound(before, binding, 7, POLICY, log_time_ms)

    pending = after.pending
    assert (pending and (pending.from_ms, pending.binding.effective_from_ms)) == expected
    if pending is None:
        assert after.bindings[-1].effective_from_ms > log_time_ms
    else:
        assert after.bindings == before.bindings


def answers(position: int, **fields: Any) -> RecutRecord:
    return RecutRecord(account=EVE, position=position, **fields)


def begun() -> AccountState:
    """A late binding at position 7 whose re-cut was begun at 8."""
    asked = bound(AccountState(), NEW, 7, POLICY, NOW_MS)
    return recut(asked, answers(7, begins=True), 8, POLICY, NOW_MS)


@pytest.mark.parametrize("billing", [Billing.MAPPED, Billing.FREE])
def test_who_was_named_once_is_never_forgotten(billing: Billing) -> None:
    """A binding without a customer replaces the one before it. What was told to Stripe stays told."""
    state = bound(AccountState(), monthly(0, 0, billing), 5, POLICY, NOW_MS)
    state = bound(state, monthly(0, 5 * DAY_MS), 6, POLICY, NOW_MS)
    assert state.customers[-1].billing is Billing.UNMAPPED

    state = bound(state, monthly(NOVEMBER_MS, 3 * DAY_MS, Billing.MAPPED), 7, POLICY, NOW_MS)
    assert state.pending is None
    assert state.bindings[-1].effective_from_ms > NOW_MS


def test_more_than_may_wait_gives_the_cut_up_and_follows_all_of_it() -> None:
    """A limit that says what happens at it: the binding takes effect beyond, as if it had not been late."""
    waiting = begun()
    for number in range(LATER_MAX):
        waiting = bound(waiting, monthly(NOW_MS, number * HOUR_MS), 9 + number, POLICY, NOW_MS)
    assert waiting.pending is not None
    assert waiting.bindings == ()

    after = bound(waiting, monthly(NOW_MS, 9 * DAY_MS), 9 + LATER_MAX, POLICY, NOW_MS)
    assert after.pending is None
    assert after.bindings[0].effective_from_ms > NOW_MS
    assert after.bindings[-1].anchor_ms == 9 * DAY_MS
    assert recut(after, answers(8), 10, POLICY, NOW_MS) == after


def test_closing_is_in_force_at_once_and_has_the_re_cut_begun_anew() -> None:
    """What is closed now must not change, so the answer that is on its way is for nobody."""
    after = closed(begun(), NOW_MS, 9, POLICY, NOW_MS)
    assert after.closed_start_ms == (NOVEMBER_MS,)
    assert not is_waiting(after, NOW_MS)
    assert recut(after, answers(8), 10, POLICY, NOW_MS) == after

    anew = recut(after, answers(9, begins=True), 10, POLICY, NOW_MS)
    assert anew.pending is None, "the closed month was all there was to cut"


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(answers(9), id="of another record"),
        pytest.param(answers(7), id="of the binding, which was begun since"),
        pytest.param(answers(7, begins=True), id="begun twice"),
        pytest.param(answers(8, begins=True), id="begun again in time"),
    ],
)
def test_answer_that_nobody_waits_for_changes_nothing(record: RecutRecord) -> None:
    assert recut(begun(), record, 11, POLICY, NOW_MS) == begun()


def test_answer_to_a_binding_that_was_not_begun_changes_nothing() -> None:
    """What was counted since it was worked out would be lost."""
    asked = bound(AccountState(), NEW, 7, POLICY, NOW_MS)
    assert not is_waiting(asked, NOW_MS)
    assert recut(asked, answers(7), 8, POLICY, NOW_MS) == asked


def test_periods_are_the_bindings_once_it_was_answered() -> None:
    after = recut(begun(), answers(8), 9, POLICY, NOW_MS)
    assert period_at(after, NOW_MS) == Period(NEW.effective_from_ms, NEW.effective_from_ms + 30 * DAY_MS)


def test_period_that_closes_before_the_re_cut_is_begun_is_not_cut() -> None:
    """Nothing is left to cut: the binding takes effect beyond, and nothing waits."""
    asked = bound(AccountState(), monthly(NOW_MS, 5 * DAY_MS), 7, POLICY, NOW_MS + DAY_MS)
    assert asked.pending is not None
    later_ms = DECEMBER_MS + 2 * HOUR_MS
    closed_by_then = closed(asked, later_ms, 7, POLICY, later_ms)

    after = recut(closed_by_then, answers(7, begins=True), 8, POLICY, later_ms)
    assert after.pending is None
    assert after.bindings[-1].effective_from_ms > later_ms


@pytest.mark.parametrize("text", ["", "no base85 \x00", "Oeak", "0" * 40])
def test_content_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="content"):
        unpacked(text)


async def test_a_rebuilt_view_has_the_same_cuts() -> None:
    """The log says all of it: a fold from its start ends in the same state, and the next flush reads it."""
    made = await settled()
    made.stripe.add_customer(f"cus_{EVE}")
    await used(made)
    await bind(made)
    await made.recut()
    await used(made, hours=1)
    await made.settle()
    held = {key: dict(fields) for key, fields in made.store._partitions[made.partition(EVE)].totals.items()}

    made.store._partitions.clear()
    made.rollup_settings = RollupSettings(flush_events_max=3, replay_from_start=True)
    await made.settle()

    assert {key: dict(fields) for key, fields in made.store._partitions[made.partition(EVE)].totals.items()} == held
    await agrees(made)
