"""What an account may do in scenarios 4, 7, 9, 10, 12, 15, 18 and 24, and what a denied check says that it costs.

The catalog makes the prices, the customer buys by stripe-python, the mirror follows, and the checks answer. The amounts
were computed by hand, and are compared with Stripe's preview and invoice.
"""

from __future__ import annotations

import pytest

from tests.scenarios.selling import Seller
from tests.scenarios.vocabulary import INVOICE_NOW, ON_NEXT_INVOICE, Account, at

CATALOG = """\
version: 1
meters:
  - {slug: calls, event_type: call, aggregation: count, unit: calls, stripe_event_name: calls}
currencies: {usd: 2}
defaults: {plan: free}
features:
  locations: {type: seat, merge: sum}
  seats: {type: seat, merge: sum}
  pos: {type: flag, stripe_feature: pos}
  api_calls: {type: limit, merge: sum, meter: calls}
plans:
  free:
    version: 1
    prices: none
    grants: {locations: 1, api_calls: 1000}
  essential:
    version: 1
    name: Essential
    rank: 10
    prices:
      - {component: location, quantity: locations, month: {usd: "79.00"}}
    grants: {locations: quantity, api_calls: 20000}
  pro:
    version: 1
    name: Pro
    rank: 20
    prices:
      - {component: location, quantity: locations, month: {usd: "149.00"}, year: {usd: "1548.00"}}
    grants: {locations: quantity, pos: true, api_calls: 50000}
    trial: {family: paid, days: 30}
  team:
    version: 1
    name: Team
    prices:
      - {component: seat, quantity: seats, month: {usd: "10.00"}}
    grants: {seats: quantity}
  club:
    version: 1
    name: Club
    prices:
      - {component: base, month: {usd: "100.00"}}
      - {component: seat, quantity: seats, included: 10, month: {usd: "15.00"}}
    grants: {seats: quantity}
dunning: {fallback_plan: free}
"""
ESSENTIAL, PRO, PRO_YEARLY = "essential.v1.location.month.usd", "pro.v1.location.month.usd", "pro.v1.location.year.usd"
TEAM, CLUB_BASE, CLUB_SEAT = "team.v1.seat.month.usd", "club.v1.base.month.usd", "club.v1.seat.month.usd"


@pytest.fixture
def seller(account: Account) -> Seller:
    """The product beside the account."""
    return Seller(account)


async def test_04_a_denied_check_names_what_stripe_then_bills(account: Account, seller: Seller) -> None:
    """Essential to Pro on February 10, with 19 of 28 days left: $47.50 today. Check, preview and invoice agree."""
    await seller.open(CATALOG, "2027-02-01")
    assert (await seller.costs("pos")) == ("pro@1", (await account.preview_new(seller.price(PRO), 1)).due)
    await account.sign_up(seller.price(ESSENTIAL))
    await seller.reach("2027-02-10")
    denied = await seller.check("pos")
    shown = await account.preview(
        price=seller.price(PRO), proration_behavior=INVOICE_NOW, proration_date=at("2027-02-10")
    )

    assert (str(denied.decision.reason), denied.decision.allowed) == ("not_in_plan", False)
    assert denied.upgrade is not None
    assert (str(denied.upgrade.offer), denied.upgrade.due_now) == ("pro@1", (4750, "usd", 2))
    assert denied.upgrade.words == (
        "Pro includes it: $47.50 today for the 19 days left, then $149.00 a month from March 1."
    )
    await account.change_plan(seller.price(PRO), proration_date=at("2027-02-10"))
    assert denied.upgrade.due_now.minor == shown.due == (await account.invoice()).due
    await seller.hear("2027-02-10")
    assert (await seller.check("pos")).decision.allowed
    await account.advance("2027-03-01 02:00:00")
    assert (await account.invoice()).due == 14900


async def test_07_a_downgrade_takes_effect_with_the_period(account: Account, seller: Seller) -> None:
    """Entitlements change at March 1 00:00:00, although no event has come by then."""
    await seller.open(CATALOG, "2027-02-01")
    await account.sign_up(seller.price(PRO))
    await seller.reach("2027-02-10")
    await account.schedule_plan(seller.price(ESSENTIAL))
    await seller.hear("2027-02-10")
    seller.wait("2027-03-01", before_ms=1)
    before = [(await seller.reason("pos")), (await seller.check("api_calls", used=20_000)).decision.limit]
    seller.wait("2027-03-01")
    after = [(await seller.reason("pos")), (await seller.check("api_calls", used=20_000)).decision.limit]

    assert (before, after) == (["included", 50_000], ["not_in_plan", 20_000])
    assert await seller.reason("api_calls", used=20_000) == "limit_reached"
    await seller.reach("2027-03-01 01:00:00")
    assert [(await seller.reason("pos")), await account.bills()] == ["not_in_plan", [("paid", 14900), ("paid", 7900)]]


async def test_07_a_downgrade_that_is_given_up(account: Account, seller: Seller) -> None:
    """Released on February 20: March 1 changes nothing."""
    await seller.open(CATALOG, "2027-02-01")
    await account.sign_up(seller.price(PRO))
    await seller.reach("2027-02-10")
    schedule = await account.schedule_plan(seller.price(ESSENTIAL))
    await seller.reach("2027-02-20")
    await account.release(schedule)
    await seller.hear("2027-02-20")
    seller.wait("2027-03-01")
    assert await seller.reason("pos") == "included"
    await seller.reach("2027-03-01 01:00:00")

    assert [(await seller.reason("pos")), await account.bills()] == ["included", [("paid", 14900), ("paid", 14900)]]


