"""Migrations from a flat price to a price for usage, from the plan to the first metered invoice, at the simulator."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final

import pytest

from pipeline.changes.comparing import compare, resume
from pipeline.changes.migrating import MIXED, watch
from pipeline.changes.operating import PATIENCE_MS, turn
from pipeline.changes.promoting import begin
from pipeline.commands.migration import accepted_minor, document, lines, report, write_csv
from schemas.errors import InvalidInput
from schemas.flat_to_metered import ItemState
from stripe_simulator.faults import Fault, FaultKind
from tests.worlds.ending import Ends
from tests.worlds.migrating import ANN, FLAT, METERED, NAME, ZERO, Migrating, at_ms

CUSTOMERS: Final = 12
FEW: Final = 3
ANCHOR_S: Final = at_ms("2027-01-01") // 1_000
# 240 000 calls, of which 100 000 are included, at 0.06 cents.
USAGE_MINOR: Final = 8_400


async def shadowed(customers: int = CUSTOMERS) -> Migrating:
    """Customers who have had the flat price and the shadow through January, with usage, until its last hour."""
    world = Migrating("2026-12-15")
    await world.customers_join(customers, billing_cycle_anchor=ANCHOR_S)
    await world.plan()
    await world.shadow()
    await world.until("2027-01-20")
    for account in world.customers:
        await world.use(account, 240_000)
    await world.until("2027-01-31 23:30")
    return world


async def compared(customers: int = CUSTOMERS) -> Migrating:
    """The same after the first whole invoice, which is compared."""
    world = await shadowed(customers)
    await world.compare()
    await world.until("2027-02-01 02:00")
    await world.compare()
    return world


async def promote_all(world: Migrating) -> None:
    """Approve and promote every wave."""
    sizes = Counter(item.wave for item in await world.items())
    for wave, number in sorted(sizes.items()):
        await world.approve(wave, number * 9_900, "2027-01-28")
        await world.promote(wave)
    await world.settle()


async def test_twelve_customers_are_moved_and_one_goes_back() -> None:
    """Scenario 27: the shadow month bills 9900 and each metered line 0, March 1 bills 0, April 1 bills 8400; who goes
    back before March 1 has 9900 on the next invoice."""
    world = await compared()
    first = (await world.items())[0].figures
    assert first.rated is not None
    assert (first.rated.quantity, first.rated.ours_minor, first.rated.stripe_minor) == ("240000", 8_400, 8_400)
    assert first.compared is not None
    assert (first.compared.billed, first.compared.charged_minor, first.compared.ours_minor) == (
        "240000",
        0,
        USAGE_MINOR,
    )
    assert await world.states() == {ItemState.COMPARED: CUSTOMERS}
    assert world.has("account000") == {FLAT, ZERO}

    await promote_all(world)
    await world.until("2027-02-10")
    await world.revert("account003")
    await world.settle()
    assert world.has("account003") == {FLAT}
    await world.until("2027-03-01 02:00")
    await world.compare()
    assert await world.states() == {ItemState.PROMOTED: 11, ItemState.REVERTED: 1}
    await world.until("2027-03-15")
    for account in world.customers:
        await world.use(account, 240_000)
    await world.until("2027-04-01 02:00")
    found = await world.compare()

    assert found.migration.halted == ""
    assert await world.states() == {ItemState.SETTLED: 11, ItemState.REVERTED: 1}
    for account in world.customers:
        bills = [("paid", minor) for minor in ([9_900, 9_900] if account == "account003" else [0, USAGE_MINOR])]
        assert world.bills_of(account)[1:] == [("paid", 9_900), ("paid", 9_900), *bills]
        assert world.has(account) == ({FLAT} if account == "account003" else {METERED})


async def dying(world: Migrating, command: Callable[..., Awaitable[object]]) -> int:
    """Repeat a command whose process ends after its first writing call, then after its second, and so on, until one
    does not end. In between, Stripe's events come or not, and the role goes on with operations or not."""
    for calls in count(1):
        try:
            await command(countdown=[calls], after=True)
        except Ends:
            if calls % 2:
                await world.settle()
            if calls % 3 == 0:
                world.clock.ms += PATIENCE_MS
                await turn(world.stores().parts)
        else:
            return calls
    raise AssertionError


