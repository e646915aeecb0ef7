"""Recurring revenue of a customer whose story is played at the simulator and mirrored: exact cents."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.commands.revenue import read_revenue
from tests.scenarios.selling import ACME, Seller
from tests.scenarios.vocabulary import Account, at

CATALOG = """\
version: 1
meters: []
currencies: {usd: 2}
defaults: {plan: free}
features:
  pos: {type: flag}
plans:
  free: {version: 1, prices: none, grants: {}}
  basic:
    version: 1
    rank: 10
    prices: [{component: base, month: {usd: "79.00"}}]
    grants: {}
  pro:
    version: 1
    rank: 20
    prices: [{component: base, month: {usd: "149.00"}, year: {usd: "1548.00"}}]
    grants: {pos: true}
"""


async def moved(seller: Seller, moment: str) -> Sequence[tuple[str, int, str, int]]:
    """The movements until a moment: whose, when, why, and the cents a month after them."""
    found = await read_revenue(seller.tables.catalog, seller.tables.revenue, at(moment) * 1_000, 12)
    return [(each.account, each.at_ms // 1_000, each.kind.value, each.after_minor) for each in found.movements]


async def test_a_customer_comes_grows_shrinks_and_goes(account: Account) -> None:
    seller = Seller(account)
    await seller.open(CATALOG, "2027-02-01")
    await account.sign_up(seller.price("basic.v1.base.month.usd"))
    await seller.reach("2027-02-10")
    await account.change_plan(seller.price("pro.v1.base.month.usd"))
    await seller.reach("2027-03-05")
    await account.change_plan(seller.price("pro.v1.base.year.usd"), billing_cycle_anchor={"type": "now"})
    await account.sdk("v1.subscriptions.update", account.subscription, {"cancel_at_period_end": True})
    await seller.reach("2027-03-20")
    grown = [(ACME, at("2027-02-01"), "new", 7_900), (ACME, at("2027-02-10"), "expansion", 14_900)]
    shrunk = [*grown, (ACME, at("2027-03-05"), "contraction", 12_900)]
    assert await moved(seller, "2027-03-01") == grown
    assert await moved(seller, "2027-03-20") == shrunk
    await seller.reach("2028-03-10")
    assert await moved(seller, "2028-03-10") == [*shrunk, (ACME, at("2028-03-05"), "churn", 0)]


async def test_a_customer_who_was_there_before_the_link(account: Account) -> None:
    """The subscription is weeks old when somebody says whose it is."""
    seller = Seller(account)
    await seller.open(CATALOG, "2027-02-01")
    await account.another_customer()
    await account.sign_up(seller.price("basic.v1.base.month.usd"))
    await seller.reach("2027-02-20")
    assert await moved(seller, "2027-02-20") == []
    await seller.link("late")
    assert await moved(seller, "2027-02-20") == [("late", at("2027-02-01"), "new", 7_900)]
