"""Scenarios 9 to 13 and 24: seats, locations, and months and years. Amounts are cents, computed by hand."""

from __future__ import annotations

from tests.scenarios.vocabulary import ON_NEXT_INVOICE, Account, at, with_delivery_faults

MONTHLY, YEARLY = 14900, 154800


@with_delivery_faults
async def test_09_seats(account: Account) -> None:
    """Five seats of 1000; three more at once for 2032; two fewer as a credit of 710 on April 1."""
    await account.open("2027-03-01")
    await account.sign_up(await account.plan(1000), seats=5)
    await account.advance("2027-03-11")
    await account.change_plan(seats=8)
    more = await account.invoice()
    assert (more.lines, more.due) == ([-3387, 5419], 2032)

    await account.advance("2027-03-21")
    await account.change_plan(seats=6, billed=ON_NEXT_INVOICE)
    assert await account.pending() == [-2839, 2129]
    await account.advance("2027-04-01 01:00:00")
    assert await account.bills() == [("paid", 5000), ("paid", 2032), ("paid", 5290)]


async def test_10_two_seats_in_the_same_second(account: Account) -> None:
    """Two steps of one seat, 678 and 677, cost what one step of two seats costs."""
    await account.open("2027-03-01")
    await account.sign_up(await account.plan(1000), seats=5)
    await account.advance("2027-03-11")
    one_step = await account.preview(seats=7, proration_behavior="always_invoice")
    await account.change_plan(seats=6)
    await account.change_plan(seats=7)

    assert await account.bills() == [("paid", 5000), ("paid", 678), ("paid", 677)]
    assert one_step.due == 678 + 677
    assert (await account.state())["items"]["data"][0]["quantity"] == 7


@with_delivery_faults
async def test_11_to_13_monthly_to_annual_and_back(account: Account) -> None:
    """A year from June 11; a third location on September 9, with 276 of 366 days left; months again a year later."""
    await account.open("2027-06-01")
    monthly, yearly = await account.plan(MONTHLY), await account.plan(YEARLY, "year")
    await account.sign_up(monthly, seats=2)
    await account.advance("2027-06-11")
    await account.change_plan(yearly, billing_cycle_anchor={"type": "now"})
    switch = await account.invoice()
    assert (switch.lines, switch.due) == ([-19867, 309600], 289733)
    assert (await account.state())["billing_cycle_anchor"] == at("2027-06-11")
    assert await account.period_end() == at("2028-06-11")

    await account.advance("2027-09-09")
    await account.change_plan(seats=3)
    location = await account.invoice()
    assert (location.lines, location.due) == ([-233469, 350203], 116734)

    await account.schedule_plan(monthly, seats=3)
    assert (await account.invoice()).id == location.id
    await account.advance("2028-06-11 01:00:00")
    assert (await account.invoice()).due == 3 * MONTHLY == 44700
    assert await account.period_end() == at("2028-07-11")


@with_delivery_faults
async def test_24_ten_seats_set_once_and_half_a_month_each_way(account: Account) -> None:
    """Ten seats of 500, set once. From November 16 on, half of the month, they cost 1000 each; from noon of
    December 16 on, half of that month, 500 each again. January and February are billed without another event."""
    await account.open("2026-11-01")
    small, large = await account.plan(500), await account.plan(1000)
    await account.sign_up(small, seats=10)
    await account.advance("2026-11-16")
    await account.change_plan(large)
    upgrade = await account.invoice()
    assert (upgrade.lines, upgrade.due) == ([-2500, 5000], 2500)

    await account.advance("2026-12-16 12:00:00")
    await account.change_plan(small, billed=ON_NEXT_INVOICE)
    assert await account.pending() == [-5000, 2500]
    await account.advance("2027-02-01 01:00:00")
    assert [due for _, due in await account.bills()] == [5000, 2500, 10000, 5000 - 2500, 5000]
    assert {status for status, _ in await account.bills()} == {"paid"}
    assert (await account.state())["items"]["data"][0]["quantity"] == 10