async def test_processes_that_end_at_any_call_move_each_customer_once() -> None:
    """Every command's process ends after each of its writing calls; the invoices are as if none had ended."""
    world = Migrating("2026-12-15")
    await world.customers_join(CUSTOMERS, billing_cycle_anchor=ANCHOR_S)
    ends = [await dying(world, world.plan), await dying(world, world.shadow)]
    await world.until("2027-01-20")
    for account in world.customers:
        await world.use(account, 240_000)
    await world.until("2027-01-31 23:00")
    ends.append(await dying(world, world.compare))
    await world.until("2027-02-01 02:00")
    ends.append(await dying(world, world.compare))
    for wave, number in enumerate((1, 10, CUSTOMERS - 11), 1):
        ends.append(await dying(world, partial(world.approve, wave, number * 9_900, "2027-01-28")))
        ends.append(await dying(world, partial(world.promote, wave)))
    ends.append(await dying(world, partial(world.revert, "account003")))
    await world.until("2027-03-01 02:00")
    ends.append(await dying(world, world.compare))
    await world.until("2027-03-15")
    for account in world.customers:
        await world.use(account, 240_000)
    ends.append(await dying(world, partial(world.revert, "account004")))
    await world.until("2027-04-01 02:00")
    ends.append(await dying(world, world.compare))

    assert (await world.compare()).migration.halted == ""
    assert await world.states() == {ItemState.SETTLED: 10, ItemState.REVERTED: 2}
    bills = {"account003": [9_900, 9_900], "account004": [0, USAGE_MINOR + 9_900]}
    for account in world.customers:
        assert [minor for _, minor in world.bills_of(account)[3:]] == bills.get(account, [0, USAGE_MINOR])
        trail = [row for row in await world.tables.audit(account) if row.entity == "migration_item"]
        assert len({(row.before, row.after) for row in trail}) == len(trail)
    assert sum(ends) > 60


async def test_a_difference_halts_every_wave_until_it_is_mended() -> None:
    """One customer of the last wave: what the reconciler counts is not what was billed. Nobody goes on."""
    world = await shadowed(FEW)
    await world.compare()
    await world.until("2027-02-01 02:00")
    world.usages.lost["account002"] = 5
    found = await world.compare()
    assert "account002: invoice " in found.migration.halted
    assert "we counted 240000, reported 240000, the reconciler counted 239995" in found.migration.halted
    assert await world.states() == {ItemState.COMPARED: FEW - 1, ItemState.SHADOW: 1}
    with pytest.raises(InvalidInput, match="is halted"):
        await world.approve(1, 9_900, "2027-01-28")
    with pytest.raises(InvalidInput, match="differs"):
        await resume(world.stores(), NAME, ANN)

    world.usages.lost.clear()
    await world.compare()
    assert (await resume(world.stores(), NAME, ANN)).migration.halted == ""
    await world.approve(1, 9_900, "2027-01-28")


async def test_a_price_for_usage_beside_the_flat_price_releases_all_schedules() -> None:
    """Somebody adds the price in the dashboard: the role notices it in the mirror, and the next command takes all
    schedules back that have not begun."""
    world = await compared(FEW)
    await promote_all(world)
    subscription = world.subscriptions_of["account002"]
    world.customer, world.subscription = world.customers["account002"], subscription
    schedule = world.at_stripe()["schedule"]
    world.stripe.call("POST /v1/subscription_schedules/{schedule}/release", {}, schedule)
    item = {"subscription": subscription, "price": world.prices[f"tm.{METERED}"]}
    world.stripe.call("POST /v1/subscription_items", item)
    await world.settle()
    sql = world.sql
    await watch(sql.catalog, sql.plan_moves, sql.migrations, world.clock)
    assert (await world.status()).migration.halted == f"{subscription} of account002: {MIXED}"

    await dying(world, world.compare)
    await world.settle()
    assert await world.states() == {ItemState.COMPARED: FEW}
    await world.until("2027-03-01 02:00")
    assert {world.bills_of(account)[-1] for account in list(world.customers)[:-1]} == {("paid", 9_900)}


async def test_what_stripe_did_although_its_answer_was_lost_is_done_once() -> None:
    """Stripe carries the calls out and says that it failed by itself, which it repeats under the same key."""
    world = Migrating("2026-12-15")
    await world.customers_join(FEW, billing_cycle_anchor=ANCHOR_S)
    await world.plan()
    fault = Fault(FaultKind.SERVER_ERROR_AFTER_COMMIT, count=2, path="/v1/subscription", method="POST")
    world.stripe.simulator.faults.add(fault)
    for _ in range(3):
        await world.shadow()
    assert world.stripe.simulator.faults.happened

    assert await world.states() == {ItemState.SHADOW: FEW}
    assert {frozenset(world.has(account)) for account in world.customers} == {frozenset({FLAT, ZERO})}


