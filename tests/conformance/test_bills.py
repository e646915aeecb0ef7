"""What the store of bills promises, on PostgreSQL and on the simulation's fake."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, cast

import pytest

from schemas.billing_events import ObjectKind, ObjectName
from schemas.bills import Bill, BilledPrice, BillState, Closing, InvoiceItem, InvoiceItemState
from schemas.clock import DAY_MS, HOUR_MS
from schemas.log import REPORTS_TOPIC
from schemas.reports import Attempt, Intent
from schemas.side_tables import Fetched, Row, SideTables
from sinks.sql.bills import SqlBills
from sinks.sql.side_tables import SqlSideTables
from tests.conformance.side_table_steps import event, invoice, linked, step, subscription
from tests.worlds.sender import make_intent

START_MS = 1_793_491_200_000  # 2026-11-01
END_MS = 1_796_083_200_000  # 2026-12-01
FINAL_MS = END_MS + HOUR_MS
ITEM = InvoiceItem(
    "tmi_1", "cus_1", "sub_1", "in_1", "calls", "price_1", START_MS, END_MS, 0, Decimal(1_000), Decimal("1125.5"), 250,
    "usd", 2, "API calls: 125", InvoiceItemState.INTENDED, created_ms=FINAL_MS,
)  # fmt: skip
PRICES = [
    BilledPrice("price_1", "calls", "API calls", "{}"),
    BilledPrice("price_2", "tokens", "Tokens", "{}"),
    BilledPrice("price_flat", "", "Seats", "{}"),
]


@pytest.fixture
def bills(side_tables: SideTables) -> SqlBills:
    """The store of bills in the side tables."""
    return cast("SqlSideTables", side_tables).bills


def line(number: int, price: str = "price_1", quantity: str = "1000", cents: int = 2_000, **changes: Any) -> Row:
    """A line of November."""
    return {
        "id": f"il_{number}", "item_id": "si_1", "price_id": price, "is_proration": 0, "quantity": quantity,
        "amount_minor": cents, "start_ms": START_MS, "end_ms": END_MS, **changes,
    }  # fmt: skip


def an_invoice(number: int, lines: Sequence[Row], fetch_seq: int = 0, **changes: Any) -> Fetched:
    """A final invoice of `cus_1`."""
    name = invoice(number)
    row: Row = {
        "id": name.id, "customer_id": "cus_1", "subscription_id": "sub_1", "status": "paid", "currency": "usd",
        "exponent": 2, "billing_reason": "subscription_cycle", "created_ms": END_MS, "finalizes_ms": None,
        "finalized_ms": FINAL_MS, "deleted": 0, **changes,
    }  # fmt: skip
    of_invoice = [{**line, "id": f"{line['id']}_{name.id}", "invoice_id": name.id} for line in lines]
    return Fetched(name, fetch_seq, {"invoices": [row], "invoice_lines": of_invoice})


def a_subscription(number: int = 1, **changes: Any) -> Fetched:
    """A subscription of `cus_1` with a metered item in December."""
    name = subscription(number)
    row = {
        "id": name.id, "customer_id": "cus_1", "status": "active", "anchor_ms": START_MS, "currency": "usd",
        "deleted": 0, **changes,
    }  # fmt: skip
    item: Row = {
        "id": f"si_{number}", "subscription_id": name.id, "price_id": "price_1", "usage_type": "metered",
        "period_start_ms": END_MS, "period_end_ms": END_MS + 31 * DAY_MS,
    }  # fmt: skip
    return Fetched(name, 0, {"subscriptions": [row], "subscription_items": [item]})


async def stored(tables: SideTables, *fetched: Fetched) -> None:
    """Put objects into the mirror."""
    offset = await tables.position(0) or 0
    await tables.commit(step(offset, [event(offset, *(each.name for each in fetched))], fetched))


async def draft(tables: SideTables, number: int, deadline_ms: int, **changes: Any) -> None:
    fields = {"status": "draft", "finalized_ms": None, "finalizes_ms": deadline_ms, **changes}
    await stored(tables, an_invoice(number, [line(1)], **fields))


async def test_a_bill_is_the_sum_of_the_lines_of_a_metered_price(side_tables: SideTables, bills: SqlBills) -> None:
    tiers = [
        line(1, cents=0, quantity="10000"),
        line(2, cents=18_000, quantity="90000"),
        line(3, cents=3_751, quantity="37510.5"),
    ]
    others = [
        line(4, "price_flat", "1", 4_900),
        line(5, "price_2", "7", 70),
        line(6, "price_9"),
        line(7, is_proration=1),
    ]
    threshold = line(8, quantity="0", cents=-500)
    await stored(side_tables, an_invoice(1, [*tiers, *others, threshold]), a_subscription())
    assert await bills.bills_of(["in_1"]) == []
    assert await bills.unknown_prices(["in_1"]) == ["price_1", "price_2", "price_9", "price_flat"]
    assert await bills.unknown_prices([]) == ["price_1"]
    await bills.add_prices(PRICES)
    await bills.add_prices([PRICES[0]._replace(title="another title")])
    assert await bills.unknown_prices(["in_1"]) == ["price_9"]

    calls, tokens = sorted(await bills.bills_of(["in_1"]), key=lambda bill: bill.event_name)
    assert calls == Bill(
        "cus_1", "sub_1", "in_1", "calls", "price_1", START_MS, END_MS, Decimal("137510.5"), 21_751, "usd", 2, None,
        FINAL_MS, next_subscription="sub_1", title="API calls", terms="{}",
    )  # fmt: skip
    assert (tokens.event_name, tokens.quantity, tokens.amount_minor) == ("tokens", Decimal(7), 70)


async def test_what_a_threshold_invoice_bills_is_no_bill(side_tables: SideTables, bills: SqlBills) -> None:
    """The cycle's invoice bills the same span again from its first unit on."""
    await stored(side_tables, an_invoice(1, [line(1)], billing_reason="subscription_threshold"))
    await bills.add_prices(PRICES)
    assert await bills.bills_of(["in_1"]) == []
    assert await bills.finalized("calls", "cus_1", START_MS) == ""


