"""Packs of credits: a page, a payment, a grant; and what a refund takes back."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Any, Final

import pytest

from aggregators.credit_terms import terms_of
from pipeline.access.renewal import commerce_of
from pipeline.credits.buying import PackWish, buy, follow, top_up
from pipeline.credits.packs import unpack
from schemas.clock import DAY_MS, HOUR_MS
from schemas.credits import Usage
from schemas.errors import InvalidInput, Transient
from schemas.packs import How, PurchaseState
from tests.worlds.changing import ACME, BACK
from tests.worlds.credited import CALLS, FEE, LEDGER, MONEY, Credited
from tests.worlds.ending import Ends

START_MS: Final = int(datetime(2027, 11, 1, tzinfo=UTC).timestamp()) * 1_000


async def begun(catalog: str = LEDGER, card: str = "pm_card_visa") -> Credited:
    business = Credited(START_MS)
    await business.begin(catalog, card=card)
    return business


async def bought(business: Credited, key: str = "K", **more: Any) -> str:
    """A pack is bought and paid; returns the invoice."""
    business.pays_pack(await business.buys(key, **more))
    await business.unpacked()
    return str(business.newest_invoice()["id"])


def refund(business: Credited, invoice: str, amount: int | None = None) -> None:
    """Give a payment back."""
    rows = business.stripe.pages("GET /v1/invoice_payments", {"invoice": invoice})
    intent = next(rows)["payment"]["payment_intent"]
    params = {"payment_intent": intent} | ({} if amount is None else {"amount": amount})
    business.stripe.call("POST /v1/refunds", params)


async def test_credits_exist_when_the_invoice_is_paid() -> None:
    """An open page gives nothing. Two packs on one line are one grant of twice the credits."""
    business = await begun()
    purchase = await business.buys(quantity=2)
    await business.unpacked()
    assert (purchase.state, purchase.url != "", await business.left()) == (PurchaseState.OPEN, True, [])

    business.pays_pack(purchase)
    await business.unpacked()
    invoice = business.newest_invoice()
    ((key, given, left),) = await business.left()
    (line,) = business.stripe.pages("GET /v1/invoices/{invoice}/lines", {}, str(invoice["id"]))
    assert (key, given, left) == (f"invoice:{invoice['id']}:{line['id']}", 200, 200)
    assert invoice["amount_paid"] == 5000
    (grant,) = (await business.sql.credits.of_account(ACME)).grants
    assert grant.paid == (5000, "usd", 2)


async def test_a_webhook_or_a_click_that_comes_twice_is_one_grant() -> None:
    """The same key gives the same page; the events of the payment are delivered again."""
    business = await begun()
    first, second = await business.buys(), await business.buys()
    assert first == second
    business.pays_pack(first)
    await business.unpacked()
    paid = [event for event in business.stripe.happened() if event["type"].startswith(("invoice.", "checkout."))]
    await business.deliver([{**event, "id": f"{event['id']}_again"} for event in paid])
    await business.process()
    await business.unpacked()
    assert [(given, left) for _, given, left in await business.left()] == [(100, 100)]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, 7))
async def test_a_process_that_ends_at_any_call_sells_one_pack(at: int, *, after: bool) -> None:
    business, countdown = await begun(), [at]
    wish = PackWish(ACME, "prepaid", "p100", 1, "", BACK, "ann", "K")
    with contextlib.suppress(Ends):
        await buy(business.pack_parts(countdown, after=after), wish)
    purchase = await business.buys()
    business.pays_pack(purchase)
    await business.settle()
    with contextlib.suppress(Ends):
        await unpack(business.pack_parts(countdown, after=after))
    await business.unpacked()
    assert [(given, left) for _, given, left in await business.left()] == [(100, 100)]
    assert len(await business.sql.packs.of_account(ACME)) == 1


async def test_a_page_that_nobody_pays_ends() -> None:
    business = await begun()
    await business.buys()
    business.passes(2 * HOUR_MS)
    assert await follow(business.pack_parts()) == 1
    (purchase,) = await business.sql.packs.of_account(ACME)
    assert (purchase.state, await follow(business.pack_parts())) == (PurchaseState.ENDED, 0)


async def test_a_refund_takes_back_what_is_left_and_the_rest_is_owed() -> None:
    """70 of 100 are left, then the payment is given back: the account owes 30, which the next pack pays."""
    business = await begun()
    invoice = await bought(business)
    await _draws(business, 30)
    refund(business, invoice)
    await business.unpacked()
    found = await business.sql.credits.of_account(ACME)
    assert [grant.remaining for grant in found.grants] == [0]
    assert [(debt.credits, debt.open) for debt in found.debts] == [(30, 30)]

    await bought(business, "another")
    found = await business.sql.credits.of_account(ACME)
    assert ([grant.remaining for grant in found.grants], found.debts[0].open) == ([0, 70], 0)


async def test_part_of_a_refund_takes_no_credits() -> None:
    business = await begun()
    refund(business, await bought(business), 1000)
    await business.unpacked()
    assert [left for _, _, left in await business.left()] == [100]


async def test_a_credit_note_of_the_whole_invoice_takes_the_credits_back() -> None:
    business = await begun()
    invoice = await bought(business)
    business.stripe.call("POST /v1/credit_notes", {"invoice": invoice, "amount": 2500, "credit_amount": 2500})
    await business.unpacked()
    assert [left for _, _, left in await business.left()] == [0]


async def _draws(
    business: Credited, calls: int, start_ms: int = START_MS, end_ms: int = START_MS + 30 * DAY_MS
) -> None:
    """Calls are drawn from the ledger."""
    found = await commerce_of(business.sql.catalog)
    assert found is not None
    now_ms = business.clock.now_ms()
    usage = Usage(f"i{calls}", ACME, "calls", start_ms, end_ms, now_ms, calls, 0)
    await business.sql.credits.allocate(usage, terms_of(found[1], found[0]), now_ms)


async def test_a_pack_at_stripe_is_a_paid_grant_and_a_refund_ends_it() -> None:
    """5000 cents of usage for 45 dollars. After 3000 were drawn, the refund ends the grant, and says so."""
    business = await begun(MONEY.replace("    credits: [{pool: prepaid, amount: 700}]\n", ""))
    await business.subscribed(FEE, CALLS)
    invoice = await bought(business)
    (grant,) = await business.sql.grant_orders.mirrored([business.customer])
    assert (grant.category, grant.amount_minor, grant.available_minor) == ("paid", 5000, 5000)
    business.uses(3000)
    business.passes(30 * DAY_MS + 2 * HOUR_MS)
    await business.unpacked()
    refund(business, invoice)
    await business.unpacked()
    await business.unpacked()
    (grant,) = await business.sql.grant_orders.mirrored([business.customer])
    reasons = [row.reason for row in await business.tables.audit(ACME) if row.entity == "stripe_grant"]
    assert grant.available_minor == 0
    assert "the payment was given back; 3000 of 5000 were used" in reasons


async def test_too_few_credits_buy_a_pack_by_themselves() -> None:
    """Two a month at most, one at a time, and only of who bought one before."""
    business = await begun()
    assert await top_up(business.pack_parts()) == 0
    await bought(business)
    assert await top_up(business.pack_parts()) == 0
    for drawn in (90, 100, 101):
        await _draws(business, drawn)
        await top_up(business.pack_parts())
        await business.unpacked()
        await top_up(business.pack_parts())
        await business.unpacked()
    made = await business.sql.packs.topped(ACME, "prepaid", START_MS)
    assert [(each.state, each.how) for each in made] == [(PurchaseState.PAID, How.TOP_UP)] * 2
    assert [given for _, given, _ in await business.left()] == [100] * 3
    business.passes(30 * DAY_MS)
    assert await top_up(business.pack_parts()) == 1


PLAN_GIVES: Final = LEDGER.replace("below: 20", "below: 150").replace(
    '{component: calls, meter: calls, unit: calls, month: {usd: "0.01"}}\n',
    '{component: calls, meter: calls, unit: calls, month: {usd: "0.01"}}\n'
    "    credits: [{pool: prepaid, every: period, amount: 1000}]\n",
)


async def test_no_card_pays_for_what_the_plan_gives_in_the_new_period() -> None:
    """At the period's boundary the old credits have ended, and nobody has made the new ones yet."""
    business = await begun(PLAN_GIVES)
    await business.subscribed(FEE, CALLS)
    end_ms = START_MS + 30 * DAY_MS
    business.passes(HOUR_MS)
    await bought(business)
    await _draws(business, 700, START_MS, end_ms)
    assert await top_up(business.pack_parts()) == 0
    business.passes(30 * DAY_MS)
    await business.settle()

    assert await top_up(business.pack_parts()) == 0
    await _draws(business, 1, end_ms, end_ms + 31 * DAY_MS)
    assert await top_up(business.pack_parts()) == 0
    await _draws(business, 950, end_ms, end_ms + 31 * DAY_MS)
    assert await top_up(business.pack_parts()) == 1


