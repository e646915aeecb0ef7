"""The processor of `billing.events`: what Stripe holds becomes the mirror, whatever the events say."""

from __future__ import annotations

import pytest_asyncio

from schemas.periods import Billing
from tests.worlds.billing import BillingWorld
from tests.worlds.reconciler import START_MS


@pytest_asyncio.fixture
async def world() -> BillingWorld:
    """A deployment whose account `acme` is linked to a customer with a card."""
    world = BillingWorld(START_MS)
    await world.open()
    return world


async def test_a_sign_up_becomes_the_mirror_and_a_binding(world: BillingWorld) -> None:
    customer = world.stripe.customer()
    await world.link("acme", customer)
    world.stripe.subscribe(customer, world.stripe.price(meter=world.stripe.meter()))

    await world.deliver(world.stripe.happened())
    await world.process()

    assert await world.mirrored() == world.expected()
    due = await world.tables.due_bindings()
    assert [(each.binding.billing, each.binding.stripe_customer) for each in due] == [
        (Billing.FREE, ""),
        (Billing.MAPPED, customer),
    ]
