"""Who pays around a change of the payer, from the log to Stripe: each instant of usage is billed to who paid then."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import Any

import pytest

from aggregators.periods import period_at
from pipeline.logs.control_records import append_everywhere
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.control import BindingRecord, CloseRecord, MeterSetRecord
from schemas.log import EVENTS_TOPIC, REJECTED_TOPIC
from schemas.meters import MeterSet
from schemas.periods import AccountState, Billing, Binding, Period
from tests.worlds.deployment import SECRET
from tests.worlds.reconciler import DECEMBER_MS, METER_SET, NOVEMBER_MS, START_MS, Deployment

EVE = "eve"
LOW = {
    "slug": "low", "event_type": "request", "aggregation": "min", "value_path": "$.gb", "scale": 3,
    "stripe_event_name": "low",
}  # fmt: skip
METERS = {
    **METER_SET,
    "meters": [{**meter, "stripe_event_name": meter["slug"]} for meter in METER_SET["meters"]] + [LOW],
}
CARRIED = {**METERS, "meters": [{**meter, "late": "carry_forward"} for meter in METERS["meters"]]}
TEN = START_MS
TEN_FORTY = START_MS + 40 * MINUTE_MS


async def deployment(meter_set: dict[str, Any] = METERS) -> Deployment:
    """A deployment at 10:00 on November 10, with the customers that eve may get."""
    world = await Deployment().start(meter_set)
    for customer in ("cus_eve", "cus_old", "cus_new"):
        world.stripe.add_customer(customer)
    return world


async def until(world: Deployment, instant_ms: int) -> None:
    await world.advance(instant_ms - world.clock.ms)


async def request(world: Deployment, at_ms: int, **fields: Any) -> None:
    """One request, at an instant from now on or in the past."""
    if at_ms > world.clock.ms:
        await until(world, at_ms)
    await world.emit(EVE, at_ms=at_ms, **{"gb": "1", "user": "u", "region": "eu", **fields})


async def bound(world: Deployment, customer: str = "", effective_from_ms: int = 0, **fields: Any) -> None:
    billing = Billing.MAPPED if customer else Billing.FREE
    content = {"billing": billing, "stripe_customer": customer, **fields}
    await world.bind(EVE, effective_from_ms=effective_from_ms, **content)


async def sent(world: Deployment, meter: str) -> dict[str, int]:
    """What Stripe holds of a meter for eve's customers, after everything that is in the log."""
    await world.settle()
    sums: Counter[str] = Counter()
    for stored in world.stripe.events:
        if stored.event.event_name == meter and stored.event.stripe_customer in ("cus_eve", "cus_old", "cus_new"):
            sums[stored.event.stripe_customer] += int(Decimal(stored.event.value))
    report = await world.reconcile()
    assert report.differences == 0, report.rows
    return dict(sums)


async def state(world: Deployment) -> AccountState:
    await world.fold()
    return await world.store.accounts.account(world.partition(EVE), EVE)


async def test_a_trial_that_ends_within_a_report_bucket_bills_only_what_follows_the_cut() -> None:
    """Free until 10:40, mapped from 10:40, processed at 10:40:12, cut at 10:46: the usage before 10:46 is free."""
    world = await deployment()
    await bound(world)
    for minute in (5, 20, 39):
        await request(world, TEN + minute * MINUTE_MS)
    await until(world, TEN_FORTY + 12_000)
    await bound(world, "cus_eve", TEN_FORTY)
    cut_ms = TEN_FORTY + 6 * MINUTE_MS
    await request(world, cut_ms - 1)
    await request(world, cut_ms)
    await request(world, cut_ms + 5 * MINUTE_MS)

    assert await sent(world, "requests") == {"cus_eve": 2}
    after = await state(world)
    assert period_at(after, TEN) == Period(NOVEMBER_MS, cut_ms)
    assert period_at(after, cut_ms) == Period(cut_ms, DECEMBER_MS)
    (event,) = [stored.event for stored in world.stripe.events if stored.event.event_name == "requests"]
    assert event.timestamp_s == (TEN + HOUR_MS) // 1000 - 1


