"""Every route, every role, and keys of another account: who is let in, and who gets 401 or 403.

The table is the business's, not the code's: a new route must be added here before the tests pass.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import httpx
import pytest
from starlette.routing import Route

from pipeline.commands.keys import KeyWish, create_in
from pipeline.http.api_keys import Role, create_key
from pipeline.http.known_keys import KnownKeys
from sinks.sql.fake import FakeSideTables
from tests.services.postgres import LOG_ID, SCOPE, last_link_pays
from tests.worlds.deployment import World
from tests.worlds.gateway import NOW_MS, Gateway, running
from tests.worlds.keys import reading

A: Final = "/v1/accounts/{account}"
HOLD: Final = "/v1/access/holds/{hold}"
KEY_OF_ANY_ROLE: Final = " ".join(role for role in Role if role is not Role.ADMIN)
CHANGING: Final = "billing operator"

# No key: everybody may ask, or the route has a signature or a signed link of its own.
OPEN: Final = {
    ("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/healthz"), ("GET", "/readyz"),
    ("GET", "/metrics"), ("POST", "/v1/stripe/webhook"),
}  # fmt: skip
LINKED: Final = ("/page/", "/revenue/", "/operator/")
# The roles beside admin. The request names its account in the path or the query, and a key of another account is
# refused.
OF_AN_ACCOUNT: Final = {
    ("GET", "/v1/usage"): "read", ("GET", "/v1/usage/periods"): "read", ("GET", "/v1/usage/current"): "read",
    ("GET", "/v1/usage/top"): "read", ("GET", "/v1/meters/{meter}/top"): "read",
    ("GET", "/v1/billing/intents"): "read", ("GET", "/v1/notices"): "operator",
    ("GET", "/v1/dunning/cases"): "operator",
    ("GET", A): "read", ("PUT", A): "", ("GET", f"{A}/usage"): "read",
    ("GET", f"{A}/banners"): "read", ("GET", f"{A}/timeline"): "read", ("GET", f"{A}/entitlements"): "read",
    ("POST", f"{A}/flush"): "",
    ("GET", f"{A}/overrides"): "read operator", ("PUT", f"{A}/overrides/{{feature}}"): "operator",
    ("DELETE", f"{A}/overrides/{{feature}}"): "operator", ("POST", f"{A}/contracts"): "operator",
    ("POST", f"{A}/quotes"): CHANGING, ("POST", f"{A}/quotes/{{quote}}/accept"): CHANGING,
    ("DELETE", f"{A}/changes/pending"): CHANGING, ("POST", f"{A}/checkout"): CHANGING,
    ("POST", f"{A}/portal"): CHANGING, ("POST", f"{A}/page"): CHANGING,
    ("GET", f"{A}/seats"): "read billing operator", ("POST", f"{A}/seats"): CHANGING,
    ("POST", f"{A}/seats/{{seat}}/activate"): CHANGING, ("POST", f"{A}/seats/{{seat}}/release"): CHANGING,
    ("GET", f"{A}/credits"): "read billing operator", ("POST", f"{A}/credits/top-ups"): CHANGING,
    ("POST", f"{A}/credits/grants"): "operator", ("POST", f"{A}/credits/grants/{{grant}}/void"): "operator",
    ("GET", f"{A}/corrections"): "read operator",
    ("GET", f"{A}/invoices/{{invoice}}/explain"): "read",
    ("GET", f"{A}/invoices/{{invoice}}/lines/{{line}}/explain"): "read",
    ("GET", f"{A}/events/{{event}}/explain"): "read",
}  # fmt: skip
# Figures of the whole business: a key of one account is refused, whatever its role.
OF_ALL: Final = {
    **{
        ("GET", f"/v1/revenue/{name}"): "finance"
        for name in ("mrr", "movements", "retention", "cohorts", "recognized", "deferred", "journal")
    },
    ("POST", "/v1/revenue/page"): "finance",
    ("POST", "/v1/operator/page"): "operator",
    ("POST", "/v1/quarantine/redrives"): "operator",
}
# The account stands in the body or belongs to the hold, or the answer is the same for all accounts. Tests of these
# routes show that a key reaches its own account only.
OF_NO_ACCOUNT: Final = {
    ("POST", "/v1/events"): "ingest", ("POST", "/v1/access/check"): "read check", ("POST", f"{HOLD}/use"): "check",
    ("POST", f"{HOLD}/release"): "check", ("GET", "/v1/meters"): KEY_OF_ANY_ROLE,
    ("GET", "/v1/plans"): "read billing operator", ("POST", "/v1/corrections"): "operator",
}  # fmt: skip
KEYED: Final = {**OF_AN_ACCOUNT, **OF_ALL, **OF_NO_ACCOUNT}


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway without the stores that most routes ask: who is let in gets another error than 401 and 403."""
    async with running(tmp_path) as running_gateway:
        yield running_gateway


