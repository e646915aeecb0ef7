"""The journal for the finance system, on PostgreSQL and on the simulation's fake."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from sqlalchemy import delete

from aggregators.journal import entry_document
from pipeline.access.daily_revenue import DailyRevenue
from pipeline.notices.sending import CLAIM_MS
from schemas.billing_events import Via
from schemas.clock import DAY_MS
from schemas.errors import Transient
from schemas.journal import JournalKind, PlanItem
from schemas.notices import ChannelName, DeliveryState
from schemas.side_tables import Outcome, Row
from sinks.sql import journal
from sinks.sql.side_tables import SqlSideTables
from sinks.sql.tables import mirror
from tests.worlds.journaled import Journaled

OPEN: dict[str, Any] = {"status": "open", "finalized_ms": 1_000, "remaining_minor": 10_900, "paid_minor": 0}
PAID: dict[str, Any] = {
    "status": "paid",
    "finalized_ms": 1_000,
    "paid_ms": 2_000,
    "remaining_minor": 0,
    "paid_minor": 10_900,
}
PART: dict[str, Any] = {**OPEN, "remaining_minor": 6_900, "paid_minor": 4_000}


@pytest_asyncio.fixture
async def business(side_tables: SqlSideTables) -> Journaled:
    business = Journaled(side_tables)
    await business.link()
    return business


async def test_each_fact_has_one_entry_however_often_it_is_told(business: Journaled) -> None:
    """Other histories are in tests/unit/sinks/test_journal_entries.py."""
    for number, columns in enumerate([{"status": "draft"}, OPEN, PART, PAID, {**PAID, "status": "void"}]):
        await business.invoice(**columns)
        # Another event, a second delivery, and a resync tell the same.
        await business.invoice(**columns)
        await business.invoice(**columns, name=f"evt_{business.events}")
        await business.invoice(**columns, via=Via.RESYNC)
        assert len(await business.entries()) == number
    assert await business.booked() == [("invoice", 10_900), ("payment", 4_000), ("payment", 6_900), ("void", 10_900)]


async def test_a_mirror_that_is_filled_again_writes_nothing(business: Journaled) -> None:
    await business.invoice(**PAID)
    await business.subscription(("price_a", 1))
    before = await business.entries()

    await business.tables._run(lambda sql: [sql.execute(delete(table)) for table in mirror.values()])
    await business.invoice(**PAID, via=Via.RESYNC)
    await business.subscription(("price_a", 1))
    assert await business.entries() == before


async def test_an_entry_says_whose_what_when_and_why(business: Journaled) -> None:
    await business.invoice(**OPEN)
    (entry,) = await business.entries()
    assert entry_document(entry) == {
        "number": 1, "id": "in_1/invoice/1", "kind": "invoice", "account": "acme", "object": "in_1", "invoice": "in_1",
        "at": "1970-01-01T00:00:01Z", "recorded_at": "2026-11-21T10:30:00.001Z", "amount_minor": 10_900,
        "tax_minor": 900, "currency": "usd", "exponent": 2, "cause": "evt_1", "reason": "subscription_cycle",
        "before": [], "after": [],
    }  # fmt: skip


async def test_an_entry_stays_as_it_was(business: Journaled) -> None:
    await business.invoice(**OPEN)
    before = await business.entries()
    await business.invoice(**{**PAID, "total_minor": 99, "currency": "eur"})
    assert (await business.entries())[:1] == before


async def test_a_plan_change_names_both_sides(business: Journaled) -> None:
    told: list[tuple[list[tuple[str, int | None]], dict[str, Any]]] = [
        ([("price_a", 1)], {"status": "incomplete"}),
        ([("price_a", 1)], {"status": "trialing"}),
        ([("price_a", 1)], {"status": "active"}),
        ([("price_u", None), ("price_a", 2)], {}),
        ([("price_a", 2), ("price_u", None)], {"status": "past_due"}),
        ([("price_a", 2), ("price_u", None)], {"status": "canceled", "ended_ms": 9_000}),
        ([("price_a", 2)], {"status": "canceled", "ended_ms": 9_000}),
    ]
    for prices, columns in told:
        await business.subscription(*prices, **columns)
    one, two = (PlanItem("price_a", "", 1),), (PlanItem("price_a", "", 2), PlanItem("price_u", "", None))
    found = await business.entries()
    assert [(each.id, each.before, each.after) for each in found] == [
        ("sub_1/plan_change/1", (), one), ("sub_1/plan_change/2", one, two), ("sub_1/plan_change/3", two, ()),
    ]  # fmt: skip
    assert [each.at_ms for each in found] == [5_000, 1_750_000_000_000, 9_000]


async def test_what_nobody_owned_is_journaled_when_the_customer_is_linked(side_tables: SqlSideTables) -> None:
    business = Journaled(side_tables)
    assert await business.invoice(**PAID, name="evt_early") is Outcome.HELD
    assert await business.entries() == []
    await business.link()
    assert await business.invoice(**PAID, name="evt_early") is Outcome.APPLIED
    assert [(each.account, each.kind.value) for each in await business.entries()] == [
        ("acme", "invoice"), ("acme", "payment"),
    ]  # fmt: skip


async def test_two_who_number_at_once_leave_no_gap(business: Journaled) -> None:
    for number in range(15):
        await business.invoice(number, **PAID)
    while sum(await asyncio.gather(*(business.number(7, delivers=True) for _ in range(4)))):
        pass
    assert [each.number for each in await business.entries()] == list(range(1, 31))
    deliveries = await business.tables.notices.listed(limit=1_000)
    assert len({each.notice.id for each in deliveries}) == len(deliveries) == 30


async def test_entries_that_are_written_meanwhile_come_behind(business: Journaled) -> None:
    """Who has a number has all numbers before it, whenever the others were committed."""
    seen: list[int] = []

    async def write() -> None:
        for number in range(12):
            await business.invoice(number, **OPEN)

    async def read(writing: asyncio.Task[None]) -> None:
        while not writing.done() or await business.number(3):
            await asyncio.sleep(0)
            await business.number(3)
            seen.extend(each.number for each in await business.tables.journal.entries(seen[-1] if seen else 0))

    writing = asyncio.create_task(write())
    await read(writing)
    await writing
    assert seen == list(range(1, 13))


async def test_numbers_and_deliveries_are_given_together(business: Journaled, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies before its transaction ends leaves no number and no delivery."""
    await business.invoice(**PAID)

    def die(*_: object) -> None:
        raise Transient("killed")

    with monkeypatch.context() as patched:
        patched.setattr(journal, "add_deliveries", die)
        with pytest.raises(Transient):
            await business.number(delivers=True)
    assert await business.tables.journal.entries() == []
    assert await business.number(delivers=True) == 2
    told = {each.notice.subject for each in await business.tables.notices.listed()}
    assert told == {"in_1/invoice/1", "in_1/payment/1"}


