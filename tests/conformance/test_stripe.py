"""What the sender relies on: the same tests for the fake, and for stripe-python over HTTP with the simulator, and for
each API that takes meter events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.errors import InvalidInput, OperatorNeeded, Refused, Transient
from schemas.reports import (
    MeterEvent,
    MeterEventsApi,
    MeterSummary,
    OutcomeStatus,
    SendStatus,
    StripeCatalog,
    StripeMeters,
    StripeRejections,
)
from sinks.stripe.client import StripeClientMeters
from sinks.stripe.fake import FakeFault, FakeStripe
from stripe_simulator import Fault, FaultKind, SimulatorSettings
from tests.services.stripe import TEST_KEY, serve_simulator
from tests.worlds.clock import ManualClock
from tests.worlds.sender import Bench, make_intent

NOW_MS = 1_795_262_400_000
NOW_S = NOW_MS // 1_000
LAG_MS = 30_000
CUSTOMER = "cus_one"
# Streams are of live mode only.
KEYS = {MeterEventsApi.V1: TEST_KEY, MeterEventsApi.V2: TEST_KEY, MeterEventsApi.STREAM: "sk_live_tidemark"}
PATHS = {
    MeterEventsApi.V1: "/v1/billing/meter_events",
    MeterEventsApi.V2: "/v2/billing/meter_events",
    MeterEventsApi.STREAM: "/v2/billing/meter_event_stream",
}


@dataclass(slots=True)
class World:
    """One Stripe, its clock, and the test's two controls: injected faults and a bad key."""

    livemode: bool
    is_stream: bool

    meters: StripeMeters
    rejections: StripeRejections
    catalog: StripeCatalog
    clock: ManualClock
    fail_next: Callable[[FakeFault], None]
    spoil_key: Callable[[], Awaitable[None]]
    add_price: Callable[[str], Awaitable[None]]


@pytest_asyncio.fixture(params=["fake", "fake stream", *MeterEventsApi])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """A Stripe with one customer and a lag of 30 s, of each kind: the fake, or the simulator with an API."""
    clock = ManualClock(NOW_MS)
    if request.param not in list(MeterEventsApi):
        yield _fake(clock, is_stream="stream" in request.param)
        return
    api: MeterEventsApi = request.param
    is_stream = api is MeterEventsApi.STREAM
    settings = SimulatorSettings(
        account="acct_memory", summary_lag_s=30, validation_window_s=10, validation_delay_s=5, hold_s=4
    )
    async with serve_simulator(clock, settings) as served:
        served.simulator.create_customer(is_stream, {}, CUSTOMER)
        client = StripeClientMeters(KEYS[api], served.url, timeout_s=2, nonce="test", api=api)

        def fail_next(fault: FakeFault) -> None:
            served.simulator.faults.add(Fault(_KINDS[fault], path=PATHS[api]))

        async def spoil_key() -> None:
            served.simulator.faults.add(Fault(FaultKind.UNAUTHORIZED, count=-1, path="/"))
            served.simulator.faults.add(Fault(FaultKind.UNAUTHORIZED, count=-1, method="GET", path="/"))

        async def add_price(event_name: str) -> None:
            stripe = client._stripe.v1
            product = await stripe.products.create_async({"name": event_name})
            recurring: Any = {
                "interval": "month",
                "usage_type": "metered",
                "meter": await client.find_meter(event_name),
            }
            await stripe.prices.create_async(
                {"product": product.id, "currency": "usd", "unit_amount": 5, "recurring": recurring}
            )

        yield World(is_stream, is_stream, client, client, client, clock, fail_next, spoil_key, add_price)
        await client.close()


