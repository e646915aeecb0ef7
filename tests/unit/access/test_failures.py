"""What a check answers while a store is away or hangs, Stripe is silent, or a clock is wrong."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import pytest
import pytest_asyncio

from pipeline.access.checks import AccessChecks
from pipeline.access.holds import HoldRequest
from pipeline.access.renewal import Renewal
from schemas.access import Reason
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.entitlements import Grant, Operation, Renewed, SourceKind
from schemas.errors import Transient
from tests.unit.catalog.files import SMALL, catalog_of
from tests.worlds.business import ONE, Business, subscribe

TEXT = SMALL.replace(
    "  reporting: {type: config}\n",
    "  reporting: {type: config}\n  extra: {type: flag, on_error: allow}\n"
    "  calls: {type: limit, merge: max, meter: calls, on_error: allow}\n",
).replace("grants: {seats: 1, tokens: 1000}", "grants: {seats: 1, tokens: 1000, calls: 10}")


@pytest_asyncio.fixture
async def business() -> Business:
    """An account on the team's plan."""
    business = Business()
    await business.open()
    business.price = business.stripe.price()
    await business.apply(catalog_of(TEXT), {"seat": business.price})
    business.customer = business.stripe.customer()
    await business.link("acme", business.customer)
    await business.settle()
    return business


class SqlAway:
    """Every call of PostgreSQL fails."""

    def __init__(self, business: Business, monkeypatch: pytest.MonkeyPatch) -> None:
        async def fails(*_arguments: object, **_more: object) -> Any:
            raise Transient("PostgreSQL does not answer")

        for store, names in (
            (business.sql.entitlements, ("latest", "changed", "last_number", "billed")),
            (business.sql.holds, ("take", "open", "holders", "get", "end")),
            (business.sql.catalog, ("standing",)),
        ):
            for name in names:
                monkeypatch.setattr(type(store), name, fails)


# Which stores are away; the account; the feature; whether it is held; the answer.
AWAY: dict[str, tuple[str, str, str, bool, Reason]] = {
    "Redis, a limit that denies": ("redis", "acme", "tokens", False, Reason.FALLBACK_DENY),
    "Redis, a limit that allows": ("redis", "acme", "calls", False, Reason.FALLBACK_ALLOW),
    "Redis, a flag": ("redis", "acme", "sso", False, Reason.INCLUDED),
    "Redis, seats": ("redis", "acme", "seats", False, Reason.WITHIN_LIMIT),
    "Redis, a hold": ("redis", "acme", "calls", True, Reason.FALLBACK_ALLOW),
    "PostgreSQL, a known account": ("sql", "acme", "sso", False, Reason.INCLUDED),
    "PostgreSQL, a limit of a known account": ("sql", "acme", "tokens", False, Reason.INCLUDED),
    "PostgreSQL, another account": ("sql", "globex", "sso", False, Reason.FALLBACK_DENY),
    "PostgreSQL, another account, a flag that allows": ("sql", "globex", "extra", False, Reason.FALLBACK_ALLOW),
    "PostgreSQL, a hold": ("sql", "acme", "tokens", True, Reason.FALLBACK_DENY),
    "both, a flag of a known account": ("both", "acme", "sso", False, Reason.INCLUDED),
    "both, a limit of a known account": ("both", "acme", "tokens", False, Reason.FALLBACK_DENY),
    "both, another account": ("both", "globex", "extra", False, Reason.FALLBACK_ALLOW),
}


@pytest.mark.parametrize(("away", "account", "feature", "holds", "reason"), AWAY.values(), ids=AWAY)
async def test_a_store_is_away(
    business: Business,
    monkeypatch: pytest.MonkeyPatch,
    away: str,
    account: str,
    feature: str,
    holds: bool,
    reason: Reason,
) -> None:
    subscribe(business)
    await business.settle()
    await business.checks.check("acme", "sso", ONE)
    read_ms = business.checks.read_ms
    business.away = away != "sql"
    if away != "redis":
        SqlAway(business, monkeypatch)
        business.clock.advance(HOUR_MS)
        with pytest.raises(Transient):
            await business.checks.refresh()
    answer = await business.checks.check(account, feature, ONE, hold=HoldRequest(60) if holds else None)

    assert answer.decision.reason is reason
    assert answer.hold is None
    assert answer.read_ms == read_ms


async def test_each_answer_without_a_store_is_counted_and_the_log_says_so_once_a_minute(
    business: Business, caplog: pytest.LogCaptureFixture
) -> None:
    counted: list[int] = []
    checks = AccessChecks(
        business.sql.catalog, business.sql.entitlements, business.usage, business.clock,
        on_fallback=lambda: counted.append(1),
    )  # fmt: skip
    business.away = True
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            for _ in range(20):
                await checks.check("acme", "tokens", ONE)
            business.clock.advance(MINUTE_MS)

    assert len(counted) == 60
    assert [record.message for record in caplog.records] == [
        "checks are answered without a store, by on_error of their features: Redis does not answer"
    ] * 3


