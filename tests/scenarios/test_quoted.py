"""Scenarios 6 and 21 as quotes that are accepted: half of a period, and a price with a discount."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tests.worlds.changing import Changing

CATALOG = """\
version: 1
meters:
  - {slug: calls, event_type: call, aggregation: count, unit: calls, stripe_event_name: calls}
currencies: {usd: 2}
plans:
  ten: {version: 1, rank: 1, prices: [{component: base, month: {usd: "10.00"}}]}
  twenty: {version: 1, rank: 2, prices: [{component: base, month: {usd: "20.00"}}]}
  hundred: {version: 1, rank: 3, prices: [{component: base, month: {usd: "100.00"}}]}
  double: {version: 1, rank: 4, prices: [{component: base, month: {usd: "200.00"}}]}
"""
HALF_MS = int(datetime(2027, 4, 16, tzinfo=UTC).timestamp()) * 1_000


async def at_half(plan: str, **params: Any) -> Changing:
    """Acme has had a plan for the first half of April."""
    business = Changing(int(datetime(2027, 4, 1, tzinfo=UTC).timestamp()) * 1_000)
    await business.begin(CATALOG)
    if params:
        business.stripe.call("POST /v1/coupons", {"id": "fifth", "percent_off": 20, "duration": "forever"})
    await business.subscribed(f"{plan}.v1.base.month.usd", **params)
    business.clock.ms = HALF_MS
    business.stripe.simulator.catch_up()
    await business.settle()
    return business


async def test_06_half_of_a_period_costs_half_of_the_difference() -> None:
    """Stripe's first example: 10 USD to 20 USD at half of the period costs 5 USD."""
    business = await at_half("ten")
    quote, _ = await business.changed("twenty")
    assert [line.amount_minor for line in quote.lines] == [-500, 1000]
    assert (quote.total.minor, quote.ours_minor, quote.charged_minor) == (500, 500, 500)
    assert business.invoices() == [1000, 500]


async def test_21_a_change_costs_what_the_discounted_prices_differ() -> None:
    """20 % forever, 100 USD to 200 USD at half: a credit of 40 and a charge of 80."""
    business = await at_half("hundred", discounts=[{"coupon": "fifth"}])
    quote, _ = await business.changed("double")
    assert [line.amount_minor for line in quote.lines] == [-4000, 8000]
    # Our rating knows no discounts, and does not pretend to.
    assert (quote.total.minor, quote.ours_minor, quote.charged_minor) == (4000, None, 4000)
    assert business.invoices() == [8000, 4000]