@pytest.mark.parametrize(
    ("meter", "before", "after", "expected"),
    [
        pytest.param("seats", {"seats": 10}, {"seats": 4}, {"cus_old": 10, "cus_new": 4}, id="latest"),
        pytest.param("peak", {"gb": "10"}, {"gb": "4"}, {"cus_old": 10, "cus_new": 4}, id="max"),
        pytest.param("low", {"gb": "4"}, {"gb": "10"}, {"cus_old": 4, "cus_new": 10}, id="min"),
        pytest.param("users", {"user": "ann"}, {"user": "ann"}, {"cus_old": 1, "cus_new": 1}, id="unique"),
        pytest.param("gigabytes", {"gb": "10"}, {"gb": "4"}, {"cus_old": 10, "cus_new": 4}, id="sum"),
    ],
)
@pytest.mark.parametrize("hours", [1, 30], ids=["in the next bucket", "a day later"])
async def test_another_customer_gets_values_of_its_own(
    meter: str, before: dict[str, Any], after: dict[str, Any], expected: dict[str, int], hours: int
) -> None:
    """10 seats, another customer, 4 seats: without a cut the old one pays 10 and the new one pays −6."""
    world = await deployment()
    kind = "seats" if meter == "seats" else "request"
    await bound(world, "cus_old")
    await request(world, TEN + MINUTE_MS, type_=kind, **before)
    await until(world, TEN_FORTY)
    await bound(world, "cus_new")
    await request(world, TEN_FORTY + hours * HOUR_MS, type_=kind, **after)

    assert await sent(world, meter) == expected


async def test_first_customer_of_an_account_gets_values_of_its_own_from_the_instant_asked_for() -> None:
    """Usage before it has no payer, and is counted in a period of its own after a restatement."""
    world = await deployment()
    await request(world, TEN + MINUTE_MS, type_="seats", seats=10)
    await request(world, TEN + HOUR_MS + MINUTE_MS, type_="seats", seats=4)
    await world.settle()
    await bound(world, "cus_eve", TEN_FORTY)
    for _ in range(3):
        await world.fold()
        await world.archive()
        await world.restatement()

    assert await sent(world, "seats") == {"cus_eve": 4}


async def test_usage_from_before_the_change_that_arrives_later_is_billed_to_who_paid_then() -> None:
    """Within the grace of the period that the change ended: 10:20 arrives at 11:10, behind usage of the new payer."""
    world = await deployment()
    await bound(world, "cus_old")
    await request(world, TEN + 5 * MINUTE_MS)
    await until(world, TEN_FORTY)
    await bound(world, "cus_new")
    await request(world, TEN + 65 * MINUTE_MS)
    await until(world, TEN + 70 * MINUTE_MS)
    await request(world, TEN + 20 * MINUTE_MS)

    assert await sent(world, "requests") == {"cus_old": 2, "cus_new": 1}


