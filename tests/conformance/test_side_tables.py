"""What the side tables promise, on PostgreSQL and on the simulation's fake."""

from __future__ import annotations

import hashlib
import json
from typing import cast

import pytest
from sqlalchemy import Connection, select

from schemas.billing_events import ObjectKind, ObjectName, StripeEvent, Via
from schemas.errors import Fenced, InvalidInput, OperatorNeeded
from schemas.side_tables import Due, Fetched, Link, Outcome, SideTables, Stale, Unstorable
from sinks.sql.side_tables import SqlSideTables
from sinks.sql.tables import audit
from tests.conformance.side_table_steps import (
    ANCHOR_MS,
    NOW_MS,
    event,
    fetched_invoice,
    fetched_subscription,
    invoice,
    linked,
    step,
    subscription,
)
from tests.services.postgres import LOG_ID, SCOPE

CUSTOMER = ObjectName(ObjectKind.CUSTOMER, "cus_1")
MINUTE = NOW_MS // 60_000 * 60_000
GONE = Fetched(subscription(), 0, {})


async def test_migrating_again_changes_nothing(side_tables: SideTables) -> None:
    await side_tables.commit(step(0))
    await side_tables.migrate(SCOPE, LOG_ID)
    assert await side_tables.position(0) == 1


@pytest.mark.parametrize(("scope", "log_id"), [("live:acct_1", LOG_ID), ("test:acct_2", LOG_ID), (SCOPE, "log-2")])
async def test_another_deployment_is_refused(side_tables: SideTables, scope: str, log_id: str) -> None:
    with pytest.raises(OperatorNeeded, match="TIDEMARK_SQL_URL"):
        await side_tables.migrate(scope, log_id)


async def test_a_position_moves_only_from_the_believed_one(side_tables: SideTables) -> None:
    assert await side_tables.position(0) is None
    await side_tables.commit(step(7))
    await side_tables.commit(step(8, next_offset=20))
    await side_tables.commit(step(3, partition=1))
    assert (await side_tables.position(0), await side_tables.position(1)) == (20, 4)
    for believed_offset in (7, 8, 19, 21):
        with pytest.raises(Fenced):
            await side_tables.commit(step(believed_offset))
    assert await side_tables.position(0) == 20


async def test_a_fenced_step_writes_nothing(side_tables: SideTables) -> None:
    await linked(side_tables)
    await side_tables.commit(step(5))
    before = await side_tables.audit("acme")
    with pytest.raises(Fenced):
        await side_tables.commit(step(5, [event(1, subscription())], [fetched_subscription()]))
    assert not (await side_tables.mirror())["subscriptions"]
    assert await side_tables.unknown(["evt_1"]) == {"evt_1"}
    assert await side_tables.audit("acme") == before
    assert not await side_tables.due_bindings()


async def test_a_step_writes_rows_audit_bindings_and_position(side_tables: SideTables) -> None:
    await linked(side_tables)
    outcomes = await side_tables.commit(step(0, [event(1, subscription())], [fetched_subscription(seats=(3, 4))]))
    assert outcomes == {"evt_1": Outcome.APPLIED}
    mirror = await side_tables.mirror()
    assert [(row["id"], row["status"]) for row in mirror["subscriptions"]] == [("sub_1", "active")]
    assert [(row["id"], row["quantity"]) for row in mirror["subscription_items"]] == [("si_1_0", 3), ("si_1_1", 4)]
    assert await side_tables.fetch_seqs([subscription(), invoice()]) == {subscription(): 1, invoice(): 0}
    (due,) = await side_tables.due_bindings()
    assert (due.account, due.number, due.binding.effective_from_ms) == ("acme", 1, ANCHOR_MS)
    assert await side_tables.position(0) == 1
    assert not await side_tables.unknown(["evt_1"])


