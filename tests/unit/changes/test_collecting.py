"""What dunning does at Stripe by itself: a new card pays, what was given up is cleared away, a pause ends. The process
may end after any call, and each is done once."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, Literal

import pytest
from sqlalchemy import select

from pipeline.changes.collecting import collect
from pipeline.changes.operating import PATIENCE_MS, turn
from schemas.access import Reason
from schemas.clock import DAY_MS, HOUR_MS
from schemas.dunning import ListedCase
from sinks.sql.change_tables import operations, quotes
from stripe_simulator.engine.collection import RetryPolicy
from tests.worlds.changing import CATALOG, Changing
from tests.worlds.ending import Ending, Ends

START_MS: Final = int(datetime(2027, 2, 1, tzinfo=UTC).timestamp()) * 1_000
PRO: Final = "pro.v1.location.month.usd"
GOOD: Final = "pm_card_visa"
BAD: Final = "pm_card_chargeCustomerFail"
End = Literal["unpaid", "paused", "canceled", "past_due"]


class Failing(Changing):
    """A customer of Pro whose renewal of March 1 fails, as do three retries within two weeks."""

    async def owe(self, end: End = "unpaid", give_up: str = "propose", own_card: bool = False) -> None:
        mode = self.stripe.simulator.test
        mode.settings = replace(mode.settings, retry_policy=RetryPolicy((1, 5, 14), subscription_end=end))
        await self.begin(CATALOG.replace("fallback_plan: free", f"fallback_plan: free, give_up: {give_up}"))
        await self.subscribed(PRO)
        self.use_card(BAD)
        if own_card:
            self.set_on_subscription(self.default_card())
        self.clock.ms = START_MS + 28 * DAY_MS + 2 * HOUR_MS
        await self.look()

    def default_card(self) -> str:
        """The customer's default payment method."""
        body = self.stripe.call("GET /v1/customers/{customer}", {}, self.customer)
        return str(body["invoice_settings"]["default_payment_method"])

    def set_on_subscription(self, card: str) -> None:
        """A card of the subscription's own."""
        route = "POST /v1/subscriptions/{subscription_exposed_id}"
        self.stripe.call(route, {"default_payment_method": card}, self.subscription)

    async def reach(self, day: float) -> None:
        """Go on to a day after February 1, with all that happens until then, and with dunning's own turns."""
        until_ms = START_MS + int(day * DAY_MS)
        while self.clock.ms < until_ms:
            self.clock.ms = min(self.clock.ms + DAY_MS, until_ms)
            await self.look()

    async def look(self) -> None:
        """Everything that is due now, until nothing changes."""
        self.stripe.simulator.catch_up()
        await self.settle()
        before = -1
        while len(self.stripe.happened()) != before:
            before = len(self.stripe.happened())
            await collect(self.parts(), self.sql.dunning)
            await self.settle()

    async def case(self) -> ListedCase:
        (case,) = await self.sql.dunning.listed()
        return case

    def bills(self) -> list[tuple[int, str]]:
        """Amount and status of each invoice, oldest first."""
        rows = list(self.stripe.pages("GET /v1/invoices", {"customer": self.customer}))
        return [(row["total"], row["status"]) for row in reversed(rows)]

    def charges(self) -> list[tuple[int, str]]:
        """Amount and status of each payment after the first one, oldest first."""
        rows = list(self.stripe.pages("GET /v1/payment_intents", {"customer": self.customer}))
        return [(row["amount"], row["status"]) for row in reversed(rows)][1:]

    async def operations(self) -> list[str]:
        """What was done at Stripe, in words, and how it ended."""
        wanted = select(operations.c.state, quotes.c.words).join(quotes, quotes.c.id == operations.c.quote)
        wanted = wanted.order_by(operations.c.made_ms)
        found = await self.sql._run(lambda connection: connection.execute(wanted).all())
        return [f"{row.state}: {row.words}" for row in found]


PAYS: Final = "done: The new payment method pays what is open."


@pytest.mark.parametrize("own_card", [False, True], ids=["of the customer", "of the subscription"])
async def test_18_20_a_new_card_pays_what_is_open_once(own_card: bool) -> None:
    """Also where Stripe would go on with the subscription's own card. The card that failed is not tried by us."""
    business = Failing(START_MS)
    await business.owe(own_card=own_card)
    assert await business.operations() == []
    await business.reach(31)
    business.use_card(GOOD)
    await business.look()
    await business.look()

    assert business.bills() == [(14900, "paid"), (14900, "paid")]
    assert await business.operations() == [PAYS]
    assert (await business.case()).case.outcome == "recovered"
    assert (business.at_stripe()["status"], await business.reason("pos")) == ("active", Reason.INCLUDED)
    if own_card:
        assert business.at_stripe()["default_payment_method"] == business.default_card()