@pytest.mark.parametrize(
    ("meter", "first", "late", "after", "expected"),
    [
        pytest.param("seats", {"seats": 10}, {"seats": 99}, {"seats": 4}, {"cus_old": 99, "cus_new": 4}, id="latest"),
        pytest.param("peak", {"gb": "10"}, {"gb": "99"}, {"gb": "4"}, {"cus_old": 99, "cus_new": 4}, id="max"),
        pytest.param("low", {"gb": "10"}, {"gb": "9"}, {"gb": "99"}, {"cus_old": 9, "cus_new": 99}, id="min"),
        pytest.param(
            "users", {"user": "ann"}, {"user": "bob"}, {"user": "bob"}, {"cus_old": 2, "cus_new": 1}, id="unique"
        ),
        pytest.param("gigabytes", {"gb": "10"}, {"gb": "99"}, {"gb": "4"}, {"cus_old": 109, "cus_new": 4}, id="sum"),
    ],
)
async def test_late_usage_from_before_the_change_changes_the_total_of_who_paid_then(
    meter: str, first: dict[str, Any], late: dict[str, Any], after: dict[str, Any], expected: dict[str, int]
) -> None:
    """10 units, another customer, 4 units, and then 99 units from before the change: none of those is the new
    customer's."""
    world = await deployment()
    kind = "seats" if meter == "seats" else "request"
    await bound(world, "cus_old")
    await request(world, TEN + 5 * MINUTE_MS, type_=kind, **first)
    await until(world, TEN_FORTY)
    await bound(world, "cus_new")
    await request(world, TEN + 65 * MINUTE_MS, type_=kind, **after)
    await until(world, TEN + 70 * MINUTE_MS)
    await request(world, TEN + 20 * MINUTE_MS, type_=kind, **late)

    assert await sent(world, meter) == expected


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        pytest.param("cus_old", {"cus_old": 1, "cus_new": 1}, id="another customer"),
        pytest.param("", {"cus_new": 1}, id="a trial"),
    ],
)
@pytest.mark.parametrize("late_ms", [5 * HOUR_MS, 5 * DAY_MS], ids=["late", "after the dedup window"])
async def test_usage_that_arrives_after_grace_is_quarantined_and_not_billed_to_another_payer(
    before: str, expected: dict[str, int], late_ms: int
) -> None:
    """Although its meters carry late usage forward: the open period is another payer's."""
    world = await deployment(CARRIED)
    await bound(world, before)
    await request(world, TEN + 5 * MINUTE_MS)
    await until(world, TEN_FORTY)
    await bound(world, "cus_new")
    await request(world, TEN + late_ms)
    await request(world, TEN + 20 * MINUTE_MS)
    await world.fold()
    await world.archive()
    await world.resolve()

    assert await sent(world, "requests") == expected
    (rejected,) = await world.world.records(world.partition(EVE), REJECTED_TOPIC)
    headers = dict(rejected.headers)
    assert headers["tidemark-reason"] == b"period_closed"
    assert headers["tidemark-detail"] == b"eve: its period is closed, and another payer pays for the open period"


async def test_late_usage_of_the_same_payer_is_carried_forward_as_before() -> None:
    """A new anchor with the same customer is no change of the payer."""
    world = await deployment(CARRIED)
    await bound(world, "cus_old")
    await request(world, TEN + 5 * MINUTE_MS)
    await until(world, TEN_FORTY)
    await bound(world, "cus_old", anchor_ms=TEN)
    await request(world, TEN + 5 * HOUR_MS)
    await request(world, TEN + 20 * MINUTE_MS)

    assert await sent(world, "requests") == {"cus_old": 3}


async def again(world: Deployment, number: int) -> None:
    """Append the account's control record number `number` once more, as an outbox does that lost an answer."""
    partition = world.partition(EVE)
    records = [
        record
        for record in await world.world.records(partition)
        if dict(record.headers).get("tidemark-control") in (b"binding", b"close") and b'"eve"' in (record.value or b"")
    ]
    record = records[number]
    await world.log.append(EVENTS_TOPIC, partition, record.value or b"", headers=record.headers)


@pytest.mark.parametrize("minutes", [1, 120], ids=["before the trial ends", "after the trial ends"])
async def test_a_trial_written_ahead_ends_although_its_first_record_comes_again(minutes: int) -> None:
    """(free until T, mapped from T), then the first record again: the account was free for ever."""
    world = await deployment()
    ends_ms = TEN + HOUR_MS
    await bound(world)
    await bound(world, "cus_eve", ends_ms)
    await until(world, TEN + minutes * MINUTE_MS)
    await again(world, 0)
    await request(world, TEN + 150 * MINUTE_MS)

    assert await sent(world, "requests") == {"cus_eve": 1}
    after = await state(world)
    assert (after.revision, after.repeated) == (2, 1)


