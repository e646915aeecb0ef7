"""A binding that arrives after usage that it cuts: restated once in every view, or declined with a reason (S11)."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregators.bindings import is_replaced
from pipeline.rollup.processor import RollupSettings
from reconciler.causes import Cause, Pair, Verdict
from schemas.aggregations import Aggregation
from schemas.analytics import UsageQuery
from schemas.clock import HOUR_MS, MINUTE_MS
from schemas.control import RestatementRecord
from schemas.log import EVENTS_TOPIC, position
from schemas.periods import Billing, Interval
from tests.worlds.deployment import hourly_relay
from tests.worlds.late_binding import (
    CUT_MS,
    EVE,
    agrees,
    bind,
    deployment,
    intents,
    reached,
    state,
    totals,
    used,
)
from tests.worlds.reconciler import NOVEMBER_MS, START_MS, Deployment, rows_of, settled


async def test_usage_before_its_binding_is_restated_in_the_periods_of_the_binding() -> None:
    """Redis, usage_hourly, intents, Stripe and the recount agree; Stripe got nothing of the old cut."""
    world = await deployment()
    assert await totals(world, "requests") == {NOVEMBER_MS: 18}

    await bind(world)
    assert await world.restatement() == 1
    await world.settle()

    meters = ("requests", "gigabytes", "peak", "low", "users", "seats")
    assert {meter: await totals(world, meter) for meter in meters} == {
        "requests": {NOVEMBER_MS: 9, CUT_MS: 9},
        "gigabytes": {NOVEMBER_MS: 14_025, CUT_MS: 26_925},
        "peak": {NOVEMBER_MS: 2_225, CUT_MS: 3_525},
        "low": {NOVEMBER_MS: 1_025, CUT_MS: 2_325},
        "users": {NOVEMBER_MS: 4, CUT_MS: 4},
        "seats": {NOVEMBER_MS: 12, CUT_MS: 25},
    }  # fmt: skip
    hour_ms = CUT_MS // HOUR_MS * HOUR_MS
    cells = await world.clickhouse.hourly_cells(world.partition(EVE))
    straddled = [
        key.period_start_ms for key in cells if (key.account, key.meter, key.hour_ms) == (EVE, "seats", hour_ms)
    ]
    assert sorted(straddled) == [NOVEMBER_MS, CUT_MS]
    await agrees(world)
    sent = [each.event for each in world.stripe.events if each.event.event_name == "requests"]
    ours = [
        (each.timestamp_s * 1000 >= CUT_MS, Decimal(each.value))
        for each in sent
        if each.stripe_customer == f"cus_{EVE}"
    ]
    assert sorted(ours) == [(True, Decimal(9))]


async def test_records_that_repeat_or_answer_nothing_change_nothing() -> None:
    """A restater that dies after its append answers again; so does a second restater."""
    world = await deployment()
    await bind(world)
    assert [await world.restatement(), await world.restatement()] == [1, 1]
    await world.settle()
    await used(world, hours=1)
    ends = await world.log.bounds(EVENTS_TOPIC, world.partition(EVE))
    records = await world.log.read(EVENTS_TOPIC, world.partition(EVE), 0, ends.next)
    for answer in [record for record in records if ("tidemark-control", b"restatement") in record.headers]:
        await world.log.append(EVENTS_TOPIC, world.partition(EVE), answer.value or b"", headers=answer.headers)
    await world.settle()

    assert await totals(world, "requests") == {NOVEMBER_MS: 9, CUT_MS: 15}
    assert len((await state(world)).restatements) == 1
    await agrees(world)


async def test_the_archive_keeps_the_record_without_its_content() -> None:
    world = await deployment()
    await bind(world)
    await world.restatement()
    await world.settle()

    controls = await world.clickhouse.controls(world.partition(EVE), position(1 << 40))
    row = [each for each in controls if each.kind == "restatement"][-1]
    assert RestatementRecord.model_validate_json(row.value).content == ""


async def test_intents_of_the_old_cut_are_settled_as_replaced() -> None:
    """They are never sent, and nothing waits for them."""
    world = await deployment()
    old = await intents(world)
    await bind(world)
    await world.restatement()
    await world.settle()

    account = await state(world)
    new = [each for each in await intents(world) if each not in old]
    assert {is_replaced(account, each.period_start_ms, each.bucket_start_ms) for each in old} == {True}
    assert {is_replaced(account, each.period_start_ms, each.bucket_start_ms) for each in new} == {False}
    sent = {each.event.identifier for each in world.stripe.events}
    assert sent.isdisjoint(each.identifier for each in old)
    assert sent.issuperset(each.identifier for each in new if each.period_start_ms == CUT_MS)


async def test_usage_that_was_sent_is_never_sent_again_in_other_periods() -> None:
    """A binding with a customer, then by mistake one without, then one with a customer and its own anchor."""
    world = await settled()
    before = len(world.stripe.events)
    for billing, customer in ((Billing.UNMAPPED, ""), (Billing.MAPPED, "cus_ada")):
        await world.bind("ada", anchor_ms=CUT_MS, billing=billing, stripe_customer=customer)
        for _ in range(2):
            await reached(world)
            assert await world.restatement() == 0
    await world.settle()

    assert len(world.stripe.events) == before
    report = await world.reconcile()
    assert report.differences == 0, report.rows


async def test_period_that_the_cut_empties_reports_later_usage_of_the_same_bucket() -> None:
    """Its open report restarts at zero, not at the earlier count."""
    world = await Deployment().start()
    world.stripe.add_customer(f"cus_{EVE}")
    world.clock.ms = CUT_MS
    for step in range(3):
        await world.emit(EVE, gb="1", user=f"user-{step}", region="eu")
    await bind(world, effective_from_ms=NOVEMBER_MS, anchor_ms=CUT_MS)
    assert await world.restatement() == 1
    await reached(world)
    await world.emit(EVE, at_ms=CUT_MS - MINUTE_MS, gb="1", user="before", region="eu")
    await world.settle()

    assert await totals(world, "requests") == {NOVEMBER_MS: 1, CUT_MS: 3}
    deltas = {(each.period_start_ms, each.meter): each.delta_minor for each in await intents(world)}
    assert (deltas[NOVEMBER_MS, "requests"], deltas[CUT_MS, "requests"]) == (1, 3)
    await agrees(world)


async def test_unsettled_views_are_in_flight_and_never_drift() -> None:
    """At any step between the binding and the last report."""
    world = await deployment()
    await world.bind(EVE, effective_from_ms=CUT_MS, anchor_ms=CUT_MS, stripe_customer=f"cus_{EVE}")
    steps = (world.fold, world.archive, world.restatement, world.archive, world.fold)
    for step in (*steps, *steps[2:], world.relay, world.publish, world.send):
        await step()
        report = await world.reconcile()
        assert report.verdict is not Verdict.DRIFT, (step, report.rows)
    assert rows_of(await world.reconcile(), Cause.IN_FLIGHT, Pair.INTENTS)
    await world.settle()
    await agrees(world)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    minutes=st.lists(st.integers(-3000, 60), min_size=1, max_size=4),
    intervals=st.lists(st.sampled_from(list(Interval)), min_size=4, max_size=4),
    flush=st.sampled_from([1, 7, 20_000]),
)
async def test_any_late_bindings_leave_no_difference(minutes: list[int], intervals: list[Interval], flush: int) -> None:
    """Several bindings, with usage before, between and after them, for any flush boundaries."""
    world = await Deployment().start()
    world.rollup_settings = RollupSettings(flush_events_max=flush)
    for number, each in enumerate(minutes):
        await used(world, hours=2)
        await world.emit(EVE, at_ms=world.clock.ms - 30 * HOUR_MS, gb="0.5", user=f"late-{number}", region="eu")
        now = world.clock.ms // MINUTE_MS
        at_ms = (now + each) * MINUTE_MS
        await world.bind(
            EVE, effective_from_ms=at_ms, anchor_ms=at_ms, interval=intervals[number], billing=Billing.UNMAPPED
        )
        await used(world, hours=1)
        for _ in range(2):
            await reached(world)
            await world.restatement()
    await world.settle()
    await world.resolve()
    await world.settle()

    assert (await state(world)).pending is None
    report = await world.reconcile()
    assert report.differences == 0, report.rows


async def test_a_rebuilt_view_has_the_same_cuts() -> None:
    """The log contains everything: a fold from its start reaches the same state, which the next flush reads."""
    world = await settled()
    world.stripe.add_customer(f"cus_{EVE}")
    await used(world)
    await bind(world)
    await world.restatement()
    await used(world, hours=1)
    await world.settle()
    expected = {key: dict(fields) for key, fields in world.store.server.partitions[world.partition(EVE)].totals.items()}

    world.store.server.partitions.clear()
    world.rollup_settings = RollupSettings(flush_events_max=3, replay_from_start=True)
    await world.settle()

    assert {
        key: dict(fields) for key, fields in world.store.server.partitions[world.partition(EVE)].totals.items()
    } == expected
    await agrees(world)


async def sent_requests(world: Deployment, customer: str) -> list[tuple[str, bool]]:
    """(value, whether its instant lies after the cut) of the `requests` that were sent for a customer."""
    cut_ms = (await state(world)).bindings[-1].effective_from_ms
    events = [each.event for each in world.stripe.events if each.event.event_name == "requests"]
    return [(each.value, each.timestamp_s * 1000 >= cut_ms) for each in events if each.stripe_customer == customer]


async def test_usage_before_a_cut_within_its_report_bucket_is_sent_before_the_cut_to_its_payer() -> None:
    """After the record of the cut the old period gets no events, so its entry does not know of the cut."""
    world = await Deployment().start()
    for customer in ("cus_old", "cus_new"):
        world.stripe.add_customer(customer)
    await world.bind(EVE, stripe_customer="cus_old")
    await world.advance(5 * MINUTE_MS)
    await world.emit(EVE, gb="1", user="u", region="eu")
    await world.advance(5 * MINUTE_MS)
    cut_ms = world.clock.ms + 6 * MINUTE_MS
    await world.bind(EVE, effective_from_ms=cut_ms, anchor_ms=cut_ms, stripe_customer="cus_new")
    await world.advance(HOUR_MS)
    await world.settle()

    assert (await sent_requests(world, "cus_old"), await sent_requests(world, "cus_new")) == ([("1", False)], [])
    await agrees(world)


async def test_restated_usage_is_sent_before_the_cut_of_a_binding_that_waited_behind() -> None:
    """The cut of the later binding was unknown when the ends of the new periods were calculated."""
    world = await deployment()
    world.clock.ms += 5 * MINUTE_MS
    await world.bind(EVE, effective_from_ms=CUT_MS, anchor_ms=CUT_MS, billing=Billing.UNMAPPED)
    now_ms = world.clock.ms // MINUTE_MS * MINUTE_MS
    await world.bind(EVE, effective_from_ms=CUT_MS, anchor_ms=now_ms, stripe_customer=f"cus_{EVE}")
    for _ in range(3):
        await reached(world)
        await world.restatement()
    await world.settle()

    assert await sent_requests(world, f"cus_{EVE}") == [("9", False)]


async def test_answers_are_not_complete_while_a_restatement_is_relayed_in_parts() -> None:
    """Until all cells are relayed, hours that were complete mix the old and the new cut."""
    world = await deployment()
    at = world.partition(EVE)
    first_ms = START_MS // HOUR_MS * HOUR_MS

    async def requests(to_ms: int) -> int:
        asked = UsageQuery(meter="requests", from_ms=first_ms, to_ms=to_ms, account=EVE)
        return sum(row.value_minor for row in await world.clickhouse.usage(asked, Aggregation.COUNT))

    async def complete_ms() -> int:
        return (await world.clickhouse.load_relayed())[at].stream_time_ms

    hours = {first_ms + hour * HOUR_MS: 6 * hour for hour in range(4)}
    hours[first_ms + 4 * HOUR_MS] = 18
    assert (await complete_ms(), await requests(max(hours))) == (max(hours), 18)
    await bind(world)
    await world.restatement()
    await reached(world)
    relay, totals_seen = (
        hourly_relay(world.store, world.clickhouse, cells_max=1),
        set[int](),
    )
    while not (await relay.relay(at)).complete:
        totals_seen.add(await requests(max(hours)))
        assert await requests(await complete_ms()) == hours[await complete_ms()]

    assert totals_seen - {18}
    assert await complete_ms() >= max(hours)
    assert await requests(max(hours)) == 18
