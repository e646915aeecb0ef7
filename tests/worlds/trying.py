"""A business whose accounts try a plan: pages of checkout, and what the mirror makes of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from pipeline.changes.operating import accept
from pipeline.changes.trials import follow
from schemas.plan_changes import ChangeKind, Operation, Refusal
from schemas.trials import TrialState
from tests.worlds.changing import BACK, CARDS, Changing

START_MS: Final = int(datetime(2027, 2, 1, tzinfo=UTC).timestamp()) * 1_000
THREE: Final = {"locations": 3}


async def opened(catalog: str = CARDS, card: str = "") -> Changing:
    """Acme without a subscription."""
    business = Changing(START_MS)
    await business.begin(catalog, card)
    return business


async def tried(business: Changing) -> Operation | Refusal:
    """A page of checkout with a trial of Pro, for the account of the world."""
    found = await business.ask("pro", ChangeKind.TRIAL, by_page=True, quantities=THREE)
    if isinstance(found, Refusal):
        return found
    taken = await accept(business.parts(), business.account, found.id, "ann", BACK)
    return taken if isinstance(taken, Refusal) else taken[1]


async def begun(business: Changing, card: str = "4242424242424242") -> None:
    """The customer completes a page, and the mirror hears of it."""
    operation = await tried(business)
    assert isinstance(operation, Operation)
    business.pays(operation.session, card)
    await heard(business)


async def heard(business: Changing) -> None:
    """The mirror hears of all that happened, and follows the trials."""
    business.stripe.simulator.catch_up()
    await business.settle()
    await follow(business.parts(), business.sql.trials)
    await business.settle()


async def states(business: Changing) -> list[TrialState]:
    """How far the trials of the account of the world are."""
    return [trial.state for trial in await business.sql.trials.listed(business.account)]