async def test_a_binding_that_comes_again_after_another_customer_changes_nothing() -> None:
    world = await deployment()
    await bound(world, "cus_old")
    await until(world, TEN_FORTY)
    await bound(world, "cus_new")
    await until(world, TEN_FORTY + HOUR_MS)
    before = await state(world)
    await again(world, 0)
    await again(world, 1)

    after = await state(world)
    assert after == before.model_copy(update={"repeated": 2})
    await request(world, TEN_FORTY + 2 * HOUR_MS)
    assert await sent(world, "requests") == {"cus_new": 1}


async def test_a_close_record_that_comes_again_after_a_binding_closes_no_other_period() -> None:
    """The same instant lies in another period by then, which runs."""
    world = await deployment()
    await bound(world, "cus_old")
    closing_ms = NOVEMBER_MS + 20 * DAY_MS
    await world.close_period(EVE, closing_ms)
    await until(world, DECEMBER_MS + DAY_MS)
    await bound(world, "cus_old", anchor_ms=NOVEMBER_MS)
    before = await state(world)
    await again(world, 1)

    after = await state(world)
    assert after.closed_start_ms == before.closed_start_ms == (NOVEMBER_MS,)
    assert after.repeated == 1


async def test_a_record_with_a_lower_revision_is_ignored_whatever_it_says() -> None:
    """A second writer that has not seen the newest record."""
    world = await deployment()
    await bound(world, "cus_old")
    await bound(world, "cus_new")
    partition = world.partition(EVE)
    free = Binding(effective_from_ms=0, billing=Billing.FREE)
    before = await state(world)
    for record in (
        BindingRecord(account=EVE, revision=1, binding=free),
        BindingRecord(account=EVE, revision=2, binding=free),
        CloseRecord(account=EVE, revision=2, instant_ms=TEN),
    ):
        await world.world.control(partition, record)

    assert await state(world) == before.model_copy(update={"repeated": 3})
    await world.world.control(partition, BindingRecord(account=EVE, revision=9, binding=free))
    assert (await state(world)).revision == 9


async def test_an_old_meter_set_that_comes_again_does_not_come_back() -> None:
    """Nor is it quarantined: a repetition is no error."""
    world = await deployment()
    first = MeterSetRecord(meter_set=MeterSet.model_validate(METERS))
    fewer = {**METERS, "version": 2, "meters": METERS["meters"][:1], "policy": {"grace_ms": 2 * HOUR_MS}}
    await append_everywhere(world.log, SECRET, MeterSetRecord(meter_set=MeterSet.model_validate(fewer)))
    await append_everywhere(world.log, SECRET, first)
    await request(world, TEN + MINUTE_MS)
    await world.fold()

    checkpoint = await world.checkpoint(EVE)
    assert checkpoint.meter_set is not None
    assert checkpoint.meter_set.version == 2
    assert [meter.slug for meter in checkpoint.meter_set.meters] == ["requests"]
    assert checkpoint.counters.rejected == 0


async def test_an_anchor_with_seconds_is_counted_from_its_minute() -> None:
    """Stripe's item ends at 12:34:56: the last bucket before 12:34 is Stripe's old period's, and the next one's first
    instant lies behind 12:34:56."""
    world = await deployment()
    anchor_ms = NOVEMBER_MS + 12 * HOUR_MS + 34 * MINUTE_MS + 56_000
    minute_ms = anchor_ms - 56_000
    for anchor in (0, anchor_ms):
        await bound(world, "cus_eve", anchor_ms=anchor)
    await until(world, NOVEMBER_MS + 30 * DAY_MS + 12 * HOUR_MS)
    await request(world, minute_ms + 30 * DAY_MS - 1)
    await request(world, minute_ms + 30 * DAY_MS)
    assert await sent(world, "requests") == {"cus_eve": 2}

    after = await state(world)
    assert after.bindings[-1].anchor_ms == anchor_ms
    assert period_at(after, minute_ms + 30 * DAY_MS).start_ms == minute_ms + 30 * DAY_MS
    ends_s = (anchor_ms + 30 * DAY_MS) // 1000
    stamps = sorted(
        stored.event.timestamp_s - ends_s for stored in world.stripe.events if stored.event.event_name == "requests"
    )
    assert stamps == [-57, 25 * 60 + 3]