async def test_an_audit_row_has_what_changed_and_nothing_else(side_tables: SideTables) -> None:
    await linked(side_tables)
    await side_tables.commit(step(0, [event(1, subscription())], [fetched_subscription(seats=(3, 4))]))
    await side_tables.commit(
        step(1, [event(2, subscription())], [fetched_subscription(1, seats=(9,), status="past_due")], now_ms=NOW_MS + 5)
    )
    *_, row = await side_tables.audit("acme")
    assert (row.seq, row.at_ms, row.actor, row.cause) == (3, NOW_MS + 5, "stripe", "evt_2")
    assert (row.entity, row.entity_id, row.reason) == ("subscription", "sub_1", "customer.subscription.updated")
    before, after = json.loads(row.before or ""), json.loads(row.after or "")
    gone = before["subscription_items"].pop("si_1_1")
    assert (gone["quantity"], gone["subscription_id"]) == (4, "sub_1")
    assert before == {
        "subscriptions": {"sub_1": {"status": "active"}},
        "subscription_items": {"si_1_0": {"quantity": 3}},
    }
    assert after == {
        "subscriptions": {"sub_1": {"status": "past_due"}},
        "subscription_items": {"si_1_0": {"quantity": 9}},
    }


async def test_every_audit_row_has_the_hash_of_the_row_before_in_its_own(side_tables: SideTables) -> None:
    await linked(side_tables)
    await linked(side_tables, "other", "cus_2")
    for number in range(3):
        await side_tables.commit(
            step(number, [event(number, invoice())], [fetched_invoice(number, total_minor=number)])
        )

    def hashes(connection: Connection) -> list[str]:
        return list(
            connection.execute(select(audit.c.hash).where(audit.c.account == "acme").order_by(audit.c.seq)).scalars()
        )

    rows = await side_tables.audit("acme")
    expected, last = [], ""
    for row in rows:
        text = json.dumps([last, *row], separators=(",", ":"), ensure_ascii=False)
        last = hashlib.sha256(text.encode()).hexdigest()
        expected.append(last)
    assert len(rows) == 4
    assert await cast("SqlSideTables", side_tables)._run(hashes) == expected


@pytest.mark.parametrize(
    ("one", "fetched", "outcome", "rows"),
    [
        pytest.param(event(9, subscription()), fetched_subscription(1), Outcome.UNCHANGED, 1, id="nothing changed"),
        pytest.param(event(9, subscription()), fetched_subscription(1, seats=()), Outcome.APPLIED, 1, id="item gone"),
        pytest.param(event(9, subscription()), GONE._replace(fetch_seq=1), Outcome.APPLIED, 1, id="object gone"),
        pytest.param(event(9), None, Outcome.IGNORED, 0, id="no objects"),
        pytest.param(event(9, customer="cus_9"), None, Outcome.IGNORED, 0, id="no objects, no account"),
        pytest.param(
            event(9, subscription(), customer=""), fetched_subscription(1), Outcome.UNCHANGED, 1, id="no name"
        ),
        pytest.param(event(9, invoice(), customer=""), Fetched(invoice(), 0, {}), Outcome.APPLIED, 0, id="nobody's"),
        pytest.param(
            event(9, invoice(), customer="cus_9"), fetched_invoice(customer="cus_9"), Outcome.HELD, 0, id="no account"
        ),
    ],
)
async def test_outcomes(
    side_tables: SideTables, one: StripeEvent, fetched: Fetched | None, outcome: Outcome, rows: int
) -> None:
    await linked(side_tables)
    await side_tables.commit(step(0, [event(1, subscription())], [fetched_subscription()]))
    before = len(await side_tables.audit("acme"))
    assert await side_tables.commit(step(1, [one], [fetched] if fetched else [])) == {"evt_9": outcome}
    assert len(await side_tables.audit("acme")) - before == rows
    assert await side_tables.unknown(["evt_9"]) == ({"evt_9"} if outcome is Outcome.HELD else set())


