"""Overrides and contracts over HTTP: who may grant, what is replaced, and what the audit keeps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from pipeline.http.api_keys import Role, create_key
from tests.unit.catalog.files import SMALL, catalog_of
from tests.worlds.business import ONE, Business
from tests.worlds.gateway import Gateway, running

WHO = {"by": "ann", "reason": "ticket 1", "new_account": True}


class Served(NamedTuple):
    """A gateway over a business."""

    gateway: Gateway
    business: Business

    async def send(self, method: str, path: str, body: Any = None, key: str = "operator") -> tuple[int, Any]:
        answer = await self.gateway.client.request(
            method, f"/v1/accounts/{path}", json=body, headers=self.gateway.bearer(key)
        )
        return answer.status_code, answer.json()

    async def limit(self, account: str = "acme") -> str:
        await self.business.settle()
        return str((await self.business.checks.check(account, "tokens", ONE)).decision.limit)

    async def trail(self, account: str = "acme") -> list[tuple[str, str]]:
        return [(row.actor.partition(" (")[0], row.reason) for row in await self.business.sql.audit(account)]


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """Accounts that nobody made have the default plan: 1000 tokens."""
    business = Business()
    await business.open()
    await business.apply(catalog_of(SMALL), {})
    await business.settle()
    access = (business.checks, business.sql.entitlements)
    async with running(tmp_path, business, access=lambda: access) as gateway:
        keys = tmp_path / "keys.jsonl"
        own = create_key(keys, Role.OPERATOR, business.clock, account="acme")[0]
        yield Served(Gateway(**{**vars(gateway), "keys": {**gateway.keys, "operator of acme": own}}), business)


async def test_an_override_replaces_the_one_before(served: Served) -> None:
    answers = [
        await served.send("PUT", "acme/overrides/tokens", {"does": "add", "value": value, **WHO})
        for value in ("500", "500", "700")
    ]
    limit = await served.limit()
    _, listed = await served.send("GET", "acme/overrides")

    assert [(status, answer["overrides"][0]["number"]) for status, answer in answers] == [(200, 1), (200, 1), (200, 2)]
    assert limit == "1700"
    assert [(each["value"], each["revoked_at"] is None) for each in listed["overrides"]] == [
        ("500", False), ("700", True),
    ]  # fmt: skip
    assert await served.trail() == [("ann", "ticket 1"), ("ann", "ticket 1"), ("ann", "replaced: ticket 1")]


async def test_overrides_are_taken_back_and_contracts_stay(served: Served) -> None:
    terms = [{"feature": "tokens", "does": "set", "value": "5000"}, {"feature": "sso", "does": "set", "value": "true"}]
    contracts = [await served.send("POST", "acme/contracts", {"terms": terms, **WHO}) for _ in range(2)]
    await served.send("PUT", "acme/overrides/tokens", {"does": "deny", **WHO})
    denied = await served.limit()
    taken = [await served.send("DELETE", "acme/overrides/tokens?by=bob&reason=mistake") for _ in range(2)]

    assert contracts[0] == contracts[1]
    assert [each["kind"] for each in contracts[0][1]["overrides"]] == ["contract", "contract"]
    assert denied == "0"
    assert [len(answer["overrides"]) for _, answer in taken] == [1, 0]
    assert await served.limit() == "5000"
    assert (await served.trail())[-1] == ("bob", "mistake")
    _, listed = await served.send("GET", "acme/overrides")
    gone = {(each["revoked_by"], each["revoked_reason"]) for each in listed["overrides"] if each["revoked_at"]}
    assert {("bob", "mistake")} == {(by and by.partition(" (")[0], reason) for by, reason in gone}


@pytest.mark.parametrize(
    ("key", "account", "status"),
    [
        ("", "acme", 401), ("ingest", "acme", 403), ("read", "acme", 403), ("check", "acme", 403),
        ("operator", "acme", 200), ("admin", "acme", 200), ("acme", "acme", 403), ("operator of acme", "acme", 200),
        ("operator of acme", "globex", 403),
    ],
)  # fmt: skip
async def test_who_may_grant(served: Served, key: str, account: str, status: int) -> None:
    term = {"feature": "tokens", "does": "add", "value": "5"}
    requests: list[tuple[str, str, Any]] = [
        ("PUT", f"{account}/overrides/tokens", {"does": "add", "value": "5", **WHO}),
        ("POST", f"{account}/contracts", {"terms": [term], **WHO}),
        ("DELETE", f"{account}/overrides/tokens?by=ann&reason=why", None),
    ]

    assert {(await served.send(*request, key))[0] for request in requests} == {status}


@pytest.mark.parametrize("path", ["overrides/tokens", "contracts"])
async def test_a_grant_to_an_account_that_nobody_knows_is_refused(served: Served, path: str) -> None:
    """A wrong name would be granted what nobody asks for."""
    term = {"does": "add", "value": "5"}
    own = {"terms": [{"feature": "tokens", **term}]} if path == "contracts" else term
    method, who = "POST" if path == "contracts" else "PUT", {"by": "ann", "reason": "why"}
    answers = [
        await served.send(method, f"{account}/{path}", {**own, **said})
        for account, said in (("acme", who), ("acme", WHO), ("acme", who), ("acmee", who))
    ]

    assert [404, 200, 200, 404] == [status for status, _ in answers]
    assert "unknown_account" == answers[0][1]["error"]["code"]
    assert "new_account" in answers[3][1]["error"]["message"]


@pytest.mark.parametrize(("key", "status"), [("read", 200), ("operator", 200), ("acme", 200), ("check", 403)])
async def test_who_may_list(served: Served, key: str, status: int) -> None:
    assert (await served.send("GET", "acme/overrides", key=key))[0] == status


BAD: dict[str, tuple[str, Any]] = {
    "nobody did it": ("overrides/tokens", {"does": "add", "value": "5", "reason": "why", "new_account": True}),
    "an empty reason": ("overrides/tokens", {"does": "add", "value": "5", "by": "ann", "reason": ""}),
    "a blank reason": (
        "overrides/tokens",
        {"does": "add", "value": "5", "new_account": True, "by": "ann", "reason": " "},
    ),
    "another operation": ("overrides/tokens", {"does": "take", "value": "5", **WHO}),
    "no feature": ("overrides/nothing", {"does": "set", "value": "5", **WHO}),
    "not a number": ("overrides/tokens", {"does": "set", "value": "-5", **WHO}),
    "no flag": ("overrides/sso", {"does": "set", "value": "5", **WHO}),
    "no instant": ("overrides/tokens", {"does": "set", "value": "5", "until": "tomorrow", **WHO}),
    "in the past": ("overrides/tokens", {"does": "set", "value": "5", "until": "2020-01-01T00:00:00Z", **WHO}),
    "another field": ("overrides/tokens", {"does": "set", "value": "5", "for": 1, **WHO}),
    "no terms": ("contracts", {"terms": [], **WHO}),
    "terms that do not fit": ("contracts", {"terms": [{"feature": "sso", "does": "set", "value": "5"}], **WHO}),
}


@pytest.mark.parametrize(("path", "body"), BAD.values(), ids=BAD)
async def test_bad_grants_are_named_and_change_nothing(served: Served, path: str, body: Any) -> None:
    method = "POST" if path == "contracts" else "PUT"
    status, answer = await served.send(method, f"acme/{path}", body)

    assert (status, answer["error"]["code"]) == (400, "invalid_input")
    assert (await served.send("GET", "acme/overrides"))[1]["overrides"] == []


async def test_a_contract_with_a_bad_term_grants_none_of_its_terms(served: Served) -> None:
    terms = [{"feature": "tokens", "does": "set", "value": "9"}, {"feature": "sso", "does": "set", "value": "many"}]
    status, _ = await served.send("POST", "acme/contracts", {"terms": terms, **WHO})

    assert status == 400
    assert (await served.send("GET", "acme/overrides"))[1]["overrides"] == []


async def test_a_config_that_is_nested_too_deep_is_refused(served: Served) -> None:
    value = '{"a":' * 3_000 + "1" + "}" * 3_000
    status, answer = await served.send("PUT", "acme/overrides/reporting", {"does": "set", "value": value, **WHO})

    assert (status, answer["error"]["code"]) == (400, "invalid_input")
