"""What the outbox of notices promises, on PostgreSQL and on the simulation's fake."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text

from schemas.billing_events import ObjectKind, ObjectName
from schemas.errors import InvalidInput
from schemas.notices import ChannelName, Delivery, DeliveryState, Notice, NoticeKind, cursor_of
from schemas.side_tables import Fetched
from sinks.sql.side_tables import SqlSideTables
from sinks.sql.store import PostgresSideTables
from tests.conformance.side_table_steps import event, step

NOW_MS = 1_795_257_000_000
WEBHOOK = (ChannelName.WEBHOOK,)


def notice(name: str = "a", made_ms: int = NOW_MS, account: str = "acme", body: str = "{}") -> Notice:
    return Notice(f"ntc_{name}", NoticeKind.LIMIT_WARNING, account, f"f_{name}", 0, NOW_MS + 10, 80, body, made_ms)


async def claimed(tables: SqlSideTables, now_ms: int = NOW_MS, limit: int = 10) -> list[Delivery]:
    return list(await tables.notices.claim(now_ms, now_ms + 100, limit))


async def test_a_notice_waits_once_in_each_channel(side_tables: SqlSideTables) -> None:
    both = (ChannelName.WEBHOOK, ChannelName.MAIL)
    store = side_tables.notices
    assert await store.add([notice(), notice(), notice("b")], both) == 4
    assert await store.add([notice(body="other")], both) == 0
    assert await store.add([], both) == 0
    assert [(row.notice.id, row.channel) for row in await store.listed()] == [
        ("ntc_b", ChannelName.WEBHOOK), ("ntc_b", ChannelName.MAIL),
        ("ntc_a", ChannelName.WEBHOOK), ("ntc_a", ChannelName.MAIL),
    ]  # fmt: skip
    assert {row.notice.body for row in await store.listed()} == {"{}"}


async def test_a_notice_comes_back_as_it_was_written(side_tables: SqlSideTables) -> None:
    written = notice(account="\N{SNOWMAN}'\n\\", body='{"text": "\N{PILE OF POO}\\u0000"}')
    await side_tables.notices.add([written], WEBHOOK)
    (row,) = await claimed(side_tables)
    assert row == Delivery(written, ChannelName.WEBHOOK, attempts=1, due_ms=NOW_MS + 100)


@pytest.mark.parametrize("state", [each for each in DeliveryState if each is not DeliveryState.WAITING])
async def test_only_what_was_obsolete_waits_again(side_tables: SqlSideTables, state: DeliveryState) -> None:
    await side_tables.notices.add([notice()], WEBHOOK)
    (row,) = await claimed(side_tables)
    assert await side_tables.notices.settle(row, state, "why", NOW_MS)
    again = await side_tables.notices.add([notice(made_ms=NOW_MS + 5, body="newer")], WEBHOOK)
    (after,) = await side_tables.notices.listed()

    if state is DeliveryState.OBSOLETE:
        assert (again, after.state, after.notice.body, after.settled_ms) == (1, DeliveryState.WAITING, "newer", None)
        assert (after.attempts, after.failures, after.due_ms) == (1, 0, NOW_MS + 5)
    else:
        assert (again, after.state, after.notice.body, after.settled_ms) == (0, state, "{}", NOW_MS)


async def test_a_claim_holds_until_it_runs_out(side_tables: SqlSideTables) -> None:
    await side_tables.notices.add([notice(), notice("b"), notice("later", NOW_MS + 50)], WEBHOOK)
    assert [row.notice.id for row in await claimed(side_tables, limit=1)] == ["ntc_a"]
    assert [row.notice.id for row in await claimed(side_tables)] == ["ntc_b"]
    assert await claimed(side_tables) == []
    assert [(row.notice.id, row.attempts) for row in await claimed(side_tables, NOW_MS + 100)] == [
        ("ntc_later", 1), ("ntc_a", 2), ("ntc_b", 2),
    ]  # fmt: skip


async def test_two_who_claim_at_once_share(side_tables: SqlSideTables) -> None:
    await side_tables.notices.add([notice(str(number)) for number in range(40)], WEBHOOK)
    shares = await asyncio.gather(*(claimed(side_tables, limit=10) for _ in range(4)))
    ids = [row.notice.id for share in shares for row in share]
    assert len(ids) == len(set(ids))


async def test_only_the_last_claim_settles(side_tables: SqlSideTables) -> None:
    store = side_tables.notices
    await store.add([notice()], WEBHOOK)
    (first,) = await claimed(side_tables)
    (second,) = await claimed(side_tables, NOW_MS + 100)
    assert not await store.settle(first, DeliveryState.DEAD, "", NOW_MS)
    assert not await store.postpone(first, NOW_MS, 9, "")
    assert await store.postpone(second, NOW_MS + 300, 1, "no\0answer")
    (row,) = await claimed(side_tables, NOW_MS + 300)
    assert (row.failures, row.detail) == (1, "no\N{REPLACEMENT CHARACTER}answer")
    assert await store.settle(row, DeliveryState.SENT, "", NOW_MS + 301)
    assert not await store.settle(row, DeliveryState.DEAD, "", NOW_MS + 302)
    assert await claimed(side_tables, NOW_MS + 10_000) == []


async def test_counts_and_retry(side_tables: SqlSideTables) -> None:
    store = side_tables.notices
    assert await store.counts() == (0, None, 0)
    await store.add([notice(), notice("b", NOW_MS - 5), notice("c")], WEBHOOK)
    for row in await claimed(side_tables):
        if row.notice.id != "ntc_a":
            await store.settle(row, DeliveryState.DEAD, "", NOW_MS)
    assert await store.counts() == (1, NOW_MS, 2)
    assert [await store.retry(name, NOW_MS) for name in ("ntc_a", "nothing\0", "ntc_b", "")] == [0, 0, 1, 1]
    assert await store.counts() == (3, NOW_MS - 5, 0)
    assert {row.notice.id for row in await claimed(side_tables)} == {"ntc_b", "ntc_c"}


async def test_pages_are_the_newest_first(side_tables: SqlSideTables) -> None:
    store = side_tables.notices
    await store.add([notice(f"{number}", NOW_MS + number // 3) for number in range(10)], WEBHOOK)
    await store.add([notice("other", account="globex")], WEBHOOK)
    pages: list[str] = []
    cursor = ""
    while page := await store.listed(account="acme", limit=4, before=cursor):
        pages += [row.notice.id for row in page]
        cursor = cursor_of(page[-1])
    assert pages == [f"ntc_{number}" for number in (9, 8, 7, 6, 5, 4, 3, 2, 1, 0)]
    assert await store.listed(DeliveryState.SENT) == []
    assert len(await store.listed(DeliveryState.WAITING, limit=100)) == 11


@pytest.mark.parametrize("cursor", ["x", "1", "1.a", "-1.a.b", "\N{SUPERSCRIPT TWO}.a.b", "9" * 17 + ".a.b", "1.a.\0"])
async def test_a_cursor_that_is_none_is_refused(side_tables: SqlSideTables, cursor: str) -> None:
    with pytest.raises(InvalidInput, match="cursor"):
        await side_tables.notices.listed(before=cursor)


async def test_only_settled_deliveries_of_old_periods_are_pruned(side_tables: SqlSideTables) -> None:
    store = side_tables.notices
    await store.add([notice(), notice("b"), notice("c")], WEBHOOK)
    rows = await claimed(side_tables)
    for row in rows[:2]:
        await store.settle(row, DeliveryState.SENT, "", NOW_MS)
    assert await store.prune(NOW_MS + 10, 10) == 0
    assert [await store.prune(NOW_MS + 11, 1) for _ in range(3)] == [1, 1, 0]
    assert [row.notice.id for row in await store.listed()] == ["ntc_c"]


async def test_the_address_is_that_of_the_customer_of_now(side_tables: SqlSideTables) -> None:
    for number, email in ((1, "one@example.com"), (2, None)):
        name = ObjectName(ObjectKind.CUSTOMER, f"cus_{number}")
        fetched = Fetched(name, 0, {"stripe_customers": [{"id": name.id, "email": email, "deleted": 0}]})
        await side_tables.commit(step(number - 1, [event(number, name, customer=name.id)], [fetched]))
    await side_tables.link("acme", "cus_1", 0, "ann", "", NOW_MS)
    await side_tables.link("acme", "cus_2", NOW_MS + 120_000, "ann", "", NOW_MS)
    addresses = [await side_tables.notices.address(*asked) for asked in (("acme", NOW_MS), ("acme", NOW_MS + 120_000))]
    assert addresses == ["one@example.com", ""]
    assert await side_tables.notices.address("no\0body", NOW_MS) == ""


async def test_a_claim_waits_for_no_lock(side_tables: SqlSideTables) -> None:
    """A row that another transaction has locked is left to it."""
    await side_tables.notices.add([notice(), notice("b")], WEBHOOK)
    if not isinstance(side_tables, PostgresSideTables):
        assert len(await claimed(side_tables)) == 2
        return
    async with side_tables._engine.begin() as other:
        await other.execute(text("SELECT 1 FROM notices WHERE id = 'ntc_a' FOR UPDATE"))
        assert [row.notice.id for row in await claimed(side_tables)] == ["ntc_b"]