async def test_09_seats(account: Account, seller: Seller) -> None:
    """Five seats; three more at once for 2032; two fewer as a credit of 710. The limit is what is paid."""
    await seller.open(CATALOG, "2027-03-01")
    await account.sign_up(seller.price(TEAM), seats=5)
    await seller.reach("2027-03-11")
    assert await seller.reason("seats", used=4) == "within_limit"
    assert await seller.reason("seats", quantity=3, used=5) == "seats_full"
    assert await seller.costs("seats", quantity=3, used=5) == ("team@1", 2032)
    await account.change_plan(seats=8)
    assert (await account.invoice()).due == 2032
    await seller.reach("2027-03-21")
    assert await seller.reason("seats", used=7) == "within_limit"
    await account.change_plan(seats=6, billed=ON_NEXT_INVOICE)
    await seller.hear("2027-03-21")

    assert [await seller.reason("seats", used=used) for used in (5, 6)] == ["within_limit", "seats_full"]
    await seller.reach("2027-04-01 01:00:00")
    assert (await account.invoice()).due == 5290


async def test_10_two_seats_in_the_same_second(account: Account, seller: Seller) -> None:
    """678 and 677 are 1355, what one step of two seats costs."""
    await seller.open(CATALOG, "2027-03-01")
    await account.sign_up(seller.price(TEAM), seats=5)
    await seller.reach("2027-03-11")
    both = await seller.costs("seats", quantity=2, used=5)
    first = await seller.costs("seats", used=5)
    await account.change_plan(seats=6)
    await seller.hear("2027-03-11")
    second = await seller.costs("seats", used=6)
    await account.change_plan(seats=7)
    await seller.hear("2027-03-11")

    assert (both, first, second) == (("team@1", 1355), ("team@1", 678), ("team@1", 677))
    assert await account.bills() == [("paid", 5000), ("paid", 678), ("paid", 677)]
    assert (await seller.check("seats", used=6)).decision.limit == 7


async def test_12_a_location_within_a_year(account: Account, seller: Seller) -> None:
    """A third location on September 9, with 276 of 366 days left, costs 116734."""
    await seller.open(CATALOG, "2027-06-11")
    await account.sign_up(seller.price(PRO_YEARLY), seats=2)
    await seller.reach("2027-09-09")
    denied = await seller.check("locations", used=2)
    await account.change_plan(seats=3)

    assert denied.upgrade is not None
    assert (denied.upgrade.due_now.minor, denied.upgrade.quantity) == (116734, 3)
    assert denied.upgrade.words == (
        "Pro with 3 locations includes it: $1,167.34 today for the 276 days left, then $4,644.00 a year "
        "from June 11, 2028."
    )
    assert (await account.invoice()).due == 116734


async def test_15_a_trial_of_three_locations(account: Account, seller: Seller) -> None:
    """30 days cost nothing, and day 30 costs 44700. The plan is given throughout, first by the trial."""
    await seller.open(CATALOG, "2027-02-01")
    await account.sign_up(seller.price(PRO), seats=3, trial_period_days=30)
    await seller.hear("2027-02-01")
    trial = [await seller.reason("pos"), await seller.reason("locations", used=2)]
    assert await seller.costs("locations", used=3) == ("pro@1", 0)
    await seller.reach("2027-03-03 02:00:00")

    assert trial == ["trial", "trial"]
    assert [await seller.reason("pos"), await seller.reason("locations", used=2)] == ["included", "within_limit"]
    assert (await account.invoice()).due == 3 * 14900 == 44700


@pytest.mark.parametrize("ends", ["cancel", "pause"])
async def test_15_a_trial_without_a_card(account: Account, seller: Seller, ends: str) -> None:
    """It ends on day 30, at the instant, and the account has the default plan."""
    await seller.open(CATALOG, "2027-02-01", card="")
    settings = {"end_behavior": {"missing_payment_method": ends}}
    await account.sign_up(seller.price(PRO), trial_period_days=30, trial_settings=settings)
    await seller.hear("2027-02-01")
    assert await seller.reason("pos") == "trial"
    await seller.reach("2027-03-03 00:00:01")

    assert [await seller.reason("pos"), await seller.reason("locations", used=1)] == ["trial_over", "seats_full"]


async def test_18_access_is_not_lost_while_a_renewal_is_retried(account: Account, seller: Seller) -> None:
    """Past due from March 1; a new card pays on day 4."""
    await seller.open(CATALOG, "2027-02-01")
    await account.sign_up(seller.price(PRO))
    await account.decline_next("insufficient_funds", times=2)
    await seller.reach("2027-03-01 02:00:00")
    assert (await account.status(), await seller.reason("pos")) == ("past_due", "payment_failed_grace")
    # What is owed comes first.
    assert (await seller.check("locations", used=1)).upgrade is None
    await seller.reach("2027-03-04")
    await account.replace_card()
    await account.pay()
    await seller.hear("2027-03-04")

    assert (await account.status(), await seller.reason("pos")) == ("active", "included")


async def test_24_a_base_fee_and_seats_beyond_ten(account: Account, seller: Seller) -> None:
    """13 seats are 3 x 1500 = 4500 beside the base fee, in the next month too, without any event."""
    await seller.open(CATALOG, "2027-03-01")
    seats = {"price": seller.price(CLUB_SEAT), "quantity": 13}
    await account._shop.subscribe({"price": seller.price(CLUB_BASE)}, seats)
    await seller.hear("2027-03-01")

    assert (await account.invoice()).lines == [10000, 4500]
    assert [await seller.reason("seats", used=used) for used in (12, 13)] == ["within_limit", "seats_full"]
    await seller.reach("2027-04-01 01:00:00")
    assert (await account.invoice()).lines == [10000, 4500]
    assert (await seller.check("seats", used=12)).decision.limit == 13