async def test_usage_carried_into_a_period_is_billed_after_its_start_at_stripe() -> None:
    """The running period is closed, so usage counts in the next one, which begins with the anchor's minute. Stripe's
    begins with the anchor's second."""
    world = await deployment()
    anchor_ms = START_MS + 2 * HOUR_MS + 34 * MINUTE_MS + 56_000
    for anchor in (0, anchor_ms):
        await bound(world, "cus_eve", anchor_ms=anchor)
    await until(world, TEN + 20 * MINUTE_MS)
    await world.close_period(EVE, world.clock.ms)
    await request(world, TEN + 30 * MINUTE_MS)
    await until(world, TEN + 3 * HOUR_MS)

    assert await sent(world, "requests") == {"cus_eve": 1}
    (event,) = [stored.event for stored in world.stripe.events if stored.event.event_name == "requests"]
    assert event.timestamp_s * 1000 - anchor_ms == 3_000


@pytest.mark.parametrize(
    ("asked_ms", "sums"),
    [
        pytest.param(TEN + 5 * MINUTE_MS, {"peak": {"cus_new": 10}, "gigabytes": {"cus_new": 14}}, id="the whole gap"),
        pytest.param(TEN + 2 * HOUR_MS, {"peak": {}, "gigabytes": {}}, id="from its middle"),
    ],
)
async def test_a_gap_between_two_payers_is_named_as_a_whole_or_waits(
    asked_ms: int, sums: dict[str, dict[str, int]]
) -> None:
    """10 GB before the middle and 4 GB after it are one period: named from the middle, the new customer would pay no
    `peak` at all, and in one report bucket 14 GB instead of 4. What is not named waits as unmapped, and is seen."""
    world = await deployment()
    await bound(world, "cus_old")
    await until(world, TEN + 5 * MINUTE_MS)
    await world.bind(EVE, effective_from_ms=0, billing=Billing.UNMAPPED, stripe_customer="")
    await request(world, TEN + 20 * MINUTE_MS, gb="10")
    await request(world, TEN + 2 * HOUR_MS + 10 * MINUTE_MS, gb="4")
    await until(world, TEN + 3 * HOUR_MS)

    await bound(world, "cus_new", asked_ms)

    assert {meter: await sent(world, meter) for meter in sums} == sums


async def test_a_binding_that_is_repeated_every_hour_does_not_move_the_period() -> None:
    """A job that writes the same binding each hour: the limit of a hundred bindings must not drop the one that begins
    the open period, or 10 GB and then 4 GB become two maxima."""
    world = await deployment()
    await bound(world, "cus_eve", TEN + 10 * MINUTE_MS, anchor_ms=TEN - 2 * DAY_MS)
    await until(world, TEN + 30 * MINUTE_MS)
    await request(world, TEN + 40 * MINUTE_MS, gb="10")
    begun = period_at(await state(world), world.clock.ms)
    for _ in range(120):
        await until(world, world.clock.ms + HOUR_MS)
        await bound(world, "cus_eve", world.clock.ms, anchor_ms=TEN - 2 * DAY_MS)
    await request(world, world.clock.ms + 10 * MINUTE_MS, gb="4")

    assert await sent(world, "peak") == {"cus_eve": 10}
    assert period_at(await state(world), world.clock.ms) == begun