def routes(gateway: Gateway) -> set[tuple[str, str]]:
    """All routes as (method, path)."""
    return {
        (method, re.sub(r":\w+\}", "}", route.path))
        for route in gateway.app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD" and not route.path.startswith(LINKED)
    }


async def ask(gateway: Gateway, route: tuple[str, str], key: str, account: str = "acme") -> httpx.Response:
    """A request to a route that names the account where the route names one."""
    method, path = route
    headers = {"authorization": f"Bearer {key}"} if key else {}
    parameters = (
        {"account": account} if path.startswith(("/v1/usage", "/v1/meters/", "/v1/billing", "/v1/no", "/v1/du")) else {}
    )
    url = re.sub(r"\{\w+\}", "x", path.replace("{account}", account))
    return await gateway.client.request(method, url, headers=headers, params=parameters)


async def test_every_route_is_in_the_table_and_no_other(gateway: Gateway) -> None:
    """A new route needs a decision about who may call it."""
    assert routes(gateway) == OPEN | KEYED.keys()


async def test_no_name_is_no_account(gateway: Gateway, tmp_path: Path) -> None:
    """Stores take "" for all accounts or for the deployment: `/v1/accounts//banners` had everybody's payment links."""
    keys = {
        (role, account): create_key(tmp_path / "keys.jsonl", role, gateway.world.clock, account)[0]
        for role in Role
        for account in (None, "globex")
    }
    wrong: list[str] = []
    for route in OF_AN_ACCOUNT:
        for (role, account), key in keys.items():
            status = (await ask(gateway, route, key, "")).status_code
            if "{account}" in route[1] or account:
                wrong += [] if status in (400, 403) else [f"{route}: {status} for {role} of {account}"]
    assert wrong == []


@pytest.mark.parametrize("kept", ["file", "sql"])
async def test_a_route_lets_in_its_roles_and_nobody_else(tmp_path: Path, kept: str) -> None:
    """Roles of all accounts, a key of another account, a forged key and none, wherever the keys are kept."""
    tables, world = FakeSideTables(last_link_pays), World(NOW_MS)
    await tables.migrate(SCOPE, LOG_ID)
    known = KnownKeys(lambda: tables.keys, world.clock)

    async def made(role: Role, account: str | None = None) -> str:
        if kept == "file":
            return create_key(tmp_path / "keys.jsonl", role, world.clock, account)[0]
        return (await create_in(tables.keys, KeyWish(role, account), "ann", NOW_MS)).text

    keys = {role: await made(role) for role in Role}
    foreign = {role: await made(role, "globex") for role in Role}
    async with reading(known), running(tmp_path, world, known_keys=known if kept == "sql" else None) as gateway:
        await compare_with_the_table(gateway, keys, foreign)


async def compare_with_the_table(gateway: Gateway, keys: dict[Role, str], foreign: dict[Role, str]) -> None:
    """Ask every route with every key. `foreign` are keys of another account."""
    wrong: list[str] = []
    for route, roles in KEYED.items():
        for key in ("", gateway.keys["forged"]):
            status = (await ask(gateway, route, key)).status_code
            wrong += [] if status == 401 else [f"{route}: {status} without a valid key"]
        for role in Role:
            is_let_in = role in (*roles.split(), Role.ADMIN)
            status = (await ask(gateway, route, keys[role])).status_code
            wrong += [] if (status not in (401, 403)) is is_let_in else [f"{route}: {status} for {role}"]
            is_let_in = is_let_in and route in OF_NO_ACCOUNT
            status = (await ask(gateway, route, foreign[role])).status_code
            wrong += [] if (status not in (401, 403)) is is_let_in else [f"{route}: {status} for another {role}"]
    for route in OPEN:
        status = (await ask(gateway, route, "")).status_code
        wrong += [] if status not in (401, 403) else [f"{route}: {status} without a key"]

    assert wrong == []