async def test_top_ups_of_the_last_hours_of_a_month_do_not_stop_those_of_the_next() -> None:
    """One an hour before midnight, and two in the new month, of which the second comes after a day."""
    business = await begun()
    await bought(business)
    business.passes(30 * DAY_MS - HOUR_MS)
    for drawn, later_ms in ((90, 2 * HOUR_MS), (100, DAY_MS), (101, HOUR_MS)):
        await _draws(business, drawn)
        assert await top_up(business.pack_parts()) == 1
        await business.unpacked()
        business.passes(later_ms)
    assert [given for _, given, _ in await business.left()] == [100] * 4


async def test_a_card_that_declines_owes_nothing_and_is_tried_again_a_day_later() -> None:
    business = await begun()
    await bought(business)
    await _draws(business, 90)
    business.use_card("pm_card_chargeCustomerFail")
    for _ in range(3):
        await top_up(business.pack_parts())
        business.passes(HOUR_MS)
    (failed,) = await business.sql.packs.topped(ACME, "prepaid", START_MS)
    assert (failed.state, business.newest_invoice()["status"]) == (PurchaseState.FAILED, "void")
    assert "declined" in failed.detail

    business.passes(DAY_MS)
    business.use_card("pm_card_visa")
    assert await top_up(business.pack_parts()) == 1
    await business.unpacked()
    assert [given for _, given, _ in await business.left()] == [100, 100]