async def test_a_line_of_a_period_that_runs_is_no_bill(side_tables: SideTables, bills: SqlBills) -> None:
    """The first invoice of a subscription may have a line of 0 for the period that begins."""
    await stored(side_tables, an_invoice(1, [line(1, end_ms=FINAL_MS + 1)]), an_invoice(2, [line(1, end_ms=FINAL_MS)]))
    await draft(side_tables, 3, FINAL_MS, created_ms=END_MS - 1)
    await bills.add_prices(PRICES)
    assert [bill.invoice for bill in await bills.bills_of(["in_1", "in_2", "in_3"])] == ["in_2"]
    assert await bills.finalized("calls", "cus_1", END_MS) == "in_2"


@pytest.mark.parametrize(
    ("subscriptions", "found"),
    [
        pytest.param([a_subscription()], "sub_1", id="its own"),
        pytest.param([a_subscription(status="past_due")], "sub_1", id="its own, unpaid"),
        pytest.param([a_subscription(status="canceled")], "", id="canceled"),
        pytest.param([a_subscription(deleted=1)], "", id="deleted"),
        pytest.param([a_subscription(status="canceled"), a_subscription(2)], "sub_2", id="another one"),
        pytest.param([a_subscription(status="canceled"), a_subscription(2, currency="eur")], "", id="other currency"),
        pytest.param([a_subscription(status="canceled"), a_subscription(2, customer_id="c")], "", id="others"),
    ],
)  # fmt: skip
async def test_which_subscription_can_take_an_item(
    side_tables: SideTables, bills: SqlBills, subscriptions: Sequence[Fetched], found: str
) -> None:
    await stored(side_tables, an_invoice(1, [line(1)]), *subscriptions)
    await bills.add_prices(PRICES)
    (bill,) = await bills.bills_of(["in_1"])
    assert bill.next_subscription == found


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        pytest.param(("calls", "cus_1", START_MS), "in_1", id="the first instant"),
        pytest.param(("calls", "cus_1", END_MS - 1), "in_1", id="the last instant"),
        pytest.param(("calls", "cus_1", START_MS - 1), "", id="before"),
        pytest.param(("calls", "cus_1", END_MS), "", id="the draft after it"),
        pytest.param(("tokens", "cus_1", START_MS), "", id="another meter"),
        pytest.param(("calls", "cus_2", START_MS), "", id="another customer"),
    ],
)
async def test_which_invoice_is_final(
    side_tables: SideTables, bills: SqlBills, asked: tuple[str, str, int], found: str
) -> None:
    await stored(side_tables, an_invoice(1, [line(1)]))
    await stored(
        side_tables,
        an_invoice(2, [line(1, start_ms=END_MS, end_ms=END_MS + DAY_MS)], status="draft", finalized_ms=None),
    )
    await bills.add_prices(PRICES)
    assert await bills.finalized(*asked) == found


