"""Credit grants at Stripe: ordered, made once, drawn by invoices, and mirrored."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Any, Final

import pytest

from aggregators.stripe_grants import FINAL_AFTER_MS, conflicts, drawn_order
from pipeline.credits.balances import credit_problems
from pipeline.credits.giving import Gift, customer_now, order_of
from pipeline.credits.granting import carry_out, turn
from schemas.clock import DAY_MS, HOUR_MS
from schemas.errors import Transient
from schemas.stripe_credits import GrantOrder, MirroredGrant, OrderState, Source
from tests.worlds.changing import ACME
from tests.worlds.credited import CALLS, FEE, MONEY, Credited
from tests.worlds.ending import Ends

START_MS: Final = int(datetime(2027, 11, 1, tzinfo=UTC).timestamp()) * 1_000


async def begun(*keys: str, included: bool = False, **params: Any) -> Credited:
    """An account that subscribes; its plan includes no credits unless `included`."""
    business = Credited(START_MS)
    await business.begin(MONEY if included else MONEY.replace("    credits: [{pool: prepaid, amount: 700}]\n", ""))
    if keys:
        await business.subscribed(*keys, **params)
    await business.settle()
    return business


async def given(business: Credited, amount: int, key: str, **more: Any) -> GrantOrder:
    """A person grants credits of the pool."""
    now_ms = business.clock.now_ms()
    gift = Gift(ACME, "prepaid", amount, Source.PAID, 50, now_ms, None, "ann", "as agreed", key)._replace(**more)
    customer = customer_now(ACME, list(await business.sql.links(ACME)), now_ms)
    order = order_of(await business.sql.catalog.standing(), gift, customer, now_ms)
    await business.sql.grant_orders.order([order])
    return order


async def mirrored(business: Credited) -> list[MirroredGrant]:
    return drawn_order(await business.sql.grant_orders.mirrored([business.customer]))


@pytest.mark.parametrize(("percent", "due"), [(0, 2000), (10, 800)], ids=["credits", "10 % off"])
async def test_22_credit_grants_through_the_product(percent: int, due: int) -> None:
    """12000 of usage: what has priority 10 first, then what expires, then the rest. The mirror knows what is left."""
    business = await begun()
    extra: dict[str, Any] = {}
    if percent:
        body = {"id": "off", "percent_off": percent, "duration": "forever"}
        extra["discounts"] = [{"coupon": business.stripe.call("POST /v1/coupons", body)["id"]}]
    await business.subscribed(CALLS, **extra)
    await given(business, 2000, "A", source=Source.PROMOTIONAL, expires_ms=START_MS + 200 * DAY_MS)
    await given(business, 5000, "B")
    await given(business, 3000, "C", priority=10)
    await business.granted()
    assert [(each.available_minor, each.source) for each in await mirrored(business)] == [
        (order.amount_minor, order.key) for order in sorted(await business.orders(), key=_drawn)
    ]
    business.uses(12_000)
    business.passes(30 * DAY_MS + 2 * HOUR_MS)
    await business.settle()

    assert business.newest_invoice()["amount_due"] == due
    assert [(each.amount_minor, each.available_minor) for each in await mirrored(business)] == [
        (3000, 0), (2000, 0), (5000, 0),
    ]  # fmt: skip


def _drawn(order: GrantOrder) -> tuple[int, bool]:
    return order.priority, order.expires_ms is None


async def test_22_flat_fees_take_no_credit_and_a_void_gives_back() -> None:
    """Of 2000 + 12000 the grant pays usage alone. Voiding the invoice gives the credits back, also in the mirror."""
    business = await begun(FEE, CALLS)
    await given(business, 10_000, "A")
    await business.granted()
    business.uses(12_000)
    business.use_card("pm_card_chargeCustomerFail")
    business.passes(30 * DAY_MS + 2 * HOUR_MS)
    await business.settle()
    invoice = business.newest_invoice()
    assert (invoice["status"], invoice["amount_due"]) == ("open", 4000)
    assert [each.available_minor for each in await mirrored(business)] == [0]

    business.stripe.call("POST /v1/invoices/{invoice}/void", {}, str(invoice["id"]))
    await business.settle()
    assert [each.available_minor for each in await mirrored(business)] == [10_000]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, 4))
async def test_a_process_that_ends_at_any_call_leaves_one_grant(at: int, *, after: bool) -> None:
    business = await begun()
    await given(business, 900, "A")
    with contextlib.suppress(Ends):
        await turn(business.granting([at], after=after))
    await business.granted()
    (order,) = await business.orders()
    (grant,) = await mirrored(business)
    assert (order.state, order.stripe_id, grant.available_minor) == (OrderState.MADE, grant.id, 900)


async def test_a_lost_answer_is_looked_for_before_stripe_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after two days, when Stripe has forgotten the key."""
    business = await begun()
    await given(business, 900, "A")
    real = business.client.make_grant

    async def silent(*arguments: Any) -> str:
        await real(*arguments)
        raise Transient("no answer")

    with monkeypatch.context() as away:
        away.setattr(business.client, "make_grant", silent)
        await turn(business.granting())
    business.passes(2 * DAY_MS)
    await business.granted()
    assert [each.state for each in await business.orders()] == [OrderState.MADE]
    assert len(await mirrored(business)) == 1


