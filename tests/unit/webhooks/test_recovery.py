"""What was not delivered is found: by the walker, by the canary's silence, and by a resync."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_asyncio

from pipeline.webhooks.appending import append_events
from pipeline.webhooks.recovery import CANARY_INTERVAL_S, RETRY_INTERVAL_S, WALK_INTERVAL_S, Recovery
from pipeline.webhooks.resync import BATCH_RECORDS, Feed, PatientFeed, resync
from pipeline.webhooks.set_aside import append_set_aside
from pipeline.webhooks.walker import (
    CANARY_PATIENCE_S,
    CURSOR,
    KEPT_S,
    OVERLAP_S,
    SLICE_S,
    SLICE_S_MAX,
    Canary,
    Walked,
    Walker,
)
from schemas.billing_events import MIRRORED_TYPES, ObjectKind, ObjectName, Via
from schemas.errors import InvalidInput, OperatorNeeded, Transient
from schemas.log import BILLING_EVENTS_TOPIC
from schemas.side_tables import Outcome
from tests.worlds.billing import BillingWorld
from tests.worlds.reconciler import START_MS


@pytest_asyncio.fixture
async def world() -> BillingWorld:
    """A deployment of two partitions."""
    world = BillingWorld(START_MS, partitions=2)
    await world.open()
    return world


def sign_up(world: BillingWorld) -> str:
    """A customer with a metered subscription."""
    customer = world.stripe.customer()
    world.stripe.subscribe(customer, world.stripe.price(meter=world.stripe.meter(f"calls_{customer}")))
    return customer


async def cursor_s(world: BillingWorld) -> int | None:
    """Up to when the list was read."""
    cursor = await world.tables.cursor(CURSOR)
    return cursor and cursor.until_s


def recovery(world: BillingWorld, bird: Canary | None = None) -> Recovery:
    """The recovery of a new process."""
    return Recovery(walker(world), bird, world.clock, lambda: True, lambda: append_set_aside(world.log, world.tables))


def feed(world: BillingWorld) -> Feed:
    """Appends at once."""
    return lambda values: append_events(world.log, values, Via.RESYNC)


def walker(world: BillingWorld) -> Walker:
    """A walker of the deployment."""
    return Walker(world.log, world.stripe, world.tables, world.clock)


async def test_a_walk_appends_what_was_never_delivered(world: BillingWorld) -> None:
    """The endpoint was down from the start: the first walk reads all that Stripe keeps."""
    sign_up(world)
    walked = await walker(world).go_on()
    await world.process()

    assert world.expected() == await world.mirrored()
    assert world.clock.now_ms() // 1000 - KEPT_S == walked.since_s
    assert walked.listed == walked.appended > 0
    assert walked.until_s == await cursor_s(world)


async def test_a_walk_leaves_out_what_was_processed(world: BillingWorld) -> None:
    """Each event is fetched for once, whichever way it came."""
    sign_up(world)
    delivered = world.stripe.happened()
    await world.deliver(delivered[::2])
    await world.process()

    first = await walker(world).go_on()
    await world.process()
    world.clock.advance(60_000)
    second = await walker(world).go_on()

    assert 0 < first.appended < first.listed
    assert 0 == second.appended
    assert first.until_s - OVERLAP_S == second.since_s
    assert world.expected() == await world.mirrored()


@pytest.mark.parametrize("is_running", [True, False], ids=["the mirror runs", "the mirror is down"])
async def test_a_walk_waits_for_what_came_and_is_not_processed(world: BillingWorld, is_running: bool) -> None:
    """After an outage thousands of events wait: if each walk appended them again, the mirror would never catch up."""
    sign_up(world)
    delivered = world.stripe.happened()
    await world.deliver(delivered[::2])
    sleep = world.clock.sleep

    async def processed(duration_s: float) -> None:
        await sleep(duration_s)
        if is_running:
            await world.process()

    world.clock.sleep = processed  # type: ignore[method-assign,unused-ignore]  # a test replaces it
    walked = await walker(world).go_on()
    await world.process()

    lost = sum(event["type"] in MIRRORED_TYPES for event in delivered[1::2])
    assert 0 < lost < walked.listed
    assert walked.appended == (lost if is_running else walked.listed)
    assert world.expected() == await world.mirrored()


async def test_a_walk_leaves_held_events_alone(world: BillingWorld) -> None:
    """The log must not grow every five minutes because a customer belongs to nobody; a link reads them again."""
    sign_up(world)
    await walker(world).go_on()
    await world.process()
    assert [] != await world.tables.held()
    assert 0 == (await walker(world).go_on()).appended


async def test_an_event_that_is_listed_late_is_found_within_the_overlap(world: BillingWorld) -> None:
    """Stripe's list may show an event after a later one."""
    sign_up(world)
    events = world.stripe.happened()
    hidden = next(event for event in events if event["type"] == "customer.created")
    events.remove(hidden)

    async def without(since_s: int, until_s: int) -> list[dict[str, Any]]:
        return [event for event in events if since_s <= event["created"] < until_s]

    shown = world.stripe.events
    world.stripe.events = without  # type: ignore[assignment,method-assign,unused-ignore]  # a test replaces it
    await walker(world).go_on()
    await world.process()
    assert {} == await world.tables.seen([hidden["id"]])

    world.stripe.events = shown  # type: ignore[assignment,method-assign,unused-ignore]  # a test replaces it
    world.clock.advance(300_000)
    await walker(world).go_on()
    await world.process()
    assert {hidden["id"]: Via.LIST} == await world.tables.seen([hidden["id"]])