_KINDS = {
    FakeFault.LOST_ANSWER: FaultKind.TIMEOUT_AFTER_COMMIT,
    FakeFault.NO_ANSWER: FaultKind.CONNECTION_DROPPED,
    FakeFault.SERVER_ERROR: FaultKind.SERVER_ERROR,
    FakeFault.SERVER_ERROR_AFTER_COMMIT: FaultKind.SERVER_ERROR_AFTER_COMMIT,
    FakeFault.RATE_LIMITED: FaultKind.RATE_LIMITED,
    FakeFault.CONFLICT: FaultKind.CONFLICT,
    FakeFault.UNAUTHORIZED: FaultKind.FORBIDDEN,
    FakeFault.REJECTED: FaultKind.REJECTED,
}


def _fake(clock: ManualClock, *, is_stream: bool) -> World:
    stripe = FakeStripe(clock, lag_ms=LAG_MS, is_stream=is_stream)
    stripe.add_customer(CUSTOMER)
    waiting: list[FakeFault] = []
    stripe.fault = lambda _event: waiting.pop(0) if waiting else None

    async def spoil_key() -> None:
        stripe.key_is_valid = False

    async def add_price(event_name: str) -> None:
        stripe.priced.add(event_name)

    return World(False, is_stream, stripe, stripe, stripe, clock, waiting.append, spoil_key, add_price)


def _event(identifier: str = "id-1", value: str = "1.25", **changes: object) -> MeterEvent:
    event = MeterEvent(identifier, "tokens", CUSTOMER, value, NOW_S)
    return event._replace(**changes)  # type: ignore[arg-type]  # the tests name the fields


async def _sum(world: World) -> MeterSummary:
    world.clock.advance(10 * MINUTE_MS)
    return await world.meters.summary("tokens", CUSTOMER, NOW_S - 40 * 86_400, NOW_S + 86_400)


async def _assert_refused(world: World, event: MeterEvent, status: SendStatus) -> None:
    """Stripe does not count the event: it says so by this answer, or after the stream has taken the event."""
    answer = await world.meters.send(event)
    if not world.is_stream:
        assert answer.status is status
        return
    world.clock.advance(MINUTE_MS)
    assert answer.status is SendStatus.ACCEPTED
    rejected = await world.rejections.rejections(NOW_MS - HOUR_MS)
    assert [row.identifiers for row in rejected] == [(event.identifier,)]


async def test_identity_contains_mode_and_account(world: World) -> None:
    """Every identifier contains both, so they must come from the key and not from a setting."""
    assert await world.meters.identity() == (world.livemode, "acct_memory")


async def test_meter_is_created_only_once_and_only_when_asked(world: World) -> None:
    """A typo in a meter set must not make a meter, whose usage nothing would bill."""
    with pytest.raises(OperatorNeeded, match="--create-at-stripe"):
        await world.meters.find_meter("tokens")

    created = await asyncio.gather(*(world.catalog.create_meter("tokens", "Tokens") for _ in range(2)))
    first = await world.meters.find_meter("tokens")

    assert True in created
    assert not await world.catalog.create_meter("tokens", "Tokens again")
    assert await world.meters.find_meter("tokens") == first


async def test_price_of_a_meter_is_found(world: World) -> None:
    """Usage of a meter without an active price is billed by nothing."""
    await world.catalog.create_meter("tokens", "Tokens")
    await world.catalog.create_meter("seats", "Seats")
    await world.add_price("tokens")

    found = [await world.catalog.has_price(name) for name in ("tokens", "seats", "nobody")]

    assert found == [True, False, False]


async def test_decimal_and_negative_values_add_up_exactly(world: World) -> None:
    """An intent may reduce a total."""
    await world.catalog.create_meter("tokens", "Tokens")
    for number, value in enumerate(("0.1", "0.2", "-0.05", "100")):
        assert (await world.meters.send(_event(f"id-{number}", value))).status is SendStatus.ACCEPTED

    assert await _sum(world) == MeterSummary("100.25", 1)