async def test_a_request_that_is_repeated_is_one_grant() -> None:
    business = await begun()
    for _ in range(2):
        await given(business, 900, "A")
        await business.granted()
    assert [each.amount_minor for each in await mirrored(business)] == [900]


async def test_included_credits_pay_the_invoice_of_their_period_alone() -> None:
    """700 a month: October's 1000 calls cost 300, November's 100 nothing, and nothing is left over for December."""
    business = await begun(CALLS, included=True)
    await business.granted()
    (first,) = await mirrored(business)
    period_ms = 30 * DAY_MS
    assert (first.amount_minor, first.category) == (700, "promotional")
    assert (first.effective_ms, first.expires_ms) == (START_MS + FINAL_AFTER_MS, START_MS + period_ms + FINAL_AFTER_MS)
    due = []
    for calls in (1000, 100, 1000):
        business.uses(calls)
        business.passes(period_ms - HOUR_MS)
        for _ in range(4):
            business.passes(DAY_MS // 2)
            await business.settle()
            await business.granted()
        due.append(business.newest_invoice()["amount_due"])
    assert due == [300, 0, 300]
    keys = [each.key for each in await business.orders()]
    assert len(keys) == len(set(keys)) == 4


async def test_an_unused_grant_is_voided_and_a_used_one_ends() -> None:
    business = await begun(CALLS)
    unused, used = await given(business, 100, "A", priority=60), await given(business, 500, "B", priority=0)
    await business.granted()
    business.uses(300)
    business.passes(30 * DAY_MS + 2 * HOUR_MS)
    await business.settle()
    assert [each.available_minor for each in await mirrored(business)] == [200, 100]
    for order in (unused, used):
        await business.sql.grant_orders.end(ACME, order.key, "ann", "a mistake", business.clock.now_ms())
    await business.granted()

    assert {each.state for each in await business.orders()} == {OrderState.ENDED}
    assert [each.available_minor for each in await mirrored(business)] == [0, 0]
    actors = {(row.actor, row.reason) for row in await business.tables.audit(ACME) if row.entity == "stripe_grant"}
    assert ("ann", "a mistake") in actors


async def test_what_stripe_refuses_is_shown_and_stops_no_other() -> None:
    business = await begun()
    wrong = await given(business, 900, "A")
    await given(business, 800, "B")
    await business.sql.grant_orders.order([wrong._replace(key="operator:none", customer="cus_none")])
    await business.granted()
    states = {each.amount_minor: each.state for each in await business.orders() if each.key != "operator:none"}
    (refused,) = await business.orders(OrderState.REFUSED)
    assert states == {900: OrderState.MADE, 800: OrderState.MADE}
    assert "cus_none" in refused.detail
    (said,) = await credit_problems(business.sql.catalog, business.sql.grant_orders, business.clock.now_ms())
    assert said.startswith("Stripe refuses grant operator:none of account acme: ")
    assert (await carry_out(business.granting(), refused)).state is OrderState.REFUSED


async def test_a_grant_that_somebody_else_made_beside_a_pool_of_ours_is_found() -> None:
    """The catalog refuses both modes on one meter; a grant of the dashboard is only seen in the mirror."""
    business = Credited(START_MS)
    ledger = MONEY.replace("unit: usd, mode: stripe, ", "unit: credit, ").replace("amount: 700", "amount: 7")
    await business.begin(ledger)
    params = {
        "amount": {"type": "monetary", "monetary": {"currency": "usd", "value": 500}}, "customer": business.customer,
        "applicability_config": {"scope": {"price_type": "metered"}}, "category": "promotional", "name": "a gift",
    }  # fmt: skip
    made = business.stripe.call("POST /v1/billing/credit_grants", params)
    await business.settle()
    standing, grants = await business.sql.catalog.standing(), await mirrored(business)
    ((grant, meter),) = conflicts(standing, grants, business.clock.now_ms())
    assert (grant.id, grant.source, meter) == (made["id"], "", "calls")
    (said,) = await credit_problems(business.sql.catalog, business.sql.grant_orders, business.clock.now_ms())
    assert f"grant {made['id']} of {business.customer} at Stripe pays for calls" in said

    business.stripe.call("POST /v1/billing/credit_grants/{id}/expire", {}, made["id"])
    await business.settle()
    assert conflicts(standing, await mirrored(business), business.clock.now_ms()) == []
