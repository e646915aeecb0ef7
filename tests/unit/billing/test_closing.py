"""The period-close controller: what is unbilled is billed once, whoever dies, answers late or runs twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx
import pytest
import pytest_asyncio

from aggregators.binding_timeline import timeline
from pipeline.billing.closing import ClosingPolicy
from schemas.bills import InvoiceItem, InvoiceItemState, LatePolicy
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.log import REPORTS_TOPIC
from schemas.reports import MeterEvent
from sinks.sql.fake import FakeSideTables
from stripe_simulator.faults import Fault, FaultKind
from tests.worlds.closing import DECEMBER, NOVEMBER, SCOPE, ClosingWorld, amounts, late_world, state
from tests.worlds.crashing import Crash

ITEMS = "/v1/invoiceitems"


@pytest_asyncio.fixture
async def world() -> AsyncIterator[ClosingWorld]:
    """The world of `late_world`."""
    world = await late_world()
    yield world
    await world.close()


async def test_an_invoice_item_bills_late_usage_once(world: ClosingWorld) -> None:
    await world.turns(2)
    (item,) = world.stripe_items("acme")
    (ours,) = await world.items_of("acme")
    assert (item["amount"], item["currency"], item["metadata"]) == (250, "usd", {
        "tidemark_item": ours.identifier, "tidemark_meter": "calls", "tidemark_number": "0", "tidemark_from": "1000",
        "tidemark_to": "1125", "tidemark_span": f"{ours.start_ms}-{ours.end_ms}",
    })  # fmt: skip
    assert item["parent"]["subscription_details"]["subscription"] == ours.subscription
    assert (ours.state, ours.stripe_item, ours.number) == (InvoiceItemState.CREATED, item["id"], 0)
    assert (int(ours.from_quantity), int(ours.to_quantity)) == (1_000, 1_125)
    assert await state(world) == "confirmed"
    before = [row.reason for row in await world.tables.audit("acme") if row.entity == "invoice_item"]
    assert len(before) == 2
    world.clock.advance(2 * HOUR_MS)
    await world.turns(3)
    assert amounts(world) == [250]


class Dying:
    """Wraps a store or Stripe: the process ends after the n-th call that changes something."""

    def __init__(self, inner: Any, countdown: list[int]) -> None:
        self._inner, self._countdown = inner, countdown

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        if name not in {"add_prices", "intend", "settle", "note", "create"}:
            return attribute

        async def call(*arguments: Any) -> Any:
            answer = await attribute(*arguments)
            self._countdown[0] -= 1
            if not self._countdown[0]:
                raise Crash
            return answer

        return call


async def test_a_controller_that_dies_after_any_step_bills_once() -> None:
    for steps in range(1, 20):
        world = await late_world()
        countdown = [steps]
        dying = {"bills": Dying(world.tables.bills, countdown), "items": Dying(world.items, countdown)}
        world.controller = world.new_controller(**dying)
        died = False
        try:
            await world.turns(2)
        except Crash:
            died = True
        await world.restart()
        await world.turns(2)
        assert (amounts(world), await state(world)) == ([250], "confirmed"), steps
        await world.close()
        if not died:
            assert steps > 7
            return
    pytest.fail("the controller takes more steps than were tried")


async def test_two_controllers_at_once_bill_once(world: ClosingWorld) -> None:
    others = [world.new_controller() for _ in range(3)]
    for _ in range(3):
        await asyncio.gather(*(other.turn() for other in others))
        world.clock.advance(MINUTE_MS)
    assert amounts(world) == [250]
    assert len(await world.items_of("acme")) == 1


async def test_the_second_item_of_one_place_in_the_chain_is_left(world: ClosingWorld) -> None:
    """A controller that saw more usage than another makes an item with another identifier."""
    other = world.new_controller()
    await world.controller.turn()
    await world.publish(world.used("acme", 5, "2027-12-10 13:00", NOVEMBER))
    await world.pump()
    (first,) = await world.items_of("acme")
    assert not await world.tables.bills.intend(first._replace(identifier="tmi_other", amount_minor=260), "")
    await asyncio.gather(other.turn(), world.controller.turn())
    await world.turns(2)
    assert (amounts(world), await state(world)) == ([250], "unbilled")
    world.clock.advance(DAY_MS)
    await world.turns(2)
    assert (amounts(world), await state(world)) == ([250, 10], "confirmed")


async def test_a_ledger_that_is_being_read_again_credits_nobody(world: ClosingWorld) -> None:
    """A lost ledger knows no usage, so every invoice would look like too much."""
    lost = FakeSideTables(timeline)
    await lost.migrate(SCOPE, "log")
    world.controller = world.new_controller(ledger=lost.intents)
    await world.turns(3)
    assert (amounts(world), await world.items_of("acme"), await world.states("acme")) == ([], [], {})


async def test_last_offsets_without_records_delay_nobody(world: ClosingWorld) -> None:
    """As after a transaction: the log's end is behind its last record, and no record may come for long."""
    world.log._partitions[REPORTS_TOPIC, 0].next_offset += 1
    await world.turns(3)
    assert (amounts(world), await state(world)) == ([250], "confirmed")


