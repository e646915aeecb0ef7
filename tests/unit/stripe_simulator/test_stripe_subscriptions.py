"""Subscriptions through stripe-python: the golden scenarios to the cent, on test clocks."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.services.stripe_shop import Shop, at, lines


@pytest.mark.parametrize("country", ["US", "FR"])
async def test_preview_is_what_the_change_bills(shop: Shop, country: str) -> None:
    """Scenario 4: the sentence "47.50 today for the remaining 19 days", with 20 % tax in one country."""
    await shop.open("2027-02-01")
    await shop.sdk("v1.customers.update", shop.customer, {"address": {"country": country}})
    low, high = await shop.price(7900), await shop.price(14900)
    body = await shop.subscribe({"price": low}, automatic_tax={"enabled": True})
    await shop.advance("2027-02-10")
    items = [{"id": body["items"]["data"][0]["id"], "price": high}]
    change = {"items": items, "proration_behavior": "always_invoice", "proration_date": at("2027-02-10")}
    question = {"subscription": shop.subscription, "subscription_details": change}
    now = await shop.sdk("v1.invoices.create_preview", question)
    later = await shop.sdk("v1.invoices.create_preview", {**question, "preview_mode": "recurring"})
    tax = 20 if country == "FR" else 0

    assert (lines(now), now["total"]) == ([-5361, 10111], 4750 + 4750 * tax // 100)
    assert (lines(later), later["total"]) == ([14900], 14900 + 14900 * tax // 100)
    assert len(await shop.invoices()) == 1
    await shop.sdk("v1.subscriptions.update", shop.subscription, change)
    billed = (await shop.invoices())[-1]
    assert (lines(billed), billed["total"]) == (lines(now), now["total"])
    await shop.advance("2027-03-01 02:00:00")
    assert (await shop.invoices())[-1]["total"] == later["total"]


async def test_by_the_second(shop: Shop) -> None:
    """Scenario 5: a change at 10:30:17 is not rounded to days."""
    await shop.open("2027-01-01")
    await shop.subscribe({"price": await shop.price(2900)})
    await shop.advance("2027-01-12 10:30:17")
    await shop.change(price=await shop.price(9900), proration_behavior="always_invoice")

    latest = (await shop.invoices())[-1]
    assert (lines(latest), latest["amount_due"], latest["status"]) == ([-1830, 6247], 4417, "paid")


@pytest.mark.parametrize(("mode", "total"), [("flexible", 0), ("classic", -334)])
async def test_documented_proration(shop: Shop, mode: str, total: int) -> None:
    """Scenario 6: 10 to 20 without proration, and back. Flexible mode credits what was billed."""
    await shop.open("2027-04-01")
    ten, twenty = await shop.price(1000), await shop.price(2000)
    await shop.subscribe({"price": ten}, billing_mode={"type": mode})
    await shop.advance("2027-04-11")
    await shop.change(price=twenty, proration_behavior="none")
    await shop.advance("2027-04-21")
    await shop.change(price=ten)

    assert sum(await shop.pending()) == total


async def test_upgrade_at_half(shop: Shop) -> None:
    """Scenario 6: 10 to 20 at half of the period costs 5."""
    await shop.open("2027-04-01")
    await shop.subscribe({"price": await shop.price(1000)})
    await shop.advance("2027-04-16")
    await shop.change(price=await shop.price(2000))

    assert await shop.pending() == [-500, 1000]


async def test_downgrade_at_period_end(shop: Shop) -> None:
    """Scenario 7: nothing now, the lower price from March 1 00:00:00."""
    await shop.open("2027-02-01")
    low, high = await shop.price(7900), await shop.price(14900)
    await shop.subscribe({"price": high})
    await shop.advance("2027-02-10")
    schedule = await shop.schedule(low)
    assert await shop.amounts() == [("paid", 14900)]
    await shop.advance("2027-02-28 23:59:59")
    assert (await shop.get())["items"]["data"][0]["price"]["id"] == high
    await shop.advance("2027-03-01 02:00:00")

    assert await shop.amounts() == [("paid", 14900), ("paid", 7900)]
    assert (await shop.get())["items"]["data"][0]["price"]["id"] == low
    (event,) = (await shop.sdk("v1.events.list", {"type": "subscription_schedule.updated", "limit": 1}))["data"]
    assert event["created"] == at("2027-03-01")
    assert (await shop.sdk("v1.subscription_schedules.retrieve", schedule))["status"] == "active"
    await shop.advance("2027-04-01 02:00:00")
    assert (await shop.sdk("v1.subscription_schedules.retrieve", schedule))["status"] == "released"
    assert (await shop.amounts())[2:] == [("paid", 7900)]


async def test_released_downgrade(shop: Shop) -> None:
    """Scenario 7: released on February 20, so March costs what February did."""
    await shop.open("2027-02-01")
    await shop.subscribe({"price": await shop.price(14900)})
    await shop.advance("2027-02-10")
    schedule = await shop.schedule(await shop.price(7900))
    await shop.advance("2027-02-20")
    await shop.sdk("v1.subscription_schedules.release", schedule)
    await shop.advance("2027-03-01 02:00:00")

    assert await shop.amounts() == [("paid", 14900), ("paid", 14900)]


async def test_immediate_downgrade(shop: Shop) -> None:
    """Scenario 7, the other way: a credit now, which March 1 uses."""
    await shop.open("2027-02-01")
    await shop.subscribe({"price": await shop.price(14900)})
    await shop.advance("2027-02-10")
    await shop.change(price=await shop.price(7900))
    assert sum(await shop.pending()) == -4750
    await shop.advance("2027-03-01 02:00:00")

    assert await shop.amounts() == [("paid", 14900), ("paid", 3150)]


async def test_rapid_up_and_down(shop: Shop) -> None:
    """Scenario 8: 60 seconds apart; the credit stays in the balance."""
    await shop.open("2027-02-01")
    low, high = await shop.price(7900), await shop.price(14900)
    await shop.subscribe({"price": low})
    await shop.advance("2027-02-10")
    await shop.change(price=high, proration_behavior="always_invoice")
    await shop.advance("2027-02-10 00:01:00")
    await shop.change(price=low, proration_behavior="always_invoice")

    up, down = (await shop.invoices())[1:]
    assert (lines(up), up["amount_paid"]) == ([-5361, 10111], 4750)
    assert (lines(down), down["amount_due"]) == ([-10110, 5361], 0)
    assert (await shop.sdk("v1.customers.retrieve", shop.customer))["balance"] == -4749
    await shop.advance("2027-03-01 02:00:00")
    assert (await shop.amounts())[-1] == ("paid", 3151)


async def test_seats(shop: Shop) -> None:
    """Scenario 9: more seats now, fewer seats as a credit on the next invoice."""
    await shop.open("2027-03-01")
    await shop.subscribe({"price": await shop.price(1000), "quantity": 5})
    await shop.advance("2027-03-11")
    await shop.change(quantity=8, proration_behavior="always_invoice")
    assert lines((await shop.invoices())[-1]) == [-3387, 5419]
    await shop.advance("2027-03-21")
    await shop.change(quantity=6)
    assert await shop.pending() == [-2839, 2129]
    await shop.advance("2027-04-01 02:00:00")

    assert await shop.amounts() == [("paid", 5000), ("paid", 2032), ("paid", 5290)]


async def test_a_change_of_an_item_that_the_nested_list_does_not_show_is_told(shop: Shop) -> None:
    """A mirror reads a subscription again only when it hears of it, and then reads the items to the last page."""
    await shop.open("2027-02-01")
    made = await shop.subscribe(*[{"price": await shop.price(1000)} for _ in range(12)])
    items, added = "v1.subscription_items", {"subscription": made["id"], "price": await shop.price(1000)}
    listed = await shop.sdk(f"{items}.list", {"subscription": made["id"], "limit": 100})
    one, other = {item["id"] for item in listed["data"]} - {item["id"] for item in made["items"]["data"]}
    updates = {"type": "customer.subscription.updated", "limit": 100}
    told = [len((await shop.sdk("v1.events.list", updates))["data"])]
    for change in (
        (f"{items}.update", one, {"quantity": 2}),
        (f"{items}.update", one, {"quantity": 2}),
        (f"{items}.delete", other),
        (f"{items}.create", added),
    ):
        await shop.sdk(*change)
        told.append(len((await shop.sdk("v1.events.list", updates))["data"]))

    assert [after > before for before, after in pairwise(told)] == [True, False, True, True]


async def test_two_seats_in_one_second(shop: Shop) -> None:
    """Scenario 10: two steps of one cost what one step of two costs."""
    await shop.open("2027-03-01")
    await shop.subscribe({"price": await shop.price(1000), "quantity": 5})
    await shop.advance("2027-03-11")
    await shop.change(quantity=6, proration_behavior="always_invoice")
    await shop.change(quantity=7, proration_behavior="always_invoice")

    assert await shop.amounts() == [("paid", 5000), ("paid", 678), ("paid", 677)]


async def test_monthly_to_annual_and_back(shop: Shop) -> None:
    """Scenarios 11 to 13: a new period of a year, a location added inside it, and monthly again by a schedule."""
    await shop.open("2027-06-01")
    monthly, yearly = await shop.price(14900), await shop.price(154800, "year")
    await shop.subscribe({"price": monthly, "quantity": 2})
    await shop.advance("2027-06-11")
    now = {"type": "now"}
    body = await shop.change(price=yearly, billing_cycle_anchor=now, proration_behavior="always_invoice")
    latest = (await shop.invoices())[-1]
    assert (lines(latest), latest["amount_due"]) == ([-19867, 309600], 289733)
    assert body["billing_cycle_anchor"] == at("2027-06-11")
    assert body["items"]["data"][0]["current_period_end"] == at("2028-06-11")
    await shop.advance("2027-09-09")
    await shop.change(quantity=3, proration_behavior="always_invoice")
    assert lines((await shop.invoices())[-1]) == [-233469, 350203]
    await shop.schedule(monthly, 3)
    await shop.advance("2028-06-11 02:00:00")

    assert (await shop.amounts())[-2:] == [("paid", 116734), ("paid", 44700)]
    assert (await shop.get())["items"]["data"][0]["current_period_end"] == at("2028-07-11")


async def test_month_ends(shop: Shop) -> None:
    """Scenario 14: a subscription of January 31 bills on the last day of February, and on March 31."""
    await shop.open("2027-01-31")
    await shop.subscribe({"price": await shop.price(9900)})
    await shop.advance("2027-02-14")
    await shop.change(price=await shop.price(14900), proration_behavior="always_invoice")
    assert lines((await shop.invoices())[-1]) == [-4950, 7450]
    ends = []
    for day in ("2027-02-27", "2027-03-01", "2027-04-01"):
        await shop.advance(day)
        ends.append((await shop.get())["items"]["data"][0]["current_period_end"])

    assert ends == [at("2027-02-28"), at("2027-03-31"), at("2027-04-30")]


async def test_currency_without_decimals(shop: Shop) -> None:
    """Scenario 14: yen, with 10 of 30 days left."""
    await shop.open("2027-04-01")
    await shop.subscribe({"price": await shop.price(1500, currency="jpy")})
    await shop.advance("2027-04-21")
    await shop.change(price=await shop.price(3000, currency="jpy"), proration_behavior="always_invoice")

    assert lines((await shop.invoices())[-1]) == [-500, 1000]


async def test_first_payment_declined(shop: Shop) -> None:
    """Scenario 17: incomplete; 23 hours later expired, and the invoice void."""
    await shop.open("2027-02-01", "pm_card_chargeCustomerFail")
    body = await shop.subscribe({"price": await shop.price(14900)})
    assert (body["status"], await shop.amounts()) == ("incomplete", [("open", 14900)])
    await shop.advance("2027-02-01 22:59:59")
    assert (await shop.get())["status"] == "incomplete"
    await shop.advance("2027-02-01 23:00:00")

    assert (await shop.get())["status"] == "incomplete_expired"
    assert [status for status, _ in await shop.amounts()] == ["void"]


async def test_renewal_with_insufficient_funds(shop: Shop) -> None:
    """Scenario 18: past due after the renewal; a new card pays the open invoice once."""
    await shop.open("2027-02-01")
    await shop.subscribe({"price": await shop.price(14900)})
    await shop.use_card("pm_card_chargeCustomerFail")
    await shop.advance("2027-03-01 02:00:00")
    assert (await shop.get())["status"] == "past_due"
    await shop.advance("2027-03-02 02:00:00")
    await shop.advance("2027-03-04 12:00:00")
    await shop.use_card("pm_card_visa")
    latest = (await shop.invoices())[-1]
    await shop.sdk("v1.invoices.pay", latest["id"])

    assert (await shop.get())["status"] == "active"
    assert await shop.amounts() == [("paid", 14900), ("paid", 14900)]
    charges = await shop.sdk("v1.events.list", {"type": "invoice.paid"})
    assert len(charges["data"]) == 2
