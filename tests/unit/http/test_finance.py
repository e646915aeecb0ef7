"""The journal over HTTP, the link to the dashboard, and the figures that a gateway computes for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from aggregators.journal import entry_document
from pipeline.http.dashboard import AGE_MS_MAX, GatewayBooks
from pipeline.http.dependencies import GatewayDependencies
from schemas.billing_events import ObjectKind
from schemas.clock import DAY_MS
from schemas.errors import InvalidInput, Transient
from schemas.journal import JournalStore
from schemas.revenue import RevenueStores
from schemas.side_tables import Row
from tests.worlds.gateway import Gateway, running
from tests.worlds.journaled import Journaled
from tests.worlds.mirrored import NOW_MS, mirrored_with
from tests.worlds.notices import NoticeWorld

PAID: dict[str, Any] = {"status": "paid", "finalized_ms": NOW_MS, "paid_ms": NOW_MS, "paid_minor": 10_900}
SECRET = "a-secret-of-the-pages-with-forty-characters"


@pytest_asyncio.fixture
async def world() -> NoticeWorld:
    """A business with three paid invoices in its journal, and one of 40 days, 30 of which are ahead."""
    world = NoticeWorld()
    await world.begin()
    journaled = Journaled(world.sql)
    await journaled.link()
    for number in range(3):
        await journaled.invoice(number, **PAID)
    await journaled.number()
    start_ms = NOW_MS // DAY_MS * DAY_MS - 10 * DAY_MS
    line: Row = {
        "id": "il_1", "invoice_id": "invoice_1", "amount_minor": 4_000, "start_ms": start_ms,
        "end_ms": start_ms + 40 * DAY_MS,
    }  # fmt: skip
    terms: dict[str, Any] = {"currency": "usd", "exponent": 2, "status": "open", "finalized_ms": start_ms}
    await mirrored_with(world.sql, ObjectKind.INVOICE, "cus_1", {"invoice_lines": [line]}, **terms)
    return world


def dependencies(world: NoticeWorld) -> dict[str, Any]:
    """What finance reads."""

    async def revenue() -> RevenueStores:
        return RevenueStores(world.sql.catalog, world.sql.revenue, world.sql.invoice_books)

    async def journal() -> JournalStore:
        return world.sql.journal

    return {"revenue": revenue, "journal": journal, "dunning": lambda: world.sql.dunning}


@pytest_asyncio.fixture
async def gateway(world: NoticeWorld, tmp_path: Path) -> AsyncIterator[Gateway]:
    secrets = tmp_path / "page_secrets"
    secrets.write_text(f"{SECRET}\n")
    settings = {"page_url": "http://gateway/below", "page_secrets": secrets}
    async with running(tmp_path, settings=settings, **dependencies(world)) as gateway:
        yield gateway


async def test_whoever_goes_on_behind_what_was_read_reads_each_entry_once(gateway: Gateway, world: NoticeWorld) -> None:
    after, read = 0, []
    while True:
        answer = (await gateway.get(f"/v1/revenue/journal?after={after}&limit=4", "finance")).json()
        read += answer["entries"]
        after = answer["next_after"]
        if not answer["has_more"]:
            break
    assert read == [entry_document(each) for each in await world.sql.journal.entries()]
    assert ([each["number"] for each in read], after) == (list(range(1, 7)), 6)
    again = (await gateway.get(f"/v1/revenue/journal?after={after}", "finance")).json()
    assert again == {"entries": [], "next_after": 6, "has_more": False}


async def test_a_wrong_parameter_is_named(gateway: Gateway) -> None:
    for query in ("after=-1", "after=x", "limit=0", "limit=1001", "account=", "cursor=1"):
        answer = await gateway.get(f"/v1/revenue/journal?{query}", "finance")
        assert (answer.status_code, answer.json()["error"]["field"]) == (400, query.partition("=")[0])


async def test_only_finance_reads(gateway: Gateway) -> None:
    for method, path in (("GET", "/v1/revenue/journal"), ("POST", "/v1/revenue/page")):
        for key, status in (("", 401), ("read", 403), ("operator", 403), ("acme", 403)):
            answer = await gateway.client.request(method, path, headers=gateway.bearer(key))
            assert (answer.status_code, path, key) == (status, path, key)


async def test_a_link_opens_the_dashboard(gateway: Gateway) -> None:
    answer = await gateway.client.post("/v1/revenue/page", headers=gateway.bearer("finance"))
    assert answer.status_code == 201
    address = urlsplit(answer.json()["url"])
    assert address.path.startswith("/below/revenue/")
    page = await gateway.client.get(address.path.removeprefix("/below"))
    # Eleven of 40 days of 40 dollars.
    assert (page.status_code, "November 2026: earned $11.00 so far." in page.text) == (200, True)


async def test_a_gateway_without_pages_or_journal_says_so(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        journal = await gateway.get("/v1/revenue/journal", "finance")
        page = await gateway.client.post("/v1/revenue/page", headers=gateway.bearer("finance"))
        assert (journal.status_code, page.status_code) == (501, 501)


def books_of(world: NoticeWorld, reads: list[int], **changes: Any) -> GatewayBooks:
    """The books of a gateway; each reading is counted, and fails as long as `reads` has a 0."""
    found: Any = type("Found", (), {**dependencies(world), "clock": world.clock, **changes})
    revenue = found.revenue

    async def counted() -> RevenueStores:
        reads.append(1)
        await asyncio.sleep(0)
        if 0 in reads:
            raise Transient("no answer")
        stores: RevenueStores = await revenue()
        return stores

    found.revenue = counted
    dependencies_: GatewayDependencies = found
    return GatewayBooks(dependencies_)


async def test_all_who_ask_within_a_minute_share_one_reading(world: NoticeWorld) -> None:
    reads: list[int] = []
    books = books_of(world, reads)
    shared = await asyncio.gather(*(books.figures() for _ in range(3)))
    world.clock.advance(AGE_MS_MAX - 1)
    assert await books.figures() is shared[0]
    assert len(reads) == 1
    world.clock.advance(1)
    await books.figures()
    assert len(reads) == 2


async def test_a_failure_is_not_kept_and_one_who_gives_up_stops_nobody(world: NoticeWorld) -> None:
    world.clock.ms = NOW_MS
    reads = [0]
    books = books_of(world, reads)
    with pytest.raises(Transient):
        await books.figures()
    reads.remove(0)
    first, second = (asyncio.create_task(books.figures()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    found = await second
    assert [(each.currency, each.billed) for each in found.recognized if each.billed] == [("usd", 4_000)]
    assert sum(each.recognized for each in found.recognized) == 1_100


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"revenue": None}, InvalidInput), ({"dunning": None}, InvalidInput), ({"dunning": lambda: None}, Transient)],
)
async def test_figures_need_their_stores(world: NoticeWorld, changes: dict[str, Any], error: type[Exception]) -> None:
    found: Any = type("Found", (), {**dependencies(world), "clock": world.clock, **changes})
    with pytest.raises(error):
        await GatewayBooks(found).figures()
