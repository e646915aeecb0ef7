"""Quotes and operations in SQL's fake and in PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from schemas.catalog import OverLimit, PlanId
from schemas.clock import MINUTE_MS
from schemas.errors import InvalidInput
from schemas.periods import Interval
from schemas.plan_changes import (
    Call,
    CallKind,
    Calls,
    Excess,
    HeldItem,
    Operation,
    OperationState,
    Owner,
    Pending,
    PlanChanges,
    PreviewLine,
    Quote,
    SubscriptionView,
    When,
)
from schemas.side_tables import SideTables
from schemas.upgrades import Money
from sinks.sql.side_tables import SqlSideTables

NOW_MS = 1_800_000_000_000
VIEW = SubscriptionView(
    "cus_1", has_card=True, id="sub_1", status="active", currency="usd", plan=PlanId("pro", 1), rank=20,
    interval=Interval.MONTH, items=(HeldItem("si_1", "seat", "price_1", 3, "month", NOW_MS, NOW_MS + 1),
                                    HeldItem("si_2", "calls", "price_2", None, "month", NOW_MS, NOW_MS + 1)),
    pending=Pending("sub_sched_1", Owner.MOVE, ends=True), cancel_at_ms=NOW_MS + 5,
)  # fmt: skip
CALLS = Calls(
    8, When.PERIOD_END, (Call(CallKind.SCHEDULE), Call(CallKind.PHASES, {"items": None, "end_behavior": "cancel"})),
    (Excess("seats", "3", "1", OverLimit.READ_ONLY_EXCESS),),
)  # fmt: skip
QUOTE = Quote(
    id="qt_1", account="acme", request="{}", base=VIEW, decided=CALLS,
    lines=(PreviewLine("Unused time", -5361, True, NOW_MS, NOW_MS + 1),), total=Money(4750, "usd", 2), due_minor=4700,
    tax_minor=0, drift_minor=0, subtotal_minor=4750, ours_minor=None, next_minor=14900, next_ms=NOW_MS + 9,
    words="You will be charged $47.50 today.", made_ms=NOW_MS, expires_ms=NOW_MS + MINUTE_MS, made_by="ann",
)  # fmt: skip


@pytest.fixture
def changes(side_tables: SideTables) -> PlanChanges:
    return cast("SqlSideTables", side_tables).plan_changes


async def intended(changes: PlanChanges, quote: Quote = QUOTE) -> Operation:
    return await changes.intend(await changes.add_quote(quote), "ann", NOW_MS)


async def test_a_quote_is_read_as_it_was_written(changes: PlanChanges) -> None:
    assert await changes.add_quote(QUOTE) == QUOTE == await changes.quote("acme", "qt_1")
    assert await changes.quote("globex", "qt_1") is None
    assert await changes.quote("acme", "qt_2") is None


async def test_a_nul_is_refused_or_finds_nothing(changes: PlanChanges) -> None:
    """PostgreSQL keeps no NUL, and an answer of 500 would blame the gateway."""
    assert await changes.quote("acme", "\0") is None
    with pytest.raises(InvalidInput, match=r"^by: "):
        await changes.add_quote(QUOTE._replace(made_by="a\0"))
    await changes.add_quote(QUOTE)
    with pytest.raises(InvalidInput, match=r"^by: "):
        await changes.intend(QUOTE, "a\0", NOW_MS)


async def test_the_same_id_keeps_the_first_quote_and_refuses_another_request(changes: PlanChanges) -> None:
    await changes.add_quote(QUOTE)

    assert await changes.add_quote(QUOTE._replace(due_minor=1)) == QUOTE
    for other in (QUOTE._replace(request="[]"), QUOTE._replace(account="globex")):
        with pytest.raises(InvalidInput, match="another request"):
            await changes.add_quote(other)


async def test_an_account_has_one_open_change(changes: PlanChanges) -> None:
    first = await intended(changes)
    second = await intended(changes, QUOTE._replace(id="qt_2"))
    other = await intended(changes, QUOTE._replace(id="qt_3", account="globex"))

    assert (first.quote, second, other.quote) == ("qt_1", first, "qt_3")
    accepted = await changes.quote("acme", "qt_1")
    assert accepted is not None
    assert (accepted.accepted_ms, accepted.accepted_by) == (NOW_MS, "ann")
    assert await intended(changes) == first == await changes.operation("qt_1")
    await changes.settle(first, OperationState.DONE, "", "in_1", 4750, NOW_MS)
    assert (await intended(changes, QUOTE._replace(id="qt_2"))).quote == "qt_2"


async def test_of_quotes_accepted_at_once_one_is_carried_out(changes: PlanChanges) -> None:
    quotes = [await changes.add_quote(QUOTE._replace(id=f"qt_{each}")) for each in range(6)]
    found = await asyncio.gather(*(changes.intend(quote, "ann", NOW_MS) for quote in quotes))

    assert len(set(found)) == 1


async def test_steps_are_noted_once(changes: PlanChanges) -> None:
    """A process that is behind changes nothing."""
    planned = await intended(changes)
    sent = await changes.sent(planned, NOW_MS + 1)
    again = await changes.sent(sent, NOW_MS + 2)
    doubted = await changes.doubt(again, NOW_MS + 3)
    stepped = await changes.stepped(doubted, "sub_2", NOW_MS + 4)
    behind = [await changes.stepped(planned, "sub_3", NOW_MS + 5), await changes.sent(planned, NOW_MS + 6)]

    assert [each.state.value for each in (planned, sent, doubted, stepped)] == ["planned", "sent", "unknown", "sent"]
    assert (sent.sent_ms, again.sent_ms, again.touched_ms) == (NOW_MS + 1, NOW_MS + 1, NOW_MS + 2)
    assert (stepped.step, stepped.sent_ms, stepped.subscription) == (1, None, "sub_2")
    assert behind == [stepped, stepped]


async def test_an_end_is_noted_once_with_the_invoice(changes: PlanChanges, side_tables: SideTables) -> None:
    operation = await intended(changes)
    done = await changes.settle(operation, OperationState.DONE, "paid", "in_1", 4751, NOW_MS + 1)
    again = await changes.settle(operation, OperationState.FAILED, "no", "", None, NOW_MS + 2)
    quote = await changes.quote("acme", "qt_1")

    assert done == again
    assert (done.state, done.detail) == (OperationState.DONE, "paid")
    assert quote is not None
    assert (quote.invoice, quote.charged_minor, quote.is_differing) == ("in_1", 4751, True)
    assert [row.actor for row in await side_tables.audit("acme")] == ["ann", "stripe"]
    assert [await changes.differing(since_ms) for since_ms in (NOW_MS, NOW_MS + 1)] == [1, 0]


async def test_open_operations_are_found_by_their_age(changes: PlanChanges) -> None:
    assert await changes.oldest_open_ms() is None
    first = await intended(changes)
    later = await changes.sent(await intended(changes, QUOTE._replace(id="qt_3", account="globex")), NOW_MS + 9)

    assert await changes.oldest_open_ms() == NOW_MS
    assert await changes.open_before(NOW_MS, 10) == [first]
    assert await changes.open_before(NOW_MS + 9, 10) == [first, later]
    assert await changes.open_before(NOW_MS + 9, 1) == [first]