@pytest.mark.parametrize("lost", ["draft_invoice", "add_item", "pay"])
async def test_a_top_up_whose_answer_is_lost_charges_once(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    business = await begun()
    await bought(business)
    await _draws(business, 90)
    real = getattr(business.client, lost)

    async def silent(*arguments: Any) -> Any:
        await real(*arguments)
        raise Transient("no answer")

    with monkeypatch.context() as away:
        away.setattr(business.client, lost, silent)
        await top_up(business.pack_parts())
    business.passes(2 * DAY_MS)
    await follow(business.pack_parts())
    await business.unpacked()
    assert [given for _, given, _ in await business.left()] == [100, 100]
    paid = [row["amount_paid"] for row in business.stripe.pages("GET /v1/invoices", {"customer": business.customer})]
    assert paid == [2500, 2500]


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        ({"pool": "none"}, "pool"),
        ({"pack": "none"}, "pack"),
        ({"quantity": 0}, "quantity"),
        ({"currency": "eur"}, "currency"),
        ({"return_url": "javascript:x"}, "return_url"),
        ({"request_key": ""}, "Idempotency-Key"),
        ({"account": "nobody"}, "account"),
    ],
)
async def test_a_wish_that_cannot_be_bought_names_the_field(wish: dict[str, Any], field: str) -> None:
    business = await begun()
    good = PackWish(ACME, "prepaid", "p100", 1, "", BACK, "ann", "K")
    with pytest.raises(InvalidInput) as error:
        await buy(business.pack_parts(), good._replace(**wish))
    assert error.value.field == field


@pytest.mark.parametrize("other", [{"quantity": 2}, {"currency": "eur"}], ids=["quantity", "currency"])
async def test_a_key_for_another_purchase_is_refused(other: dict[str, Any]) -> None:
    business = await begun()
    await business.buys()
    with pytest.raises(InvalidInput, match="another purchase"):
        await business.buys(**other)