async def test_drafts_come_by_their_deadlines(side_tables: SideTables, bills: SqlBills) -> None:
    for number, deadline_ms in ((1, 500), (2, 400), (3, 399), (4, 600), (5, 450)):
        await draft(side_tables, number, deadline_ms, deleted=int(number == 5))
    await stored(side_tables, an_invoice(6, [line(1)], finalizes_ms=450))
    assert await bills.drafts(400, 600, 10) == ["in_2", "in_1"]
    assert await bills.drafts(400, 600, 1) == ["in_2"]


async def test_invoices_are_due_until_they_are_too_old(side_tables: SideTables, bills: SqlBills) -> None:
    for number in range(1, 6):
        await stored(side_tables, an_invoice(number, [], finalized_ms=100 * number))
    await draft(side_tables, 6, 900)
    await bills.note(
        [
            Closing("in_2", BillState.CONFIRMED, "", 1_001),
            Closing("in_3", BillState.UNBILLED, "why", 999),
            Closing("in_4", BillState.DRAFT, summary="equal"),
        ]
    )
    assert await bills.due(200, 1_000, 10) == ["in_4", "in_5", "in_3"]
    assert await bills.due(200, 1_001, 2) == ["in_4", "in_5"]
    assert await bills.closings(["in_3", "in_5"]) == {"in_3": Closing("in_3", BillState.UNBILLED, "why", 999)}
    assert await bills.states() == {BillState.UNBILLED: 1, BillState.DRAFT: 1}
    await bills.note([Closing("in_3", BillState.CONFIRMED, "", 5_000)])
    assert await bills.states() == {BillState.DRAFT: 1}


async def test_bills_are_listed_with_the_periods_that_run(side_tables: SideTables, bills: SqlBills) -> None:
    await stored(side_tables, an_invoice(1, [line(1)]), a_subscription())
    await draft(side_tables, 2, FINAL_MS, customer_id="cus_2")
    await bills.add_prices(PRICES)
    everything = await bills.bills(0, END_MS + 99 * DAY_MS)
    assert [(bill.stripe_customer, bill.invoice, bill.end_ms) for bill in everything] == [
        ("cus_1", "", END_MS + 31 * DAY_MS), ("cus_1", "in_1", END_MS), ("cus_2", "in_2", END_MS),
    ]  # fmt: skip
    assert (everything[2].deadline_ms, everything[2].finalized_ms) == (FINAL_MS, None)
    assert await bills.bills(0, END_MS + 99 * DAY_MS, limit=1) == everything[:1]
    assert await bills.bills(END_MS, END_MS + 1, "cus_2") == everything[2:]
    assert await bills.bills(0, END_MS) == []


async def test_an_item_is_intended_once(side_tables: SideTables, bills: SqlBills) -> None:
    """The second process may have seen more usage: another identifier, and the same number in the chain."""
    await linked(side_tables)
    before = len(await side_tables.audit("acme"))
    assert await bills.intend(ITEM, "late usage")
    assert not await bills.intend(ITEM, "late usage")
    assert not await bills.intend(ITEM._replace(identifier="tmi_2", to_quantity=Decimal(1_200)), "late usage")
    assert await bills.items("cus_1", "calls", START_MS, END_MS) == [ITEM]
    assert await bills.items("cus_1", "calls", START_MS, END_MS + 1) == []
    (row,) = (await side_tables.audit("acme"))[before:]
    assert (row.actor, row.entity, row.entity_id, row.reason) == ("sink", "invoice_item", "tmi_1", "late usage")
    assert json.loads(row.after or "") == {
        "state": "intended", "stripe_item": "", "invoice": "in_1", "event_name": "calls", "from_quantity": "1000",
        "to_quantity": "1125.5", "amount_minor": 250, "currency": "usd",
    }  # fmt: skip


