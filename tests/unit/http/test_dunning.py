"""`GET /v1/dunning/cases`, and the banners of an account."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from aggregators.dunning_words import banner_text
from schemas.clock import DAY_MS
from schemas.dunning import DunningCase, DunningOutcome, DunningState, ListedCase
from tests.worlds.gateway import Gateway, running
from tests.worlds.mirrored import NOW_MS, invoice, subscription
from tests.worlds.notices import NoticeWorld

PATH = "/v1/dunning/cases"


@pytest_asyncio.fixture
async def world() -> NoticeWorld:
    """An account with a closed case and an open one."""
    world = NoticeWorld()
    await world.begin()
    world.clock.ms = NOW_MS
    await world.sql.link("acme", "cus_1", 0, "ann", "", NOW_MS)
    await subscription(world.sql, status="past_due", collection_method="charge_automatically")
    for number, status in ((1, "open"), (1, "paid"), (2, "open")):
        owed = {"subscription_id": "subscription_1", "attempt_count": 1, "hosted_url": "https://pay"}
        await invoice(world.sql, number=number, status=status, finalized_ms=NOW_MS + number, **owed)
        while await world.renewal.turn():
            pass
    return world


@pytest_asyncio.fixture
async def gateway(tmp_path: Path, world: NoticeWorld) -> AsyncIterator[Gateway]:
    """A gateway that knows the cases."""
    async with running(tmp_path, dunning=lambda: world.sql.dunning) as gateway:
        yield gateway


async def test_cases_are_listed_by_pages(gateway: Gateway) -> None:
    first = (await gateway.get(f"{PATH}?limit=1", "operator")).json()
    second = (await gateway.get(f"{PATH}?limit=1&cursor={first['next_cursor']}", "operator")).json()
    (newest,), (oldest,) = first["cases"], second["cases"]

    assert "next_cursor" not in second
    assert (oldest["state"], oldest["outcome"], oldest["invoices"]) == ("closed", "recovered", [])
    assert newest == {
        "id": newest["id"], "account": "acme", "subscription": "subscription_1", "state": "notified", "outcome": None,
        "first_failed_at": "2026-11-21T10:30:00.002Z", "downgrade_at": None, "next_at": "2026-11-24T10:30:00.002Z",
        "closed_at": None, "most_open": {"minor": 14_900, "currency": "usd", "exponent": 2},
        "open": {"minor": 14_900, "currency": "usd", "exponent": 2}, "has_ended": False, "unbilled": "",
        "invoices": ["invoice_2"],
        "pay_url": "https://pay",
    }  # fmt: skip


async def test_an_application_shows_what_is_open(gateway: Gateway) -> None:
    answer = (await gateway.get("/v1/accounts/acme/banners", "read")).json()
    (banner,) = answer["banners"]

    assert (answer["account"], banner["type"], banner["pay_url"]) == ("acme", "notified", "https://pay")
    assert banner["text"] == "A payment of $149.00 failed. Please check your card."
    nobody = (await gateway.get("/v1/accounts/nobody/banners", "read")).json()
    assert nobody == {"account": "nobody", "banners": []}


async def test_an_account_without_its_customer_is_told_nothing(gateway: Gateway, world: NoticeWorld) -> None:
    """The case stays open for the business, and for the account that the customer is linked to next."""
    await world.sql.unlink("acme", "ann", "", NOW_MS)
    world.clock.ms = NOW_MS + DAY_MS
    while await world.renewal.turn():
        pass
    assert (await gateway.get("/v1/accounts/acme/banners", "read")).json()["banners"] == []
    (listed,) = (await gateway.get(f"{PATH}?state=open", "operator")).json()["cases"]
    assert (listed["state"], listed["next_at"]) == ("notified", None)


@pytest.mark.parametrize(
    ("key", "path", "status", "count"),
    [
        ("", PATH, 401, None), ("read", PATH, 403, None), ("check", PATH, 403, None), ("operator", PATH, 200, 2),
        ("admin", f"{PATH}?state=open", 200, 1), ("admin", f"{PATH}?state=closed", 200, 1),
        ("admin", f"{PATH}?account=globex", 200, 0), ("acme", PATH, 200, 2),
        ("acme", f"{PATH}?account=globex", 403, None), ("admin", f"{PATH}?state=sad", 400, None),
        ("admin", f"{PATH}?cursor=x", 400, None), ("admin", f"{PATH}?limit=0", 400, None),
        ("ingest", "/v1/accounts/acme/banners", 403, None), ("acme", "/v1/accounts/globex/banners", 403, None),
    ],
)  # fmt: skip
async def test_who_sees_what(gateway: Gateway, key: str, path: str, status: int, count: int | None) -> None:
    answer = await gateway.get(path, key)
    assert answer.status_code == status
    if count is not None:
        assert len(json.loads(answer.content)["cases"]) == count


@pytest.mark.parametrize(("dunning", "status"), [(None, 501), (lambda: None, 503)], ids=["not configured", "not yet"])
async def test_without_sql_there_is_no_answer(tmp_path: Path, dunning: object, status: int) -> None:
    async with running(tmp_path, dunning=dunning) as gateway:
        assert (await gateway.get(PATH, "admin")).status_code == status
        assert (await gateway.get("/v1/accounts/acme/banners", "admin")).status_code == status


@dataclass(frozen=True)
class Said:
    """A state and the words of its banner."""

    state: DunningState
    text: str


@pytest.mark.parametrize(
    "said",
    [
        Said(DunningState.URGENT, "The payment of $149.00 failed again. Please pay with another card."),
        Said(DunningState.FINAL_WARNING, "$149.00 are open. On November 24 you lose your plan. Your data stays."),
        Said(
            DunningState.DOWNGRADED,
            "You have lost your plan, because $149.00 are open. A payment restores it at once.",
        ),
        Said(DunningState.WIN_BACK, "Have your plan back: pay $149.00, and everything is as before."),
    ],
    ids=lambda said: said.state.value,
)
def test_the_words_of_a_banner(said: Said) -> None:
    case = DunningCase("dun_1", "acme", "sub_1", NOW_MS, NOW_MS, said.state, 14_900, "usd", 2, NOW_MS + 3 * DAY_MS)
    assert banner_text(ListedCase(case), NOW_MS) == said.text
    ended = banner_text(ListedCase(case, has_ended=True), NOW_MS)
    assert ended == "Your subscription has ended, because $149.00 are open."
    closed = case._replace(closed_ms=NOW_MS, outcome=DunningOutcome.RECOVERED)
    assert banner_text(ListedCase(closed), NOW_MS) == ""
