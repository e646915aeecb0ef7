"""Trials whose page was left, whose process ended, or whose answers were lost: nobody gets a second one, or pays."""

from __future__ import annotations

from typing import Final

import pytest

from pipeline.changes.operating import accept
from pipeline.changes.trials import LOOK_AGAIN_MS
from schemas.clock import DAY_MS
from schemas.errors import InvalidInput, Transient
from schemas.plan_changes import ChangeKind, Operation, OperationState, Refusal, RefusalCode
from schemas.trials import TrialState
from tests.worlds.changing import ACME, CARDS
from tests.worlds.ending import Ends
from tests.worlds.trying import begun, heard, opened, states, tried

OTHER: Final = "5555555555554444"


async def test_a_trial_that_began_after_a_page_was_left_keeps_its_keys() -> None:
    """The page has ended, and the trial runs at the subscription that was made without one."""
    business = await opened()
    await business.name_customer("ann@acme.example")
    assert isinstance(await tried(business), Operation)
    business.use_card("pm_card_visa")
    assert (await business.changed("pro", ChangeKind.TRIAL))[1].state is OperationState.DONE
    await heard(business)
    assert await states(business) == [TrialState.RUNNING]
    await business.join("other", "")
    await business.name_customer("ann@acme.example")
    assert isinstance(await tried(business), Refusal)


async def test_a_trial_is_not_looked_at_before_its_operation_is_over() -> None:
    """Stripe's webhook comes before the process notes the answer, and an older page has ended."""
    business = await opened()
    assert isinstance(await tried(business), Operation)
    business.use_card("pm_card_visa")
    quote = await business.quoted("pro", ChangeKind.TRIAL)
    with pytest.raises(Ends):
        # After Stripe made the subscription.
        await accept(business.parts([6], after=True), ACME, quote.id, "ann")
    assert len(business.subscriptions()) == 1
    await heard(business)
    assert await states(business) == [TrialState.RESERVED]

    assert (await business.accepted(quote))[1].state is OperationState.DONE
    await heard(business)
    assert await states(business) == [TrialState.RUNNING]


async def test_a_trial_after_a_first_payment_that_is_open_is_reserved_too() -> None:
    business = await opened(card="pm_card_chargeCustomerFail")
    await business.name_customer("ann@acme.example")
    await business.subscribed("essential.v1.location.month.usd")
    business.use_card("pm_card_visa")
    assert (await business.changed("pro", ChangeKind.TRIAL))[1].state is OperationState.DONE
    await heard(business)

    assert await states(business) == [TrialState.RUNNING]


async def test_a_pause_has_no_trial() -> None:
    business = await opened(CARDS.replace("card], ", "card], ends: {no_card: pause}, card: optional, "))
    await begun(business, "")
    business.clock.ms += 31 * DAY_MS
    await heard(business)
    assert business.at_stripe()["status"] == "paused"
    business.use_card("pm_card_visa")
    found = await business.ask("pro", ChangeKind.TRIAL)

    assert isinstance(found, Refusal)
    assert found.code is RefusalCode.TRIAL_USED


@pytest.mark.parametrize("repeated", ["end", "flag"])
async def test_a_trial_that_ends_with_its_card_is_canceled_also_after_a_lost_answer(
    monkeypatch: pytest.MonkeyPatch, repeated: str
) -> None:
    """The catalog says that nobody pays after the trial."""
    catalog = CARDS.replace("card], ", f"card], ends: {{card: cancel}}, repeated_card: {repeated}, ")
    business = await opened(catalog)
    if repeated == "flag":
        await begun(business)
        await business.join("other", "")
    operation = await tried(business)
    assert isinstance(operation, Operation)
    business.pays(operation.session)

    async def silent(*_: object) -> None:
        raise Transient("no answer")

    with monkeypatch.context() as away:
        away.setattr(business.client, "update", silent)
        await heard(business)
    business.clock.ms += LOOK_AGAIN_MS
    await heard(business)

    assert await states(business) == [TrialState.RUNNING]
    assert business.at_stripe()["cancel_at_period_end"]


async def test_a_trial_that_stripe_fails_to_end_is_not_called_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripe stored a failure of its own: the trial goes on there, and is ended later."""
    business = await opened()
    await begun(business)
    await business.join("other", "")

    async def fails(*_: object) -> None:
        return None

    with monkeypatch.context() as broken:
        broken.setattr(business.client, "update", fails)
        await begun(business)
        assert await states(business) == [TrialState.ENDING]
        await heard(business)
        assert await business.sql.trials.due(business.clock.now_ms(), 10) == []
    business.clock.ms += LOOK_AGAIN_MS
    await heard(business)

    assert (business.at_stripe()["status"], await states(business)) == ("active", [TrialState.REFUSED])


async def test_a_trial_that_cannot_be_handled_keeps_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    business = await opened()
    first = await tried(business)
    assert isinstance(first, Operation)
    business.pays(first.session)
    await business.join("other", "")
    second = await tried(business)
    assert isinstance(second, Operation)
    business.pays(second.session, OTHER)
    real = business.client.session

    async def fails(session: str) -> object:
        if session == first.session:
            raise KeyError("a shape that nobody knows")
        return await real(session)

    monkeypatch.setattr(business.client, "session", fails)
    await heard(business)
    assert await states(business) == [TrialState.RUNNING]


async def test_a_card_that_is_stored_within_a_trial_that_ends_is_not_charged() -> None:
    """`ends.card: cancel` holds also for a card that comes after the checkout."""
    business = await opened(CARDS.replace("card], ", "card], ends: {card: cancel}, "))
    await begun(business, "")
    business.use_card("pm_card_visa")
    business.clock.ms += 31 * DAY_MS
    await heard(business)

    assert (business.at_stripe()["status"], sum(business.invoices())) == ("canceled", 0)
    assert await states(business) == [TrialState.EXPIRED]


async def test_a_trial_whose_invoice_cannot_be_read_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """All calls were made: the operation has not failed, and the keys are not given back."""
    business = await opened(card="pm_card_visa")
    quote = await business.quoted("pro", ChangeKind.TRIAL)

    async def fails(*_: object) -> None:
        raise InvalidInput("stripe", "no such invoice")

    with monkeypatch.context() as broken:
        broken.setattr(business.client, "invoice", fails)
        assert (await business.accepted(quote))[1].state is OperationState.DONE
    await heard(business)

    assert await states(business) == [TrialState.RUNNING]
