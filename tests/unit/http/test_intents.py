"""`GET /v1/billing/intents`, on the ledger of the side tables' fake."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from schemas.errors import Transient
from schemas.reports import OutcomeStatus, ReportEntry, ReportOutcome
from tests.worlds.account_links import Links, opened_links
from tests.worlds.gateway import Gateway, running
from tests.worlds.sender import NOW_MS, make_intent

PATH = "/v1/billing/intents"


@pytest_asyncio.fixture
async def links() -> Links:
    """Five dead letters of two accounts, and one report that waits."""
    links = await opened_links()
    entries: list[ReportEntry] = [make_intent("tm_held", "acme")]
    for number in range(5):
        name = f"tm_{number}"
        outcome = ReportOutcome(
            identifier=name, status=OutcomeStatus.DEAD, detail="HTTP 400", stripe_customer="cus_1", settled_at_ms=NOW_MS
        )
        entries += [make_intent(name, ("acme", "other")[number % 2], delta=1200), outcome]
    await links.tables.intents.apply(0, None, len(entries), list(enumerate(entries)))
    (held,) = await links.tables.intents.found(["tm_held"])
    await links.tables.intents.waits(0, [held._replace(hold="unmapped", detail="bind it")])
    return links


@pytest_asyncio.fixture
async def gateway(tmp_path: Path, links: Links) -> AsyncIterator[Gateway]:
    async with running(tmp_path, accounts=links) as gateway:
        yield gateway


async def test_a_report_is_shown_with_its_state_and_the_reason(gateway: Gateway) -> None:
    answer = await gateway.get(f"{PATH}?state=pending", "read")
    assert answer.status_code == 200
    assert answer.json() == {
        "intents": [
            {
                "identifier": "tm_held", "account": "acme", "meter": "tokens", "state": "pending", "quantity": "0.05",
                "drawn": None, "instant": "2026-11-21T11:59:59Z", "period_start": "2026-11-01T00:00:00Z",
                "period_end": "2026-12-01T00:00:00Z", "stripe_customer": None, "hold": "unmapped",
                "detail": "bind it", "settled_at": None, "in_doubt": False,
            }
        ]
    }  # fmt: skip


async def test_pages_follow_each_other(gateway: Gateway) -> None:
    pages, cursor = [], ""
    while True:
        answer = (await gateway.get(f"{PATH}?state=dead&limit=2&cursor={cursor}", "admin")).json()
        pages.append([intent["identifier"] for intent in answer["intents"]])
        cursor = answer.get("next_cursor", "")
        if not cursor:
            break
    assert pages == [["tm_0", "tm_1"], ["tm_2", "tm_3"], ["tm_4"]]
    own = (await gateway.get(f"{PATH}?state=dead&account=other", "read")).json()
    assert [intent["identifier"] for intent in own["intents"]] == ["tm_1", "tm_3"]


@pytest.mark.parametrize(
    ("query", "key", "status"),
    [
        pytest.param("", "read", 400, id="no state"),
        pytest.param("?state=lost", "read", 400, id="unknown state"),
        pytest.param("?state=dead&limit=1001", "read", 400, id="too many"),
        pytest.param("?state=dead", "ingest", 403, id="role"),
        pytest.param("?state=dead", "", 401, id="no key"),
    ],
)
async def test_what_is_refused(gateway: Gateway, query: str, key: str, status: int) -> None:
    assert (await gateway.get(PATH + query, key)).status_code == status


async def test_a_key_of_one_account_gets_its_own_reports(gateway: Gateway) -> None:
    answer = await gateway.get(f"{PATH}?state=dead", "acme")
    assert [intent["identifier"] for intent in answer.json()["intents"]] == ["tm_0", "tm_2", "tm_4"]
    assert (await gateway.get(f"{PATH}?state=dead&account=other", "acme")).status_code == 403


async def test_a_database_that_does_not_answer_is_503(gateway: Gateway, links: Links) -> None:
    links.error = Transient("PostgreSQL does not answer")
    assert (await gateway.get(f"{PATH}?state=dead", "read")).status_code == 503


async def test_a_gateway_without_a_database_says_so(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        answer = await gateway.get(f"{PATH}?state=dead", "read")
    assert (answer.status_code, answer.json()["error"]["code"]) == (501, "not_configured")