async def test_an_item_is_settled_by_who_knows_its_state(side_tables: SideTables, bills: SqlBills) -> None:
    await linked(side_tables)
    await bills.intend(ITEM, "")
    before = len(await side_tables.audit("acme"))
    tried = ITEM._replace(sent_ms=FINAL_MS, attempt=1)
    assert await bills.settle(ITEM, tried, FINAL_MS)
    assert not await bills.settle(ITEM, tried, FINAL_MS)
    assert not await bills.settle(tried._replace(attempt=2), tried, FINAL_MS)
    assert len(await side_tables.audit("acme")) == before
    created = tried._replace(state=InvoiceItemState.CREATED, stripe_item="ii_1")
    assert await bills.settle(tried, created, FINAL_MS + 1)
    assert await bills.items("cus_1", "calls", START_MS, END_MS) == [created]
    (row,) = (await side_tables.audit("acme"))[before:]
    assert (row.at_ms, row.before) == (FINAL_MS + 1, '{"state":"intended"}')
    assert json.loads(row.after or "") == {"state": "created", "stripe_item": "ii_1"}


async def test_a_customer_without_an_account_has_no_audit(bills: SqlBills) -> None:
    assert await bills.intend(ITEM, "")


async def test_items_that_are_not_at_stripe_are_found(bills: SqlBills) -> None:
    state = InvoiceItemState
    for number, (is_in, sent_ms) in enumerate(
        [(state.CREATED, 5), (state.WRITTEN_OFF, None), (state.HELD, 100), (state.HELD, 101), (state.INTENDED, 999)]
    ):
        await bills.intend(ITEM._replace(identifier=f"tmi_{number}", number=number, state=is_in, sent_ms=sent_ms), "")
    await bills.intend(ITEM._replace(identifier="tmi_9", number=9, created_ms=1), "")
    await bills.intend(ITEM._replace(identifier="tmi_8", number=8), "")
    assert [item.identifier for item in await bills.unsent(100, 10)] == ["tmi_9", "tmi_8", "tmi_2", "tmi_4"]
    assert [item.identifier for item in await bills.unsent(100, 1)] == ["tmi_9"]


async def test_accounts_and_meters_of_a_customer(side_tables: SideTables, bills: SqlBills) -> None:
    """An account that was bound without a link is known by its reports."""
    await linked(side_tables)
    for number, name in enumerate(("cus_2", "cus_1")):
        row: Row = {"id": name, "deleted": 0}
        fetched = Fetched(ObjectName(ObjectKind.CUSTOMER, name), 0, {"stripe_customers": [row]})
        await stored(side_tables, fetched)
        entries = [*reported(make_intent(f"i{number}", "bound", event_name="tokens"), name, END_MS)]
        await cast("SqlSideTables", side_tables).intents.apply(number, None, 1, [(0, each) for each in entries])
    assert REPORTS_TOPIC
    assert await bills.customers("", 10) == ["cus_1", "cus_2"]
    assert await bills.customers("cus_1", 1) == ["cus_2"]
    assert await bills.event_names("cus_1") == ["tokens"]
    assert await bills.event_names("cus_3") == []
    assert await bills.accounts("cus_1", END_MS) == ["acme", "bound"]
    assert await bills.accounts("cus_1", END_MS + 1) == ["acme"]


def reported(intent: Intent, customer: str, at_ms: int) -> Sequence[Intent | Attempt]:
    """An intent and its attempt."""
    attempt = Attempt(
        identifier=intent.identifier, stripe_customer=customer, timestamp_s=at_ms // 1000, value="1", attempted_at_ms=1
    )
    return intent, attempt


async def test_of_items_that_are_intended_or_settled_at_once_one_counts(
    side_tables: SideTables, bills: SqlBills
) -> None:
    await linked(side_tables)
    others = [ITEM._replace(identifier=f"tmi_{number}", to_quantity=Decimal(2_000 + number)) for number in range(6)]
    made = await asyncio.gather(*(bills.intend(item, "") for item in others))
    (item,) = await bills.items("cus_1", "calls", START_MS, END_MS)
    assert (made.count(True), others[made.index(True)]) == (1, item)
    tries = [item._replace(sent_ms=FINAL_MS + number, attempt=1) for number in range(6)]
    settled = await asyncio.gather(*(bills.settle(item, tried, FINAL_MS) for tried in tries))
    assert settled.count(True) == 1
    assert await bills.items("cus_1", "calls", START_MS, END_MS) == [tries[settled.index(True)]]
    assert len([row for row in await side_tables.audit("acme") if row.entity == "invoice_item"]) == 1