async def test_a_resync_that_changes_nothing_leaves_no_audit_row(side_tables: SideTables) -> None:
    await linked(side_tables)
    await side_tables.commit(step(0, [event(1, invoice())], [fetched_invoice()]))
    before = await side_tables.audit("acme")
    same = step(1, [event(2, invoice())], [fetched_invoice(1)], via=Via.RESYNC)
    assert await side_tables.commit(same) == {"evt_2": Outcome.UNCHANGED}
    assert await side_tables.audit("acme") == before
    other = step(2, [event(3, invoice())], [fetched_invoice(2, total_minor=5)], via=Via.RESYNC)
    assert await side_tables.commit(other) == {"evt_3": Outcome.APPLIED}
    assert len(await side_tables.audit("acme")) == len(before) + 1


async def test_a_repeated_event_moves_only_the_position(side_tables: SideTables) -> None:
    await linked(side_tables)
    await side_tables.commit(step(0, [event(1, invoice())], [fetched_invoice()]))
    mirror, rows = await side_tables.mirror(), await side_tables.audit("acme")
    again = step(1, [event(1, invoice())], [fetched_invoice(0, total_minor=7)])
    assert await side_tables.commit(again) == {"evt_1": Outcome.APPLIED}
    assert await side_tables.mirror() == mirror
    assert await side_tables.audit("acme") == rows
    assert await side_tables.fetch_seqs([invoice()]) == {invoice(): 1}
    assert await side_tables.position(0) == 2


async def test_an_object_that_only_a_repeated_event_names_is_left_alone(side_tables: SideTables) -> None:
    await linked(side_tables)
    await side_tables.commit(step(0, [event(1, invoice())], [fetched_invoice()]))
    events = [event(1, invoice()), event(2, subscription())]
    await side_tables.commit(step(1, events, [fetched_invoice(0, total_minor=7), fetched_subscription()]))
    mirror = await side_tables.mirror()
    assert [row["total_minor"] for row in mirror["invoices"]] == [1900]
    assert [row["id"] for row in mirror["subscriptions"]] == ["sub_1"]


async def test_a_doubled_event_is_held_at_its_first_place(side_tables: SideTables) -> None:
    await side_tables.commit(step(5, [event(1, invoice()), event(1, invoice())], [fetched_invoice()]))
    assert [(one.event_id, one.offset) for one in await side_tables.held()] == [("evt_1", 5)]


async def test_events_of_one_read_share_a_fetch_and_have_an_audit_row_each(side_tables: SideTables) -> None:
    await linked(side_tables)
    events = [event(1, invoice()), event(2, invoice()), event(1, invoice()), event(3, invoice(), subscription())]
    outcomes = await side_tables.commit(step(0, events, [fetched_invoice(), fetched_subscription()]))
    assert outcomes == {"evt_1": Outcome.APPLIED, "evt_2": Outcome.UNCHANGED, "evt_3": Outcome.APPLIED}
    rows = (await side_tables.audit("acme"))[1:]
    assert [row.cause for row in rows] == ["evt_1", "evt_2", "evt_3"]
    tables = [sorted(json.loads(row.after or "{}")) for row in rows]
    assert tables == [["invoice_lines", "invoices"], [], ["subscription_items", "subscriptions"]]


async def test_an_object_that_came_along_is_written_with_its_customers_event(side_tables: SideTables) -> None:
    await linked(side_tables)
    await linked(side_tables, "other", "cus_2")
    events = [event(1, invoice(2), customer="cus_2"), event(2, invoice())]
    fetched = [fetched_invoice(number=2, customer="cus_2"), fetched_invoice(), fetched_subscription()]
    await side_tables.commit(step(0, events, fetched))
    row = (await side_tables.audit("acme"))[-1]
    assert sorted(json.loads(row.after or "")) == ["invoice_lines", "invoices", "subscription_items", "subscriptions"]


