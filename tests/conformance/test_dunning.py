"""Dunning cases on PostgreSQL and on the simulation's fake: opened and moved by renewals, listed, written off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import Connection, update

from schemas.catalog import Dunning
from schemas.catalog_changes import CatalogPlan
from schemas.clock import DAY_MS
from schemas.dunning import DunningCase, DunningCounts, DunningOutcome, DunningState, ListedCase, Recovery, cursor_of
from schemas.entitlements import Computed, Grant
from schemas.errors import InvalidInput, Transient
from schemas.notices import NoticeKind
from schemas.side_tables import Link, Row
from sinks.sql.dunning_tables import dunning_cases
from sinks.sql.queries import lock_accounts
from sinks.sql.side_tables import SqlSideTables
from tests.unit.catalog.files import SMALL, catalog_of
from tests.worlds.mirrored import NOW_MS, invoice, subscription

POLICY = Dunning()
CATALOG = catalog_of(SMALL)
OURS = {"subscription_id": "subscription_1", "finalized_ms": NOW_MS, "status": "open", "attempt_count": 1}
RETRIED = {**OURS, "next_attempt_ms": NOW_MS + DAY_MS}


class Business:
    """The store, with an account whose subscription is paid by card. `withheld` has what the last renewal was told."""

    def __init__(self, tables: SqlSideTables) -> None:
        self.tables, self.withheld = tables, list[tuple[Any, Any]]()

    async def begin(self) -> None:
        plan = CatalogPlan(CATALOG, "sha", "", "", in_place=False, actions=(), refusals=(), drift=(), touched={})
        await self.tables.catalog.begin_catalog(plan, "ann", "a test", NOW_MS)
        await self.tables.catalog.activate_catalog(plan, {}, [], NOW_MS)
        await self.tables.link("acme", "cus_1", 0, "ann", "", NOW_MS)
        await self.subscribed()

    async def subscribed(self, status: str = "past_due", **columns: Any) -> None:
        columns = {"collection_method": "charge_automatically", **columns}
        await subscription(self.tables, status=status, **columns)

    def resolve(
        self, links: Sequence[Link], mirror: Mapping[str, Sequence[Row]], people: Sequence[Grant], _: int, /
    ) -> Computed:
        """Resolve nothing but who is asked and when what is lost."""
        self.withheld = [(row["subscription_id"], row["downgrade_ms"]) for row in mirror["dunning_cases"]]
        return Computed(f"{links} {people} {self.withheld}", "[]", ())

    async def renew(self, days: float = 0, account: str = "acme") -> None:
        now_ms = NOW_MS + round(days * DAY_MS)
        await self.tables.entitlements.renew(account, "sha", self.resolve, now_ms, POLICY)

    async def cases(self, **which: Any) -> Sequence[DunningCase]:
        return [listed.case for listed in await self.tables.dunning.listed(**which)]

    async def states(self) -> list[str]:
        return [str(case.outcome or case.state) for case in await self.cases()]


@pytest_asyncio.fixture
async def business(side_tables: SqlSideTables) -> Business:
    """An account that was just renewed, and owes nothing."""
    business = Business(side_tables)
    await business.begin()
    await business.renew()
    return business


async def test_a_case_from_the_failure_to_the_payment(business: Business) -> None:
    """Each move is in the audit, with the event that made it or the time, and the account is fresh after each."""
    store = business.tables.entitlements
    assert (await business.states(), await store.due(NOW_MS)) == ([], [])
    await invoice(business.tables, **RETRIED)
    await business.renew()
    assert (await business.states(), business.withheld, await store.stale()) == (
        ["notified"],
        [("subscription_1", None)],
        [],
    )
    await invoice(business.tables, **{**RETRIED, "attempt_count": 2})
    await business.renew(1)
    assert [await store.due(NOW_MS + days * DAY_MS) for days in (2, 3)] == [[], ["acme"]]
    await business.renew(3)
    assert await business.states() == ["urgent"]
    await business.subscribed("unpaid")
    await business.renew(14)
    assert (await business.states(), business.withheld) == (
        ["final_warning"], [("subscription_1", NOW_MS + 17 * DAY_MS)],
    )  # fmt: skip
    await business.renew(17)
    assert await business.states() == ["downgraded"]
    await business.subscribed("active")
    await invoice(business.tables, **{**OURS, "status": "paid", "remaining_minor": 0})
    await business.renew(18)

    (case,) = await business.cases()
    assert (case.outcome, case.closed_ms, case.amount_minor) == (DunningOutcome.RECOVERED, NOW_MS + 18 * DAY_MS, 14_900)
    assert (business.withheld, await store.stale(), await store.due(NOW_MS + 99 * DAY_MS)) == (
        [("subscription_1", None)],
        [],
        [],
    )
    reached = {
        state.value: (at_ms - NOW_MS) / DAY_MS
        for state, at_ms in (await business.tables.dunning.steps(case.id)).items()
    }
    assert reached == {"notified": 0, "urgent": 3, "final_warning": 14, "downgraded": 17, "closed": 18}
    rows = [row for row in await business.tables.audit("acme") if row.entity == "dunning"]
    assert [(row.reason, row.cause.startswith("evt_"), row.entity_id) for row in rows] == [
        (reason, by_stripe, case.id)
        for reason, by_stripe in [
            ("notified", True), ("urgent", False), ("final_warning", True), ("downgraded", False), ("recovered", True),
        ]
    ]  # fmt: skip
    assert {row.cause for row in rows if not row.cause.startswith("evt_")} == {"dunning"}


async def test_a_renewal_that_finds_nothing_new_writes_nothing(business: Business) -> None:
    await invoice(business.tables, **RETRIED)
    await business.renew()
    before = await business.tables.audit("acme")
    await business.renew(0.5)
    assert await business.tables.audit("acme") == before


NO_CASE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "of no subscription": ({}, {**OURS, "subscription_id": None}),
    "not tried yet": ({}, {**OURS, "attempt_count": 0}),
    "paid": ({}, {**OURS, "status": "paid"}),
    "of a customer who pays by transfer": ({"collection_method": "send_invoice"}, OURS),
    "of a subscription that never began": ({"status": "incomplete"}, OURS),
    "of a change that is not made until it is paid": (
        {"pending_update_until_ms": NOW_MS + 1, "latest_invoice_id": "invoice_1"}, OURS,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("of", "columns"), NO_CASE.values(), ids=NO_CASE)
async def test_an_invoice_that_begins_no_case(business: Business, of: dict[str, Any], columns: dict[str, Any]) -> None:
    await business.subscribed(**of)
    await invoice(business.tables, **columns)
    await business.renew()
    assert await business.states() == []


async def test_invoices_of_one_subscription_share_a_case(business: Business) -> None:
    await invoice(business.tables, **RETRIED)
    await business.renew()
    await invoice(
        business.tables, number=2, **{**RETRIED, "finalized_ms": NOW_MS + DAY_MS, "hosted_url": "https://two"}
    )
    await business.renew(1)
    await invoice(business.tables, **{**RETRIED, "status": "paid", "remaining_minor": 0})
    await business.renew(2)

    (listed,) = await business.tables.dunning.listed()
    assert (listed.invoices, listed.open_minor, listed.pay_url) == (("invoice_2",), 14_900, "https://two")
    assert (listed.case.opened_ms, listed.case.amount_minor) == (NOW_MS, 29_800)


async def test_a_case_that_is_written_off_asks_no_more(business: Business) -> None:
    """Its invoices stay open at Stripe and begin no other case; the next invoice does."""
    await business.subscribed("unpaid")
    await invoice(business.tables, **OURS)
    await business.renew(10)
    (case,) = await business.cases()
    assert business.withheld == [("subscription_1", NOW_MS + 13 * DAY_MS)]
    made = await business.tables.dunning.write_off(case.id, "ann", "goodwill", NOW_MS + 11 * DAY_MS)
    again = await business.tables.dunning.write_off(case.id, "ann", "goodwill", NOW_MS + 12 * DAY_MS)
    assert (made.outcome, again) == (DunningOutcome.WRITTEN_OFF, made)
    assert await business.tables.entitlements.stale() == ["acme"]
    await business.renew(12)
    assert (await business.states(), business.withheld) == (["written_off"], [])
    row = [row for row in await business.tables.audit("acme") if row.entity == "dunning"][-1]
    assert (row.actor, row.cause, row.reason) == ("ann", "dunning write-off", "goodwill")

    await invoice(business.tables, number=2, **{**OURS, "finalized_ms": NOW_MS + 31 * DAY_MS})
    await business.renew(31)
    assert await business.states() == ["final_warning", "written_off"]


@pytest.mark.parametrize(
    ("name", "actor", "reason", "field"),
    [("dun_9", "ann", "why", "case"), ("dun_\0", "ann", "why", "case"), ("", " ", "why", "actor"),
     ("", "ann", "", "reason")],
    ids=["unknown", "a NUL", "nobody", "no reason"],
)  # fmt: skip
async def test_what_cannot_be_written_off(business: Business, name: str, actor: str, reason: str, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        await business.tables.dunning.write_off(name, actor, reason, NOW_MS)
    assert caught.value.field == field


async def test_what_failed_after_a_case_was_given_up_is_written_off_with_it(business: Business) -> None:
    """Stripe leaves the subscription past due and goes on making invoices."""
    await invoice(business.tables, **RETRIED)
    for day in (0, 21, 24, 54):
        await business.renew(day)
    assert await business.states() == ["churned"]
    await invoice(business.tables, number=2, **{**RETRIED, "finalized_ms": NOW_MS + 61 * DAY_MS})
    await business.renew(61)
    (listed,) = await business.tables.dunning.listed()
    assert (listed.invoices, business.withheld) == (
        ("invoice_1", "invoice_2"), [("subscription_1", NOW_MS + 24 * DAY_MS)],
    )  # fmt: skip
    await business.tables.dunning.write_off(listed.case.id, "ann", "goodwill", NOW_MS + 62 * DAY_MS)
    await business.renew(63)
    assert await business.states() == ["written_off"]


async def test_what_was_paid_cannot_be_written_off(business: Business) -> None:
    await invoice(business.tables, **RETRIED)
    await business.renew()
    await invoice(business.tables, **{**OURS, "status": "paid"})
    await business.renew(1)
    (case,) = await business.cases()
    with pytest.raises(InvalidInput, match="was paid"):
        await business.tables.dunning.write_off(case.id, "ann", "why", NOW_MS)


async def test_a_customer_who_moves_to_another_account_takes_the_case_along(business: Business) -> None:
    """Of an account that is linked to nobody, nothing is due."""
    await invoice(business.tables, **RETRIED)
    await business.renew()
    await business.tables.unlink("acme", "ann", "", NOW_MS + DAY_MS)
    await business.renew(1)
    assert [case.next_ms for case in await business.cases()] == [None]
    await business.renew(4)
    assert (await business.states(), await business.tables.entitlements.due(NOW_MS + 9 * DAY_MS)) == (["notified"], [])
    await business.tables.link("globex", "cus_1", NOW_MS + 4 * DAY_MS, "ann", "", NOW_MS + 4 * DAY_MS)
    await business.renew(22, "globex")
    (case,) = await business.cases(account="globex")
    assert (case.state, case.opened_ms, await business.cases(account="acme")) == (
        DunningState.FINAL_WARNING, NOW_MS, [],
    )  # fmt: skip
    await business.renew(25)
    await business.renew(25, "globex")
    assert await business.states() == ["downgraded"]


async def test_of_an_account_without_its_customer_nobody_is_noticed(business: Business) -> None:
    await invoice(business.tables, **{**RETRIED, "attempt_count": 2})
    await business.renew(3)
    told = [await business.tables.notices.facts(NoticeKind.PAYMENT_URGENT, NOW_MS + 3 * DAY_MS)]
    await business.tables.unlink("acme", "ann", "", NOW_MS + 4 * DAY_MS)
    await business.renew(4)
    told.append(await business.tables.notices.facts(NoticeKind.PAYMENT_URGENT, NOW_MS + 4 * DAY_MS))
    assert [[fact.account for fact in facts] for facts in told] == [["acme"], []]


@pytest.mark.parametrize(
    ("status", "unbilled"), [("unpaid", "unpaid"), ("paused", "paused"), ("active", ""), ("past_due", "")]
)
async def test_who_paid_and_is_billed_no_more_is_named(business: Business, status: str, unbilled: str) -> None:
    """The customer paid late, when the newest invoice was a draft of the next period. Then that one fails too."""
    await invoice(business.tables, **RETRIED)
    await business.renew()
    await invoice(business.tables, **{**OURS, "status": "paid", "remaining_minor": 0})
    await business.subscribed(status)
    await business.renew(40)
    assert [listed.unbilled for listed in await business.tables.dunning.listed()] == [unbilled]
    await invoice(business.tables, number=2, **{**RETRIED, "finalized_ms": NOW_MS + 41 * DAY_MS})
    await business.renew(41)
    assert [listed.unbilled for listed in await business.tables.dunning.listed()] == ["", ""]


@pytest.mark.parametrize(("status", "days"), [("unpaid", 43), ("paused", 43), ("active", None)])
async def test_who_is_billed_no_more_has_the_plan_for_days(business: Business, status: str, days: int | None) -> None:
    """From the payment on. When Stripe bills again, the plan has no end; another failure is another case."""
    await invoice(business.tables, **RETRIED)
    await business.renew()
    await invoice(business.tables, **{**OURS, "status": "paid", "remaining_minor": 0})
    paused = {"pause_reason": "final_payment_failure"} if status == "paused" else {}
    await business.subscribed(status, **paused)
    await business.renew(40)
    ends = None if days is None else NOW_MS + days * DAY_MS
    assert (await business.states(), business.withheld) == (["recovered"], [("subscription_1", ends)])
    await business.renew(42)
    assert business.withheld == [("subscription_1", ends)]
    await business.subscribed("past_due")
    await business.renew(42.5)
    assert business.withheld == [("subscription_1", None)]
    await invoice(business.tables, number=2, **{**RETRIED, "finalized_ms": NOW_MS + 43 * DAY_MS})
    await business.renew(43)
    assert (await business.states(), business.withheld) == (["notified", "recovered"], [("subscription_1", None)])


async def test_another_failure_of_who_is_billed_no_more_is_another_case(business: Business) -> None:
    await invoice(business.tables, **RETRIED)
    await business.renew()
    await invoice(business.tables, **{**OURS, "status": "paid", "remaining_minor": 0})
    await business.subscribed("unpaid")
    await business.renew(40)
    await invoice(business.tables, number=2, **{**RETRIED, "finalized_ms": NOW_MS + 41 * DAY_MS})
    await business.renew(41)
    assert await business.states() == ["final_warning", "recovered"]
    assert [listed.invoices for listed in await business.tables.dunning.listed()] == [("invoice_2",), ()]


async def collecting(business: Business) -> list[tuple[str, str, str, tuple[str, ...]]]:
    """The cases about which Stripe may be to be called."""
    found = await business.tables.dunning.collecting("", 9)
    return [(str(each.case.outcome), each.own_card, each.customer_card, each.invoices) for each in found]


async def test_which_cases_need_calls_of_stripe(business: Business) -> None:
    """An open one; a paid one never; one that was given up until its subscription has ended or all was paid late."""
    assert await collecting(business) == []
    await business.subscribed(default_payment_method="pm_1")
    await invoice(business.tables, **RETRIED)
    await business.renew()
    assert await collecting(business) == [("None", "pm_1", "", ("invoice_1",))]
    (case,) = await business.cases()
    for _ in range(2):
        await business.tables.dunning.tried(case.id, "pm_2")
    assert [each.cards for each in await business.cases()] == ["pm_1 pm_2"]
    assert await business.tables.dunning.collecting(case.id, 9) == []
    for day in (21, 24, 54):
        await business.renew(day)
    assert await collecting(business) == [("churned", "pm_1", "", ("invoice_1",))]
    await invoice(business.tables, **{**OURS, "status": "paid"})
    await business.renew(55)
    assert (await business.states(), await collecting(business)) == (["churned"], [])


async def test_who_canceled_is_not_cleared_away(business: Business) -> None:
    """What the customer owes then is a matter between people."""
    await invoice(business.tables, **RETRIED)
    await business.renew()
    await business.subscribed("canceled", ended_ms=NOW_MS + DAY_MS, cancellation_reason="cancellation_requested")
    await business.renew(1)
    assert (await business.states(), await collecting(business)) == (["churned"], [])


async def test_a_case_that_moves_while_it_is_written_off_is_asked_for_again(
    business: Business, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its account is locked before the case is read again."""
    await invoice(business.tables, **RETRIED)
    await business.renew()
    (case,) = await business.cases()

    def moved(connection: Connection, accounts: Any) -> Any:
        heads = lock_accounts(connection, accounts)
        connection.execute(update(dunning_cases).values(account="globex"))
        return heads

    monkeypatch.setattr("sinks.sql.dunning.lock_accounts", moved)
    with pytest.raises(Transient, match="globex"):
        await business.tables.dunning.write_off(case.id, "ann", "goodwill", NOW_MS)


