"""`GET` and `PUT /v1/accounts/{account}`, on the side tables' fake."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import pytest_asyncio

from pipeline.http.accounts import LINKS_AT_ONCE_MAX
from schemas.errors import OperatorNeeded, Transient
from schemas.side_tables import Link
from tests.worlds.account_links import Links, opened_links
from tests.worlds.gateway import NOW_MS, Gateway, running

CUSTOMER = "cus_1"
NOW = "2026-11-21T10:30:00Z"


@pytest_asyncio.fixture
async def links() -> Links:
    return await opened_links()


@pytest_asyncio.fixture
async def gateway(tmp_path: Path, links: Links) -> AsyncIterator[Gateway]:
    async with running(tmp_path, accounts=links) as gateway:
        yield gateway


async def put(gateway: Gateway, account: str, body: object, key: str = "admin") -> httpx.Response:
    """PUT an account. A body that is not bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    path = f"/v1/accounts/{quote(account, safe='')}"
    return await gateway.client.put(path, content=content, headers=gateway.bearer(key))


async def shown(gateway: Gateway, account: str, key: str = "read") -> Any:
    """What GET says of an account."""
    answer = await gateway.get(f"/v1/accounts/{quote(account, safe='')}", key)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_an_account_is_created_and_linked_once(gateway: Gateway, links: Links) -> None:
    """An application may send the request at each sign-up, and again if the answer was lost."""
    assert await shown(gateway, "acme") == {"account": "acme", "stripe_customer": None, "links": []}
    first = await put(gateway, "acme", {"stripe_customer": CUSTOMER})
    again = await put(gateway, "acme", {"stripe_customer": CUSTOMER})

    link = {"stripe_customer": CUSTOMER, "from": "1970-01-01T00:00:00Z", "to": None}
    assert first.json() == {"account": "acme", "stripe_customer": CUSTOMER, "links": [link]}
    assert (first.status_code, again.status_code, again.json()) == (200, 200, first.json())
    assert await shown(gateway, "acme") == first.json()
    (row,) = await links.tables.audit("acme")
    assert (row.cause, row.actor) == ("account link", f"key {gateway.keys['admin'].split('_')[1]}")


async def test_another_customer_pays_from_then_on(gateway: Gateway) -> None:
    await put(gateway, "acme", {"stripe_customer": CUSTOMER})
    answer = await put(gateway, "acme", {"stripe_customer": "cus_2", "from": "2026-12-01T00:00:59+00:00"})
    assert answer.json() == {
        "account": "acme",
        "stripe_customer": CUSTOMER,
        "links": [
            {"stripe_customer": CUSTOMER, "from": "1970-01-01T00:00:00Z", "to": "2026-12-01T00:00:00Z"},
            {"stripe_customer": "cus_2", "from": "2026-12-01T00:00:00Z", "to": None},
        ],
    }


async def test_an_unlinked_account_has_no_customer(gateway: Gateway, links: Links) -> None:
    await put(gateway, "acme", {"stripe_customer": CUSTOMER})
    await links.tables.unlink("acme", "ada", "wrong", NOW_MS)
    found = await shown(gateway, "acme")
    assert (found["stripe_customer"], found["links"][-1]) == (None, {"stripe_customer": None, "from": NOW, "to": None})


NAMES = {
    "a slash": "a/b",
    "a path": "../../etc/passwd",
    "another path": "acme/usage",
    "a quote": "a'; DROP TABLE accounts; --",
    "markup": "<script>alert(1)</script>",
    "a percent sign": "100%25",
    "a question mark": "a?b=c#d",
    "a line's end": "a\nb",
    "right to left": "\u202eacme",
    "not of the first plane": "🦆" * 128,
    "as long as can be": "x" * 256,
    "blank": " ",
}


@pytest.mark.parametrize("account", NAMES.values(), ids=NAMES)
async def test_a_name_of_any_characters_is_linked(gateway: Gateway, links: Links, account: str) -> None:
    """An account is named as in the events of the application."""
    answer = await put(gateway, account, {"stripe_customer": CUSTOMER})
    assert (answer.status_code, answer.json()["account"]) == (200, account)
    assert await links.tables.links(account) == [Link(account, CUSTOMER, 0)]
    if account != "acme/usage":
        assert (await shown(gateway, account))["stripe_customer"] == CUSTOMER


BAD_PATHS = {
    "NUL": ("/v1/accounts/a%00b", 400, "account"),
    "too long": ("/v1/accounts/" + "x" * 257, 400, "account"),
    "no UTF-8": ("/v1/accounts/%ff", 400, None),
    "half of a pair": ("/v1/accounts/%ed%a0%80", 400, None),
    "nothing": ("/v1/accounts/", 400, "account"),
    "below an account": ("/v1/accounts/acme/customer", 404, None),
    "a slash behind": ("/v1/accounts/acme/", 404, None),
    "a line's end": ("/v1/accounts/acme%0A", 404, None),
}


@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize(("path", "status", "field"), BAD_PATHS.values(), ids=BAD_PATHS)
async def test_a_path_that_names_no_account_is_refused(
    gateway: Gateway, links: Links, path: str, status: int, field: str | None, method: str
) -> None:
    answer = await gateway.client.request(
        method,
        path,
        content=b'{"stripe_customer":"cus_1"}' if method == "PUT" else None,
        headers=gateway.bearer("admin"),
    )
    assert (answer.status_code, answer.json()["error"].get("field")) == (status, field), answer.text
    assert links.asked == []