async def test_a_stale_fetch_writes_nothing(side_tables: SideTables) -> None:
    await linked(side_tables)
    await side_tables.commit(step(0, [event(1, invoice())], [fetched_invoice()]))
    mirror, rows = await side_tables.mirror(), await side_tables.audit("acme")
    for fetch_seq in (0, 2):
        slow = fetched_invoice(fetch_seq, total_minor=5)
        with pytest.raises(Stale):
            await side_tables.commit(step(1, [event(2, invoice(), subscription())], [fetched_subscription(), slow]))
    assert await side_tables.mirror() == mirror
    assert await side_tables.audit("acme") == rows
    assert await side_tables.unknown(["evt_2"]) == {"evt_2"}
    assert await side_tables.position(0) == 1


async def test_a_deleted_object_keeps_its_row_and_loses_its_parts(side_tables: SideTables) -> None:
    await side_tables.commit(step(0, [event(1, invoice())], [fetched_invoice()]))
    await side_tables.commit(step(1, [event(2, invoice())], [Fetched(invoice(), 1, {})]))
    mirror = await side_tables.mirror()
    assert [(row["id"], row["total_minor"], row["deleted"]) for row in mirror["invoices"]] == [("in_1", 1900, 1)]
    assert not mirror["invoice_lines"]


async def test_a_slow_fetch_does_not_bring_back_an_object_that_was_gone_before_the_first_row(
    side_tables: SideTables,
) -> None:
    await side_tables.commit(step(0, [event(1, invoice())], [Fetched(invoice(), 0, {})]))
    with pytest.raises(Stale):
        await side_tables.commit(step(1, [event(2, invoice())], [fetched_invoice(0)]))
    (row,) = (await side_tables.mirror())["invoices"]
    assert (row["deleted"], row["customer_id"]) == (1, None)


@pytest.mark.parametrize(
    "fetched_again",
    [pytest.param([fetched_subscription(1)], id="fetched again"), pytest.param([], id="what the store has")],
)
async def test_a_held_event_is_mirrored_and_applied_once_its_customer_is_linked(
    side_tables: SideTables, fetched_again: list[Fetched]
) -> None:
    events = [event(1, subscription()), event(2, invoice(9), customer="cus_9")]
    fetched = [fetched_subscription(), fetched_invoice(number=9, customer="cus_9")]
    assert set((await side_tables.commit(step(0, events, fetched))).values()) == {Outcome.HELD}
    assert [row["id"] for row in (await side_tables.mirror())["subscriptions"]] == ["sub_1"]
    (held,) = await side_tables.held("cus_1")
    assert held == ("evt_1", "customer.subscription.updated", "cus_1", 0, 0)
    assert [one.event_id for one in await side_tables.held()] == ["evt_1", "evt_2"]
    assert [one.event_id for one in await side_tables.held(limit=1)] == ["evt_1"]

    await linked(side_tables)
    assert [due.account for due in await side_tables.due_bindings()] == ["acme"], "from the rows that are there"
    again = step(2, [event(1, subscription())], fetched_again, next_offset=2)
    assert await side_tables.commit(again) == {"evt_1": Outcome.APPLIED}
    assert not await side_tables.held("cus_1")
    row = (await side_tables.audit("acme"))[-1]
    assert (row.cause, row.before) == ("evt_1", None)
    assert json.loads(row.after or "")["subscriptions"]["sub_1"]["status"] == "active"
    assert await side_tables.position(0) == 2
    assert len(await side_tables.due_bindings()) == 1


async def test_a_held_event_that_is_read_again_without_a_link_stays_held(side_tables: SideTables) -> None:
    await side_tables.commit(step(0, [event(1, invoice())], [fetched_invoice()]))
    again = step(1, [event(1, invoice())], [fetched_invoice(1)], next_offset=1)
    assert await side_tables.commit(again) == {"evt_1": Outcome.HELD}
    assert len(await side_tables.held()) == 1


