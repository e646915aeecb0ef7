"""The period-close controller: a failure of one customer, a restored database, a wrong clock and amounts beyond all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from unittest.mock import patch

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import text

from pipeline.billing.closing import Published
from schemas.bills import InvoiceItemState
from schemas.clock import DAY_MS, HOUR_MS
from schemas.errors import InvalidInput, Transient
from schemas.reports import MeterSummary
from tests.worlds.closing import NOVEMBER, ClosingWorld, amounts, late_world, state

ITEMS = "/v1/invoiceitems"


@pytest_asyncio.fixture
async def world() -> AsyncIterator[ClosingWorld]:
    """The world of `late_world`."""
    world = await late_world()
    yield world
    await world.close()


async def in_sql(world: ClosingWorld, *statements: str) -> None:
    """Change the database behind the controller's back."""
    for statement in statements:
        await world.tables._run(lambda connection, sql=statement: connection.execute(text(sql)))  # type: ignore[misc]  # a default binds the loop's value


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("DELETE FROM invoice_items WHERE number = 1", id="before the second item was intended"),
        pytest.param(
            "UPDATE invoice_items SET state = 'intended', sent_ms = NULL, attempt = 0, stripe_item = ''"
            " WHERE number = 1",
            id="before the second item was sent",
        ),
    ],
)
async def test_a_database_that_was_restored_from_a_copy_bills_nothing_again(
    world: ClosingWorld, statement: str
) -> None:
    """Days later, when Stripe has forgotten the Idempotency-Key."""
    await world.turns(2)
    world.clock.advance(DAY_MS)
    await world.publish(world.used("acme", 5, "2027-12-11 13:00", NOVEMBER))
    await world.pump()
    await world.turns(3)
    assert amounts(world) == [250, 10]
    before = [(item.number, item.stripe_item) for item in await world.items_of("acme")]
    await in_sql(world, statement, "DELETE FROM closings")
    world.clock.advance(2 * DAY_MS)
    await world.restart()
    await world.turns(4)
    assert (amounts(world), await state(world)) == ([250, 10], "confirmed")
    assert [(item.number, item.stripe_item) for item in await world.items_of("acme")] == before


async def test_a_sum_that_stripe_does_not_give_delays_no_other_invoice() -> None:
    """A credit needs Stripe's sum, and the invoices without an answer come first in each turn."""
    world = await ClosingWorld("2027-11-01").start()
    bad = [f"bad{number}" for number in range(4)]
    for name in (*bad, "acme"):
        await world.sign_up(name, world.per_call("2"))
        await world.publish(world.used(name, 1_000, "2027-11-20 12:00", NOVEMBER))
    await world.jump("2027-11-20 12:00")
    await world.pump(20)
    await world.jump("2027-12-10 12:00")
    usage = [world.used(name, -100, "2027-12-10 12:00", NOVEMBER) for name in bad]
    await world.publish(*usage, world.used("acme", 125, "2027-12-10 12:00", NOVEMBER))
    await world.pump(20)

    def broken(request: httpx.Request) -> None:
        if request.url.path.endswith("/event_summaries") and request.url.params["customer"] != world.customers["acme"]:
            raise httpx.ReadError("the connection broke")

    world.network.before = broken
    with pytest.raises(Transient):
        await world.turns(1)
    await world.turns(3)
    assert (amounts(world), await state(world)) == ([250], "confirmed")
    world.network.before = lambda _request: None
    world.clock.advance(HOUR_MS)
    await world.turns(3)
    assert [item["amount"] for name in bad for item in world.stripe_items(name)] == [-200] * 4
    await world.close()


async def test_a_price_without_an_answer_delays_no_other_invoice(world: ClosingWorld) -> None:
    bad = world.per_call("3")
    subscription = await world.sign_up("other", bad)
    world.clock.advance(HOUR_MS)
    path = "DELETE /v1/subscriptions/{subscription_exposed_id}"
    world.stripe.call(path, {"invoice_now": True}, subscription)

    def broken(request: httpx.Request) -> None:
        if request.url.path == f"/v1/prices/{bad}":
            raise httpx.ReadError("the connection broke")

    world.network.before = broken
    await world.turns(3)
    assert (amounts(world), await state(world)) == ([250], "confirmed")
    assert "held" in (await world.states("other")).values()
    world.network.before = lambda _request: None
    world.clock.advance(2 * HOUR_MS)
    await world.turns(3)
    assert "held" not in (await world.states("other")).values()


