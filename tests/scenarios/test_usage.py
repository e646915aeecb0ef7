"""Scenarios 1 to 3, 22, 26 and 27: usage, tiers, thresholds and credits. Amounts are cents, computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scenarios.vocabulary import Account, at, with_delivery_faults

TIERS: tuple[tuple[int | str, str], ...] = ((5, "700"), (10, "650"), ("inf", "600"))


async def test_01_usage_to_invoice(account: Account) -> None:
    """137 510 calls in November: 4900 + 0 + 90 000 × 0.2 + 37 510 × 0.1 = 26651 on December 1."""
    await account.open("2027-11-01")
    meter = await account.meter()
    calls = await account.tiered(meter, "graduated", (10_000, "0"), (100_000, "0.2"), ("inf", "0.1"))
    await account.sign_up(await account.plan(4900), calls)
    await account.advance("2027-11-20")
    await account.use(100_000, "2027-11-05")
    await account.use(37_503, "2027-11-20")
    await account.advance("2027-12-01 00:30:00")
    await account.use(7, "2027-11-30 23:59:59")
    await account.use(1_000, "2027-12-01")
    await account.advance("2027-12-01 01:00:00")

    billed = await account.invoice()
    assert (sorted(billed.lines), billed.due, billed.status) == ([0, 3751, 4900, 18000], 26651, "paid")
    assert await account.quantities(calls) == [10_000, 90_000, 37_510]
    assert await account.counted(meter, "2027-11-01", "2027-12-01") == 137_510


@pytest.mark.parametrize(
    ("mode", "cents"),
    [("volume", [700, 3500, 3900, 12000, 15000]), ("graduated", [700, 3500, 4150, 12750, 15750])],
    ids=["volume", "graduated"],
)
async def test_02_tiers(account: Account, mode: str, cents: list[int]) -> None:
    """Stripe's examples: 1 to 5 at 7 USD, 6 to 10 at 6.50 USD, more at 6 USD."""
    await account.open("2027-11-01")
    rows = [{"up_to": up_to, "unit_amount": amount} for up_to, amount in TIERS]
    price = await account.plan(0, billing_scheme="tiered", tiers_mode=mode, tiers=rows)

    assert [(await account.preview_new(price, quantity)).due for quantity in (1, 5, 6, 20, 25)] == cents


async def test_02_packages_and_fractions_of_a_cent(account: Account) -> None:
    """61 minutes at 1000 for each begun hour are 2000; 12 344 × 0.05 are 617.2, billed as 617."""
    await account.open("2027-11-01")
    hours = await account.plan(1000, transform_quantity={"divide_by": 60, "round": "up"})
    assert (await account.preview_new(hours, 61)).due == 2000

    await account.sign_up(await account.per_call(await account.meter(), "0.05"))
    await account.use(12_344, "2027-11-01")
    await account.advance("2027-12-01 01:00:00")
    assert (await account.invoice()).due == 617


async def test_03_thresholds(account: Account) -> None:
    """10 000 calls at 50 are 500000 at once; 25 000 at 40 are 1000000, of which 500000 are billed already."""
    await account.open("2027-11-01")
    meter = await account.meter()
    calls = await account.tiered(meter, "volume", (10_000, "50"), ("inf", "40"))
    await account.sign_up(calls, billing_thresholds={"amount_gte": 500_000})
    await account.use(10_000, "2027-11-01")
    await account.advance("2027-11-02")
    assert (await account.invoice()).due == 500_000
    await account.use(15_000, "2027-11-02")
    await account.advance("2027-11-03")
    assert (await account.invoice()).lines == [1_000_000, -500_000]
    await account.advance("2027-12-01 01:00:00")

    assert await account.bills() == [("paid", 0), ("paid", 500_000), ("paid", 500_000), ("paid", 0)]


async def test_03_one_call_beyond_the_threshold(account: Account) -> None:
    """10 001 calls at 40 are 400040: of the 500000 that were billed, 99960 stay as a credit."""
    await account.open("2027-11-01")
    meter = await account.meter()
    calls = await account.tiered(meter, "volume", (10_000, "50"), ("inf", "40"))
    await account.sign_up(calls, billing_thresholds={"amount_gte": 500_000})
    await account.use(10_000, "2027-11-01")
    await account.advance("2027-11-02")
    await account.use(1, "2027-11-02")
    await account.advance("2027-12-01 01:00:00")

    assert await account.bills() == [("paid", 0), ("paid", 500_000), ("paid", 0)]
    assert ((await account.invoice()).lines, await account.balance()) == ([400_040, -500_000], -99_960)