async def test_an_event_that_is_set_aside_waits_with_its_other_objects_written(side_tables: SideTables) -> None:
    """The event's row in the audit says what was written; the place is the last one that the log has."""
    await linked(side_tables)
    one = event(1, subscription(), invoice())
    aside = frozenset({one.id})
    await side_tables.commit(step(0, [one], [fetched_invoice()])._replace(set_aside=aside))
    again = step(1, [one], [fetched_invoice(1)])._replace(set_aside=aside)
    assert {one.id: Outcome.SET_ASIDE} == await side_tables.commit(again)
    assert [(one.id, 1)] == [(waiting.event_id, waiting.offset) for waiting in await side_tables.set_aside()]
    assert ([], {one.id}) == (await side_tables.held(), await side_tables.unknown([one.id]))
    assert ["evt_1"] == [row.cause for row in await side_tables.audit("acme")][1:]

    done = step(2, [one], [fetched_invoice(2), fetched_subscription()])
    assert {one.id: Outcome.APPLIED} == await side_tables.commit(done)
    assert ([], set()) == (await side_tables.set_aside(), await side_tables.unknown([one.id]))
    assert 1 == len((await side_tables.mirror())["subscriptions"])


async def test_an_event_of_nobody_that_was_set_aside_is_held_when_it_is_read_again(side_tables: SideTables) -> None:
    one = event(1, invoice())
    await side_tables.commit(step(0, [one])._replace(set_aside=frozenset({one.id})))
    assert {one.id: Outcome.HELD} == await side_tables.commit(step(1, [one], [fetched_invoice()]))
    assert [(one.id, 1)] == [(waiting.event_id, waiting.offset) for waiting in await side_tables.held()]


async def test_a_row_that_the_database_refuses_is_named_and_nothing_is_written(side_tables: SideTables) -> None:
    """One line under two invoices. The message has no values: they are people's data."""
    await side_tables.commit(step(0, [event(1, invoice())], [fetched_invoice()]))
    fetched = fetched_invoice(number=2)
    line = {**fetched.rows["invoice_lines"][0], "id": "il_1"}
    doubled = fetched._replace(rows={**fetched.rows, "invoice_lines": [line]})
    with pytest.raises(Unstorable) as caught:
        await side_tables.commit(step(1, [event(2, invoice(2))], [doubled]))
    assert "il_1" not in str(caught.value)
    assert (1, {"evt_2"}) == (await side_tables.position(0), await side_tables.unknown(["evt_2"]))


async def test_a_link_lasts_until_the_accounts_next_one(side_tables: SideTables) -> None:
    await linked(side_tables, customer="cus_1", starts_ms=100)
    await linked(side_tables, customer="cus_2", starts_ms=NOW_MS + 300)
    made = await side_tables.link("acme", "cus_3", NOW_MS + 200, "ada", "corrected", NOW_MS)
    assert made == Link("acme", "cus_3", NOW_MS + 200, NOW_MS + 300)
    assert await side_tables.links("acme") == [
        Link("acme", "cus_1", 100, NOW_MS + 200),
        Link("acme", "cus_3", NOW_MS + 200, NOW_MS + 300),
        Link("acme", "cus_2", NOW_MS + 300, None),
    ]
    assert await side_tables.links("nobody") == []
    row = (await side_tables.audit("acme"))[-1]
    assert (row.actor, row.cause, row.entity_id, row.reason) == ("ada", "account link", "cus_3", "corrected")
    assert [link["ends_ms"] for link in json.loads(row.after or "")] == [NOW_MS + 200, NOW_MS + 300]


@pytest.mark.parametrize("starts_ms", [100, 150, 10**12])
async def test_the_same_link_again_changes_nothing(side_tables: SideTables, starts_ms: int) -> None:
    await linked(side_tables, starts_ms=100)
    assert await side_tables.link("acme", "cus_1", starts_ms, "bob", "again", NOW_MS) == Link("acme", "cus_1", 100)
    assert len(await side_tables.audit("acme")) == 1