async def test_same_identifier_with_same_bytes_counts_once(world: World) -> None:
    """A retry is accepted (replayed) or a duplicate; both mean that the event was delivered."""
    await world.catalog.create_meter("tokens", "Tokens")
    statuses = {(await world.meters.send(_event())).status for _ in range(3)}

    assert statuses <= {SendStatus.ACCEPTED, SendStatus.DUPLICATE}
    assert (await _sum(world)).value == "1.25"


async def test_same_identifier_with_other_bytes_is_a_duplicate(world: World) -> None:
    """The identifier decides, for any Idempotency-Key. The stream does not say so."""
    await world.catalog.create_meter("tokens", "Tokens")
    await world.meters.send(_event())
    expected = SendStatus.ACCEPTED if world.is_stream else SendStatus.DUPLICATE

    assert (await world.meters.send(_event(value="7"))).status is expected
    assert (await _sum(world)).value == "1.25"


async def test_identifier_is_forgotten_after_its_window(world: World) -> None:
    """Therefore a late retry must read the sum instead of sending."""
    await world.catalog.create_meter("tokens", "Tokens")
    await world.meters.send(_event())
    world.clock.advance(DAY_MS + HOUR_MS)

    assert (await world.meters.send(_event(timestamp_s=NOW_S + 1))).status is SendStatus.ACCEPTED
    assert (await _sum(world)).value == "2.5"


@pytest.mark.parametrize(
    ("fault", "delivered"),
    [
        (FakeFault.LOST_ANSWER, True),
        (FakeFault.NO_ANSWER, False),
        (FakeFault.SERVER_ERROR, False),
        (FakeFault.SERVER_ERROR_AFTER_COMMIT, True),
        (FakeFault.RATE_LIMITED, False),
        (FakeFault.CONFLICT, False),
    ],
    ids=str,
)
async def test_unclear_answers_are_retried_and_count_once(world: World, fault: FakeFault, delivered: bool) -> None:
    """Whether or not Stripe counted the first event, the retries end with exactly one."""
    await world.catalog.create_meter("tokens", "Tokens")
    world.fail_next(fault)

    assert (await world.meters.send(_event())).status is SendStatus.RETRY
    assert (await _sum(world)).value == ("1.25" if delivered else "0.0")
    for _ in range(3):
        again = await world.meters.send(_event())
    assert again.status in (SendStatus.ACCEPTED, SendStatus.DUPLICATE)
    assert (await _sum(world)).value == "1.25"


@pytest.mark.parametrize(
    "event",
    [
        _event(timestamp_s=NOW_S - 36 * 86_400),
        _event(timestamp_s=NOW_S + 360),
    ],
    ids=["too old", "too far ahead"],
)
async def test_event_that_stripe_never_accepts_is_dead(world: World, event: MeterEvent) -> None:
    """Retries would block its send queue for ever."""
    await world.catalog.create_meter("tokens", "Tokens")

    await _assert_refused(world, event, SendStatus.DEAD)


async def test_value_has_at_most_fifteen_digits(world: World) -> None:
    """Therefore a longer value is split before it is published."""
    await world.catalog.create_meter("tokens", "Tokens")

    assert (await world.meters.send(_event(value="1234567.12345678"))).status is SendStatus.ACCEPTED
    await _assert_refused(world, _event("id-2", "1234567.123456789"), SendStatus.DEAD)
    assert (await _sum(world)).value == "1234567.12345678"


async def test_event_of_an_unknown_meter_waits_for_the_meter(world: World) -> None:
    """An operator can make or reactivate the meter, and then Stripe takes the event."""
    await _assert_refused(world, _event(event_name="nobody"), SendStatus.HOLD_METER)


async def test_events_that_are_sent_at_once_are_all_counted(world: World) -> None:
    """More than a call of the stream takes; the events of one customer are never sent at once otherwise."""
    await world.catalog.create_meter("tokens", "Tokens")
    at_once = 250 if world.is_stream else 1
    for first in range(0, 250, at_once):
        events = [_event(f"id-{number}", str(number)) for number in range(first, first + at_once)]
        results = await asyncio.gather(*(world.meters.send(event) for event in events))
        assert {result.status for result in results} == {SendStatus.ACCEPTED}

    assert (await _sum(world)).value == "31125.0"


