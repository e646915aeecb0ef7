"""An account is linked after the mirror has what decides who pays."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
import pytest_asyncio

from aggregators.binding_timeline import overlaps, timeline
from aggregators.partitioning import partition_of
from pipeline.webhooks.binding_outbox import BindingOutbox
from pipeline.webhooks.linking import LISTED_MIN, Linked, Linking, Wish, link_customers
from schemas.billing_events import ObjectKind, ObjectName
from schemas.clock import DAY_MS, MINUTE_MS
from schemas.errors import InvalidInput, Transient
from schemas.meters import Policy
from schemas.periods import AccountState, Billing
from schemas.side_tables import Link
from sinks.sql.fake import FakeSideTables
from tests.worlds.billing import SCOPE, BillingWorld
from tests.worlds.reconciler import START_MS

ACME = "acme"
FUTURE_MS = Policy().future_ms
Answer = TypeVar("Answer")


@pytest_asyncio.fixture
async def world() -> BillingWorld:
    """A deployment of two partitions."""
    world = BillingWorld(START_MS, partitions=2)
    await world.open()
    return world


def parts_of(world: BillingWorld) -> Linking:
    """What a link needs."""
    return Linking(world.log, world.tables, world.stripe, world.clock, world.clock)


async def asked(world: BillingWorld, customer: str, run: str = "first") -> Linked:
    """The link of `acme`, as the command asks for it."""
    (linked,) = await link_customers(parts_of(world), [Wish(ACME, customer, None, "ada", "signed up")], run)
    return linked


async def beside_the_mirror(world: BillingWorld, work: Coroutine[Any, Any, Answer]) -> Answer:
    """The answer of a command while the role mirror runs."""
    task = asyncio.create_task(work)
    while not task.done():
        await world.process()
        await asyncio.sleep(0)
    return await task


def yearly(world: BillingWorld) -> str:
    """A customer who has paid since long ago, of whom no event said anything lately."""
    customer = world.stripe.customer()
    world.stripe.subscribe(customer, world.stripe.price(meter=world.stripe.meter(), interval="year"))
    world.clock.advance(60 * DAY_MS)
    world.stripe.simulator.catch_up()
    return customer


async def due(world: BillingWorld) -> list[tuple[Billing, str]]:
    """What the side tables send."""
    return [(one.binding.billing, one.binding.stripe_customer) for one in await world.tables.due_bindings()]


NAMES = {
    "empty": ("", "cus_1", "account"),
    "too long": ("x" * 257, "cus_1", "account"),
    "NUL": ("a\0b", "cus_1", "account"),
    "half of a pair": ("\ud800", "cus_1", "account"),
    "no customer": (ACME, "", "customer"),
    "another object": (ACME, "sub_1", "customer"),
    "a path": (ACME, "cus_1/../../account", "customer"),
    "a line's end": (ACME, "cus_1\n", "customer"),
    "a long customer": (ACME, "cus_" + "x" * 252, "customer"),
}


@pytest.mark.parametrize(("account", "customer", "field"), NAMES.values(), ids=NAMES)
async def test_a_name_that_cannot_be_is_refused_before_stripe_is_asked(
    world: BillingWorld, account: str, customer: str, field: str
) -> None:
    """PostgreSQL would refuse some of them with an error of its own, and take a name that no event can have."""

    async def asked(_name: object) -> None:
        raise AssertionError("Stripe was asked")

    world.stripe.fetch = asked  # type: ignore[assignment,method-assign,unused-ignore]  # a test replaces it
    with pytest.raises(InvalidInput) as refused:
        await link_customers(parts_of(world), [Wish(account, customer, None, "ada", "")], "first")
    assert refused.value.field == field
    assert refused.value.message.isprintable()
    assert len(refused.value.message) < 200


@pytest.mark.parametrize("is_known", [False, True], ids=["unknown customer", "unknown subscription"])
async def test_a_customer_who_pays_is_never_free_because_the_mirror_knows_too_little(
    world: BillingWorld, *, is_known: bool
) -> None:
    customer = yearly(world)
    if is_known:
        before = world.stripe.happened()
        world.stripe.call("POST /v1/customers/{customer}", {"metadata": {"a": "b"}}, customer)
        await world.deliver(world.stripe.happened()[len(before) :])
        await world.process()

    made, released = await beside_the_mirror(world, asked(world, customer))

    assert (made, released) == (Link(ACME, customer, 0), int(is_known))
    assert await due(world) == [(Billing.MAPPED, customer)]
    await world.process()
    assert await world.tables.held(customer) == []


async def test_links_that_are_entered_again_after_a_lost_database_revoke_nothing(world: BillingWorld) -> None:
    customer = yearly(world)
    await beside_the_mirror(world, asked(world, customer))
    outbox = BindingOutbox(world.tables, world.accounts, world.store)
    assert await outbox.relay() == 1
    await world.fold_all()
    world.tables = FakeSideTables(timeline, overlaps)
    await world.tables.migrate(SCOPE, world.log_id)
    world.clock.advance(DAY_MS)

    await beside_the_mirror(world, asked(world, customer, "again"))

    assert await due(world) == [(Billing.MAPPED, customer)]
    await BindingOutbox(world.tables, world.accounts, world.store).relay()
    await world.fold_all()
    state = await world.store.accounts.account(partition_of(ACME, 2), ACME)
    assert state.revision == 1, "the log has the binding already"


async def test_nothing_is_linked_while_no_mirror_runs(world: BillingWorld) -> None:
    customer = yearly(world)

    with pytest.raises(Transient, match=r"2 of 2 objects are not in the mirror .* the role mirror must run"):
        await asked(world, customer)

    assert await world.tables.links(ACME) == []
    assert await due(world) == []


async def test_a_customer_that_stripe_does_not_know_is_refused(world: BillingWorld) -> None:
    with pytest.raises(InvalidInput, match="Stripe knows no cus_typo"):
        await beside_the_mirror(world, asked(world, "cus_typo"))

    assert await world.tables.links(ACME) == []


@pytest.mark.parametrize("is_long", [False, True], ids=["all are linked", "few of many are linked"])
async def test_many_links_cost_few_reads_of_stripe(world: BillingWorld, *, is_long: bool) -> None:
    """A deleted customer is found too. If the lists are long, each customer is looked at."""
    payer = yearly(world)
    customers = [payer, *(world.stripe.customer("") for _ in range(2 * LISTED_MIN))]
    world.stripe.delete(customers[-1])
    names, reads = world.stripe.names, list[str]()

    async def listed(kind: ObjectKind, after: str = "", customer: str = "") -> list[tuple[ObjectName, str]]:
        reads.append(customer)
        if is_long and not customer:
            return [(ObjectName(kind, "cus_stranger"), "cus_stranger")]
        return await names(kind, after, customer)

    world.stripe.names = listed  # type: ignore[assignment,method-assign,unused-ignore]  # a test replaces it
    wishes = [Wish(f"account_{number}", customer, None, "ada", "") for number, customer in enumerate(customers)]
    await beside_the_mirror(world, link_customers(parts_of(world), wishes, "first"))

    assert [
        link.customer for number in range(len(wishes)) for link in await world.tables.links(f"account_{number}")
    ] == (customers)
    assert (Billing.MAPPED, payer) in await due(world)
    # The mirror's fetches are no reads of a list. Of the deleted customer, both lists are read.
    assert len(reads) <= (4 * len(customers) if is_long else 8)


async def test_a_link_releases_more_held_events_than_one_page(world: BillingWorld) -> None:
    customer = world.stripe.customer("")
    (event,) = world.stripe.happened()
    await world.deliver({**event, "id": f"evt_{number}"} for number in range(1_200))
    await world.process()

    _, released = await beside_the_mirror(world, asked(world, customer))
    await world.process()

    assert released == 1_200
    assert await world.tables.held(customer) == []


async def test_the_same_link_again_releases_what_a_crash_left_held(world: BillingWorld) -> None:
    customer = world.stripe.customer("")
    await world.deliver(world.stripe.happened())
    await world.process()
    await world.link(ACME, customer)
    assert len(await world.tables.held(customer)) == 1

    made, released = await beside_the_mirror(world, asked(world, customer))
    await world.process()

    assert (made, released) == (Link(ACME, customer, 0), 1)
    assert await world.tables.held(customer) == []


async def settled(world: BillingWorld) -> AccountState:
    """The state of `acme` in the log after all that is delivered."""
    await world.process()
    await BindingOutbox(world.tables, world.accounts, world.store).relay()
    await world.fold_all()
    return await world.store.accounts.account(partition_of(ACME, 2), ACME)


async def test_usage_stays_with_the_payer_from_before_until_a_late_mirror_has_heard_of_the_change(
    world: BillingWorld,
) -> None:
    """Here a new account, which is free until its first subscription; SQL is away for a day after the sign-up."""
    customer = world.stripe.customer()
    await beside_the_mirror(world, asked(world, customer))
    await settled(world)
    world.clock.advance(DAY_MS)
    world.stripe.subscribe(customer, world.stripe.price(meter=world.stripe.meter()))
    world.clock.advance(DAY_MS)
    await world.deliver(world.stripe.happened())
    heard_ms = world.clock.now_ms()

    free, mapped = (await settled(world)).customers

    assert (free.billing, mapped.billing, mapped.stripe_customer) == (Billing.FREE, Billing.MAPPED, customer)
    assert heard_ms + FUTURE_MS <= mapped.from_ms <= heard_ms + FUTURE_MS + 2 * MINUTE_MS


async def test_an_account_that_is_linked_after_its_first_subscription_pays_from_the_subscription_on(
    world: BillingWorld,
) -> None:
    """Nobody was named before, so the usage since then is counted again for the customer."""
    customer = world.stripe.customer()
    world.stripe.subscribe(customer, world.stripe.price(meter=world.stripe.meter()))
    subscribed_ms = world.clock.now_ms()
    world.clock.advance(DAY_MS)

    await beside_the_mirror(world, asked(world, customer))

    pending = (await settled(world)).pending
    assert pending is not None
    assert pending.binding.stripe_customer == customer
    assert pending.requested_ms == subscribed_ms // MINUTE_MS * MINUTE_MS


async def test_links_of_one_account_are_made_in_their_order(world: BillingWorld) -> None:
    """The first link of an account holds for all usage, a later one from now on; again, nothing changes."""
    first, second, other = (world.stripe.customer() for _ in range(3))
    wishes = [
        Wish(account, customer, from_ms, "ada", "moved")
        for account, customer, from_ms in (("a", first, None), ("b", other, 5 * MINUTE_MS), ("a", second, None))
    ]
    done = await beside_the_mirror(world, link_customers(parts_of(world), wishes, "one"))
    now_ms = world.clock.now_ms() // MINUTE_MS * MINUTE_MS
    assert [("a", first, 0), ("a", second, now_ms), ("b", other, 5 * MINUTE_MS)] == [linked.link[:3] for linked in done]

    before = [*await world.tables.audit("a"), *await world.tables.audit("b")]
    await beside_the_mirror(world, link_customers(parts_of(world), wishes[1:], "two"))
    after = [*await world.tables.audit("a"), *await world.tables.audit("b")]
    assert [row for row in before if row.actor == "ada"] == [row for row in after if row.actor == "ada"]
    wish = Wish("c", other, None, "ada", "")
    with pytest.raises(InvalidInput, match="belongs to account b"):
        await beside_the_mirror(world, link_customers(parts_of(world), [wish], "three"))