@pytest.mark.parametrize(
    ("account", "customer", "starts_ms", "field"),
    [
        pytest.param("other", "cus_1", 150, "customer", id="belongs to acme"),
        pytest.param("other", "cus_1", 50, "customer", id="would run into acme's"),
        pytest.param("other", "cus_1", NOW_MS + 200, None, id="from acme's end"),
        pytest.param("other", "cus_2", 100, "customer", id="will belong to acme"),
        pytest.param("acme", "cus_9", 100, "starts_ms", id="the same instant"),
        pytest.param("acme", "cus_9", MINUTE - 1, "starts_ms", id="before now"),
        pytest.param("", "cus_9", 100, "account", id="no account"),
        pytest.param("acme", "", 500, "customer", id="no customer"),
        pytest.param("acme", "cus\0", 500, "customer", id="NUL"),
        pytest.param("acme", "cus_9", 10**18, "starts_ms", id="after the year 9999"),
    ],
)
async def test_a_customer_belongs_to_one_account_at_a_time(
    side_tables: SideTables, account: str, customer: str, starts_ms: int, field: str | None
) -> None:
    await linked(side_tables, customer="cus_1", starts_ms=100)
    await linked(side_tables, customer="cus_2", starts_ms=NOW_MS + 200)
    if field is None:
        await linked(side_tables, account, customer, starts_ms)
        assert await side_tables.links(account) == [Link(account, customer, starts_ms)]
        return
    with pytest.raises(InvalidInput) as caught:
        await linked(side_tables, account, customer, starts_ms)
    assert caught.value.field == field
    assert await side_tables.links("other") == []
    assert len(await side_tables.audit("acme")) == 2


@pytest.mark.parametrize(
    ("account", "customer", "said"),
    [
        ("other", "cus_1", ("cus_1 belongs to account acme from 1970-01-01T00:00:00Z on, and a customer has one "
         "account at a time: end that with `tidemark account unlink acme`")),
        ("acme", "cus_9", ("account acme has cus_1 from 1970-01-01T00:00:00Z on, and has one customer in a minute: if "
         "cus_9 follows it, link from 1970-01-01T00:01:00Z or later on")),
    ],
    ids=["another account's customer", "another customer in the same minute"],
)  # fmt: skip
async def test_a_refused_link_says_what_to_do(side_tables: SideTables, account: str, customer: str, said: str) -> None:
    """Who gave no instant was told to name a later one."""
    await linked(side_tables, customer="cus_1", starts_ms=0)

    with pytest.raises(InvalidInput) as caught:
        await linked(side_tables, account, customer, 0)

    assert caught.value.message.startswith(said)


async def test_an_unlinked_account_belongs_to_nobody_until_the_next_link(side_tables: SideTables) -> None:
    await linked(side_tables, customer="cus_1", starts_ms=100)
    await linked(side_tables, customer="cus_2", starts_ms=NOW_MS + 200)

    ended = await side_tables.unlink("acme", "bob", "the wrong customer", NOW_MS)

    assert ended == Link("acme", "", MINUTE)
    assert await side_tables.links("acme") == [Link("acme", "cus_1", 100, MINUTE), ended]
    row = (await side_tables.audit("acme"))[-1]
    assert (row.actor, row.cause, row.entity_id, row.reason) == ("bob", "account unlink", "cus_1", "the wrong customer")
    assert [link["customer"] for link in json.loads(row.before or "")] == ["cus_1", "cus_2"]
    assert [link["customer"] for link in json.loads(row.after or "")] == ["cus_1", ""]
    assert await side_tables.unlink("acme", "bob", "again", NOW_MS + 60_000) == ended
    assert len(await side_tables.audit("acme")) == 3

    await linked(side_tables, "other", "cus_1", starts_ms=MINUTE)
    await linked(side_tables, "acme", "cus_3", starts_ms=MINUTE)
    nobody = Link("acme", "", MINUTE - 1, MINUTE)
    after = [Link("acme", "cus_1", 100, MINUTE - 1), nobody, Link("acme", "cus_3", MINUTE)]
    assert await side_tables.links("acme") == after


async def test_an_account_without_a_link_is_not_unlinked(side_tables: SideTables) -> None:
    with pytest.raises(InvalidInput, match="is linked to no customer"):
        await side_tables.unlink("acme", "bob", "", NOW_MS)


