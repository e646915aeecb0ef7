"""Scenarios 4 to 8, 14 and 21: a plan is changed inside a period. Amounts are cents, computed by hand."""

from __future__ import annotations

import pytest

from tests.scenarios.vocabulary import ON_NEXT_INVOICE, Account, at, with_delivery_faults

ESSENTIAL, PRO = 7900, 14900


async def test_04_a_change_bills_what_its_preview_showed(account: Account) -> None:
    """Essential to Pro on February 10: "$47.50 today for the remaining 19 days", and 14900 on March 1."""
    await account.open("2027-02-01")
    essential, pro = await account.plan(ESSENTIAL), await account.plan(PRO)
    await account.sign_up(essential)
    await account.advance("2027-02-10")
    moment = at("2027-02-10")

    shown = await account.preview(price=pro, proration_behavior="always_invoice", proration_date=moment)
    later = await account.preview(price=pro, proration_behavior="none")
    await account.change_plan(pro, proration_date=moment)
    billed = await account.invoice()

    assert (shown.lines, shown.due) == ([-5361, 10111], 4750)
    assert (billed.lines, billed.due, billed.status) == ([-5361, 10111], 4750, "paid")
    assert later.due == 14900
    await account.advance("2027-03-01 02:00:00")
    assert await account.bills() == [("paid", 7900), ("paid", 4750), ("paid", 14900)]


async def test_04_with_a_tax_of_20_percent(account: Account) -> None:
    """The tax comes on top: 950 of 4750."""
    await account.open("2027-02-01", country="FR")
    essential, pro = await account.plan(ESSENTIAL), await account.plan(PRO)
    await account.sign_up(essential, automatic_tax={"enabled": True})
    await account.advance("2027-02-10")

    shown = await account.preview(price=pro, proration_behavior="always_invoice")
    await account.change_plan(pro)
    billed = await account.invoice()

    assert (shown.tax, shown.total) == (billed.tax, billed.total) == (950, 5700)


async def test_05_by_the_second(account: Account) -> None:
    """2900 to 9900 on January 12 at 10:30:17, with 1 690 183 of 2 678 400 seconds left."""
    await account.open("2027-01-01")
    await account.sign_up(await account.plan(2900))
    await account.advance("2027-01-12 10:30:17")
    await account.change_plan(await account.plan(9900))

    billed = await account.invoice()
    assert (billed.lines, billed.due) == ([-1830, 6247], 4417)


async def test_06_half_of_a_period(account: Account) -> None:
    """Stripe's first example: 10 USD to 20 USD at half of the period costs 5 USD."""
    await account.open("2027-04-01")
    await account.sign_up(await account.plan(1000))
    await account.advance("2027-04-16")
    await account.change_plan(await account.plan(2000), billed=ON_NEXT_INVOICE)

    assert await account.pending() == [-500, 1000]
    assert (await account.preview()).due == 2000 + 500


@pytest.mark.parametrize(
    ("billing_mode", "pending"), [("flexible", [-333, 333]), ("classic", [-667, 333])], ids=["flexible", "classic"]
)
async def test_06_up_without_proration_and_down_again(account: Account, billing_mode: str, pending: list[int]) -> None:
    """Stripe's second example. Flexible mode credits what was billed, 0 in sum; classic mode gives 334 away."""
    await account.open("2027-04-01")
    ten, twenty = await account.plan(1000), await account.plan(2000)
    await account.sign_up(ten, billing_mode={"type": billing_mode})
    await account.advance("2027-04-11")
    await account.change_plan(twenty, billed="none")
    await account.advance("2027-04-21")
    await account.change_plan(ten, billed=ON_NEXT_INVOICE)

    assert await account.pending() == pending
    assert sum(pending) == {"flexible": 0, "classic": -334}[billing_mode]


@with_delivery_faults
async def test_07_downgrade_at_the_end_of_the_period(account: Account) -> None:
    """Nothing on February 10, 7900 on March 1; the features change at March 1 00:00:00."""
    await account.open("2027-02-01")
    essential, pro = await account.plan(ESSENTIAL), await account.plan(PRO)
    await account.grants(pro, "reports")
    await account.grants(essential, "counters")
    await account.sign_up(pro)
    await account.advance("2027-02-10")
    await account.schedule_plan(essential)
    assert (await account.bills(), await account.pending()) == ([("paid", 14900)], [])

    await account.advance("2027-02-28 23:59:59")
    assert (await account.price(), await account.features()) == (pro, ["reports"])
    await account.advance("2027-03-01")
    assert (await account.price(), await account.features()) == (essential, ["counters"])
    await account.advance("2027-03-01 01:00:00")
    assert await account.bills() == [("paid", 14900), ("paid", 7900)]