async def test_a_lost_database_bills_nothing_again(world: ClosingWorld) -> None:
    """The items at Stripe say what they bill."""
    await world.turns(2)
    world.clock.advance(DAY_MS)
    await world.publish(world.used("acme", 5, "2027-12-11 13:00", NOVEMBER))
    await world.pump()
    await world.turns(3)
    assert amounts(world) == [250, 10]
    before = await world.items_of("acme")
    await world.lose_tables()
    await world.turns(3)
    assert (amounts(world), await state(world)) == ([250, 10], "confirmed")
    kept = ("identifier", "number", "from_quantity", "to_quantity", "amount_minor", "stripe_item", "description")
    assert [[getattr(item, name) for name in kept] for item in await world.items_of("acme")] == [
        [getattr(item, name) for name in kept] for item in before
    ]


@pytest.mark.parametrize("hours", [1, 22, 30], ids=["1 h", "22 h", "30 h"])
@pytest.mark.parametrize("is_executed", [True, False], ids=["taken", "not taken"])
async def test_an_answer_is_lost(world: ClosingWorld, hours: int, is_executed: bool) -> None:
    """Within 23 hours the same key is used again; later the customer's items are looked through."""
    await world.turns(1)

    def lost(request: httpx.Request) -> None:
        if request.method == "POST" and request.url.path == ITEMS:
            raise httpx.ReadError("the connection broke")

    setattr(world.network, "after" if is_executed else "before", lost)
    await world.turns(1)
    assert amounts(world) == [250] * is_executed
    setattr(world.network, "after" if is_executed else "before", lambda _request: None)
    world.clock.advance(hours * HOUR_MS)
    await world.restart()
    await world.turns(2)
    assert amounts(world) == [250]
    assert [item.attempt for item in await world.items_of("acme")] == [2 if hours > 23 and not is_executed else 1]


async def test_an_error_that_stripe_stored_ends_with_its_key(world: ClosingWorld) -> None:
    """Stripe repeats a 500 for a day, whether it made the item or not."""
    world.stripe.simulator.faults.add(Fault(FaultKind.SERVER_ERROR, count=1, path=ITEMS))
    await world.turns(1)
    for _ in range(3):
        world.clock.advance(HOUR_MS)
        await world.turns(1)
    assert (amounts(world), world.controller.status().turned_ms) == ([], world.clock.ms)
    world.clock.advance(23 * HOUR_MS)
    await world.turns(1)
    assert amounts(world) == [250]


async def test_items_that_fail_delay_no_other_item(world: ClosingWorld) -> None:
    """Stripe repeats its stored error for a day; of many such items a few are tried in a turn."""
    for number in range(5):
        name = f"bad{number}"
        await world.sign_up(name, world.per_call("2"))
        item = InvoiceItem(
            f"tmi_{name}", world.customers[name], "", "in_0", "calls", "price_0", 0, 60_000, 0, Decimal(0), Decimal(1),
            99, "usd", 2, name, InvoiceItemState.INTENDED, created_ms=1,
        )  # fmt: skip
        await world.tables.bills.intend(item, "")
    world.stripe.simulator.faults.add(Fault(FaultKind.SERVER_ERROR, count=-1, path=ITEMS, contains="bad"))
    await world.turns(4)
    assert amounts(world) == [250]


async def test_an_item_that_stripe_refuses_is_held_and_tried_a_day_later(world: ClosingWorld) -> None:
    await world.turns(1)
    refused: list[str] = []

    def refuse(request: httpx.Request) -> None:
        if request.method == "POST" and request.url.path == ITEMS and not refused:
            refused.append(request.headers["idempotency-key"])
            request.stream = httpx.ByteStream(b"customer=cus_nobody&amount=1&currency=usd")

    world.network.before = refuse
    await world.turns(3)
    (held,) = await world.items_of("acme")
    assert (held.state, amounts(world), await state(world)) == (InvoiceItemState.HELD, [], "held")
    assert "cus_nobody" in held.detail
    world.clock.advance(26 * HOUR_MS)
    await world.turns(2)
    assert (amounts(world), await state(world)) == ([250], "confirmed")