async def test_a_customer_that_changed_hands_belongs_to_the_account_of_now(side_tables: SideTables) -> None:
    await linked(side_tables, "acme", "cus_1", starts_ms=0)
    await linked(side_tables, "acme", "cus_2", starts_ms=NOW_MS - 10)
    await linked(side_tables, "other", "cus_1", starts_ms=NOW_MS - 10)
    await side_tables.commit(step(0, [event(1, invoice())], [fetched_invoice()]))
    assert [row.cause for row in await side_tables.audit("other")] == ["account link", "evt_1"]
    assert "evt_1" not in [row.cause for row in await side_tables.audit("acme")]


async def test_bindings_are_due_until_they_are_sent(side_tables: SideTables) -> None:
    await linked(side_tables)
    for index in range(3):
        anchor_ms = ANCHOR_MS + index * 60_000
        await side_tables.commit(
            step(index, [event(index, subscription())], [fetched_subscription(index, anchor_ms=anchor_ms)])
        )
    due = await side_tables.due_bindings()
    assert [(one.number, one.binding.anchor_ms - ANCHOR_MS) for one in due] == [(1, 0), (2, 60_000), (3, 120_000)]
    assert await side_tables.due_bindings(limit=1) == due[:1]
    await side_tables.sent(due[:2], NOW_MS)
    assert await side_tables.due_bindings() == due[2:]
    await side_tables.sent(due, NOW_MS)
    assert await side_tables.due_bindings() == []
    await side_tables.sent([], NOW_MS)


async def test_due_bindings_of_one_account_or_behind_one(side_tables: SideTables) -> None:
    for number, account in enumerate(("acme", "globex", "initech")):
        await linked(side_tables, account, f"cus_{number}")
        fetched = fetched_subscription(number=number, customer_id=f"cus_{number}")
        await side_tables.commit(
            step(number, [event(number, subscription(number), customer=f"cus_{number}")], [fetched])
        )
    assert [due.account for due in await side_tables.due_bindings()] == ["acme", "globex", "initech"]
    assert [due.account for due in await side_tables.due_bindings(account="globex")] == ["globex"]
    assert await side_tables.due_bindings(account="nobody") == []
    assert [due.account for due in await side_tables.due_bindings(1, after="acme")] == ["globex"]
    assert [due.account for due in await side_tables.due_bindings(after="initech")] == []
    assert await side_tables.due() == Due(3, NOW_MS)
    await side_tables.sent(await side_tables.due_bindings(), NOW_MS)
    assert await side_tables.due() == Due(0, None)


async def test_cursors_are_kept_by_name(side_tables: SideTables) -> None:
    assert await side_tables.cursor("events") is None
    await side_tables.move_cursor("events", 100, NOW_MS)
    await side_tables.move_cursor("canary", 7, NOW_MS)
    await side_tables.move_cursor("events", 90, NOW_MS + 1)
    assert (90, NOW_MS + 1) == await side_tables.cursor("events")
    assert (7, NOW_MS) == await side_tables.cursor("canary")


@pytest.mark.parametrize(
    ("change", "since_ms", "heard_ms"),
    [
        pytest.param({}, NOW_MS, NOW_MS, id="in time"),
        pytest.param({}, NOW_MS + 1, None, id="before"),
        pytest.param({"via": Via.LIST}, NOW_MS, None, id="only listed"),
        pytest.param({"type": "customer.created"}, NOW_MS, None, id="another event"),
        pytest.param({"customer": "cus_2"}, NOW_MS, None, id="another customer"),
    ],
)
async def test_a_change_of_a_customer_is_heard_if_it_came_as_a_webhook(
    side_tables: SideTables, change: dict[str, str], since_ms: int, heard_ms: int | None
) -> None:
    """The canary's event."""
    fields = {"type": "customer.updated", "customer": "cus_1", "via": Via.WEBHOOK, **change}
    one = event(1)._replace(type=fields["type"], customer=fields["customer"])
    await side_tables.commit(step(0, [one], via=Via(fields["via"])))
    assert heard_ms == await side_tables.heard_ms("cus_1", since_ms)