async def test_events_that_concern_nobody_or_are_not_understood_are_left_out(
    world: BillingWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """A new form of event must not stop the walk; it is named in the log."""
    world.stripe.price()
    new = {"object": "v3.event", "id": "evt_new", "type": "x", "created": START_MS // 1000}
    listed = [*world.stripe.happened(), new]

    async def events(_since_s: int, _until_s: int) -> list[dict[str, Any]]:
        return listed

    world.stripe.events = events  # type: ignore[assignment,method-assign,unused-ignore]  # a test replaces it
    walked = await walker(world).walk(START_MS // 1000)
    assert (0, 0) == (walked.listed, walked.appended)
    assert "v2.core.event" in caplog.text


async def test_a_walk_from_an_instant_leaves_the_cursor(world: BillingWorld) -> None:
    """`tidemark webhooks recover --since` repeats a span and is harmless."""
    sign_up(world)
    walked = await walker(world).walk(world.clock.now_ms() // 1000 - 3600)
    assert walked.appended > 0
    assert None is await world.tables.cursor(CURSOR)


async def test_a_resync_makes_the_mirror_of_a_fresh_database(world: BillingWorld) -> None:
    """Older gaps than the list of events reaches, also a customer deleted meanwhile."""
    gone, kept = sign_up(world), sign_up(world)
    await world.deliver(world.stripe.happened())
    await world.process()
    world.stripe.delete(gone)
    sign_up(world)

    counts = await resync(feed(world), world.stripe, world.tables, "monday", world.clock.now_ms() // 1000)
    await world.process()

    assert world.expected() == await world.mirrored()
    assert (3, 3) == (counts[ObjectKind.CUSTOMER], counts[ObjectKind.SUBSCRIPTION])
    deleted = {row["id"] for row in (await world.tables.mirror())["stripe_customers"] if row["deleted"]}
    assert {gone} == deleted
    assert kept not in deleted


async def test_a_repeated_resync_changes_nothing_and_another_one_fetches_again(world: BillingWorld) -> None:
    """A killed resync is run again under its name."""
    customer = sign_up(world)
    for run in ("a", "a", "b"):
        await resync(feed(world), world.stripe, world.tables, run, world.clock.now_ms() // 1000, customer)
    processor = world.processor()
    await world.process(processor)

    objects = len(world.stripe.listing())
    status = processor.status()
    assert objects * 2 == sum(status.outcomes.get(outcome, 0) for outcome in Outcome)
    assert objects == status.outcomes["repeated"]


async def test_a_resync_of_one_customer_leaves_the_others(world: BillingWorld) -> None:
    """An operator mends one account without reading all."""
    customer, other = sign_up(world), sign_up(world)
    await resync(feed(world), world.stripe, world.tables, "a", world.clock.now_ms() // 1000, customer)
    await world.process()
    mirror = await world.tables.mirror()
    assert [customer] == [row["id"] for row in mirror["stripe_customers"]]
    assert other not in {row["customer_id"] for table in ("subscriptions", "invoices") for row in mirror[table]}


async def test_a_live_event_waits_for_two_batches_of_a_resync(world: BillingWorld) -> None:
    """A cancellation must not wait for the fetches of a hundred thousand invoices."""
    for _ in range(3 * BATCH_RECORDS):
        world.stripe.customer(card="")
    customer = sign_up(world)
    processor, sleep = world.processor(), world.clock.sleep
    lags: list[int] = []
    told: list[int] = []

    async def processed(duration_s: float) -> None:
        await sleep(duration_s)
        lags.append(await lag(world))
        for partition in range(world.partitions):
            offset = await processor.start_offset(partition)
            if batch := await world.log.read(BILLING_EVENTS_TOPIC, partition, offset, 40):
                await processor.step(partition, batch)

    world.clock.sleep = processed  # type: ignore[method-assign,unused-ignore]  # a test replaces it
    patient = PatientFeed(world.log, world.tables, world.clock, told.append)
    counts = await resync(patient.append, world.stripe, world.tables, "a", 1)
    assert max(lags) <= 2 * BATCH_RECORDS
    assert told[-1] == sum(counts.values()) > 3 * BATCH_RECORDS
    assert len(told) >= 4
    await world.process(processor)
    assert await world.mirrored() == world.expected()
    assert customer in {row["id"] for row in (await world.tables.mirror())["stripe_customers"]}


async def test_a_resync_that_nobody_processes_ends_with_what_to_do(world: BillingWorld) -> None:
    """The role `mirror` may be down."""
    for _ in range(2 * BATCH_RECORDS + 1):
        world.stripe.customer(card="")
    patient = PatientFeed(world.log, world.tables, world.clock, lambda _: None)
    with pytest.raises(Transient, match=f"{BATCH_RECORDS} events wait.*role mirror.*--run"):
        await resync(patient.append, world.stripe, world.tables, "a", 1)


async def test_a_resync_of_one_customer_reads_no_list_of_all(world: BillingWorld) -> None:
    customer = sign_up(world)
    names, asked = world.stripe.names, set()

    async def listed(kind: ObjectKind, after: str = "", of: str = "") -> list[tuple[ObjectName, str]]:
        asked.add(of)
        return await names(kind, after, of)

    world.stripe.names = listed  # type: ignore[assignment,method-assign,unused-ignore]  # a test replaces it
    await resync(feed(world), world.stripe, world.tables, "a", 1, customer)
    assert asked == {customer}


async def lag(world: BillingWorld) -> int:
    """The number of records that are not processed."""
    ends = [(await world.log.bounds(BILLING_EVENTS_TOPIC, at)).next for at in range(world.partitions)]
    return sum([end - (await world.tables.position(at) or 0) for at, end in enumerate(ends)])


def canary(world: BillingWorld, via: Via | None, delay_s: int = 0) -> Canary:
    """A canary whose events arrive this way, or never."""
    customer = world.stripe.customer()
    touch = world.stripe.touch
    sleep = world.clock.sleep
    waiting: list[int] = []

    async def touched(identifier: str, beat: str) -> None:
        await touch(identifier, beat)
        waiting.append(delay_s)

    async def slept(duration_s: float) -> None:
        await sleep(duration_s)
        if via is not None and waiting and waiting[0] <= 0:
            waiting.pop()
            await world.deliver(world.stripe.happened()[-1:], via)
            await world.process()
        waiting[:] = [left - round(duration_s) for left in waiting]

    world.stripe.touch = touched  # type: ignore[assignment,method-assign,unused-ignore]  # a test replaces it
    world.clock.sleep = slept  # type: ignore[assignment,method-assign,unused-ignore]  # a test replaces it
    return Canary(customer, world.stripe, world.tables, world.clock)


HEARD = {
    "at_once": (Via.WEBHOOK, 0, True),
    "within_its_patience": (Via.WEBHOOK, CANARY_PATIENCE_S - 10, True),
    "too_late": (Via.WEBHOOK, CANARY_PATIENCE_S + 10, False),
    "never": (None, 0, False),
    "only_listed": (Via.LIST, 0, False),
}


@pytest.mark.parametrize(("via", "delay_s", "heard"), HEARD.values(), ids=HEARD)
async def test_the_canary_is_heard_only_if_its_webhook_arrives(
    world: BillingWorld, via: Via | None, delay_s: int, heard: bool
) -> None:
    """It proves endpoint, secret and processor; an event that the walker found proves none of them."""
    bird = canary(world, via, delay_s)
    assert heard is await bird.sings()
    assert heard is (bird.heard_s is not None)


async def test_silence_makes_a_walk_due_at_once(world: BillingWorld) -> None:
    """Minutes, not the days until a customer calls."""
    process = recovery(world, canary(world, None))
    await process.turn()
    first = process.walked
    assert (True, True) == (process.is_silent, first is not None)

    world.clock.advance(1000)
    sign_up(world)
    await process.turn()
    assert first == process.walked, "neither walk nor canary is due"
    world.clock.advance((CANARY_INTERVAL_S - CANARY_PATIENCE_S) * 1000)
    await process.turn()
    assert process.found > (first.appended if first else 0)


async def test_at_the_start_the_list_is_read_before_the_canary_is_awaited(world: BillingWorld) -> None:
    """What was lost while the process was down has waited long enough."""
    order: list[str] = []
    touch, events = world.stripe.touch, world.stripe.events

    async def touching(customer: str, beat: str) -> None:
        order.append("canary")
        await touch(customer, beat)

    async def reading(since_s: int, until_s: int) -> list[dict[str, Any]]:
        order.append("list")
        return await events(since_s, until_s)

    bird = canary(world, None)
    world.stripe.touch = touching  # type: ignore[method-assign,unused-ignore]  # a test replaces it
    world.stripe.events = reading  # type: ignore[assignment,method-assign,unused-ignore]  # a test replaces it
    await recovery(world, bird).turn()
    assert order[0] == order[-1] == "list"
    assert order.count("canary") == 1


async def test_the_canary_asks_stripe_for_nothing_and_needs_no_equal_clocks(world: BillingWorld) -> None:
    """Stripe's clock may be behind or ahead: what counts is when the event was processed here."""
    bird = canary(world, Via.WEBHOOK)

    async def listed(_since_s: int, _until_s: int) -> list[dict[str, Any]]:
        raise AssertionError("the list is not needed")

    happened = world.stripe.happened

    def behind() -> list[dict[str, Any]]:
        return [{**event, "created": event["created"] - 120} for event in happened()]

    world.stripe.events = listed  # type: ignore[assignment,method-assign,unused-ignore]  # a test replaces it
    world.stripe.happened = behind  # type: ignore[method-assign,unused-ignore]  # a test replaces it
    assert await bird.sings()


@pytest.mark.parametrize(
    ("via", "walks"), [pytest.param(Via.WEBHOOK, 4, id="it sings"), pytest.param(None, 12, id="it is silent")]
)
async def test_while_the_canary_sings_the_list_is_read_less_often(
    world: BillingWorld, via: Via | None, walks: int
) -> None:
    """Stripe's allocation of reads is 10 000 a month; see docs/sizing.md."""
    process = recovery(world, canary(world, via))
    read: list[int] = []
    events = world.stripe.events

    async def counted(since_s: int, until_s: int) -> list[dict[str, Any]]:
        if until_s - since_s < SLICE_S:
            read.append(until_s)
        return await events(since_s, until_s)

    world.stripe.events = counted  # type: ignore[assignment,method-assign,unused-ignore]  # a test replaces it
    ends_ms = world.clock.now_ms() + 3_600_000
    while world.clock.now_ms() < ends_ms:
        await process.turn()
        world.clock.advance(5_000)
    assert abs(walks - len(read)) <= 1


async def test_a_process_that_restarts_again_and_again_asks_no_more_often(world: BillingWorld) -> None:
    """A crash loop must not use up the allocation of reads, nor hide that the canary is silent."""
    touched: list[str] = []
    touch, events, read = world.stripe.touch, world.stripe.events, []

    async def touching(customer: str, beat: str) -> None:
        touched.append(beat)
        await touch(customer, beat)

    async def reading(since_s: int, until_s: int) -> list[dict[str, Any]]:
        read.append(until_s)
        return await events(since_s, until_s)

    bird = world.stripe.customer()
    await recovery(world).turn()
    world.stripe.events = reading  # type: ignore[assignment,method-assign,unused-ignore]  # a test replaces it
    world.stripe.touch = touching  # type: ignore[method-assign,unused-ignore]  # a test replaces it
    silent, began_ms = [], world.clock.now_ms()
    for _ in range(100):
        process = recovery(world, Canary(bird, world.stripe, world.tables, world.clock))
        await process.turn()
        silent.append(process.is_silent)
        assert process.until_s is not None
        world.clock.advance(35_000)

    # Each walk waits a minute for the mirror, which does not run.
    elapsed_s = (world.clock.now_ms() - began_ms) // 1_000
    assert len(touched) <= 1 + elapsed_s // CANARY_INTERVAL_S
    assert len(read) <= 1 + elapsed_s // WALK_INTERVAL_S + len(touched)
    assert silent == [True] * 100


async def test_a_walk_that_is_interrupted_goes_on_where_it_was(world: BillingWorld) -> None:
    """A busy account has more events than a process reads between two failures of Stripe."""
    for _ in range(30):
        world.stripe.customer()
        world.clock.advance(SLICE_S * 1000)
    events, calls = world.stripe.events, 0

    async def failing(since_s: int, until_s: int) -> list[dict[str, Any]]:
        nonlocal calls
        calls += 1
        if calls % 8 == 0:
            raise Transient("Stripe: HTTP 429")
        assert until_s - since_s <= SLICE_S_MAX
        return await events(since_s, until_s)

    world.stripe.events = failing  # type: ignore[assignment,method-assign,unused-ignore]  # a test replaces it
    process, reached = recovery(world), []
    for _ in range(12):
        await process.turn()
        reached.append(await cursor_s(world) or 0)
        world.clock.advance(WALK_INTERVAL_S * 1000)
    await world.process()

    assert process.walked is not None
    assert reached == sorted(reached)
    assert await world.mirrored() == world.expected()


async def test_a_gap_in_the_list_is_told(world: BillingWorld, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody else notices events that Stripe does not list any more."""
    process = recovery(world)
    await process.turn()
    assert (0, "") == (process.gaps, caplog.text)
    world.clock.advance((KEPT_S + 3600) * 1000)
    await process.turn()
    assert 1 == process.gaps
    assert "run `tidemark billing resync`" in caplog.text
    world.clock.advance(WALK_INTERVAL_S * 1000)
    await process.turn()
    assert 1 == process.gaps


async def test_events_that_are_set_aside_are_read_again_every_hour(world: BillingWorld) -> None:
    """Nobody needs to do anything after Stripe answers again."""
    customer = sign_up(world)
    await world.deliver(world.stripe.happened())
    fetch = world.stripe.fetch

    async def silent(name: ObjectName) -> dict[str, object] | None:
        if name.id == customer:
            raise Transient("Stripe: HTTP 500")
        return await fetch(name)

    world.stripe.fetch = silent  # type: ignore[method-assign,unused-ignore]  # a test replaces it
    process = recovery(world)
    await world.process()
    assert [] != await world.tables.set_aside()
    world.stripe.fetch = fetch  # type: ignore[method-assign,unused-ignore]  # a test replaces it
    await process.turn()
    await world.process()
    assert [] != await world.tables.set_aside(), "not due"
    world.clock.advance(RETRY_INTERVAL_S * 1000)
    await process.turn()
    await world.process()
    assert [] == await world.tables.set_aside()
    assert await world.mirrored() == world.expected()


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(Transient("Stripe: no answer"), id="no answer"),
        pytest.param(InvalidInput("resource_missing", "No such event: evt_1"), id="a page's last event is gone"),
        pytest.param(OperatorNeeded("more than 500000 rows"), id="too many"),
    ],
)
async def test_failures_of_a_turn_end_nothing_and_are_repeated(world: BillingWorld, error: Exception) -> None:
    """Stripe may be away, or the canary may be deleted."""
    gone = Canary("cus_unknown", world.stripe, world.tables, world.clock)

    async def refuses(_customer: str, _beat: str) -> None:
        raise InvalidInput("resource_missing", "No such customer")

    async def fails(_since_s: int, _until_s: int) -> list[dict[str, Any]]:
        raise error

    events, world.stripe.events = world.stripe.events, fails  # type: ignore[assignment,method-assign,unused-ignore]  # a test replaces it
    world.stripe.touch = refuses  # type: ignore[assignment,method-assign,unused-ignore]  # a test replaces it
    process = recovery(world, gone)
    await process.turn()
    assert (None, False) == (process.walked, process.is_silent)

    world.stripe.events = events  # type: ignore[assignment,method-assign,unused-ignore]  # a test replaces it
    world.clock.advance(WALK_INTERVAL_S * 1000)
    await process.turn()
    assert isinstance(process.walked, Walked)
