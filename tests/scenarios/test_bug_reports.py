"""What went wrong elsewhere, tried on this product. Each test says what happened there and what is right."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import pytest

from pipeline.changes.operating import PATIENCE_MS, accept, turn
from pipeline.changes.trials import follow
from pipeline.webhooks.overdue import append_overdue
from pipeline.webhooks.walker import Walker
from schemas.access import Reason
from schemas.clock import DAY_MS, MINUTE_MS
from schemas.errors import InvalidInput
from schemas.plan_changes import ChangeKind, OperationState
from schemas.seats import SeatState
from stripe_simulator.engine.collection import RetryPolicy
from stripe_simulator.resources import sessions
from tests.worlds.business import ONE
from tests.worlds.changing import ACME, BACK, CARDS, Changing
from tests.worlds.ending import Ends
from tests.worlds.seated import SEATS as SEAT
from tests.worlds.seated import Seated, seats_catalog

START_MS: Final = int(datetime(2027, 2, 1, tzinfo=UTC).timestamp()) * 1_000
ESSENTIAL: Final = "essential.v1.location.month.usd"
PRO: Final = "pro.v1.location.month.usd"
BAD_CARD: Final = "pm_card_chargeCustomerFail"
DELETE: Final = "DELETE /v1/subscriptions/{subscription_exposed_id}"


async def begun(*keys: str, card: str = "pm_card_visa", **params: Any) -> Changing:
    """An account that has had the prices for nine days."""
    business = Changing(START_MS)
    await business.begin(card=card)
    if keys:
        await business.subscribed(*keys, **params)
        await business.settle()
    pass_time(business, 9 * DAY_MS)
    await business.settle()
    return business


def pass_time(business: Changing, for_ms: int) -> None:
    """Let time pass at Stripe and here."""
    business.clock.ms += for_ms
    business.stripe.simulator.catch_up()


def cancels_in_the_portal(business: Changing) -> None:
    """The customer cancels with the period, on Stripe's page."""
    mode = business.stripe.simulator.test
    with mode.journal.transaction():
        sessions.cancel_at_period_end(mode, business.customer, business.subscription, is_set=True)


def cancels_in_the_dashboard(business: Changing) -> None:
    """Somebody ends the subscription with its period. Beside a schedule Stripe takes that of the schedule alone."""
    schedule = business.at_stripe()["schedule"]
    if not schedule:
        cancels_in_the_portal(business)
        return
    route = "POST /v1/subscription_schedules/{schedule}"
    phase = business.stripe.call("GET /v1/subscription_schedules/{schedule}", {}, schedule)["phases"][0]
    items = [{name: item[name] for name in ("price", "quantity") if name in item} for item in phase["items"]]
    present = {"items": items, "start_date": phase["start_date"], "end_date": phase["end_date"]}
    business.stripe.call(route, {"end_behavior": "cancel", "phases": [present], "proration_behavior": "none"}, schedule)


SEATS: Final = {"plan": "pro", "quantities": {"locations": 2}}
METERED: Final = ("metered.v1.location.month.usd", "metered.v1.calls.month.usd")


