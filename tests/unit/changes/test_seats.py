"""Paid seats follow their holders: scenarios 9, 10 and 12 through the product, and what never happens."""

from __future__ import annotations

from decimal import Decimal

import pytest

from aggregators.plan_moves import phases_of
from pipeline.changes.seating import SeatsFull
from schemas.clock import HOUR_MS, MINUTE_MS
from schemas.entitlements import Grant, Operation, SourceKind
from schemas.errors import InvalidInput
from schemas.plan_changes import ChangeKind, Refusal, RefusalCode
from schemas.plan_moves import SubscribedItem
from schemas.seats import QUIET_MS, SeatState
from tests.worlds.seated import SEATS, YEARLY_SEATS, Seated, day_ms, seats_catalog


async def begun(seats_down: str, holders: int = 5, begins: str = "2027-03-01", *keys: str) -> Seated:
    business = Seated(begins)
    await business.begin(seats_catalog(seats_down))
    await business.holding(holders, *(keys or [SEATS]))
    return business


async def test_09_seats_that_are_credited() -> None:
    """Five seats of 1000; three more at once for 2032; two fewer as a credit of 710 on April 1."""
    business = await begun("prorate")
    await business.until("2027-03-11")
    for name in ("ann", "bob", "cid"):
        await business.take(name)
    await business.paid()
    assert (business.invoices(), business.quantity(), await business.allowed()) == ([5000, 2032], 8, 8)

    await business.until("2027-03-21")
    await business.release("ann")
    await business.release("bob")
    await business.paid()
    assert (business.invoices(), business.quantity(), await business.allowed()) == ([5000, 2032], 6, 6)
    await business.until("2027-04-01T02:00:00")
    assert business.invoices() == [5000, 2032, 5290]


@pytest.mark.parametrize("policy", ["keep_paid", "next_invoice"])
async def test_a_seat_that_returns_is_not_charged_twice(policy: str) -> None:
    """The quantity falls without a credit; up to what is paid it rises for nothing, and beyond that it is charged."""
    business = await begun(policy, 8)
    await business.until("2027-03-11")
    for name in ("holder 0", "holder 1", "holder 2"):
        await business.release(name)
    await business.paid()
    kept = 8 if policy == "keep_paid" else 5
    assert (business.invoices(), business.quantity(), await business.allowed()) == ([8000], 5, kept)

    await business.until("2027-03-16")
    await business.take("ann")
    await business.paid()
    assert (business.invoices(), business.quantity()) == ([8000], 6)

    await business.until("2027-03-21")
    for name in ("bob", "cid", "dan"):
        await business.take(name)
    await business.paid()
    assert (business.quantity(), await business.allowed()) == (9, 9)
    # One more seat for 11 of 31 days: 9 x 1000 x 11/31 - 8 x 1000 x 11/31 = 3194 - 2839.
    assert business.invoices() == [8000, 355]
    await business.release("ann")
    await business.paid()
    await business.until("2027-04-01T02:00:00")
    assert (business.invoices(), await business.allowed()) == ([8000, 355, 8000], 8)


async def test_10_two_seats_in_the_same_second_are_one_step() -> None:
    business = await begun("keep_paid")
    await business.until("2027-03-11")
    await business.take("ann")
    await business.take("bob")
    await business.paid()
    assert (business.invoices(), business.quantity()) == ([5000, 1355], 7)
    await business.paid()
    assert (business.invoices(), await business.waits()) == ([5000, 1355], 0)


async def test_10_two_seats_that_are_followed_one_after_the_other() -> None:
    business = await begun("keep_paid")
    await business.until("2027-03-11")
    for name in ("ann", "bob"):
        await business.take(name)
        await business.paid()
    assert (business.invoices(), business.quantity()) == ([5000, 678, 677], 7)


async def test_12_a_location_in_a_year() -> None:
    """A third location on September 9, with 276 of 366 days left."""
    business = await begun("keep_paid", 2, "2027-06-11", YEARLY_SEATS)
    await business.until("2027-09-09")
    await business.take("ann")
    await business.paid()
    assert business.invoices() == [309600, 116734]


