"""Scenario 23 through the product: credits pay before Stripe does, and Stripe bills what they leave."""

from __future__ import annotations

from schemas.clock import HOUR_MS
from schemas.credits import Category, NewGrant
from tests.scenarios.product import ACME, Product, meters_of
from tests.scenarios.selling import Seller
from tests.scenarios.vocabulary import Account, at

SCANS = {
    "slug": "scans", "event_type": "scan", "aggregation": "sum", "value_path": "$.scans", "stripe_event_name": "scans",
}  # fmt: skip
CATALOG = """\
version: 1
meters:
  - {slug: scans, event_type: scan, aggregation: sum, value_path: $.scans, unit: scan, stripe_event_name: scans}
currencies: {usd: 2}
defaults: {automatic_tax: false}
plans:
  pro:
    version: 1
    prices:
      - {component: scans, meter: scans, unit: scan, month: {usd: "0.25"}}
    credits:
      - {pool: scans_included, every: period, amount: 1000}
credit_pools:
  scans_included: {unit: scan, covers: {scans: "1"}, order: 1, overdraft: next}
  scans_purchased: {unit: scan, covers: {scans: "1"}, order: 2, overdraft: bill}
"""


async def test_23_a_dual_pool_in_units(account: Account) -> None:
    """1 000 a month and 500 bought. 1 320 in December: Stripe gets nothing, 180 are left. 1 200 in January: Stripe gets
    20, which cost 500 cents."""
    seller = Seller(account)
    await seller.open(CATALOG, "2027-12-01")
    await account.sign_up(seller.price("pro.v1.scans.month.usd"))
    await seller.hear("2027-12-01")
    bought = NewGrant(ACME, "scans_purchased", Category.PAID, 500, at("2027-12-01") * 1000, "invoice:in_1")
    await seller.tables.credits.grant(bought, "ann", "bought", at("2027-12-01") * 1000)
    async with meters_of(account) as meters:
        product = Product(account, meters, SCANS, seller.tables)
        await product.start(HOUR_MS)
        await product.use(900, "2027-12-05")
        await product.use(420, "2027-12-20 10:30:00")
        await product.reach("2028-01-01 00:00:30")
        await product.reach("2028-01-01 01:00:00")
        december, left = await account.invoice(), await remaining(seller)

        await product.use(1_100, "2028-01-10")
        await product.use(100, "2028-01-20")
        await product.reach("2028-02-01 00:00:30")
        await product.reach("2028-02-01 01:00:00")
        january = await account.invoice()

    assert (december.due, left) == (0, 180)
    assert (january.lines, january.due, await remaining(seller)) == ([500], 500, 0)
    assert await seller.tables.credits.wrong() == []


async def remaining(seller: Seller) -> int:
    """What is left of all grants."""
    return sum(grant.remaining for grant in (await seller.tables.credits.of_account(ACME)).grants)