async def test_the_guards_of_an_approval_and_of_a_promotion() -> None:
    """The order of waves, the month without cash, and when the customers were told."""
    world = await compared(FEW)
    with pytest.raises(InvalidInput, match=r"must be usd=99.00: so much is not charged"):
        await world.approve(1, 9_899, "2027-01-28")
    with pytest.raises(InvalidInput, match="wave 1 is not scheduled yet"):
        await world.approve(2, 19_800, "2027-01-28")
    with pytest.raises(InvalidInput, match="is in the future"):
        await world.approve(1, 9_900, "2027-02-02")
    with pytest.raises(InvalidInput, match="wave 3 has no subscription"):
        await world.approve(3, 0, "2027-01-28")
    with pytest.raises(InvalidInput, match="is not CURRENCY=AMOUNT"):
        await accepted_minor(world.stores(), ["usd=99.001"])
    assert await accepted_minor(world.stores(), ["usd=99"]) == {"usd": 9_900}

    await world.approve(1, 9_900, "2027-01-31")
    await world.promote(1)
    (first, *_) = await world.items()
    assert (first.state, first.note[:41]) == (ItemState.APPROVED, "its next period begins less than 30 days ")
    await world.until("2027-03-01 02:00")
    await world.promote(1)
    assert (await world.items())[0].state is ItemState.SCHEDULED


async def test_who_changes_otherwise_leaves_and_who_is_not_free_never_comes() -> None:
    """A customer who cancels, one who releases the schedule, and those that cannot be moved."""
    world = Migrating("2026-12-15")
    await world.customers_join(4, billing_cycle_anchor=ANCHOR_S)
    ending = world.subscriptions_of["account000"]
    route = "POST /v1/subscriptions/{subscription_exposed_id}"
    world.stripe.call(route, {"cancel_at_period_end": True}, ending)
    await world.settle()
    _, left = await begin(world.stores(), world.migration())
    assert left == {ending: "is about to be canceled"}

    canceled = world.subscriptions_of["account001"]
    world.stripe.call(route, {"cancel_at_period_end": True}, canceled)
    await world.shadow()
    notes = {item.subscription: (item.state, item.note) for item in await world.items()}
    assert notes[canceled] == (ItemState.PLANNED, "is about to be canceled")
    await world.until("2027-01-02")
    await world.compare()
    assert await world.states() == {ItemState.LEFT: 1, ItemState.SHADOW: 2}


async def test_a_schedule_that_somebody_releases_is_to_be_approved_again() -> None:
    """The mirror may be late: nothing is believed before Stripe was asked."""
    world = await compared(1)
    await world.approve(1, 9_900, "2027-01-28")
    await world.promote(1)
    await world.compare()
    assert await world.states() == {ItemState.SCHEDULED: 1}
    world.has("account000")
    schedule = world.at_stripe()["schedule"]
    world.stripe.call("POST /v1/subscription_schedules/{schedule}/release", {}, schedule)
    await world.settle()
    await world.compare()

    (item,) = await world.items()
    assert (item.state, item.note) == (ItemState.COMPARED, "somebody released its schedule: approve its wave again")


async def test_an_empty_preview_proves_nothing() -> None:
    """With usage on the invoice and none in the preview a subscription is not compared, unless a person says so."""
    world = await shadowed(1)
    await world.until("2027-02-01 02:00")
    await world.compare()
    (item,) = await world.items()
    assert (item.state, item.note[:56]) == (
        ItemState.SHADOW, "Stripe's preview of the future price showed no usage yet"
    )  # fmt: skip
    await compare(world.stores(), NAME, ANN, world.told.append, previews=False)
    assert await world.states() == {ItemState.COMPARED: 1}


async def test_usage_that_cost_more_than_the_flat_price_is_a_credit_to_make() -> None:
    """Who goes back in March pays March's usage of 14400 and the fee of April; 4500 of that is proposed as a credit."""
    world = await compared(1)
    await promote_all(world)
    await world.until("2027-03-10")
    await world.use("account000", 340_000)
    await world.revert("account000")
    await world.until("2027-04-01 00:30")
    await world.compare()
    (item,) = await world.items()
    assert (item.state, item.note) == (ItemState.RETURNING, "the invoice of its last usage is not final yet")
    await world.until("2027-04-01 02:00")
    await world.compare()

    (item,) = await world.items()
    assert (item.state, item.figures.credit_minor) == (ItemState.REVERTED, 14_400 - 9_900)
    assert world.bills_of("account000")[-1] == ("paid", 14_400 + 9_900)
    found = await report(world.stores(), NAME)
    said = f"credit: {item.subscription} of account000 went back, and paid 45.00 usd more than the flat price"
    assert any(line.startswith(said) for line in lines(found))


