"""What the mirror tells the notifier, on PostgreSQL and on the simulation's fake."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.clock import DAY_MS, HOUR_MS
from schemas.notices import NoticeKind, StripeFact
from sinks.sql.side_tables import SqlSideTables
from tests.worlds.mirrored import NOW_MS, customer, invoice, subscription

TRIAL = {"status": "trialing", "start_ms": NOW_MS - 23 * DAY_MS}
SAYINGS: dict[str, tuple[dict[str, Any], NoticeKind | None]] = {
    "a trial ends in a week": ({**TRIAL, "trial_end_ms": NOW_MS + 7 * DAY_MS}, NoticeKind.TRIAL_ENDS),
    "a trial ends later": ({**TRIAL, "trial_end_ms": NOW_MS + 7 * DAY_MS + 1}, None),
    "a trial has ended": ({**TRIAL, "trial_end_ms": NOW_MS}, None),
    "a trial became a plan": ({**TRIAL, "status": "active", "trial_end_ms": NOW_MS + DAY_MS}, None),
    "a subscription ended": ({"status": "canceled", "ended_ms": NOW_MS}, NoticeKind.SUBSCRIPTION_ENDED),
    "a subscription ended long ago": ({"status": "canceled", "ended_ms": NOW_MS - 3 * DAY_MS - 1}, None),
    "a subscription will end": ({"status": "active", "cancel_at_ms": NOW_MS + 1}, None),
    "a subscription is gone": ({"status": "canceled", "ended_ms": NOW_MS, "deleted": 1}, None),
}


@pytest.mark.parametrize(("columns", "kind"), SAYINGS.values(), ids=SAYINGS)
async def test_what_the_mirror_says_of_a_subscription(
    side_tables: SqlSideTables, columns: dict[str, Any], kind: NoticeKind | None
) -> None:
    await side_tables.link("acme", "cus_1", 0, "ann", "", NOW_MS)
    await subscription(side_tables, **columns)
    found = [fact for each in NoticeKind for fact in await side_tables.notices.facts(each, NOW_MS)]
    assert [(fact.kind, fact.account, fact.subject) for fact in found] == (
        [(kind, "acme", "subscription_1")] if kind else []
    )


OPEN: dict[str, tuple[dict[str, Any], bool]] = {
    "failed": ({"status": "open", "attempt_count": 1}, True),
    "not tried": ({"status": "open", "attempt_count": 0}, False),
    "paid": ({"status": "paid", "attempt_count": 2}, False),
    "old": ({"status": "open", "attempt_count": 4, "created_ms": NOW_MS - 31 * DAY_MS}, False),
}


@pytest.mark.parametrize(("columns", "is_told"), OPEN.values(), ids=OPEN)
async def test_what_the_mirror_says_of_an_invoice(
    side_tables: SqlSideTables, columns: dict[str, Any], is_told: bool
) -> None:
    await side_tables.link("acme", "cus_1", 0, "ann", "", NOW_MS)
    await invoice(side_tables, hosted_url="https://pay", decline_code="lost_card", **columns)
    facts = await side_tables.notices.facts(NoticeKind.PAYMENT_FAILED, NOW_MS)
    at_ms = NOW_MS - HOUR_MS
    expected = StripeFact(
        NoticeKind.PAYMENT_FAILED, "acme", "invoice_1", at_ms, at_ms, 14_900, "usd", 2, "https://pay", "lost_card"
    )
    assert facts == ([expected] if is_told else [])
    assert await side_tables.notices.facts(NoticeKind.PAYMENT_FAILED, NOW_MS, "invoice_1") == []
    assert await side_tables.notices.facts(NoticeKind.PAYMENT_FAILED, NOW_MS, subject="another") == []


async def test_a_customer_of_another_account_by_now_and_of_none_is_told_to_nobody(side_tables: SqlSideTables) -> None:
    await invoice(side_tables, status="open", attempt_count=1)
    assert await side_tables.notices.facts(NoticeKind.PAYMENT_FAILED, NOW_MS) == []
    await side_tables.link("acme", "cus_1", 0, "ann", "", NOW_MS)
    await side_tables.unlink("acme", "ann", "", NOW_MS + DAY_MS)
    told = [await side_tables.notices.facts(NoticeKind.PAYMENT_FAILED, NOW_MS + days * DAY_MS) for days in (0, 1)]
    assert [len(facts) for facts in told] == [1, 0]


CARDS: dict[str, tuple[dict[str, Any], bool]] = {
    "the customer's own": ({}, True),
    "the subscription's own, which is good": ({"default_payment_method": "pm_good"}, False),
    "the subscription's own, which is gone": ({"default_payment_method": "pm_gone"}, False),
    "of a transfer": ({"default_payment_method": "pm_bank"}, False),
    "a subscription that ends before": ({"cancel_at_ms": NOW_MS + DAY_MS}, False),
    "a subscription that ends later": ({"cancel_at_ms": NOW_MS + 31 * DAY_MS}, True),
    "unpaid": ({"status": "unpaid"}, False),
}


@pytest.mark.parametrize(("columns", "is_told"), CARDS.values(), ids=CARDS)
async def test_a_card_that_expires(side_tables: SqlSideTables, columns: dict[str, Any], is_told: bool) -> None:
    await side_tables.link("acme", "cus_1", 0, "ann", "", NOW_MS)
    await subscription(side_tables, **{"status": "active", "start_ms": 5, **columns})
    ends_ms = NOW_MS + 30 * DAY_MS
    await customer(side_tables, "pm_old", pm_old=ends_ms, pm_good=NOW_MS + 95 * DAY_MS, pm_bank=None)
    facts = await side_tables.notices.facts(NoticeKind.CARD_EXPIRES, NOW_MS)
    assert facts == ([StripeFact(NoticeKind.CARD_EXPIRES, "acme", "subscription_1", ends_ms, 5)] if is_told else [])
    assert await side_tables.notices.facts(NoticeKind.CARD_EXPIRES, ends_ms) == []
    await customer(side_tables, "pm_old", pm_old=NOW_MS + 400 * DAY_MS)
    assert await side_tables.notices.facts(NoticeKind.CARD_EXPIRES, NOW_MS) == []


LATE: dict[str, tuple[Any, dict[str, Any], NoticeKind]] = {
    "an end": (subscription, {"status": "canceled", "ended_ms": NOW_MS}, NoticeKind.SUBSCRIPTION_ENDED),
    "an invoice": (invoice, {"status": "open", "attempt_count": 1}, NoticeKind.PAYMENT_FAILED),
}


@pytest.mark.parametrize(("write", "columns", "kind"), LATE.values(), ids=LATE)
async def test_what_made_a_notice_stays_true_for_a_late_attempt(
    side_tables: SqlSideTables, write: Any, columns: dict[str, Any], kind: NoticeKind
) -> None:
    """Three days of attempts may begin hours after the end, and an operator may retry weeks later."""
    await side_tables.link("acme", "cus_1", 0, "ann", "", NOW_MS)
    await write(side_tables, **columns)
    (fact,) = await side_tables.notices.facts(kind, NOW_MS)
    later_ms = NOW_MS + 60 * DAY_MS
    assert await side_tables.notices.facts(kind, later_ms) == []
    assert await side_tables.notices.facts(kind, later_ms, subject=fact.subject) == [fact]