async def test_24_seats_beyond_what_the_price_includes() -> None:
    """Ten seats cost nothing, thirteen 4500 beside the fee; the next month costs the same without any event."""
    business = await begun("keep_paid", 10, "2027-03-01", "base.v1.fee.month.usd", "base.v1.seat.month.usd")
    for name in ("ann", "bob", "cid"):
        await business.take(name)
    await business.paid()
    await business.until("2027-05-01T02:00:00")
    assert business.invoices()[-2:] == [20000 + 4500, 20000 + 4500]
    for number in range(10):
        await business.release(f"holder {number}")
    await business.paid()
    assert (await business.held(), business.quantity()) == (3, 10)


async def test_24_ten_seats_are_billed_each_month_and_half_a_month_of_an_upgrade() -> None:
    """Ten holders since November, and no event of theirs again: half of November's difference of 5000 at the upgrade,
    all of it in December. The downgrade in the middle of December waits for January, and gives nothing back."""
    business = await begun("keep_paid", 10, "2026-11-01", "small.v1.seat.month.usd")
    await business.until("2026-11-16")
    quote, _ = await business.changed("team")
    assert (quote.charged_minor, business.invoices()) == (2500, [5000, 2500])
    await business.until("2026-12-16T12:00:00")
    await business.changed("small")
    assert business.invoices() == [5000, 2500, 10000]
    await business.until("2027-02-01T02:00:00")
    assert business.invoices() == [5000, 2500, 10000, 5000, 5000]
    assert (business.quantity(), await business.held(), await business.waits()) == (10, 10, 0)


async def test_a_quote_cannot_be_for_fewer_seats_than_are_held() -> None:
    business = await begun("keep_paid", 3)
    with pytest.raises(InvalidInput, match="3 seats are held and to be paid, so no fewer can be: release") as error:
        await business.ask("team", quantities={"seats": 2})
    assert error.value.field == "quantities"
    await business.changed("team", quantities={"seats": 4})
    assert business.quantity() == 4


async def test_a_quantity_that_somebody_sets_stays_until_a_seat_is_released() -> None:
    """So an account that pays before its holders are told loses nothing by the first of them."""
    business = await begun("keep_paid", 3)
    await business.changed("team", quantities={"seats": 7})
    await business.paid()
    assert (business.quantity(), await business.held()) == (7, 3)
    await business.take("ann")
    await business.paid()
    assert (business.quantity(), await business.waits()) == (7, 0)
    await business.release("holder 0")
    await business.paid()
    assert (business.quantity(), await business.allowed()) == (3, 7)


async def test_what_is_in_use_comes_from_the_holders() -> None:
    """Whatever the request says. The seats that must go are named, and another plan begins with the rest."""
    business = await begun("keep_paid", 4)
    for plan in ("free", "solo"):
        found = await business.ask(plan, used={"seats": Decimal(1)})
        assert isinstance(found, Refusal)
        assert (found.code, "seats: 4 are in use" in found.message) == (RefusalCode.OVER_LIMIT, True)
    await business.release("holder 0")
    assert (await business.quoted("solo")).decided.row == 8
    business.clock.ms += 1
    await business.changed("small")
    assert business.schedules() == [("active", 2)]
    await business.until("2027-04-01T02:00:00")
    assert business.bought() == {("small.v1.seat.month.usd", 3)}


async def test_an_invitation_holds_its_seat() -> None:
    """Reserved seats fill a plan that sells no more; to accept one never fails."""
    business = await begun("keep_paid", 0)
    await business.join("globex")
    await business.subscribed("solo.v1.base.month.usd")
    await business.settle()
    seats = [await business.take(name, is_reserved=True) for name in ("ann", "bob", "cid")]
    full = await business.asked("dan")
    assert isinstance(full, SeatsFull)
    assert full.upgrade is not None
    assert (full.held, full.upgrade.offer.name, full.upgrade.quantity) == (3, "small", 4)
    for seat in seats:
        active = await business.sql.seats.activate("globex", seat.id, "ann", business.clock.ms)
        assert active is not None
        assert active.state is SeatState.ACTIVE
    await business.paid()
    assert (business.invoices(), await business.waits()) == ([3000], 0)


async def test_a_discount_of_everything_is_a_valid_change() -> None:
    business = await begun("keep_paid", 2)
    coupon = business.stripe.call("POST /v1/coupons", {"percent_off": 100, "duration": "forever"})["id"]
    route = "POST /v1/subscriptions/{subscription_exposed_id}"
    business.stripe.call(route, {"discounts": [{"coupon": coupon}]}, business.subscription)
    await business.until("2027-04-02")
    await business.take("ann")
    await business.paid()
    assert (business.quantity(), business.invoices(), await business.waits()) == (3, [2000, 0, 0], 0)


