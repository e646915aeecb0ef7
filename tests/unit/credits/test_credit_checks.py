"""Checks of a limit whose meter has credits: usage beyond them is refused if the last pool says so."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

import pytest

from aggregators.credit_terms import blocked_meters
from pipeline.access.checks import AccessChecks
from pipeline.access.credits_left import AGE_MS_MAX, CreditsLeft
from pipeline.access.holds import HoldRequest
from schemas.access import Reason
from schemas.credits import Category, NewGrant
from tests.unit.catalog.files import catalog_of
from tests.worlds.changing import ACME
from tests.worlds.credited import CALLS, FEE, LEDGER, Credited, credit_stores

START_MS: Final = int(datetime(2027, 11, 1, tzinfo=UTC).timestamp()) * 1_000
BLOCK: Final = (
    LEDGER.replace("  locations: {type: seat, merge: sum}\n", "  calls: {type: limit, merge: sum, meter: calls}\n")
    .replace("grants: {locations: 1}", "grants: {calls: 0}")
    .replace("calls, month: {usd: \"0.01\"}}\n", "calls, month: {usd: \"0.01\"}}\n    grants: {calls: unlimited}\n")
    .replace("covers: {calls: 1}", "covers: {calls: 2}, overdraft: block")
)  # fmt: skip


async def begun(catalog: str = BLOCK) -> tuple[Credited, AccessChecks]:
    """An account that has ten credits, which pay for five calls."""
    business = Credited(START_MS)
    await business.begin(catalog)
    await business.subscribed(FEE, CALLS)
    await business.settle()
    new = NewGrant(ACME, "prepaid", Category.PAID, 10, START_MS, "gift")
    await business.sql.credits.grant(new, "ann", "a gift", START_MS)
    sql, left = business.sql, CreditsLeft(credit_stores(business).ledger, 10)
    checks = AccessChecks(
        sql.catalog, sql.entitlements, business.usage, business.clock, holds=sql.holds, credits_left=left
    )
    await checks.refresh()
    return business, checks


async def reason(checks: AccessChecks, quantity: int, hold: HoldRequest | None = None) -> Reason:
    return (await checks.check(ACME, "calls", Decimal(quantity), hold=hold)).decision.reason


@pytest.mark.parametrize(("used", "quantity", "is_allowed"), [(0, 5, True), (0, 6, False), (3, 2, True), (3, 3, False)])
async def test_no_more_than_the_credits_pay_for_is_allowed(used: int, quantity: int, *, is_allowed: bool) -> None:
    """Calls that are counted and not drawn yet are taken off."""
    business, checks = await begun()
    business.used = Decimal(used)
    found = await checks.check(ACME, "calls", Decimal(quantity))
    assert found.decision.allowed is is_allowed
    assert is_allowed or (found.decision.reason, found.upgrade) == (Reason.CREDITS_EXHAUSTED, None)


async def test_holds_take_credits_and_none_is_taken_without() -> None:
    business, checks = await begun()
    first = await checks.check(ACME, "calls", Decimal(4), hold=HoldRequest(60))
    assert first.hold is not None
    business.clock.ms += AGE_MS_MAX
    second = await checks.check(ACME, "calls", Decimal(2), hold=HoldRequest(60))
    assert (second.hold, second.decision.reason) == (None, Reason.CREDITS_EXHAUSTED)
    assert await reason(checks, 1) is not Reason.CREDITS_EXHAUSTED


async def test_an_answer_is_at_most_a_second_old() -> None:
    business, checks = await begun()
    assert await reason(checks, 5) is not Reason.CREDITS_EXHAUSTED
    business.used = Decimal(5)
    business.clock.ms += AGE_MS_MAX
    assert await reason(checks, 1) is Reason.CREDITS_EXHAUSTED


async def test_a_pool_that_bills_refuses_nothing() -> None:
    _, checks = await begun(BLOCK.replace("overdraft: block", "overdraft: bill"))
    assert await reason(checks, 99) is not Reason.CREDITS_EXHAUSTED


async def test_without_a_store_the_feature_decides() -> None:
    business, checks = await begun()
    business.away = True
    assert await reason(checks, 1) is Reason.FALLBACK_DENY


def test_the_last_pool_decides_what_is_blocked() -> None:
    both = BLOCK.replace("credit_pools:\n", "credit_pools:\n  other: {covers: {calls: 1}, order: 1, overdraft: bill}\n")
    assert blocked_meters(catalog_of(BLOCK)) == {"calls": {"prepaid": 2}}
    assert blocked_meters(catalog_of(both)) == {}
    before = both.replace("covers: {calls: 2}", "order: 9, covers: {calls: 2}")
    assert blocked_meters(catalog_of(before)) == {"calls": {"other": 1, "prepaid": 2}}
