"""What went wrong elsewhere, tried on this product. Each test says what happened there and what is right."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import pytest

from pipeline.changes.operating import PATIENCE_MS, accept, turn
from schemas.access import Reason
from schemas.clock import DAY_MS
from schemas.plan_changes import ChangeKind
from stripe_simulator.resources import sessions
from tests.worlds.changing import BACK, Changing
from tests.worlds.ending import Ends

START_MS: Final = int(datetime(2027, 2, 1, tzinfo=UTC).timestamp()) * 1_000
ESSENTIAL: Final = "essential.v1.location.month.usd"
PRO: Final = "pro.v1.location.month.usd"
BAD_CARD: Final = "pm_card_chargeCustomerFail"
UPDATE: Final = "POST /v1/subscriptions/{subscription_exposed_id}"


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