@pytest.mark.parametrize(
    ("keys", "wanted", "before"),
    [
        pytest.param((ESSENTIAL,), {"plan": "pro"}, None, id="upgrade"),
        pytest.param((PRO,), {"plan": "essential"}, None, id="downgrade"),
        pytest.param(METERED, {"plan": "scale"}, None, id="upgrade of a metered plan"),
        pytest.param((PRO,), SEATS, {"plan": "essential"}, id="seats beside a downgrade"),
        pytest.param((PRO,), {"plan": "metered"}, {"plan": "essential"}, id="another downgrade"),
        pytest.param((PRO,), {"plan": "scale"}, {"plan": "essential"}, id="upgrade after a downgrade"),
        pytest.param((PRO,), {"kind": ChangeKind.UNDO}, {"plan": "essential"}, id="a downgrade taken back"),
    ],
)
async def test_a_cancellation_by_the_customer_during_an_own_operation_is_kept(
    keys: tuple[str, ...], wanted: dict[str, Any], before: dict[str, Any] | None
) -> None:
    """Elsewhere its event was taken for an echo of the operation and dropped. Here the process ends after each of its
    calls, the customer cancels on Stripe's page or somebody in the dashboard, and another process goes on."""
    business, ends, has_ended, accounts = await begun(), 0, True, []
    while has_ended:
        ends += 1
        await business.join(f"account {ends}")
        await business.subscribed(*keys)
        await business.settle()
        if before:
            await business.changed(**before)
            await business.settle()
        quote = await business.quoted(**wanted)
        has_ended = False
        try:
            await accept(business.parts([ends], after=True), business.account, quote.id, "ann", BACK)
        except Ends:
            has_ended = True
            cancels_in_the_dashboard(business)
            accounts.append((business.account, business.subscription))
    pass_time(business, PATIENCE_MS)
    assert await turn(business.parts()) > 1
    await business.settle()
    pass_time(business, 32 * DAY_MS)
    await business.settle()
    for account, business.subscription in accounts:
        assert business.at_stripe()["status"] == "canceled", account
        assert await business.reason("pos", account=account) is Reason.NOT_IN_PLAN, account


async def test_seats_that_somebody_adds_before_a_lost_operation_goes_on_are_kept() -> None:
    """The process ends before Stripe is asked for anything, and somebody sets the quantity in the dashboard."""
    business = await begun(ESSENTIAL)
    quote = await business.quoted("pro")
    with pytest.raises(Ends):
        await accept(business.parts([1], after=True), ACME, quote.id, "ann", BACK)
    (item,) = business.at_stripe()["items"]["data"]
    business.stripe.call("POST /v1/subscription_items/{item}", {"quantity": 5}, item["id"])
    pass_time(business, PATIENCE_MS)
    await turn(business.parts())
    operation = await business.sql.plan_changes.operation(quote.id)

    assert operation is not None
    assert (operation.state, business.bought()) == (OperationState.FAILED, {(ESSENTIAL, 5)})
    assert "changed since the quote" in operation.detail


async def test_events_in_the_wrong_order_revive_nobody() -> None:
    """Elsewhere `updated` with the status `active`, which came after `deleted`, gave the plan back."""
    business = await begun(PRO)
    business.stripe.call(
        "POST /v1/subscriptions/{subscription_exposed_id}", {"description": "x"}, business.subscription
    )
    known = len(business.stripe.happened())
    updated = [event for event in business.stripe.happened() if event["type"] == "customer.subscription.updated"]
    business.stripe.call(DELETE, {}, business.subscription)
    await business.deliver(business.stripe.happened()[known:])
    await business.process()
    await business.deliver([{**updated[-1], "id": "evt_late"}])
    await business.settle()

    assert updated[-1]["data"]["object"]["status"] == "active"
    assert await business.reason("pos") is Reason.NOT_IN_PLAN


async def test_an_end_that_nobody_delivered_is_found_in_the_list_of_events() -> None:
    """Elsewhere a webhook was lost, and the account was active for ever."""
    business = await begun(PRO)
    business.stripe.call(DELETE, {}, business.subscription)
    await Walker(business.log, business.stripe, business.tables, business.clock).go_on()
    await business.process()
    while await business.renewal.turn():
        pass
    await business.checks.refresh()

    assert await business.reason("pos") is Reason.NOT_IN_PLAN