@with_delivery_faults
@pytest.mark.parametrize(
    ("coupon", "country", "due"),
    [(0, "", 2000), (10, "", 800), (10, "FR", 960)],
    ids=["credits", "10 % off", "10 % off and 20 % tax"],
)
async def test_22_credit_grants(account: Account, coupon: int, country: str, due: int) -> None:
    """12000 of usage: paid credits of priority 10 first, then the promotion that expires, then the other paid ones."""
    await account.open("2027-11-01", country=country)
    extra: dict[str, Any] = {"automatic_tax": {"enabled": bool(country)}}
    if coupon:
        extra["discounts"] = [{"coupon": await account.coupon(percent_off=coupon)}]
    await account.sign_up(await account.per_call(await account.meter(), "1"), **extra)
    promotion = await account.grant_credit(2000, category="promotional", expires_at=at("2028-06-01"))
    paid = await account.grant_credit(5000)
    first = await account.grant_credit(3000, priority=10)
    await account.use(12_000, "2027-11-01")
    await account.advance("2027-12-01 01:00:00")

    assert ((await account.invoice()).due, await account.credit_left()) == (due, 0)
    assert await account.credits_used() == [(first, 3000), (promotion, 2000), (paid, 5000)]


async def test_22_flat_fees_take_no_credit_and_voiding_gives_back(account: Account) -> None:
    """Of 4900 + 12000 the grants pay only usage. The voided invoice gives 10000 back."""
    await account.open("2027-11-01")
    await account.sign_up(await account.plan(4900), await account.per_call(await account.meter(), "1"))
    await account.grant_credit(10_000)
    await account.use(12_000, "2027-11-01")
    await account.decline_next("insufficient_funds")
    await account.advance("2027-12-01 01:00:00")
    billed = await account.invoice()
    assert (billed.status, billed.due, await account.credit_left()) == ("open", 6900, 0)

    await account.void(billed)
    assert await account.credit_left() == 10_000


@pytest.mark.parametrize(("billing_mode", "due"), [("flexible", 34000), ("classic", 14000)])
async def test_26_a_metered_price_is_swapped(account: Account, billing_mode: str, due: int) -> None:
    """400 000 at 0.05 until December 11 10:30:00, then 350 000 at 0.04. Classic mode never bills the 20000."""
    await account.open("2027-12-01")
    meter = await account.meter()
    await account.sign_up(await account.per_call(meter, "0.05"), billing_mode={"type": billing_mode})
    await account.advance("2027-12-11 10:30:00")
    await account.use(300_000, "2027-12-05")
    await account.use(100_000, "2027-12-11 10:29:59")
    await account.change_plan(await account.per_call(meter, "0.04"), billed="create_prorations")
    await account.use(50_000, "2027-12-11 10:30:00")
    await account.advance("2027-12-20")
    await account.use(300_000, "2027-12-15")
    await account.advance("2028-01-01 01:00:00")

    assert (await account.invoice()).due == due


async def test_26_cancellation_bills_the_final_usage(account: Account) -> None:
    """At once with `invoice_now`, to the second of the cancellation."""
    await account.open("2027-12-01")
    await account.sign_up(await account.per_call(await account.meter(), "0.05"))
    await account.use(400_000, "2027-12-01")
    await account.advance("2027-12-11 10:30:00")
    await account.cancel(invoice_now=True)

    billed = await account.invoice()
    assert (billed.status, billed.due, await account.status()) == ("paid", 20000, "canceled")


@with_delivery_faults
async def test_27_flat_to_metered(account: Account) -> None:
    """The flat 9900 until March 1; then 0, because usage is billed later; 8400 on April 1 as the preview said."""
    await account.open("2027-02-01")
    meter = await account.meter()
    flat, metered = await account.plan(9900), await account.tiered(meter, "graduated", (100_000, "0"), ("inf", "0.06"))
    await account.sign_up(flat)
    await account.schedule_metered(metered)
    await account.advance("2027-02-20")
    await account.use(240_000, "2027-02-15")
    await account.advance("2027-03-01 01:00:00")
    assert await account.bills() == [("paid", 9900), ("paid", 0)]

    await account.advance("2027-03-20")
    await account.use(240_000, "2027-03-15")
    assert (await account.preview()).due == 8400
    await account.advance("2027-04-01 01:00:00")
    assert await account.bills() == [("paid", 9900), ("paid", 0), ("paid", 8400)]


async def test_27_the_shadow_month(account: Account) -> None:
    """34 customers pay 10 × 9900 while their calls are metered beside: 3366000, and every metered line is 0."""
    await account.open("2027-02-01")
    meter = await account.meter()
    flat, shadow = await account.plan(9900), await account.per_call(meter, "0")
    for number in range(34):
        if number:
            await account.another_customer()
        await account.sign_up(flat, shadow, seats=10)
    await account.use(240_000, "2027-02-01")
    await account.advance("2027-03-01 01:00:00")
    await account.deliver()

    paid = await account.all_paid("subscription_cycle")
    assert (len(paid), sum(invoice.due for invoice in paid)) == (34, 3_366_000)
    assert {tuple(sorted(invoice.lines)) for invoice in paid} == {(0, 99_000)}


async def test_27_the_step_is_given_up(account: Account) -> None:
    """Before March 1 the schedule is released: the next invoice is 9900."""
    await account.open("2027-02-01")
    meter = await account.meter()
    await account.sign_up(await account.plan(9900))
    schedule = await account.schedule_metered(await account.per_call(meter, "0.06"))
    await account.advance("2027-02-20")
    await account.release(schedule)
    await account.advance("2027-03-01 01:00:00")

    assert await account.bills() == [("paid", 9900), ("paid", 9900)]
