"""The operator at the end of a run: what Stripe rejected is redriven, and what Stripe has is refused."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Final

from pipeline.billing.redrive import Redriver
from schemas.reports import MeterEvent
from simulation.verify import settled_late, unsettled

if TYPE_CHECKING:
    from simulation.world import World

# When Stripe's sums are certain about everything that was sent.
WAIT_S: Final = 8 * 3_600.0
REST_S: Final = 600.0
RESTS_MAX: Final = 50
# Reports that Stripe has: the command must refuse them.
ACCEPTED_TRIED: Final = 5
# Beside the long values of this meter, the doubles of Stripe's sum do not show a short one.
BLURRED: Final = "weight"


async def redriven(world: World) -> bool:
    """Redrive what Stripe rejected, twice, and a few reports that Stripe has; whether anything was rejected.

    In the end Stripe must have each of the reports once.
    """
    rejected = {stored.event.identifier: _sum_of(stored.event) for stored in world.stripe.events if stored.code}
    if not rejected:
        return False
    await asyncio.sleep(WAIT_S)
    # Of two reports of one value and one sum, the sum does not tell which one Stripe has.
    others = [stored.event for stored in world.stripe.accepted() if _sum_of(stored.event) not in rejected.values()]
    # Once its invoice is final, the command takes also a report that Stripe has: an item bills what the invoice lacks,
    # thus nothing, but the reconciler then misses the report among what was sent.
    accepted = set() if world.bills else {event.identifier for event in others}
    tried = [*sorted(rejected), *sorted(accepted)[:ACCEPTED_TRIED]]
    refused = set()
    for _ in range(2):
        bills = world.tables.bills if world.bills else None
        redriver = Redriver(world.log, world.ledger, world.stripe, world.stripe, world.clock, bills)
        for result in await redriver.redrive(tried, "operator", "the simulation"):
            if result.refused:
                refused.add(result.identifier)
    for _ in range(RESTS_MAX):
        if not unsettled(world):
            break
        await asyncio.sleep(REST_S)
    _check(world, set(tried), set(rejected), refused)
    return True


def _sum_of(event: MeterEvent) -> tuple[str, str]:
    """What Stripe adds up an event with."""
    return event.event_name, event.stripe_customer


def _check(world: World, tried: set[str], rejected: set[str], refused: set[str]) -> None:
    blurred = {stored.event.identifier for stored in world.stripe.events if stored.event.event_name == BLURRED}
    if kept := refused & rejected - blurred:
        world.fail("redrive", f"{len(kept)} rejected reports were refused, such as {min(kept)}")
    # A revision has -r and its number behind the identifier.
    billed = Counter(stored.event.identifier.partition("-r")[0] for stored in world.stripe.accepted())
    for identifier in settled_late(world):
        # An invoice item bills it; what Stripe has of it does not change the invoice.
        billed[identifier.partition("-r")[0]] |= 1
    wrong = {identifier: billed[identifier] for identifier in tried - (refused & blurred) if billed[identifier] != 1}
    if wrong:
        world.fail("redrive", f"billed {wrong}, each must be once")