async def test_a_process_that_dies_after_it_sent_sends_the_same_again(business: Journaled) -> None:
    await business.invoice(**PAID)
    await business.number(delivers=True)
    now_ms = business.clock.ms
    for claimed in await business.tables.notices.claim(now_ms, now_ms + CLAIM_MS, 10, ChannelName.FINANCE):
        await business.receiver.send(claimed.notice)
    # The process has died. The next one waits until its claim runs out.
    assert await business.sender().turn(ChannelName.FINANCE) == 0
    business.clock.advance(CLAIM_MS)
    assert await business.sender().turn(ChannelName.FINANCE) == 2
    taken = Counter((each.id, each.body) for each in business.receiver.taken)
    assert list(taken.values()) == [2, 2]
    assert {each.state for each in await business.tables.notices.listed()} == {DeliveryState.SENT}


async def test_the_finance_system_gets_what_the_feed_gives(business: Journaled) -> None:
    await business.invoice(**PAID)
    await business.number(delivers=True)
    await business.sender().turn(ChannelName.FINANCE)
    bodies = [msgspec.json.decode(each.body) for each in business.receiver.taken]
    assert {each["type"] for each in bodies} == {"journal_entry"}
    found = sorted((each["data"] for each in bodies), key=lambda each: each["number"])
    assert found == [entry_document(each) for each in await business.entries()]