async def test_a_new_card_that_fails_too_is_tried_once() -> None:
    """Stripe's own retries go on; the next card is new again."""
    business = Failing(START_MS)
    await business.owe()
    await business.reach(29.5)
    business.use_card(BAD)
    await business.look()
    await business.look()
    failed = await business.operations()
    business.use_card(GOOD)
    await business.look()

    assert [each[:7] for each in failed] == ["failed:"]
    assert await business.operations() == [*failed, PAYS]
    assert business.bills()[1:] == [(14900, "paid")]


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
async def test_a_process_that_ends_at_any_call_pays_once(after: bool) -> None:
    """Whatever call the process ends at, another one goes on and the customer is charged once."""
    ends, has_ended = 0, True
    while has_ended:
        ends += 1
        business = Failing(START_MS)
        await business.owe(own_card=True)
        business.use_card(GOOD)
        business.stripe.simulator.catch_up()
        await business.settle()
        countdown = [ends]
        parts: Any = business.parts(countdown, after=after)
        paying = Ending(parts.stripe._inner, countdown, lambda name: name in ("update", "pay"), after=after)
        dunning: Any = Ending(business.sql.dunning, countdown, lambda name: name == "tried", after=after)
        try:
            await collect(parts._replace(stripe=paying), dunning)
            has_ended = False
        except Ends:
            business.clock.ms += PATIENCE_MS
            await turn(business.parts())
            await business.look()
        await business.settle()
        assert business.bills() == [(14900, "paid"), (14900, "paid")]
        assert [each for each in business.charges() if each[1] == "succeeded"] == [(14900, "succeeded")]
        assert await business.operations() == [PAYS]
    assert ends > 6


@pytest.mark.parametrize(("give_up", "status"), [("void", "void"), ("uncollectible", "uncollectible")])
async def test_19_what_is_given_up_is_cleared_away(give_up: str, status: str) -> None:
    """No credit for a month that nobody paid, and nothing is asked for any more."""
    business = Failing(START_MS)
    await business.owe(give_up=give_up)
    await business.reach(74)
    assert business.bills()[1] == (14900, "open")
    await business.reach(76)

    listed = await business.case()
    assert (listed.case.outcome, listed.has_ended, listed.invoices) == ("churned", True, ())
    assert business.bills()[:2] == [(14900, "paid"), (14900, status)]
    assert all(total >= 0 for total, _ in business.bills())
    assert await business.operations() == [
        f"done: Nobody paid: the subscription ends without a credit, and its open invoices are {give_up}."
    ]
    assert await business.reason("pos") == Reason.NOT_IN_PLAN


async def test_19_what_is_given_up_is_proposed_by_default() -> None:
    business = Failing(START_MS)
    await business.owe()
    await business.reach(80)

    listed = await business.case()
    assert (listed.case.outcome, listed.has_ended, len(listed.invoices)) == ("churned", False, 1)
    assert await business.operations() == []


async def test_a_pause_ends_once_all_is_paid() -> None:
    """Within the month that was paid nothing more is charged."""
    business = Failing(START_MS)
    await business.owe("paused")
    await business.reach(45)
    assert business.at_stripe()["status"] == "paused"
    business.use_card(GOOD)
    await business.look()

    assert (business.at_stripe()["status"], business.bills()) == ("active", [(14900, "paid"), (14900, "paid")])
    assert await business.operations() == [PAYS, "done: All is paid: the pause ends."]
    assert await business.reason("pos") == Reason.INCLUDED
    assert (await business.case()).case.downgrade_ms is None


async def test_a_new_card_does_not_pay_what_was_written_off() -> None:
    """Nobody asks for that money any more; the card pays the invoice of the next month, which failed as well."""
    business = Failing(START_MS)
    await business.owe("past_due")
    await business.reach(31)
    case = (await business.case()).case.id
    await business.sql.dunning.write_off(case, "ann", "a courtesy", business.clock.now_ms())
    await business.reach(60)
    assert business.bills()[1:] == [(14900, "open"), (14900, "open")]
    business.use_card(GOOD)
    await collect_now(business)

    assert business.bills()[1:] == [(14900, "open"), (14900, "paid")]


async def collect_now(business: Failing) -> None:
    """The mirror hears of a card, and dunning takes its turn, before Stripe tries again by itself."""
    await business.settle()
    await collect(business.parts(), business.sql.dunning)
    await business.settle()


async def test_who_pays_before_a_lost_process_goes_on_keeps_the_plan() -> None:
    """The case was given up, and the process ended before it called Stripe."""
    business = Failing(START_MS)
    await business.owe(give_up="void")
    await business.reach(75)
    business.clock.ms += DAY_MS
    business.stripe.simulator.catch_up()
    await business.settle()
    with pytest.raises(Ends):
        # After the intention.
        await collect(business.parts([2], after=True), business.sql.dunning)
    assert business.at_stripe()["status"] == "unpaid"
    business.use_card(GOOD)
    (invoice,) = business.stripe.pages("GET /v1/invoices", {"customer": business.customer, "status": "open"})
    business.stripe.call("POST /v1/invoices/{invoice}/pay", {}, invoice["id"])
    business.clock.ms += PATIENCE_MS
    await turn(business.parts())
    await business.look()

    assert (business.at_stripe()["status"], business.bills()[1]) == ("active", (14900, "paid"))
    assert await business.reason("pos") == Reason.INCLUDED


async def test_19_what_is_given_up_ends_also_with_a_pending_change() -> None:
    """Stripe refuses to end a subscription that a schedule has."""
    business = Failing(START_MS)
    await business.owe(give_up="void")
    await business.changed("essential")
    assert business.schedules() == [("active", 2)]
    await business.reach(77)

    assert (business.at_stripe()["status"], business.bills()[1]) == ("canceled", (14900, "void"))


async def test_a_payment_that_stripe_failed_to_make_is_not_called_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripe stored a failure of its own, and the invoice is open."""
    business = Failing(START_MS)
    await business.owe()
    await business.reach(29.5)
    business.use_card(GOOD)

    async def fails(*_: object) -> None:
        return None

    monkeypatch.setattr(business.client, "pay", fails)
    await collect_now(business)

    assert business.bills()[1:] == [(14900, "open")]
    assert [each[:7] for each in await business.operations()] == ["failed:"]