async def test_usage_that_costs_more_than_any_invoice_has_is_held(world: ClosingWorld) -> None:
    """The amount would not fit into 64 bits, and the error stopped the sink at each start."""
    for _ in range(10):
        await world.publish(world.used("acme", 10**18, "2027-12-10 12:00", NOVEMBER))
    await world.pump(40)
    await world.turns(3)
    (closing,) = (await world.tables.bills.closings([world.invoices("acme")[-1]["id"]])).values()
    assert (closing.state, amounts(world)) == ("held", [])
    assert "more than an invoice has" in closing.detail


async def test_a_clock_that_was_ahead_delays_no_late_usage(world: ClosingWorld) -> None:
    """The controller noted when to look again, and that was months ahead."""
    await world.turns(3)
    right_ms = world.clock.ms
    world.clock.ms += 200 * DAY_MS
    await world.controller.turn()
    world.clock.ms = right_ms
    await world.publish(world.used("acme", 5, "2027-12-11 13:00", NOVEMBER))
    await world.pump()
    world.clock.advance(2 * DAY_MS)
    await world.turns(3)
    assert amounts(world) == [250, 10]


@pytest.mark.parametrize(
    ("stripes_sum", "billed"),
    [("0.29999999999999993", [-180]), ("0.3", [-180]), ("0.4", []), ("0.300000002", [])],
    ids=["sum of doubles", "exact sum", "a tenth more", "a little more"],
)
async def test_a_credit_of_fractions_needs_the_sum_of_doubles(stripes_sum: str, billed: list[int]) -> None:
    """Twelve tenths, and nine tenths that are taken back. The simulator adds exactly, and Stripe does not."""
    world = await ClosingWorld("2027-11-01").start()
    await world.sign_up("acme", world.per_call("200"))
    tenths = [world.used("acme", calls, "2027-11-20 12:00", NOVEMBER) for calls in (12, -9)]
    used, taken_back = (intent.model_copy(update={"scale": 1}) for intent in tenths)
    await world.publish(used)
    await world.jump("2027-11-20 12:00")
    await world.pump()
    await world.jump("2027-12-10 12:00")
    await world.publish(taken_back)
    await world.pump()
    with patch.object(world.meters, "summary", return_value=MeterSummary(stripes_sum, 1)):
        await world.turns(3)
    assert amounts(world) == billed
    await world.close()


async def test_an_item_that_cannot_be_looked_for_is_looked_for_once_a_day(world: ClosingWorld) -> None:
    """A person has changed its metadata. Each look costs up to 20 reads of Stripe."""
    await world.turns(1)

    def lost(request: httpx.Request) -> None:
        if request.method == "POST" and request.url.path == ITEMS:
            raise httpx.ReadError("the connection broke")

    world.network.after = lost
    await world.turns(1)
    world.clock.advance(30 * HOUR_MS)
    with patch.object(world.items, "made", side_effect=InvalidInput("metadata", "were changed")) as looks:
        await world.turns(20)
    (held,) = await world.items_of("acme")
    assert (held.state, amounts(world), looks.call_count) == (InvoiceItemState.HELD, [250], 1)
    world.network.after = lambda _request: None
    world.clock.advance(26 * HOUR_MS)
    await world.turns(2)
    assert (amounts(world), await state(world)) == ([250], "confirmed")


async def test_drafts_that_fail_delay_no_other_draft() -> None:
    """The worker of their partition is away, and theirs are the first deadlines."""
    world = await ClosingWorld("2027-11-01").start()
    for name in ("bad0", "bad1", "bad2", "acme"):
        await world.sign_up(name, world.per_call("2"))
        world.clock.advance(1_000)
    flush = world.flush

    async def flush_some(account: str) -> Published:
        if account != "acme":
            raise Transient("the live view does not answer")
        return await flush(account)

    world.controller = world.new_controller(flush=flush_some)
    await world.jump("2027-12-01 00:50")
    await world.turns(3)
    assert world.flushed == ["acme"]
    await world.close()


async def test_an_item_that_was_refused_while_the_clock_was_ahead_is_tried_again(world: ClosingWorld) -> None:
    await world.turns(1)
    right_ms = world.clock.ms
    with patch.object(world.items, "create", side_effect=InvalidInput("customer", "is unknown")):
        world.clock.ms += 200 * DAY_MS
        await world.controller.turn()
    world.clock.ms = right_ms
    await world.turns(3)
    assert (amounts(world), await state(world)) == ([250], "confirmed")