async def test_07_the_downgrade_is_given_up(account: Account) -> None:
    """Released on February 20: March costs what February did."""
    await account.open("2027-02-01")
    essential, pro = await account.plan(ESSENTIAL), await account.plan(PRO)
    await account.sign_up(pro)
    await account.advance("2027-02-10")
    schedule = await account.schedule_plan(essential)
    await account.advance("2027-02-20")
    await account.release(schedule)
    await account.advance("2027-03-01 01:00:00")

    assert await account.bills() == [("paid", 14900), ("paid", 14900)]
    assert await account.price() == pro


async def test_07_immediate_downgrade(account: Account) -> None:
    """A credit of 4750, which the invoice of March 1 uses."""
    await account.open("2027-02-01")
    await account.sign_up(await account.plan(PRO))
    await account.advance("2027-02-10")
    await account.change_plan(await account.plan(ESSENTIAL), billed=ON_NEXT_INVOICE)
    assert sum(await account.pending()) == -4750
    await account.advance("2027-03-01 01:00:00")

    assert await account.bills() == [("paid", 14900), ("paid", 3150)]


@with_delivery_faults
async def test_08_up_and_down_within_a_minute(account: Account) -> None:
    """4750 are paid, 4749 stay in the balance, and March 1 costs 3151: the minute on Pro costs a cent."""
    await account.open("2027-02-01")
    essential, pro = await account.plan(ESSENTIAL), await account.plan(PRO)
    await account.sign_up(essential)
    await account.advance("2027-02-10")
    await account.change_plan(pro)
    await account.advance("2027-02-10 00:01:00")
    await account.change_plan(essential)

    up, down = (await account.invoices())[1:]
    assert (up.lines, up.due, up.status) == ([-5361, 10111], 4750, "paid")
    assert (down.lines, down.due) == ([-10110, 5361], 0)
    assert await account.balance() == -4749
    await account.advance("2027-03-01 01:00:00")
    assert (await account.invoice()).due == 3151
    assert await account.balance() == 0
    assert (await account.state())["schedule"] is None


async def test_14_month_ends(account: Account) -> None:
    """Anchor January 31: billed on February 28 and on March 31. A change on February 14 has 14 of 28 days left."""
    await account.open("2027-01-31")
    await account.sign_up(await account.plan(9900))
    await account.advance("2027-02-14")
    await account.change_plan(await account.plan(14900))
    billed = await account.invoice()
    assert (billed.lines, billed.due) == ([-4950, 7450], 2500)

    assert await account.period_end() == at("2027-02-28")
    await account.advance("2027-03-01")
    assert await account.period_end() == at("2027-03-31")
    await account.advance("2027-04-01")
    assert await account.period_end() == at("2027-04-30")
    assert await account.bills() == [("paid", 9900), ("paid", 2500), ("paid", 14900), ("paid", 14900)]


async def test_14_a_currency_without_decimals(account: Account) -> None:
    """1500 to 3000 yen with 10 of 30 days left."""
    await account.open("2027-04-01")
    await account.sign_up(await account.plan(1500, currency="jpy"))
    await account.advance("2027-04-21")
    await account.change_plan(await account.plan(3000, currency="jpy"))

    billed = await account.invoice()
    assert (billed.lines, billed.due) == ([-500, 1000], 500)


async def test_21_prorations_of_a_discounted_price(account: Account) -> None:
    """20 % off for ever: 10000 to 20000 at half credits 4000 and charges 8000, and is not discounted again."""
    await account.open("2027-04-01")
    coupon = await account.coupon(percent_off=20)
    await account.sign_up(await account.plan(10000), discounts=[{"coupon": coupon}])
    assert (await account.invoice()).due == 8000
    await account.advance("2027-04-16")
    await account.change_plan(await account.plan(20000))

    billed = await account.invoice()
    assert (billed.lines, billed.due) == ([-4000, 8000], 4000)
    await account.advance("2027-05-01 01:00:00")
    assert (await account.invoice()).due == 16000


async def test_21_a_coupon_over_two_lines(account: Account) -> None:
    """500 off 1000 and 2000 are 166 and 334: the last line takes the remainder."""
    await account.open("2027-04-01")
    coupon = await account.coupon(amount_off=500)
    prices = [await account.plan(1000), await account.plan(2000)]
    await account.sign_up(*prices, discounts=[{"coupon": coupon}])

    assert await account.discounts() == [166, 334]
    assert (await account.invoice()).due == 2500