async def test_an_end_that_nobody_heard_of_ends_with_the_period() -> None:
    """Elsewhere an account was active for ever. No event came, and Stripe's list has none any more: an hour after the
    period is over, Stripe is asked. Who pays is asked for too, and is nobody's matter after that."""
    business = await begun(PRO)
    gone = business.subscription
    await business.join("globex")
    await business.subscribed(PRO)
    await business.settle()
    business.stripe.call(DELETE, {}, gone)
    assert await append_overdue(business.log, business.tables, business.clock) == 0
    pass_time(business, 31 * DAY_MS)
    assert await business.reason("pos") is Reason.INCLUDED
    assert await append_overdue(business.log, business.tables, business.clock) == 2
    await business.process()
    while await business.renewal.turn():
        pass
    await business.checks.refresh()

    assert await business.reason("pos") is Reason.NOT_IN_PLAN
    assert await business.reason("pos", account="globex") is Reason.INCLUDED
    assert await append_overdue(business.log, business.tables, business.clock) == 0


async def overdue(end: Any, **params: Any) -> Changing:
    """A customer of Pro whose next payment fails, as do three retries within two weeks, and what Stripe does then."""
    business = Changing(START_MS)
    mode = business.stripe.simulator.test
    mode.settings = replace(mode.settings, retry_policy=RetryPolicy((1, 5, 14), subscription_end=end))
    await business.begin()
    await business.subscribed(PRO, **params)
    await business.settle()
    business.use_card(BAD_CARD)
    return business


async def days(business: Changing, number: int) -> list[Reason]:
    """What a feature of the plan was answered on each day."""
    found = []
    for _ in range(number):
        pass_time(business, DAY_MS)
        await business.settle()
        found.append(await business.reason("pos"))
    return found


@pytest.mark.parametrize("end", ["unpaid", "paused", "past_due"])
@pytest.mark.parametrize("begins", ["renewal", "end of a trial"])
async def test_a_first_decline_takes_nothing_and_the_last_one_moves_to_the_fallback_plan(end: str, begins: str) -> None:
    """Elsewhere access was revoked at the first decline, or the customer was unsubscribed. Here the plan stays through
    all retries and the warning after them; then the fallback plan gives, and the subscription can still be paid."""
    trial = {"trial_period_days": 28} if begins == "end of a trial" else {}
    business = await overdue(end, **trial)
    await days(business, 28)
    retries, after = await days(business, 14), await days(business, 20)

    assert set(retries) == {Reason.PAYMENT_FAILED_GRACE}
    assert after[-1] is Reason.DOWNGRADED_UNPAID
    assert after == sorted(after, key=lambda reason: reason is Reason.DOWNGRADED_UNPAID)
    assert business.at_stripe()["status"] == end
    assert (await business.checks.check(ACME, "locations", ONE)).decision.limit == 1


async def test_a_quote_that_pays_open_invoices_first_says_so() -> None:
    """Elsewhere "pay today" left out what was charged. The resumption costs 149, and so does the invoice that is open
    since the pause: 298 are charged."""
    business = await overdue("paused")
    await days(business, 45)
    business.use_card("pm_card_visa")
    quote = await business.quoted("pro")
    charged = paid(business)
    kept, operation = await business.accepted(quote)

    assert (quote.decided.row, quote.due_minor, quote.total.minor) == (18, 29800, 14900)
    assert quote.words.startswith("You will be charged $298.00 today, and your next invoice on ")
    assert quote.words.endswith(" $149.00 of that pays your open invoices.")
    assert (operation.state, paid(business) - charged, kept.is_differing) == (OperationState.DONE, 29800, False)


def paid(business: Changing) -> int:
    """What the customer has paid."""
    rows = business.stripe.pages("GET /v1/payment_intents", {"customer": business.customer})
    return sum(row["amount"] for row in rows if row["status"] == "succeeded")


