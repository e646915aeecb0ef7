"""The renewal of entitlements: one account's fault is its own, and prices of nobody are said."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import pytest_asyncio

from pipeline.access import renewal as renewing
from pipeline.access.renewal import ASIDE_MS
from pipeline.metrics import Metrics
from pipeline.roles.mirror import show_renewal
from schemas.access import Reason
from schemas.entitlements import Grant, Operation, SourceKind
from schemas.errors import Transient
from sinks.sql.entitlements import SqlEntitlements
from tests.unit.catalog.files import SMALL, catalog_of
from tests.worlds.business import Business, subscribe
from tests.worlds.reconciler import START_MS

ACCOUNTS = ("bar", "cafe", "dora")


@pytest_asyncio.fixture
async def business(monkeypatch: pytest.MonkeyPatch) -> Business:
    """Three accounts that were given single sign-on, renewed one in a turn, and one that is linked to a customer."""
    monkeypatch.setattr(renewing, "AT_ONCE", 1)
    business = Business()
    await business.open()
    business.price = business.stripe.price()
    await business.apply(catalog_of(SMALL), {"seat": business.price})
    business.customer = business.stripe.customer()
    await business.link("acme", business.customer)
    await business.settle()
    for account in ACCOUNTS:
        grant = Grant("sso", SourceKind.OVERRIDE, "o", Operation.SET, True, 0, cause="ann", reason="a gift")
        await business.sql.entitlements.override(account, grant, "ann", START_MS)
    return business


def broken(monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[str]:
    """Have the renewal of `bar` fail while its name is in the list."""
    names, original = ["bar"], SqlEntitlements.renew

    async def renew(self: SqlEntitlements, account: str, *arguments: Any) -> Any:
        if account in names:
            raise error
        return await original(self, account, *arguments)

    monkeypatch.setattr(SqlEntitlements, "renew", renew)
    return names


async def test_a_fault_of_one_account_holds_up_no_other(
    business: Business, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names, metrics = broken(monkeypatch, KeyError("a row that nobody can read")), Metrics()
    with caplog.at_level(logging.ERROR):
        looked = [await business.renewal.turn() for _ in range(5)]
    show_renewal(metrics, business.renewal)

    assert looked == [1, 1, 1, 0, 0]
    assert [await business.reason("sso", account=name) for name in ACCOUNTS[1:]] == [Reason.INCLUDED] * 2
    assert [record.getMessage()[:13] for record in caplog.records] == ["account 'bar'"]
    assert "tidemark_mirror_set_aside_accounts 1" in metrics.render()[0].decode()

    names.clear()
    business.clock.advance(ASIDE_MS)

    assert [await business.renewal.turn() for _ in range(2)] == [1, 0]
    assert (await business.reason("sso", account="bar"), business.renewal.set_aside) == (Reason.INCLUDED, 0)


async def test_an_account_whose_renewal_takes_too_long_holds_up_no_other(
    business: Business, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, Transient("the statement took too long"))
    with pytest.raises(Transient):
        await business.renewal.turn()
    await business.renewal.turn()
    await business.renewal.turn()

    assert await business.sql.entitlements.stale() == ["bar"]


async def test_a_price_of_nobody_is_said_once_and_shown_until_it_is_gone(
    business: Business, caplog: pytest.LogCaptureFixture
) -> None:
    subscription = subscribe(business)
    await business.settle()
    item = business.stripe.call("GET /v1/subscriptions/{subscription_exposed_id}", {}, subscription)["items"]["data"][0]
    shown = []
    with caplog.at_level(logging.WARNING, renewing.__name__):
        for price in (business.stripe.price(amount=7), business.stripe.price(amount=8), business.price):
            business.stripe.change(subscription, items=[{"id": item["id"], "price": price}])
            await business.settle()
            shown.append(dict(business.renewal.unreadable))

    assert shown == [{"acme": (subscription,)}] * 2 + [{}]
    assert len(caplog.records) == 1
    assert subscription in caplog.text


async def test_the_memory_of_accounts_is_bounded(business: Business, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewing, "NAMES_MAX", 1)
    broken(monkeypatch, KeyError("nobody can read it")).extend(ACCOUNTS)
    for _ in range(6):
        await business.renewal.turn()

    assert business.renewal.set_aside == 1
