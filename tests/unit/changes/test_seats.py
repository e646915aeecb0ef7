"""Paid seats follow their holders: scenarios 9, 10 and 12 through the product, and what never happens."""

from __future__ import annotations

import pytest

from tests.worlds.seated import YEARLY_SEATS, Seated, seats_catalog


async def begun(seats_down: str, holders: int = 5, begins: str = "2027-03-01", key: str = "") -> Seated:
    business = Seated(begins)
    await business.begin(seats_catalog(seats_down))
    await business.holding(holders, **({"key": key} if key else {}))
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
