"""Usage that is reported after its invoice is final: credits pay first, and an invoice item bills what they leave."""

from __future__ import annotations

from tests.worlds.closing import NOVEMBER, ClosingWorld, amounts, late_world, state
from tests.worlds.credits import CALLS, Purse


async def test_an_invoice_item_bills_what_credits_leave() -> None:
    world = await late_world(0)
    purse = await opened(world, 100)
    await world.publish(world.used("acme", 125, "2027-12-10 12:00", NOVEMBER))
    await world.pump()
    await world.turns(3)
    (item,) = await world.items_of("acme")

    assert (amounts(world), int(item.from_quantity), int(item.to_quantity)) == ([50], 1_000, 1_025)
    assert (await state(world), await purse.left("acme")) == ("confirmed", 0)
    await world.close()


async def test_late_usage_that_credits_pay_needs_no_item() -> None:
    world = await late_world(0)
    purse = await opened(world, 200)
    await world.publish(world.used("acme", 125, "2027-12-10 12:00", NOVEMBER))
    await world.pump()
    await world.turns(3)

    assert (amounts(world), await state(world), await purse.left("acme")) == ([], "confirmed", 75)
    await world.close()


async def opened(world: ClosingWorld, amount: int) -> Purse:
    """Give the account credits from now on."""
    purse = await Purse(world.clock, world.tables).open(CALLS)
    world.drawing = purse.drawing()
    await world.restart()
    await world.pump()
    await purse.give("acme", amount)
    return purse
