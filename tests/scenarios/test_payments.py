"""Scenarios 17, 18 and 20: cards that are declined. Amounts are cents."""

from __future__ import annotations

import pytest

from tests.scenarios.vocabulary import Account, with_delivery_faults

PRO = 14900
# Stripe does not charge a card again after these.
HARD_DECLINES = (
    "authentication_required", "highest_risk_level", "incorrect_number", "lost_card", "pickup_card",
    "revocation_of_all_authorizations", "revocation_of_authorization", "stolen_card", "transaction_not_allowed",
)  # fmt: skip


@with_delivery_faults
async def test_17_the_first_payment_is_declined(account: Account) -> None:
    """Incomplete, nothing paid, no feature; 23 hours later expired, and the invoice is void."""
    await account.open("2027-02-01", card="pm_card_chargeCustomerFail")
    pro = await account.plan(PRO)
    await account.grants(pro, "reports")
    assert await account.sign_up(pro) == "incomplete"
    assert (await account.bills(), await account.features()) == ([("open", 14900)], [])

    await account.advance("2027-02-01 22:59:59")
    assert await account.status() == "incomplete"
    await account.advance("2027-02-01 23:00:00")
    assert (await account.status(), (await account.invoice()).status) == ("incomplete_expired", "void")
    await account.advance("2027-03-02")
    assert (len(await account.bills()), await account.features()) == (1, [])
    assert await account.happened("invoice.paid") == []


@with_delivery_faults
async def test_18_insufficient_funds_at_the_renewal(account: Account) -> None:
    """Past due on March 1, a retry fails, a new card on day 4 pays 14900 once. The features were never lost."""
    await account.open("2027-02-01")
    pro = await account.plan(PRO)
    await account.grants(pro, "reports")
    await account.sign_up(pro)
    await account.decline_next("insufficient_funds", times=2)
    await account.advance("2027-03-01 01:00:00")
    assert (await account.status(), await account.bills()) == ("past_due", [("paid", 14900), ("open", 14900)])
    await account.advance("2027-03-02 02:00:00")
    assert (await account.status(), await account.features()) == ("past_due", ["reports"])
    assert len(await account.happened("invoice.payment_failed")) == 2

    await account.advance("2027-03-04")
    await account.replace_card()
    await account.pay()
    assert (await account.status(), await account.features()) == ("active", ["reports"])
    await account.advance("2027-03-20")
    assert await account.bills() == [("paid", 14900), ("paid", 14900)]
    charges = [
        event["data"]["object"]["amount_received"] for event in await account.happened("payment_intent.succeeded")
    ]
    assert charges == [14900, 14900]


@with_delivery_faults
async def test_20_the_card_has_expired(account: Account) -> None:
    """The renewal is declined with `expired_card`; a new card pays the open invoice at once, and once."""
    await account.open("2027-02-01", card="")
    await account.use_card_number("4242424242424242", expires=(2027, 2))
    await account.sign_up(await account.plan(PRO))
    await account.advance("2027-03-01 01:00:00")
    (failed,) = await account.happened("payment_intent.payment_failed")
    assert failed["data"]["object"]["last_payment_error"]["code"] == "expired_card"
    assert await account.status() == "past_due"

    await account.replace_card()
    await account.pay()
    assert (await account.status(), (await account.invoice()).status) == ("active", "paid")
    await account.advance("2027-03-20")
    assert len(await account.happened("payment_intent.succeeded")) == 2


@pytest.mark.parametrize("code", HARD_DECLINES)
async def test_20_hard_declines_are_not_retried(account: Account, code: str) -> None:
    """The card is charged once, although the retries stay scheduled; a new card is charged at the next retry."""
    await account.open("2027-02-01")
    await account.sign_up(await account.plan(PRO))
    await account.decline_next(code)
    await account.advance("2027-03-01 01:00:00")
    await account.advance("2027-03-10")
    assert len(await account.happened("payment_intent.payment_failed")) == 1
    assert await account.bills() == [("paid", 14900), ("open", 14900)]

    await account.replace_card("pm_card_mastercard")
    await account.advance("2027-03-13")
    assert (await account.status(), (await account.invoice()).status) == ("active", "paid")
