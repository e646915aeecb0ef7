"""Credits over HTTP: who may ask, what is answered, and what bad requests are told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import pytest_asyncio

from pipeline.http.api_keys import Role, create_key
from pipeline.http.dependencies import CreditStores
from tests.worlds.credited import CALLS, FEE, LEDGER, MONEY, Credited
from tests.worlds.gateway import Gateway, running

START_MS: Final = int(datetime(2027, 11, 1, tzinfo=UTC).timestamp()) * 1_000
PATH: Final = "accounts/acme/credits"
BUY: Final = {"pool": "prepaid", "return_url": "https://app.example/billing"}
GIVE: Final = {"pool": "prepaid", "credits": 40, "by": "ann", "reason": "ticket 1"}


class Served(NamedTuple):
    """A gateway over a business whose account acme has credits."""

    gateway: Gateway
    business: Credited

    async def send(
        self, path: str = "", body: Any = None, key: str = "operator", name: str = "k1", account: str = "acme"
    ) -> tuple[int, Any]:
        """Send a request, a `POST` with a body."""
        headers = self.gateway.bearer(key) | ({"Idempotency-Key": name} if name and body is not None else {})
        method = "GET" if body is None else "POST"
        answer = await self.gateway.client.request(
            method, f"/v1/accounts/{account}/credits{path}", json=body, headers=headers
        )
        return answer.status_code, answer.json()

    async def refused(self, path: str, body: Any, **more: Any) -> tuple[int, str, str]:
        """The status, the code and the field of a refusal."""
        status, answer = await self.send(path, body, **more)
        return status, answer["error"]["code"], answer["error"].get("field", "")


@pytest_asyncio.fixture
async def served(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    business = Credited(START_MS)
    await business.begin(getattr(request, "param", LEDGER))
    await business.subscribed(FEE, CALLS)
    await business.settle()

    async def credits_() -> CreditStores:
        return business.stores()

    async with running(tmp_path, business, credits=credits_) as gateway:
        keys = tmp_path / "keys.jsonl"
        more = {
            "operator": create_key(keys, Role.OPERATOR, business.clock)[0],
            "billing": create_key(keys, Role.BILLING, business.clock)[0],
            "billing of globex": create_key(keys, Role.BILLING, business.clock, account="globex")[0],
        }
        yield Served(Gateway(**{**vars(gateway), "keys": {**gateway.keys, **more}}), business)


async def test_the_balance_is_by_pool_and_grant(served: Served) -> None:
    """60 are left of 100: 40 are counted, and not drawn yet."""
    assert (await served.send("/grants", {**GIVE, "credits": 100, "expires": "2028-01-01T00:00:00Z"}))[0] == 201
    served.business.used = Decimal(40)
    status, found = await served.send(key="billing")
    assert status == 200
    (pool,) = found["pools"]
    (grant,) = pool.pop("grants")
    assert pool == {
        "pool": "prepaid", "unit": "call", "mode": "ledger", "overdraft": "bill", "left": 60, "estimate": False,
        "as_of": None, "owed": 0, "undrawn": 40, "held": 0,
        "packs": [{"pack": "p100", "credits": 100, "amount": {"minor": 2500, "currency": "usd", "exponent": 2}}],
    }  # fmt: skip
    assert (grant["credits"], grant["remaining"], grant["state"]) == (100, 100, "open")
    assert (grant["category"], grant["expires"]) == ("promotional", "2028-01-01T00:00:00Z")


async def test_an_operator_gives_once_and_takes_back(served: Served) -> None:
    status, made = await served.send("/grants", GIVE)
    again = await served.send("/grants", GIVE)
    assert (status, again) == (201, (200, made))
    taken = {"by": "ann", "reason": "a mistake", "owes": False}
    status, gone = await served.send(f"/grants/{made['id']}/void", taken)
    assert (status, gone["remaining"]) == (200, 0)
    assert (await served.send(f"/grants/{made['id']}/void", taken))[1] == gone
    rows = await served.business.tables.audit("acme")
    said = [(row.actor, row.reason) for row in rows if row.actor.startswith("ann (key ")]
    assert [reason for _, reason in said] == ["ticket 1", "a mistake"]


@pytest.mark.parametrize("served", [LEDGER, MONEY], indirect=True, ids=["ledger", "stripe"])
async def test_a_key_of_another_grant_is_refused(served: Served) -> None:
    assert (await served.send("/grants", GIVE))[0] == 201
    assert (await served.refused("/grants", {**GIVE, "credits": 41}))[0] == 400


@pytest.mark.parametrize("served", [MONEY], indirect=True)
async def test_a_grant_at_stripe_is_ordered_and_then_estimated(served: Served) -> None:
    status, made = await served.send("/grants", GIVE)
    assert (status, made["state"]) == (201, "ordered")
    await served.business.granted()
    (pool,) = (await served.send())[1]["pools"]
    states = {grant["category"]: (grant["state"], grant["remaining"]) for grant in pool["grants"]}
    assert states == {"included": ("coming", 700), "promotional": ("open", 40)}
    assert (pool["left"], pool["estimate"], pool["as_of"] is not None) == (40, True, True)
    assert (await served.send(f"/grants/{made['id']}/void", {"by": "ann", "reason": "a mistake"}))[0] == 200
    assert await served.refused(f"/grants/{made['id']}/void", {"by": "a", "reason": "b", "owes": True}) == (
        400, "invalid_input", "owes",
    )  # fmt: skip
    await served.business.granted()
    (pool,) = (await served.send())[1]["pools"]
    assert [grant["category"] for grant in pool["grants"]] == ["included"]


async def test_a_pack_is_bought_on_a_page(served: Served) -> None:
    status, made = await served.send("/top-ups", BUY, key="billing")
    assert (status, made["state"], made["credits"]) == (201, "open", 100)
    assert (await served.send("/top-ups", BUY, key="billing")) == (201, made)
    (purchase,) = await served.business.sql.packs.of_account("acme")
    served.business.pays_pack(purchase)
    await served.business.unpacked()
    _, found = await served.send(key="billing")
    assert [pool["left"] for pool in found["pools"]] == [100]
    assert [each["id"] for each in found["purchases"]] == [made["id"]]


@pytest.mark.parametrize(
    ("path", "body", "more", "wanted"),
    [
        ("/top-ups", BUY, {"name": ""}, (400, "invalid_input", "Idempotency-Key")),
        ("/top-ups", {**BUY, "pool": "none"}, {}, (400, "invalid_input", "pool")),
        ("/top-ups", BUY, {"key": "read"}, (403, "forbidden", "")),
        ("/top-ups", BUY, {"key": "billing of globex"}, (403, "forbidden", "account")),
        ("/grants", GIVE, {"name": ""}, (400, "invalid_input", "Idempotency-Key")),
        ("/grants", GIVE, {"key": "billing"}, (403, "forbidden", "")),
        ("/grants", GIVE, {"account": "nobody"}, (400, "invalid_input", "account")),
        ("/grants", {**GIVE, "pool": "none"}, {}, (400, "invalid_input", "pool")),
        ("/grants", {**GIVE, "credits": 0}, {}, (400, "invalid_input", "credits")),
        ("/grants", {**GIVE, "priority": 101}, {}, (400, "invalid_input", "priority")),
        ("/grants", {**GIVE, "expires": "2020-01-01T00:00:00Z"}, {}, (400, "invalid_input", "expires")),
        ("/grants", {**GIVE, "effective": "soon"}, {}, (400, "invalid_input", "effective")),
        ("/grants/cg_none/void", {"by": "ann", "reason": "x"}, {}, (404, "no_grant", "grant")),
        ("/grants/cg_none/void", {"by": "ann", "reason": "x"}, {"name": ""}, (400, "invalid_input", "Idempotency-Key")),
    ],
)
async def test_bad_requests_are_told_what_is_wrong(
    served: Served, path: str, body: Any, more: dict[str, Any], wanted: tuple[int, str, str]
) -> None:
    assert await served.refused(path, body, **more) == wanted