async def test_usage_is_written_off_if_the_deployment_says_so() -> None:
    world = await late_world(policy=ClosingPolicy(late=LatePolicy.WRITE_OFF))
    await world.turns(3)
    (ours,) = await world.items_of("acme")
    assert (ours.state, ours.amount_minor) == (InvoiceItemState.WRITTEN_OFF, 250)
    assert (amounts(world), await state(world)) == ([], "confirmed")
    await world.close()


async def test_usage_that_is_taken_back_is_a_credit() -> None:
    world = await late_world(-100)
    await world.turns(3)
    assert (amounts(world), await state(world)) == ([-200], "confirmed")
    await world.close()


async def test_a_credit_that_our_reports_do_not_explain_is_held(world: ClosingWorld) -> None:
    """Somebody else reported 300 calls before the month ended: the invoice bills more than we reported."""
    await world.close()
    world = await ClosingWorld("2027-11-01").start()
    await world.sign_up("acme", world.per_call("2"))
    await world.publish(world.used("acme", 1_000, "2027-11-20 12:00", NOVEMBER))
    await world.jump("2027-11-20 12:00")
    await world.meters.send(MeterEvent("by_hand", "calls", world.customers["acme"], "300", world.clock.ms // 1_000))
    await world.pump()
    await world.jump("2027-12-10 12:00")
    await world.turns(3)
    assert (amounts(world), await world.items_of("acme"), await state(world)) == ([], [], "held")
    (closing,) = (await world.tables.bills.closings([world.invoices("acme")[-1]["id"]])).values()
    assert "Stripe's sum of calls is 1300, and we reported 1000" in closing.detail
    await world.close()


async def test_reports_without_outcome_are_waited_for_a_day() -> None:
    """More of them may be settled in a minute, and each would be an item."""
    world = await late_world(now="2027-12-01 13:00")
    world.stripe.simulator.faults.add(Fault(FaultKind.RATE_LIMITED, count=-1, contains="tm_3"))
    await world.publish(world.used("acme", 7, "2027-12-01 13:00", NOVEMBER))
    await world.pump()
    await world.turns(3)
    assert (amounts(world), await state(world)) == ([], "unbilled")
    await world.jump("2027-12-02 01:10")
    await world.turns(2)
    assert amounts(world) == [250]
    await world.close()


async def test_the_subscription_has_ended(world: ClosingWorld) -> None:
    """The item waits at the customer for any other invoice."""
    subscription = world.invoices("acme")[-1]["parent"]["subscription_details"]["subscription"]
    world.stripe.call("DELETE /v1/subscriptions/{subscription_exposed_id}", {}, subscription)
    await world.turns(3)
    (item,) = world.stripe_items("acme")
    assert (item["amount"], item["parent"]) == (250, None)


async def test_two_invoices_that_bill_one_meter_for_the_same_time_are_held() -> None:
    world = await ClosingWorld("2027-11-01").start()
    await world.sign_up("acme", world.per_call("2"))
    world.stripe.subscribe(world.customers["acme"], world.per_call("3"))
    await world.jump("2027-12-10 12:00")
    await world.publish(world.used("acme", 125, "2027-12-10 12:00", NOVEMBER))
    await world.pump()
    await world.turns(3)
    assert (amounts(world), set((await world.states("acme")).values())) == ([], {"held", "confirmed"})
    await world.close()


async def test_a_price_that_stripe_does_not_give_holds_its_invoices_only(world: ClosingWorld) -> None:
    bad = world.per_call("3")
    subscription = await world.sign_up("other", bad)
    world.clock.advance(HOUR_MS)
    await world.publish(world.used("other", 4, "2027-12-10 13:00", DECEMBER))
    await world.pump()
    path = "DELETE /v1/subscriptions/{subscription_exposed_id}"
    world.stripe.call(path, {"invoice_now": True}, subscription)
    assert world.totals("other") == [0, 12]

    def missing(request: httpx.Request) -> None:
        if request.url.path == f"/v1/prices/{bad}":
            request.url = request.url.copy_with(path="/v1/prices/price_missing")

    world.network.before = missing
    await world.turns(3)
    assert (amounts(world), await state(world)) == ([250], "confirmed")
    assert list((await world.states("other")).values())[-1] == "held"