async def test_the_report_is_that_of_the_document(tmp_path: Path) -> None:
    """Twelve customers with 140 000 to 360 000 calls: who pays more, and which month brings no cash."""
    page = (Path(__file__).parents[3] / "docs" / "migration.md").read_text()
    world = Migrating("2026-12-15")
    await world.customers_join(CUSTOMERS, billing_cycle_anchor=ANCHOR_S)
    await world.plan()
    assert "\n".join(lines(await report(world.stores(), NAME))) in page
    await world.shadow()
    await world.until("2027-01-20")
    for number, account in enumerate(world.customers):
        await world.use(account, 140_000 + 20_000 * number)
    await world.until("2027-01-31 23:30")
    await world.compare()
    await world.until("2027-02-01 02:00")
    await world.compare()
    found = await report(world.stores(), NAME)

    assert "\n".join(lines(found)) in page
    write_csv(found, tmp_path / "report.csv")
    rows = list(csv.DictReader((tmp_path / "report.csv").read_text().splitlines()))
    figures = {row["account"]: (row["usage_invoiced"], row["usage_price"], row["difference"]) for row in rows}
    assert figures["account000"] == ("140000", "24.00", "-75.00")
    assert figures["account011"] == ("360000", "156.00", "57.00")
    assert document(found)["waves"][1]["month_without_cash"] == "990.00 usd"


async def test_who_was_being_taken_back_is_not_promoted() -> None:
    """The revert of an approved subscription did not end. The promotion of its wave ends it, and does no more."""
    world = await compared(1)
    await world.approve(1, 9_900, "2027-01-28")
    with pytest.raises(Ends):
        await world.revert("account000", countdown=[3], after=True)
    (item,) = await world.items()
    assert (item.state, item.wish) == (ItemState.APPROVED, ItemState.REVERTED)
    await world.promote(1)
    await world.settle()

    assert await world.states() == {ItemState.REVERTED: 1}
    await world.until("2027-03-01 02:00")
    assert world.has("account000") == {FLAT}


async def test_a_difference_of_one_that_went_back_is_shown_no_more() -> None:
    """The reconciler's count differs: the customer is taken back, and the migration goes on."""
    world = await shadowed(FEW)
    world.usages.lost["account002"] = 5
    await world.until("2027-02-01 02:00")
    await world.compare()
    assert [item.account for item in await world.items() if item.problem] == ["account002"]
    await world.revert("account002")

    assert [item.problem for item in await world.items()] == [""] * FEW
    assert (await resume(world.stores(), NAME, ANN)).migration.halted == ""


async def test_a_customer_who_has_another_plan_leaves_and_the_others_are_compared() -> None:
    """Somebody takes the flat price away; the price of 0 is still there. No command fails of that."""
    world = await compared(FEW)
    account = (await world.items())[0].account
    world.has(account)
    flat = next(each["id"] for each in world.at_stripe()["items"]["data"] if each["price"]["unit_amount"])
    world.stripe.call("DELETE /v1/subscription_items/{item}", {"proration_behavior": "none"}, flat)
    await world.settle()
    await world.approve(1, 9_900, "2027-01-28")
    await world.promote(1)
    assert (await world.items())[0].note == "has no price of flat@1"
    await world.compare()

    assert await world.states() == {ItemState.LEFT: 1, ItemState.COMPARED: FEW - 1}


async def test_who_goes_back_has_again_what_was_had_when_the_usage_began() -> None:
    """The customer buys a second piece of the flat plan between plan and promotion, another thing in
    March, and goes back."""
    world = await compared(1)
    world.has("account000")
    item = world.at_stripe()["items"]["data"][0]["id"]
    params = {"quantity": 2, "proration_behavior": "none"}
    world.stripe.call("POST /v1/subscription_items/{item}", params, item)
    await world.settle()
    await world.compare()
    await world.approve(1, 2 * 9_900, "2027-01-28")
    await world.promote(1)
    await world.until("2027-03-10")
    world.has("account000")
    product = world.at_stripe()["items"]["data"][0]["price"]["product"]
    terms = {"currency": "usd", "unit_amount": 500, "recurring": {"interval": "month"}, "lookup_key": "tm.extra"}
    extra = world.stripe.call("POST /v1/prices", {**terms, "product": product})["id"]
    item = {"subscription": world.subscription, "price": extra, "quantity": 3, "proration_behavior": "none"}
    world.stripe.call("POST /v1/subscription_items", item)
    await world.settle()
    await world.revert("account000")
    await world.until("2027-04-02")
    world.has("account000")
    assert world.bought() == {(FLAT, 2), ("extra", 3)}