async def test_stripe_is_silent_for_a_week(business: Business) -> None:
    """Nothing changes, except what Stripe said before: a cancellation at an instant."""
    subscription = subscribe(business)
    await business.settle()
    at_s = (business.clock.now_ms() + 8 * DAY_MS) // 1000
    business.stripe.change(subscription, cancel_at=at_s)
    await business.settle()
    version = (await business.checks.check("acme", "sso", ONE)).version
    reasons = []
    for days in (7, 2):
        business.clock.advance(days * DAY_MS)
        await business.checks.refresh()
        answer = await business.checks.check("acme", "sso", ONE)
        reasons.append((answer.version, answer.decision.reason))

    assert reasons == [(version, Reason.INCLUDED), (version, Reason.NOT_IN_PLAN)]


def grant(value: bool) -> Grant:
    operation = Operation.SET if value else Operation.DENY
    return Grant("sso", SourceKind.OVERRIDE, f"o {value}", operation, value, 0, cause="ann", reason="a gift")


class Behind:
    """A clock that is behind another."""

    def __init__(self, business: Business, behind_ms: int) -> None:
        self._business = business
        self._behind_ms = behind_ms

    def now_ms(self) -> int:
        return self._business.clock.now_ms() - self._behind_ms

    async def sleep(self, duration_s: float) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("behind_ms", [-DAY_MS, 0, DAY_MS])
async def test_a_wrong_clock_of_the_mirror_hides_no_version(business: Business, behind_ms: int) -> None:
    assert await business.reason("sso") is Reason.NOT_IN_PLAN
    business.clock.advance(HOUR_MS)
    await business.checks.refresh()
    renewal = Renewal(business.sql.catalog, business.sql.entitlements, Behind(business, behind_ms))
    await business.sql.entitlements.override("acme", grant(True), "ann", business.clock.now_ms())
    assert await renewal.turn() == 1
    await business.checks.refresh()

    assert await business.reason("sso") is Reason.INCLUDED


async def test_a_read_that_failed_half_way_is_repeated_after_a_long_outage(
    business: Business, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await business.reason("sso") is Reason.NOT_IN_PLAN
    await business.sql.entitlements.override("acme", grant(True), "ann", business.clock.now_ms())
    await business.renewal.turn()
    with monkeypatch.context() as patched:

        async def fails(_self: object, _accounts: Sequence[str]) -> Mapping[str, Any]:
            raise Transient("PostgreSQL does not answer")

        patched.setattr(type(business.sql.entitlements), "latest", fails)
        for _ in range(5):
            with pytest.raises(Transient):
                await business.checks.refresh()
            business.clock.advance(HOUR_MS)
    await business.checks.refresh()

    assert await business.reason("sso") is Reason.INCLUDED


async def test_a_version_that_becomes_visible_late_is_read(business: Business, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its transaction took longer than that of a version with a higher number."""
    assert await business.reason("sso") is Reason.NOT_IN_PLAN
    await business.sql.entitlements.override("acme", grant(True), "ann", business.clock.now_ms())
    await business.sql.entitlements.override("globex", grant(True), "ann", business.clock.now_ms())
    await business.renewal.turn()
    changed = type(business.sql.entitlements).changed

    async def others(self: Any, after: int, limit: int) -> Sequence[Renewed]:
        return [each for each in await changed(self, after, limit) if each.account != "acme"]

    with monkeypatch.context() as patched:
        patched.setattr(type(business.sql.entitlements), "changed", others)
        for _ in range(59):
            await business.checks.refresh()
            business.clock.advance(500)
    assert await business.reason("sso") is Reason.NOT_IN_PLAN
    await business.checks.refresh()

    assert await business.reason("sso") is Reason.INCLUDED


async def test_a_paused_gateway_has_the_newest_version_after_its_next_read(business: Business) -> None:
    """It neither goes back to a version between, nor stays."""
    seen = []
    for number in range(6):
        await business.sql.entitlements.override("acme", grant(number % 2 == 0), "ann", business.clock.now_ms())
        if number:
            await business.sql.entitlements.revoke("acme", number, "ann", "turn", business.clock.now_ms())
        await business.renewal.turn()
        business.clock.advance(10 * MINUTE_MS)
        if number in (1, 4, 5):
            await business.checks.refresh()
        answer = await business.checks.check("acme", "sso", ONE)
        seen.append((answer.version, answer.decision.allowed))

    assert [version for version, _ in seen] == sorted(version for version, _ in seen)
    assert seen[1][1] is False
    assert seen[4] == (seen[1][0] + 3, True)
    assert Decimal(seen[5][0]) == seen[4][0] + 1