@pytest.mark.parametrize("card", ["", BAD_CARD], ids=["no card", "a card that fails"])
async def test_who_pays_nothing_changes_seats_plan_and_interval(card: str) -> None:
    """Elsewhere a discount of 100 % made a change of seats fail. Nothing is to be paid, so no card is needed."""
    business = await begun(card=card)
    coupon = business.stripe.call("POST /v1/coupons", {"percent_off": 100, "duration": "forever"})["id"]
    await business.subscribed(ESSENTIAL, discounts=[{"coupon": coupon}])
    await business.settle()
    for plan, more in (
        ("essential", {"quantities": {"locations": 3}}), ("pro", {"quantities": {"locations": 3}}),
        ("pro", {"quantities": {"locations": 1}}), ("pro", {"interval": "year"}),
    ):  # fmt: skip
        pass_time(business, MINUTE_MS)
        quote, operation = await business.changed(plan, **more)
        await business.settle()
        assert (quote.total.minor, operation.state, operation.detail) == (0, OperationState.DONE, ""), plan
        assert await business.sql.dunning.listed() == []
    assert business.bought() == {("pro.v1.location.year.usd", 1)}
    assert (set(business.invoices()), await business.reason("pos")) == ({0}, Reason.INCLUDED)


async def test_who_canceled_is_not_charged_because_the_card_had_a_trial_before() -> None:
    """Elsewhere one card had many trials. Here the second one ends; who canceled meanwhile pays nothing for that."""
    business = Changing(START_MS)
    await business.begin(CARDS, card="")
    for account in (ACME, "other"):
        if account != ACME:
            await business.join(account, "")
        operation = await business.page("pro", ChangeKind.TRIAL)
        business.pays(operation.session)
        if account != ACME:
            cancels_in_the_portal(business)
        await business.settle()
        await follow(business.parts(), business.sql.trials)
        await business.settle()

    assert (business.at_stripe()["status"], business.invoices()) == ("canceled", [0])
    assert await business.reason("pos", account="other") is Reason.NOT_IN_PLAN


async def test_a_plan_behind_more_rows_than_a_page_is_followed_and_changed() -> None:
    """Elsewhere only the first ten rows of a nested list were read: who had more lost the rest. Eleven prices of
    somebody else come before the plan's."""
    business = await begun()
    body = {
        "currency": "usd",
        "unit_amount": 100,
        "recurring": {"interval": "month"},
        "product_data": {"name": "extra"},
    }
    for number in range(11):
        business.prices[f"tm.extra {number}"] = str(business.stripe.call("POST /v1/prices", body)["id"])
    await business.subscribed(*(f"extra {number}" for number in range(11)), PRO)
    await business.settle()
    assert await business.reason("pos") is Reason.INCLUDED
    quote, operation = await business.changed("pro", quantities={"locations": 3})
    await business.settle()

    assert (len(quote.base.items), operation.state) == (12, OperationState.DONE)
    rows = business.stripe.pages("GET /v1/subscription_items", {"subscription": business.subscription})
    bought = {row["price"]["id"]: row["quantity"] for row in rows}
    assert (len(bought), bought[business.prices[f"tm.{PRO}"]]) == (12, 3)
    assert (await business.checks.check(ACME, "locations", ONE)).decision.limit == 3


async def test_an_invitation_holds_its_seat_and_no_reduction_goes_below_it() -> None:
    """Elsewhere the limit was checked at the invitation alone, and the account stayed beyond it for ever. What somebody
    reduces in the dashboard is not taken back in silence: nobody loses a seat, and the next one pays for all."""
    business = Seated()
    await business.begin(seats_catalog("keep_paid"))
    await business.holding(2, SEAT)
    invited = await business.take("ann", is_reserved=True)
    await business.paid()
    with pytest.raises(InvalidInput, match="3 seats are held"):
        await business.ask("team", quantities={"seats": 2})
    (item,) = business.at_stripe()["items"]["data"]
    fewer = {"quantity": 1, "proration_behavior": "none"}
    business.stripe.call("POST /v1/subscription_items/{item}", fewer, item["id"])
    await business.settle()
    active = await business.sql.seats.activate(ACME, invited.id, "ann", business.clock.ms)
    await business.paid()

    assert active is not None
    assert (active.state, await business.held(), business.quantity()) == (SeatState.ACTIVE, 3, 1)
    await business.take("bob")
    await business.paid()
    assert (await business.held(), business.quantity(), await business.allowed()) == (4, 4, 4)