async def test_bad_key_stops_the_sender_and_refuses_reads(world: World) -> None:
    """No event is wrong, so none may become a dead letter."""
    await world.catalog.create_meter("tokens", "Tokens")
    await world.spoil_key()

    assert (await world.meters.send(_event())).status is SendStatus.STOP
    with pytest.raises(Refused):
        await world.meters.summary("tokens", CUSTOMER, NOW_S - 3_600, NOW_S)


async def test_missing_permission_stops_the_sender(world: World) -> None:
    """A restricted key without the permission."""
    await world.catalog.create_meter("tokens", "Tokens")
    world.fail_next(FakeFault.UNAUTHORIZED)

    assert (await world.meters.send(_event())).status is SendStatus.STOP


async def test_summary_lags_behind_the_send(world: World) -> None:
    """An event may be missing from the sum after an answer of 200."""
    await world.catalog.create_meter("tokens", "Tokens")
    await world.meters.send(_event())

    before = await world.meters.summary("tokens", CUSTOMER, NOW_S - 3_600, NOW_S + 3_600)
    world.clock.advance(LAG_MS)
    after = await world.meters.summary("tokens", CUSTOMER, NOW_S - 3_600, NOW_S + 3_600)

    assert (before.value, after.value) == ("0.0", "1.25")


async def test_summary_starts_inclusive_and_ends_exclusive(world: World) -> None:
    """Periods are half-open; an event at the boundary belongs to the next period."""
    await world.catalog.create_meter("tokens", "Tokens")
    await world.meters.send(_event("at start", "1", timestamp_s=NOW_S - 3_600))
    await world.meters.send(_event("at end", "2", timestamp_s=NOW_S))
    world.clock.advance(LAG_MS)

    assert (await world.meters.summary("tokens", CUSTOMER, NOW_S - 3_600, NOW_S)).value == "1.0"


async def test_summary_of_an_hour_contains_that_hour_only(world: World) -> None:
    """The lookup of a doubtful event must not see recent events."""
    await world.catalog.create_meter("tokens", "Tokens")
    for number, seconds in enumerate((-3_601, -3_600, -1, 0)):
        await world.meters.send(_event(f"id-{number}", str(10**number), timestamp_s=NOW_S + seconds))
    world.clock.advance(LAG_MS)

    assert (await world.meters.hour_summary("tokens", CUSTOMER, NOW_S - 3_600)).value == "110.0"
    assert float((await world.meters.hour_summary("tokens", CUSTOMER, NOW_S - 36_000)).value) == 0
    assert await world.meters.hour_summary("tokens", "cus_nobody", NOW_S - 3_600) == MeterSummary("0", 0)
    with pytest.raises(InvalidInput):
        await world.meters.hour_summary("tokens", CUSTOMER, NOW_S - 60)


@pytest.mark.parametrize(("event_name", "customer"), [("nobody", CUSTOMER), ("tokens", "cus_nobody")])
async def test_summary_of_an_unknown_name_has_no_rows(world: World, event_name: str, customer: str) -> None:
    """The reconciler must distinguish an unknown customer from one without usage."""
    await world.catalog.create_meter("tokens", "Tokens")

    assert await world.meters.summary(event_name, customer, NOW_S - 3_600, NOW_S) == MeterSummary("0", 0)
    assert (await world.meters.summary("tokens", CUSTOMER, NOW_S - 3_600, NOW_S)).rows == 1


async def test_summary_of_partial_minutes_is_refused(world: World) -> None:
    """Stripe's summaries are aligned to minutes."""
    await world.catalog.create_meter("tokens", "Tokens")

    with pytest.raises(InvalidInput):
        await world.meters.summary("tokens", CUSTOMER, NOW_S - 3_601, NOW_S)