async def test_without_a_finance_system_nothing_waits(business: Journaled) -> None:
    await business.invoice(**PAID)
    assert await business.number(delivers=False) == 2
    assert await business.tables.notices.counts() == (0, None, 0)


async def test_a_finance_system_that_is_away_keeps_no_customer_from_a_warning(business: Journaled) -> None:
    await business.invoice(**PAID)
    await business.number(delivers=True)
    store = business.tables.notices
    assert [(await store.counts()).waiting, (await store.counts(but=ChannelName.FINANCE)).waiting] == [2, 0]
    # Nor is it shown to a customer.
    assert [len(await store.listed()), len(await store.listed(but=ChannelName.FINANCE))] == [2, 0]


async def test_pages_and_one_account(business: Journaled) -> None:
    for number in range(3):
        await business.invoice(number, **OPEN)
    await business.entries()
    store = business.tables.journal
    pages = [await store.entries(after, 2) for after in (0, 2, 3)]
    assert [[each.number for each in page] for page in pages] == [[1, 2], [3], []]
    assert [len(await store.entries(account=account)) for account in ("acme", "other")] == [3, 0]


async def test_each_day_has_what_it_earned_and_the_days_add_up(business: Journaled) -> None:
    store, day = business.tables.journal, 20_000
    # Nothing, 30 dollars, the same again by somebody else, less by a late credit note, and an older day.
    told: list[tuple[int, dict[str, int], int]] = [
        (day, {}, 0), (day + 1, {"usd": 3_000, "jpy": 500}, 2), (day + 1, {"usd": 3_100}, 0),
        (day + 2, {"usd": 2_500, "jpy": 500}, 1), (day, {"usd": 9_999}, 0), (day + 9, {"usd": 4_000, "jpy": 900}, 2),
    ]  # fmt: skip
    for until, totals, made in told:
        both = await asyncio.gather(*(store.add_recognized(until, totals, business.clock.ms) for _ in range(2)))
        assert sum(both) == made
    found = [each for each in await business.entries() if each.kind is JournalKind.RECOGNIZED]
    assert [(each.currency, each.reason, each.amount_minor, each.exponent) for each in found] == [
        ("jpy", "2024-10-04", 500, 0), ("usd", "2024-10-04", 3_000, 2), ("usd", "2024-10-05", -500, 2),
        ("jpy", "2024-10-12", 400, 0), ("usd", "2024-10-12", 1_500, 2),
    ]  # fmt: skip
    assert {each.account for each in found} == {""}


async def test_a_day_is_computed_once(business: Journaled) -> None:
    line: Row = {
        "id": "il_1", "invoice_id": "in_1", "amount_minor": 4_000, "start_ms": 0, "end_ms": 4 * DAY_MS,
    }  # fmt: skip
    await business.invoice(**{**OPEN, "finalized_ms": 1_000}, lines=[line])
    business.clock.ms = 2 * DAY_MS + 5
    daily = DailyRevenue(business.tables.invoice_books, business.tables.journal, business.clock)
    for _ in range(3):
        await daily.turn()
    business.clock.advance(DAY_MS)
    await daily.turn()
    # Another process.
    await DailyRevenue(business.tables.invoice_books, business.tables.journal, business.clock).turn()
    found = [each for each in await business.entries() if each.kind is JournalKind.RECOGNIZED]
    assert [(each.reason, each.amount_minor) for each in found] == [("1970-01-02", 2_000), ("1970-01-03", 1_000)]