async def test_a_payment_that_fails_is_asked_for_once_until_it_expires() -> None:
    """The holder keeps the seat; the change waits for its payment, and is made a day later with another card."""
    business = await begun("keep_paid", 2)
    await business.until("2027-03-11")
    business.use_card("pm_card_chargeCustomerFail")
    await business.take("ann")
    await business.paid()
    assert (business.quantity(), business.invoices(), await business.waits()) == (2, [2000, 677], 1)
    full = await business.asked("bob")
    assert isinstance(full, SeatsFull)
    assert (full.message, full.upgrade) == ("all 3 seats are held: pay the open invoice first, or release one", None)
    for _ in range(6):
        business.clock.ms += HOUR_MS
        await business.paid()
    assert (business.quantity(), business.invoices(), await business.held()) == (2, [2000, 677], 3)

    business.use_card("pm_card_visa")
    await business.until("2027-03-12T06:00:00")
    await business.paid()
    assert (business.quantity(), await business.waits(), len(business.invoices())) == (3, 0, 3)


async def test_who_owes_something_pays_first() -> None:
    """Seats up to what is allowed are given; fewer can be paid at any time."""
    business = await begun("next_invoice", 3)
    await business.release("holder 0")
    business.use_card("pm_card_chargeCustomerFail")
    await business.until("2027-04-01T02:00:00")
    assert business.at_stripe()["status"] == "past_due"
    await business.take("ann")
    full = await business.asked("bob")
    assert isinstance(full, SeatsFull)
    assert (full.message, full.upgrade) == ("all 3 seats are held: pay the open invoice first, or release one", None)
    await business.release("ann")
    await business.paid()
    assert (business.quantity(), await business.waits()) == (2, 0)


async def test_a_trial_goes_on_when_seats_change() -> None:
    business = Seated()
    await business.begin(seats_catalog())
    business.clock.ms += QUIET_MS
    await business.subscribed(SEATS, quantity=1, trial_period_days=14)
    await business.settle()
    for name in ("ann", "bob"):
        await business.take(name)
    await business.paid()
    assert (business.at_stripe()["status"], business.quantity(), business.invoices()) == ("trialing", 2, [0])
    await business.until("2027-03-15T02:00:00")
    assert business.invoices() == [0, 2000]


async def test_seats_are_bought_until_a_subscription_ends() -> None:
    business = await begun("keep_paid", 2)
    await business.changed(kind=ChangeKind.CANCEL)
    await business.settle()
    await business.until("2027-03-11")
    await business.take("ann")
    await business.paid()
    assert (business.quantity(), business.invoices()) == (3, [2000, 677])
    assert business.at_stripe()["cancel_at_period_end"] is True


async def test_nothing_is_paid_where_seats_are_not_sold() -> None:
    """An account of the free plan, one without a customer, and one with a contract."""
    business = await begun("keep_paid", 2)
    await business.join("free", card="")
    await business.take("ann")
    business.account = "nobody"
    await business.take("ann")
    business.account = "acme"
    grant = Grant("seats", SourceKind.CONTRACT, "c1", Operation.SET, Decimal(4), business.clock.ms, reason="signed")
    await business.sql.entitlements.grant("acme", [grant], "ann", business.clock.ms)
    await business.settle()
    await business.take("bob")
    await business.take("cid")
    assert isinstance(await business.asked("dan"), SeatsFull)
    await business.paid()
    assert await business.waits() == 0
    for account in ("free", "nobody"):
        business.account = account
        assert isinstance(await business.asked("bob"), SeatsFull)


async def test_what_stays_paid_is_a_grant_that_anybody_can_see() -> None:
    business = await begun("keep_paid", 3)
    await business.release("holder 0")
    await business.paid()
    (made,) = await business.sql.entitlements.overrides("acme")
    grant = made.grant
    assert (grant.kind, grant.operation, grant.value, grant.reason) == (
        SourceKind.PROMOTION, Operation.AT_LEAST, Decimal(3), "paid until the period ends",
    )  # fmt: skip
    assert (made.actor, grant.ends_ms) == ("seats", day_ms("2027-04-01"))
    await business.release("holder 1")
    await business.paid()
    assert len(await business.sql.entitlements.overrides("acme")) == 1