async def test_unknown_customer_is_accepted_then_rejected(world: World) -> None:
    """Stripe validates after it has answered."""
    await world.catalog.create_meter("tokens", "Tokens")
    await world.meters.send(_event())

    sent = await world.meters.send(_event("id-2", stripe_customer="cus_nobody"))
    world.clock.advance(MINUTE_MS)
    reported = await world.rejections.rejections(NOW_MS - HOUR_MS)

    assert sent.status is SendStatus.ACCEPTED
    assert [(row.event_name, row.code, row.errors, row.identifiers) for row in reported] == [
        ("tokens", "meter_event_customer_not_found", 1, ("id-2",))
    ]


@pytest.mark.parametrize("value", ["", "many", "NaN"])
async def test_value_that_is_no_number_is_rejected_later(world: World, value: str) -> None:
    """The value must neither show in the sum nor break it."""
    await world.catalog.create_meter("tokens", "Tokens")

    assert (await world.meters.send(_event(value=value))).status is SendStatus.ACCEPTED
    assert (await _sum(world)).value == "0.0"
    assert [row.identifiers for row in await world.rejections.rejections(NOW_MS - HOUR_MS)] == [("id-1",)]


async def test_injected_rejection_is_reported(world: World) -> None:
    """The reconciler derives the cause "rejected by Stripe" from this report."""
    await world.catalog.create_meter("tokens", "Tokens")
    world.fail_next(FakeFault.REJECTED)

    assert (await world.meters.send(_event())).status is SendStatus.ACCEPTED
    assert (await _sum(world)).value == "0.0"
    assert len(await world.rejections.rejections(NOW_MS - HOUR_MS)) == 1


async def test_read_without_an_answer_is_transient() -> None:
    """Nobody listens on the port: a failed read must not look like zero."""
    client = StripeClientMeters(TEST_KEY, "http://127.0.0.1:9", timeout_s=1, nonce="test")
    fake = FakeStripe(ManualClock(NOW_MS), read_fault=lambda _call: True)

    for meters in (client, fake):
        with pytest.raises(Transient):
            await meters.identity()
        await meters.close()


@pytest.mark.parametrize("api", MeterEventsApi)
async def test_sender_over_http_delivers_each_intent_once_through_a_storm(api: MeterEventsApi) -> None:
    """The processor, stripe-python and the simulator together, with every kind of unclear answer."""
    livemode = api is MeterEventsApi.STREAM
    bench = await Bench().start()
    settings = SimulatorSettings(account="acct_memory", summary_lag_s=60, latency_s=0.002, hold_s=1)
    async with serve_simulator(bench.clock, settings) as served:
        for name in "abcd":
            served.simulator.create_customer(livemode, {}, f"cus_{name}")
        for kind in (*_KINDS.values(), FaultKind.CONNECTION_DROPPED_AFTER_COMMIT):
            if kind not in (FaultKind.FORBIDDEN, FaultKind.REJECTED):
                served.simulator.faults.add(Fault(kind, count=2, probability=0.5, path=PATHS[api]))
        client = StripeClientMeters(KEYS[api], served.url, timeout_s=0.3, nonce="test", api=api)
        bench.meters = client
        await client.create_meter("tokens", "Tokens")
        await bench.restart()
        intents = [make_intent(f"i{number}", "abcd"[number % 4], number + 1, livemode=livemode) for number in range(40)]
        await bench.publish(*intents)

        await bench.settle(rounds=2_000, step_ms=1_000)
        bench.clock.advance(HOUR_MS)
        start_s, end_s = intents[0].period_start_ms // 1_000, intents[0].period_end_ms // 1_000
        totals = [(await client.summary("tokens", f"cus_{name}", start_s, end_s)).value for name in "abcd"]
        await client.close()

    assert served.simulator.faults.waiting == []
    assert {outcome.status for outcome in (await bench.outcomes()).values()} == {OutcomeStatus.ACCEPTED}
    assert totals == ["1.9", "2.0", "2.1", "2.2"]