BODIES = {
    "nothing": (b"", 400, None),
    "no JSON": (b"{", 400, None),
    "no UTF-8": (b'{"stripe_customer":"\xff"}', 400, None),
    "too deep": (b"[" * 15_000, 400, None),
    "a list": ([], 400, None),
    "null": (None, 400, None),
    "no customer": ({}, 400, None),
    "a number": ({"stripe_customer": 5}, 400, None),
    "another field": ({"stripe_customer": CUSTOMER, "actor": "root"}, 400, None),
    "another object": ({"stripe_customer": "sub_1"}, 400, "stripe_customer"),
    "an empty customer": ({"stripe_customer": ""}, 400, "stripe_customer"),
    "NUL": ({"stripe_customer": "cus_1\0"}, 400, "stripe_customer"),
    "half of a pair": (b'{"stripe_customer":"cus_\\ud800"}', 400, None),
    "no instant": ({"stripe_customer": CUSTOMER, "from": "tomorrow"}, 400, "from"),
    "no offset": ({"stripe_customer": CUSTOMER, "from": "2026-12-01T00:00:00"}, 400, "from"),
    "a number of seconds": ({"stripe_customer": CUSTOMER, "from": 1}, 400, None),
    "too large": (b'{"stripe_customer":"' + b"x" * 20_000 + b'"}', 413, None),
}


@pytest.mark.parametrize(("body", "status", "field"), BODIES.values(), ids=BODIES)
async def test_a_body_that_is_wrong_changes_nothing(
    gateway: Gateway, links: Links, body: object, status: int, field: str | None
) -> None:
    answer = await put(gateway, "acme", body)
    error = answer.json()["error"]
    assert (answer.status_code, error.get("field")) == (status, field), answer.text
    assert len(error["message"]) < 400
    assert await links.tables.links("acme") == []


async def test_a_customer_of_another_account_is_refused(gateway: Gateway) -> None:
    await put(gateway, "acme", {"stripe_customer": CUSTOMER})
    answer = await put(gateway, "other", {"stripe_customer": CUSTOMER})
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "stripe_customer")
    assert "belongs to account acme" in answer.json()["error"]["message"]


REFUSED = {
    "none": ("", 401),
    "forged": ("forged", 401),
    "ingest": ("ingest", 403),
    "read": ("read", 403),
    "of one account": ("acme", 403),
}


@pytest.mark.parametrize(("key", "status"), REFUSED.values(), ids=REFUSED)
async def test_only_a_key_of_the_whole_deployment_links(gateway: Gateway, links: Links, key: str, status: int) -> None:
    """Whoever links an account says who pays: with a key of one account, somebody else could."""
    answer = await put(gateway, "acme", {"stripe_customer": CUSTOMER}, key)
    assert answer.status_code == status
    assert links.asked == []


async def test_a_key_of_an_account_sees_that_account_only(gateway: Gateway) -> None:
    await put(gateway, "acme", {"stripe_customer": CUSTOMER})
    assert (await shown(gateway, "acme", "acme"))["stripe_customer"] == CUSTOMER
    assert (await gateway.get("/v1/accounts/other", "acme")).status_code == 403
    assert (await gateway.get("/v1/accounts/acme", "ingest")).status_code == 403


FAILURES = {
    "PostgreSQL": (Transient("PostgreSQL at 10.0.0.1:5432: refused"), "PostgreSQL did not answer"),
    "Stripe": (Transient("Stripe: HTTP 500"), "Stripe did not answer"),
    "the mirror": (Transient("3 of 3 objects are not in the mirror after 60 s"), "a store did not answer"),
    "a wrong key of Stripe": (OperatorNeeded("Stripe refuses the key sk_live_…"), "needs its operator"),
}


@pytest.mark.parametrize(("error", "message"), FAILURES.values(), ids=FAILURES)
async def test_what_is_wrong_here_is_not_the_callers_mistake(
    gateway: Gateway, links: Links, error: Exception, message: str
) -> None:
    links.error = error
    answer = await put(gateway, "acme", {"stripe_customer": CUSTOMER})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert message in answer.json()["error"]["message"]
    assert "10.0.0.1" not in answer.text
    assert "sk_live" not in answer.text


async def test_more_links_than_can_wait_are_told_to_come_again(gateway: Gateway, links: Links) -> None:
    """Each waits for the mirror, a minute if it does not run."""
    links.waits.clear()
    waiting = [
        asyncio.create_task(put(gateway, f"acme-{number}", {"stripe_customer": f"cus_{number}"}))
        for number in range(LINKS_AT_ONCE_MAX)
    ]
    await links.full.wait()
    refused = await put(gateway, "acme", {"stripe_customer": "cus_x"})
    links.waits.set()
    answers = await asyncio.gather(*waiting)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert {answer.status_code for answer in answers} == {200}
    assert (await put(gateway, "acme", {"stripe_customer": "cus_x"})).status_code == 200


async def test_without_stripe_or_postgresql_nothing_is_linked(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        answers = [
            await put(gateway, "acme", {"stripe_customer": CUSTOMER}),
            await gateway.get("/v1/accounts/acme"),
        ]
    assert [answer.status_code for answer in answers] == [501, 501]