async def test_seats_change_while_a_newer_version_is_scheduled() -> None:
    """The schedule of a migration keeps its mark, and both of its phases have the new quantity."""
    business = await begun("keep_paid", 2)
    schedule = await business.client.create(business.subscription, "k1")
    items = [SubscribedItem(business.prices["tm.small.v1.seat.month.usd"], 2)]
    await business.client.plan(schedule.id, phases_of(schedule.phases, items), f"{business.subscription}.1", "k2")
    await business.until("2027-03-11")
    await business.take("ann")
    await business.paid()
    after = await business.client.schedule(schedule.id)

    assert after.mark == f"{business.subscription}.1"
    assert [phase["items"][0]["quantity"] for phase in after.phases] == [3, 3]
    assert (business.quantity(), business.invoices()) == (3, [2000, 677])


async def test_seats_that_an_add_on_or_a_person_gives_are_not_paid_again() -> None:
    """An add-on of two seats and a gift of one: of seven holders, the plan pays for four."""
    business = await begun("keep_paid", 2)
    item = {"price": business.prices["tm.more_seats.v1.addon.month.usd"], "subscription": business.subscription}
    business.stripe.call("POST /v1/subscription_items", {**item, "proration_behavior": "none"})
    gift = Grant("seats", SourceKind.OVERRIDE, "gift", Operation.ADD, Decimal(1), business.clock.ms, reason="a gift")
    await business.sql.entitlements.grant("acme", [gift], "ann", business.clock.ms)
    await business.settle()
    assert await business.allowed() == 5
    for name in ("ann", "bob", "cid"):
        await business.take(name)
    await business.paid()
    assert (business.bought(), business.invoices()) == (
        {("team.v1.seat.month.usd", 2), ("more_seats.v1.addon.month.usd", 1)}, [2000],
    )  # fmt: skip
    await business.until("2027-03-11")
    for name in ("dan", "eve"):
        await business.take(name)
    await business.paid()
    assert (await business.allowed(), business.invoices()) == (7, [2000, 1355])
    assert ("team.v1.seat.month.usd", 4) in business.bought()
    with pytest.raises(InvalidInput, match="4 seats are held and to be paid"):
        await business.ask("team", quantities={"seats": 3})


@pytest.mark.parametrize(("policy", "next_month"), [("keep_paid", 5000), ("prorate", 5000 - 5419 + 3387)])
async def test_08_seats_up_and_down_at_once_are_charged_once(policy: str, next_month: int) -> None:
    """Three more for 2032; without them a minute later, nothing is credited, or what 1 814 340 of 2 678 400 seconds
    cost."""
    business = await begun(policy)
    await business.until("2027-03-11")
    for name in ("ann", "bob", "cid"):
        await business.take(name)
    await business.paid()
    business.clock.ms += MINUTE_MS - QUIET_MS
    for name in ("ann", "bob", "cid"):
        await business.release(name)
    await business.paid()
    assert (business.invoices(), business.quantity()) == ([5000, 2032], 5)
    await business.until("2027-04-01T02:00:00")
    assert business.invoices() == [5000, 2032, next_month]
    assert len(list(business.stripe.pages("GET /v1/subscriptions", {"customer": business.customer}))) == 1


async def test_a_quote_of_seats_before_a_lower_plan_says_what_follows() -> None:
    """The invoice after it is that of the lower plan in the new quantity."""
    business = await begun("keep_paid", 2)
    await business.changed("small")
    await business.until("2027-03-11")
    business.clock.ms += QUIET_MS
    quote, operation = await business.changed("team", quantities={"seats": 3})

    assert (quote.decided.row, quote.charged_minor, quote.is_differing, operation.detail) == (24, 677, False, "")
    assert quote.ours_minor == quote.subtotal_minor == 677
    assert quote.words == (
        "You will be charged $6.77 today for the remaining 21 days of your billing cycle, and your next invoice on "
        "April 1 will be $15.00."
    )
    await business.until("2027-04-01T02:00:00")
    assert business.bought() == {("small.v1.seat.month.usd", 3)}
    assert business.invoices() == [2000, 677, 1500]

    # The schedule is over and still open at Stripe.
    await business.until("2027-04-11")
    await business.take("ann")
    await business.take("bob")
    await business.paid()
    assert (business.quantity(), business.invoices()[3:], await business.waits()) == (4, [333], 0)