async def test_cases_are_listed_by_pages(business: Business) -> None:
    for number in range(3):
        await invoice(business.tables, number=number, **{**RETRIED, "finalized_ms": NOW_MS + number * DAY_MS})
        await business.renew(number)
        await invoice(business.tables, number=number, **{**OURS, "status": "paid"})
        await business.renew(number + 0.5)
    await invoice(business.tables, number=4, **{**RETRIED, "finalized_ms": NOW_MS + 4 * DAY_MS})
    await business.renew(4)

    found: list[ListedCase] = []
    while page := await business.tables.dunning.listed(limit=3, before=cursor_of(found[-1]) if found else ""):
        found += page
    assert [(each.case.opened_ms - NOW_MS) // DAY_MS for each in found] == [4, 2, 1, 0]
    assert [len(await business.cases(is_open=is_open)) for is_open in (True, False)] == [1, 3]
    assert await business.cases(account="another\0") == []
    with pytest.raises(InvalidInput, match="next_cursor"):
        await business.tables.dunning.listed(before="yesterday")


async def test_how_many_are_open(business: Business) -> None:
    """And how many of these are of subscriptions that Stripe canceled under us."""
    assert await business.tables.dunning.counts() == DunningCounts({}, 0)
    await invoice(business.tables, **RETRIED)
    await business.renew()
    assert await business.tables.dunning.counts() == DunningCounts({DunningState.NOTIFIED: 1}, 0)
    await business.subscribed("canceled", ended_ms=NOW_MS + DAY_MS, cancellation_reason="payment_failed")
    await business.renew(1)
    assert await business.tables.dunning.counts() == DunningCounts({DunningState.DOWNGRADED: 1}, 1)


@pytest.mark.parametrize("has_ended", [False, True], ids=["unpaid", "canceled by Stripe"])
async def test_nobody_is_offered_what_a_payment_does_not_bring_back(business: Business, has_ended: bool) -> None:
    """An application would show, and a mail would say, that a payment restores the plan."""
    await invoice(business.tables, **RETRIED)
    await business.renew()
    ended = {"status": "canceled", "ended_ms": NOW_MS + DAY_MS, "cancellation_reason": "payment_failed"}
    await business.subscribed(**(ended if has_ended else {"status": "unpaid"}))
    for day in (1, 4):
        await business.renew(day)
    (listed,) = await business.tables.dunning.listed()
    facts = await business.tables.notices.facts(NoticeKind.DOWNGRADED, NOW_MS + 4 * DAY_MS)
    assert (listed.case.state, listed.has_ended, len(facts)) == (DunningState.DOWNGRADED, has_ended, 1 - has_ended)


async def test_how_many_recover(business: Business) -> None:
    """By month of the first failure. What is paid after thirty days, and what was found late, does not count."""
    for number, paid_after in ((0, 5), (1, 31)):
        begins = number * 40
        await invoice(business.tables, number=number, **{**RETRIED, "finalized_ms": NOW_MS + begins * DAY_MS})
        await business.renew(begins)
        await invoice(business.tables, number=number, **{**OURS, "status": "paid"})
        await business.renew(begins + paid_after)
    await invoice(business.tables, number=3, **{**RETRIED, "finalized_ms": NOW_MS + 81 * DAY_MS})
    await business.renew(86)

    starts = [NOW_MS + days * DAY_MS for days in (0, 40, 80, 120)]
    assert await business.tables.dunning.recoveries(starts) == [
        Recovery(starts[0], "usd", 2, 1, 1, 14_900, 14_900, 0),
        Recovery(starts[1], "usd", 2, 1, 0, 14_900, 0, 0),
    ]
