"""Scenarios 18 and 19 with the product: payments fail, warnings come in order, the plan goes, and is back at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import pytest

from stripe_simulator.engine.collection import RetryPolicy
from tests.scenarios.selling import Seller
from tests.scenarios.vocabulary import Account

CATALOG = """\
version: 1
meters:
  - {slug: calls, event_type: call, aggregation: count, unit: calls, stripe_event_name: calls}
currencies: {usd: 2}
defaults: {plan: free}
features:
  pos: {type: flag}
  api_calls: {type: limit, merge: sum, meter: calls}
plans:
  free: {version: 1, prices: none, grants: {api_calls: 1000}}
  pro:
    version: 1
    rank: 20
    prices: [{component: base, month: {usd: "149.00"}}]
    grants: {pos: true, api_calls: 50000}
dunning: {fallback_plan: free}
"""
PRO = "pro.v1.base.month.usd"


@pytest.fixture
def seller(account: Account) -> Seller:
    """The product beside the account."""
    return Seller(account)


async def begin(account: Account, seller: Seller, end: Literal["unpaid", "paused", "canceled"], failures: int) -> None:
    """A customer of Pro whose renewal on March 1 fails so often; Stripe tries again three times in two weeks."""
    mode = account.sdk.simulator.test
    mode.settings = replace(mode.settings, retry_policy=RetryPolicy((1, 5, 14), subscription_end=end))
    await seller.open(CATALOG, "2027-02-01")
    await account.sign_up(seller.price(PRO))
    await account.decline_next("insufficient_funds", times=failures)
    await seller.reach("2027-03-01 01:00:00")


async def story(seller: Seller, *moments: str) -> Sequence[tuple[str, str]]:
    """The case's state, and why the account may use the plan's feature or not, at each moment."""
    found = []
    for moment in moments:
        await seller.reach(moment)
        found.append((await seller.dunning(), await seller.reason("pos")))
    return found


GRACE = "payment_failed_grace"


@pytest.mark.parametrize("end", ["unpaid", "paused"])
async def test_18_19_warnings_the_downgrade_and_the_payment(
    account: Account, seller: Seller, end: Literal["unpaid", "paused"]
) -> None:
    """The last retry fails on March 15: the plan holds until March 18, to the second, without any event."""
    await begin(account, seller, end, 4)
    assert (await seller.dunning(), await seller.reason("pos")) == ("notified", GRACE)
    assert await story(
        seller, "2027-03-02 02:00:00", "2027-03-04 00:59:59", "2027-03-04 01:00:00", "2027-03-14", "2027-03-15 01:00:00"
    ) == [("notified", GRACE), ("notified", GRACE), ("urgent", GRACE), ("urgent", GRACE), ("final_warning", GRACE)]
    assert await account.status() == end

    async def has() -> tuple[str, str]:
        return await seller.reason("pos"), str((await seller.check("api_calls")).decision.limit)

    seller.wait("2027-03-18 01:00:00", before_ms=1)
    assert await has() == (GRACE, "50000")
    seller.wait("2027-03-18 01:00:00")
    assert await has() == ("downgraded_unpaid", "1000")
    assert await story(seller, "2027-03-18 01:00:00", "2027-03-25 01:00:00") == [
        ("downgraded", "downgraded_unpaid"), ("win_back", "downgraded_unpaid"),
    ]  # fmt: skip

    await account.replace_card()
    await account.pay()
    await seller.hear("2027-03-25 01:00:00")
    assert (await seller.dunning(), (await account.invoice()).status) == ("recovered", "paid")
    # Stripe keeps a paused subscription paused until somebody resumes it. Who has paid is not denied meanwhile.
    assert await seller.reason("pos") == ("included" if end == "unpaid" else GRACE)


async def test_18_a_card_that_is_replaced_in_time(account: Account, seller: Seller) -> None:
    """One retry fails; a new card on day 4 pays once. Access was never lost, and nothing is left of the case."""
    await begin(account, seller, "unpaid", 2)
    await seller.reach("2027-03-04 01:00:00")
    await account.replace_card()
    await account.pay()
    await seller.hear("2027-03-04 01:00:00")
    assert (await seller.dunning(), await seller.reason("pos")) == ("recovered", "included")
    assert await story(seller, "2027-03-30") == [("recovered", "included")]


async def test_19_nobody_pays(account: Account, seller: Seller) -> None:
    """Thirty days after the downgrade the case is given up. The fallback plan stays, and a late payment counts."""
    await begin(account, seller, "unpaid", 4)
    await story(seller, "2027-03-15 01:00:00", "2027-03-18 01:00:00", "2027-03-25 01:00:00")
    assert await story(seller, "2027-04-17 00:59:59", "2027-04-17 01:00:00", "2027-05-20") == [
        ("win_back", "downgraded_unpaid"), ("churned", "downgraded_unpaid"), ("churned", "downgraded_unpaid"),
    ]  # fmt: skip
    await account.replace_card()
    (owed,) = (bill.id for bill in await account.invoices() if bill.status == "open")
    await account.sdk("v1.invoices.pay", owed)
    await seller.hear("2027-05-20")
    assert (await seller.dunning(), await seller.reason("pos")) == ("churned", "included")


async def test_19_stripe_cancels_under_us(account: Account, seller: Seller) -> None:
    """The account setting that takes the plan without a warning."""
    await begin(account, seller, "canceled", 4)
    assert await story(seller, "2027-03-14", "2027-03-15 01:00:00") == [
        ("urgent", GRACE), ("downgraded", "not_in_plan"),
    ]  # fmt: skip
