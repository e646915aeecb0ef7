"""What went wrong elsewhere with credits, tried here. Each test says what happened there and what is right."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from aggregators.credit_terms import terms_of
from pipeline.access.renewal import commerce_of
from pipeline.credits.buying import top_up
from schemas.clock import DAY_MS
from schemas.credits import Terms, Usage
from schemas.packs import PurchaseState
from tests.worlds.changing import ACME
from tests.worlds.credited import CALLS, FEE, LEDGER, MONEY, Credited

START_MS: Final = int(datetime(2027, 11, 1, tzinfo=UTC).timestamp()) * 1_000
MONTH_MS: Final = 30 * DAY_MS
# A dearer plan, which includes more.
LARGE: Final = """\
  large:
    version: 1
    name: Large
    rank: 30
    prices:
      - {component: fee, month: {usd: "90.00"}}
      - {component: calls, meter: calls, unit: calls, month: {usd: "0.01"}}
    credits: [{pool: prepaid, amount: 9000}]
credit_pools:
"""
MONTHLY: Final = LEDGER.replace("credit_pools:\n", LARGE)


async def begun(catalog: str, *keys: str) -> Credited:
    business = Credited(START_MS)
    await business.begin(catalog)
    if keys:
        await business.subscribed(*keys)
    await business.settle()
    return business


async def terms(business: Credited) -> Terms:
    found = await commerce_of(business.sql.catalog)
    assert found is not None
    return terms_of(found[1], found[0])


async def begins(business: Credited, start_ms: int) -> None:
    """A period of usage begins."""
    now_ms = business.clock.now_ms()
    await business.sql.credits.include(ACME, start_ms, start_ms + MONTH_MS, await terms(business), now_ms)


async def draws(business: Credited, calls: int, name: str) -> None:
    """Calls are drawn."""
    now_ms = business.clock.now_ms()
    usage = Usage(name, ACME, "calls", START_MS, START_MS + MONTH_MS, now_ms, calls, 0)
    await business.sql.credits.allocate(usage, await terms(business), now_ms)


async def bought(business: Credited, key: str) -> str:
    """A pack is bought and paid; returns the invoice."""
    business.pays_pack(await business.buys(key))
    await business.unpacked()
    return str(business.newest_invoice()["id"])


async def test_a_top_up_that_is_asked_for_twice_is_one() -> None:
    """Elsewhere two requests made two top-ups."""
    business = await begun(LEDGER)
    first, second = await business.buys("order 17"), await business.buys("order 17")
    business.pays_pack(first)
    await business.unpacked()
    await business.unpacked()
    assert (first.id, first.url) == (second.id, second.url)
    assert [(given, left) for _, given, left in await business.left()] == [(100, 100)]


async def test_a_payment_that_fails_leaves_no_credits_and_a_void_gives_none() -> None:
    """Elsewhere the credits of a failed payment stayed, and voiding its invoice gave them a second time."""
    business = await begun(LEDGER)
    await bought(business, "first")
    await draws(business, 90, "i1")
    business.use_card("pm_card_chargeCustomerFail")
    await top_up(business.pack_parts())
    await business.unpacked()
    (failed,) = await business.sql.packs.topped(ACME, "prepaid", START_MS)
    assert (failed.state, business.newest_invoice()["status"]) == (PurchaseState.FAILED, "void")
    assert [(given, left) for _, given, left in await business.left()] == [(100, 10)]


async def test_a_period_that_begins_takes_no_credits_that_were_given_before() -> None:
    """Elsewhere the reset of a period came after a purchase, and discarded what had been bought."""
    business = await begun(MONTHLY, "large.v1.fee.month.usd", "large.v1.calls.month.usd")
    await bought(business, "just before")
    await begins(business, START_MS)
    await bought(business, "just after")
    await begins(business, START_MS)
    assert sorted(left for _, _, left in await business.left()) == [100, 100, 9000]


async def test_an_upgrade_on_the_last_day_gives_no_credits_to_burn() -> None:
    """Elsewhere who upgraded late got the larger plan's credits at once, used them, and went back for a refund."""
    business = await begun(MONEY.replace("credit_pools:\n", LARGE), FEE, CALLS)
    await business.granted()
    business.passes(MONTH_MS - 2 * DAY_MS)
    items = {row["price"]["lookup_key"]: row["id"] for row in business.at_stripe()["items"]["data"]}
    change = [
        {"id": items[f"tm.{old}"], "price": business.prices[f"tm.{old.replace('metered', 'large')}"]}
        for old in (FEE, CALLS)
    ]
    await changed(business, items=change, proration_behavior="always_invoice")
    assert [order.amount_minor for order in await business.orders()] == [700]

    business.passes(3 * DAY_MS)
    await business.settle()
    await business.granted()
    assert [order.amount_minor for order in await business.orders()] == [700, 9000]


async def test_a_period_that_is_begun_anew_gives_its_credits() -> None:
    """Elsewhere the customer was charged for a new period, and got no credits for it."""
    business = await begun(MONEY, FEE, CALLS)
    await business.granted()
    business.passes(9 * DAY_MS)
    await changed(business, billing_cycle_anchor={"type": "now"}, proration_behavior="always_invoice")
    assert [order.amount_minor for order in await business.orders()] == [700, 700]
    assert len({order.key for order in await business.orders()}) == 2


async def changed(business: Credited, **params: Any) -> None:
    """The subscription is changed at Stripe, and grants follow."""
    business.stripe.call("POST /v1/subscriptions/{subscription_exposed_id}", params, business.subscription)
    await business.settle()
    await business.granted()
