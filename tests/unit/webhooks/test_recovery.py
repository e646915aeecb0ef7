"""What was not delivered is found: by the walker, by the canary's silence, and by a resync."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_asyncio

from pipeline.webhooks.recovery import CANARY_INTERVAL_S, WALK_INTERVAL_S, Recovery
from pipeline.webhooks.resync import resync
from pipeline.webhooks.walker import CANARY_PATIENCE_S, CURSOR, KEPT_S, OVERLAP_S, Canary, Walked, Walker
from schemas.billing_events import ObjectKind, Via
from schemas.errors import InvalidInput, Transient
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
    assert walked.until_s == await world.tables.cursor(CURSOR)


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
    world.stripe.events = without  # type: ignore[assignment, method-assign, unused-ignore]
    await walker(world).go_on()
    await world.process()
    assert {} == await world.tables.seen([hidden["id"]])

    world.stripe.events = shown  # type: ignore[assignment, method-assign, unused-ignore]
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

    world.stripe.events = events  # type: ignore[assignment, method-assign, unused-ignore]
    walked = await walker(world).go_on()
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

    counts = await resync(world.log, world.stripe, world.tables, "monday", world.clock.now_ms() // 1000)
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
        await resync(world.log, world.stripe, world.tables, run, world.clock.now_ms() // 1000, customer)
    processor = world.processor()
    await world.process(processor)

    objects = len(world.stripe.listing())
    status = processor.status()
    assert objects * 2 == sum(status.outcomes.get(outcome, 0) for outcome in Outcome)
    assert objects == status.outcomes["repeated"]


async def test_a_resync_of_one_customer_leaves_the_others(world: BillingWorld) -> None:
    """An operator mends one account without reading all."""
    customer, other = sign_up(world), sign_up(world)
    await resync(world.log, world.stripe, world.tables, "a", world.clock.now_ms() // 1000, customer)
    await world.process()
    mirror = await world.tables.mirror()
    assert [customer] == [row["id"] for row in mirror["stripe_customers"]]
    assert other not in {row["customer_id"] for table in ("subscriptions", "invoices") for row in mirror[table]}


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

    world.stripe.touch = touched  # type: ignore[assignment, method-assign, unused-ignore]
    world.clock.sleep = slept  # type: ignore[assignment, method-assign, unused-ignore]
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
    recovery = Recovery(walker(world), canary(world, None), world.clock, lambda: True)
    await recovery.turn()
    first = recovery.walked
    assert (True, True) == (recovery.is_silent, first is not None)

    world.clock.advance(1000)
    sign_up(world)
    await recovery.turn()
    assert first == recovery.walked, "neither walk nor canary is due"
    world.clock.advance((CANARY_INTERVAL_S - CANARY_PATIENCE_S) * 1000)
    await recovery.turn()
    assert recovery.found > (first.appended if first else 0)


async def test_failures_of_a_turn_end_nothing_and_are_repeated(world: BillingWorld) -> None:
    """Stripe may be away, or the canary may be deleted."""
    gone = Canary("cus_unknown", world.stripe, world.tables, world.clock)

    async def refuses(_customer: str, _beat: str) -> None:
        raise InvalidInput("resource_missing", "No such customer")

    async def fails(_since_s: int, _until_s: int) -> list[dict[str, Any]]:
        raise Transient("Stripe: no answer")

    events, world.stripe.events = world.stripe.events, fails  # type: ignore[assignment, method-assign, unused-ignore]
    world.stripe.touch = refuses  # type: ignore[assignment, method-assign, unused-ignore]
    recovery = Recovery(walker(world), gone, world.clock, lambda: True)
    await recovery.turn()
    assert (None, False) == (recovery.walked, recovery.is_silent)

    world.stripe.events = events  # type: ignore[assignment, method-assign, unused-ignore]
    world.clock.advance(WALK_INTERVAL_S * 1000)
    await recovery.turn()
    assert isinstance(recovery.walked, Walked)