async def test_the_mirrors_objects_are_read_page_by_page_and_counted(side_tables: SideTables) -> None:
    """An account of years has more rows than a process has memory."""
    numbers = range(1, 8)
    events = [event(number, invoice(number), customer=f"cus_{number % 2}") for number in numbers]
    fetched = [fetched_invoice(number=number, customer=f"cus_{number % 2}") for number in numbers]
    gone = Fetched(subscription(), 0, {})
    await side_tables.commit(step(0, [*events, event(9, subscription(), customer="cus_9")], [*fetched, gone]))

    for customer, expected in (("", list(numbers)), ("cus_0", [2, 4, 6]), ("cus_8", [])):
        pages: list[tuple[ObjectName, str]] = []
        while page := await side_tables.known(ObjectKind.INVOICE, pages[-1][0].id if pages else "", customer, 2):
            assert len(page) <= 2
            pages += page
        assert pages == [(invoice(number), f"cus_{number % 2}") for number in expected]
    assert [(subscription(), "")] == await side_tables.known(ObjectKind.SUBSCRIPTION)
    found = await side_tables.mirrored(ObjectKind.INVOICE, ["in_2", "in_5", "in_unknown"])
    assert {"invoices": ["in_2", "in_5"], "invoice_lines": ["il_2", "il_5"]} == {
        name: sorted(str(row["id"]) for row in rows) for name, rows in found.items()
    }
    assert {"stripe_customers": [], "payment_methods": []} == await side_tables.mirrored(ObjectKind.CUSTOMER, [])
    counts = await side_tables.counts()
    assert counts == {table: len(rows) for table, rows in (await side_tables.mirror()).items()}
    assert (7, 7, 1, 0) == tuple(
        counts[table] for table in ("invoices", "invoice_lines", "subscriptions", "stripe_customers")
    )


async def test_a_deleted_customer_is_a_row(side_tables: SideTables) -> None:
    await linked(side_tables)
    deleted = Fetched(CUSTOMER, 0, {"stripe_customers": [{"id": "cus_1", "deleted": 1}]})
    assert await side_tables.commit(step(0, [event(1, CUSTOMER)], [deleted])) == {"evt_1": Outcome.APPLIED}
    assert [row["deleted"] for row in (await side_tables.mirror())["stripe_customers"]] == [1]


@pytest.mark.parametrize("columns", [{"total": 5}, {"total_minor": "many"}, {"total_minor": 1 << 70}])
async def test_a_row_of_a_wrong_shape_is_loud(side_tables: SideTables, columns: dict[str, int | str]) -> None:
    row = {"id": "in_1", "customer_id": "cus_1", **columns}
    fetched = Fetched(invoice(), 0, {"invoices": [row]})
    with pytest.raises((ValueError, Unstorable)):
        await side_tables.commit(step(0, [event(1, invoice())], [fetched]))
    assert await side_tables.position(0) is None


async def test_a_step_may_be_longer_than_a_statement(side_tables: SideTables) -> None:
    count = 1_200
    events = [event(number, invoice(number), customer=f"cus_{number}") for number in range(count)]
    fetched = [fetched_invoice(number=number, customer=f"cus_{number}") for number in range(count)]
    for number in range(3):
        await linked(side_tables, f"account {number}", f"cus_{number}")
    outcomes = await side_tables.commit(step(0, events, fetched))
    assert list(outcomes.values()).count(Outcome.APPLIED) == 3
    assert await side_tables.unknown([one.id for one in events]) == {f"evt_{number}" for number in range(3, count)}
    mirror = await side_tables.mirror()
    assert [row["id"] for row in mirror["invoices"]] == sorted(f"in_{number}" for number in range(count))
    assert len(mirror["invoice_lines"]) == count
    assert set((await side_tables.fetch_seqs([one.name for one in fetched])).values()) == {1}
